"""One pass over rows: margins, pointwise, accumulation, a block after the other, so that memory is read once.

The three phases stay functions of their own (dense.py, csr.py, pointwise.py, sums.py); this is the loop around them, compiled,
because at the speed of memory a block takes less time than a few calls from Python. What is not there has size zero: one type
for all, so that little is compiled. Only accumulators without `C` (plain sums) or `D` (one grid) are None, and compiled away.
"""

from collections import namedtuple

import numpy as np
from numba import njit
from numba.extending import overload

from mpigd_kernels import csr, curvature, dense, pointwise
from mpigd_kernels.sums import add_plain, flush_all, take_block

_OPTIONS = dict(nogil=True, cache=True, error_model="numpy")
# What a sweep makes of margins: residuals and losses, those of folds, or one of two products of the Hessian.
LOSS, FOLDS, PRODUCT, SQUARES = range(4)
# The losses, each a type that holds its parameter a, so that a sweep is compiled with the one it needs, not with all nine, for
# seconds. Types, because functions as arguments would be compiled again in every process.
Squared = namedtuple("Squared", "a")
Logistic = namedtuple("Logistic", "a")
Softmax = namedtuple("Softmax", "a")
Hinge = namedtuple("Hinge", "a")
SquaredHinge = namedtuple("SquaredHinge", "a")
Huber = namedtuple("Huber", "a")
Quantile = namedtuple("Quantile", "a")
Poisson = namedtuple("Poisson", "a")
Gamma = namedtuple("Gamma", "a")
KERNELS = {
    Squared: pointwise.squared,
    Logistic: pointwise.logistic,
    Softmax: pointwise.softmax,
    Hinge: pointwise.hinge,
    SquaredHinge: pointwise.squared_hinge,
    Huber: pointwise.huber,
    Quantile: pointwise.quantile,
    Poisson: pointwise.poisson,
    Gamma: pointwise.gamma,
}


@njit(**_OPTIONS)
def residuals(what, loss, z, y, c, r, l):
    """z (k, m), y (q, m), c (m,) -> r (k, m), l (m,): of `loss` where `what` is LOSS; of its curvature, in place of y, PRODUCT.

    FOLDS: of k models of one output: column q does not see the rows whose fold y[1] is q; l is the sum over columns.
    """
    if what == PRODUCT:
        product(loss, z, y, c, r, l)
        return
    if what == SQUARES:
        curvature.squares(z, y, c, loss.a, r, l)
        return
    folds, m = what == FOLDS, l.size
    room = np.empty((2, m if folds else 0))
    # One call for both, in a loop of one column or of k: two calls would be two copies of the loss.
    for q in range(z.shape[0] if folds else 1):
        for i in range(m if folds else 0):
            room[0, i] = 0.0 if y[1, i] == q else c[i]
        own, mine, weights, one = (z[q : q + 1], r[q : q + 1], room[0], room[1]) if folds else (z, r, c, l)
        pointwise_of(loss, own, y[0], weights, mine, one)
        for i in range(m if folds else 0):
            l[i] = one[i] if q == 0 else l[i] + one[i]


def pointwise_of(loss, z, y, c, r, l):
    """The pointwise function of a loss (pointwise.py)."""
    raise NotImplementedError("for compiled code")


@overload(pointwise_of)
def _pointwise_of(loss, z, y, c, r, l):
    kernel = KERNELS[loss.instance_class]
    return lambda loss, z, y, c, r, l: kernel(z, y, c, loss.a, r, l)


def product(loss, z, h, c, r, l):
    """The Hessian's product for the curvature h of a loss (curvature.py)."""
    raise NotImplementedError("for compiled code")


@overload(product)
def _product(loss, z, h, c, r, l):
    kernel = curvature.softmax_product if loss.instance_class is Softmax else curvature.product
    return lambda loss, z, h, c, r, l: kernel(z, h, c, loss.a, r, l)


@njit(**_OPTIONS)
def sweep_dense(
    values, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
    limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """Add the sums of m rows of values (n, d) at coef (k, d), intercept (k,) to accumulators; returns how many A holds unflushed.

    Rows are first, first + 1, ... of everything, or, where `order` has any, order[first], ... : of values, of the targets y
    (q, n), weights c (n,) or one for all, offset (n,) or none. keep (k, n), or nothing, takes their margins. what, loss:
    of residuals(). limits, biases, S, counts, tops: of sums.take_block. A (1 or 2, k, d), C, D (d,),
    T (2 or 4, k, d): accumulators, biases and totals of the grid and of a finer one; plain sums into A where C is None.
    """
    k = A.shape[1]
    room, every = np.empty((2 * k + y.shape[0] + 1) * block), np.full(block, c[0])
    copies = np.empty((block if order.size > 0 else 0, values.shape[1]), values.dtype)
    floats = dense.room_for_floats(values, block)
    for start in range(0, m, block):
        begin, n = first + start, min(block, m - start)
        z, r, t, l = _views(room, k, y.shape[0], n)
        weights = every[:n]
        _take_vectors(order, begin, y, c, t, weights)
        if order.size == 0:
            rows = values[begin : begin + n]
        else:
            dense.gather(values, order[begin : begin + n], copies)
            rows = copies[:n]
        X = dense.as_floats(rows, floats)
        # The next block of rows that lie in order is fetched while this one is computed; of others, what is there already.
        shift = begin + block if dense.in_place(values) and order.size == 0 else 0
        dense.margins_of_all(X, coef, intercept, z, values, shift)
        _shift_and_keep(z, order, begin, offset, keep)
        residuals(what, loss, z, t, weights, r, l)
        if take_scalars(r, l, limits, biases, S, counts, tops, C):
            filled = add_dense(X, values, shift, r, A, C, D, T, filled)
    if C is not None and filled > 0:  # here, because a step of few rows would notice another call
        flush_all(A, C, D, T)
        filled = 0
    return filled


@njit(**_OPTIONS)
def sweep_csr(
    indptr, indices, data, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
    limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """sweep_dense of compressed rows; they are flushed every `panel` rows."""
    k = A.shape[1]
    room, every = np.empty((2 * k + y.shape[0] + 1) * block), np.full(block, c[0])
    ends = np.empty((2, block), np.int64)
    for start in range(0, m, block):
        begin, n = first + start, min(block, m - start)
        z, r, t, l = _views(room, k, y.shape[0], n)
        weights = every[:n]
        _take_vectors(order, begin, y, c, t, weights)
        starts, stops = ends[0, :n], ends[1, :n]
        for i in range(n):
            row = _row(order, begin + i)
            starts[i], stops[i] = indptr[row], indptr[row + 1]
        for q in range(k):
            csr.margins_of(starts, stops, indices, data, coef[q], intercept[q], z[q])
        _shift_and_keep(z, order, begin, offset, keep)
        residuals(what, loss, z, t, weights, r, l)
        if take_scalars(r, l, limits, biases, S, counts, tops, C):
            held = filled
            for q in range(k):
                held = add_sparse(starts, stops, indices, data, r[q], A, C, D, T, q, filled, panel)
            filled = held
    return filled


@njit(**_OPTIONS)
def _views(room, k, targets, n):
    """Room for n rows: margins and residuals (k, n), targets (q, n), losses (n,)."""
    ends = k * n, 2 * k * n, (2 * k + targets) * n
    z, r, t = room[: ends[0]].reshape(k, n), room[ends[0] : ends[1]].reshape(k, n), room[ends[1] : ends[2]].reshape(targets, n)
    return z, r, t, room[ends[2] : ends[2] + n]


@njit(**_OPTIONS)
def _row(order, i):
    return order[i] if order.size > 0 else i


@njit(**_OPTIONS)
def _take_vectors(order, begin, y, c, t, weights):
    """Targets and weights of a block's rows; one weight for all is there already.

    Loops: assigning slices would bring numba's broadcasting along, two seconds of compilation.
    """
    for i in range(weights.size):
        row = _row(order, begin + i)
        for q in range(y.shape[0]):
            t[q, i] = y[q, row]
        if c.size > 1:
            weights[i] = c[row]


@njit(**_OPTIONS)
def _shift_and_keep(z, order, begin, offset, keep):
    """Add the offset to the margins z (k, n), and keep them."""
    if offset.size > 0:
        for q in range(z.shape[0]):
            for i in range(z.shape[1]):
                z[q, i] += offset[_row(order, begin + i)]
    if keep.size > 0:
        for q in range(z.shape[0]):
            for i in range(z.shape[1]):
                keep[q, _row(order, begin + i)] = z[q, i]


@njit(**_OPTIONS)
def take_scalars(r, l, limits, biases, S, counts, tops, C):
    """Losses and residuals into S; False if a limit was exceeded, so that nothing else needs to be added any more."""
    if C is None:
        S[0, 0] += add_plain(l)
        for q in range(r.shape[0]):
            S[1 + q, 0] += add_plain(r[q])
        return True
    else:
        return take_block(r, l, limits, biases, S, counts, tops)


@njit(**_OPTIONS)
def add_dense(X, later, shift, r, A, C, D, T, filled):
    """Add R X for residuals r (k, n), while rows of `later` are fetched; returns how many rows A holds unflushed."""
    if C is None:
        dense.add_all(X, r, filled * 0, X.shape[0], A[0], later, shift)  # not 0: see accumulate_exact
        return filled
    elif D is None:
        return dense.accumulate_exact(X, r, A[0], C, T, filled, later, shift)
    else:
        held = filled
        for q in range(r.shape[0]):
            held = dense.accumulate_fine(X, r[q], A[0, q], A[1, q], C, D, T[:2, q], T[2:, q], filled)
        return held


@njit(**_OPTIONS)
def add_sparse(starts, stops, indices, values, r, A, C, D, T, q, filled, panel):
    """add_dense for compressed rows."""
    if C is None:
        csr.add_rows(starts, stops, indices, values, r, A[0, q])
        return filled
    elif D is None:
        return csr.add_exact(starts, stops, indices, values, r, A[0, q], C, T[:, q], filled, panel)
    else:
        return csr.add_fine(starts, stops, indices, values, r, A[0, q], A[1, q], C, D, T[:2, q], T[2:, q], filled, panel)
