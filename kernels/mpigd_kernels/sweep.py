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
from mpigd_kernels.lanes import borrowed
from mpigd_kernels.sums import PANEL, WIDTH, add_plain, collect, flush_all, spread, take_block, within_limits

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


<<<<<<< HEAD
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
=======
@njit(**_OPTIONS, forceinline=True)
def residuals(loss, z, y, c, a, r, l, spare):
    """The pointwise function that `loss` names: z (k, m), y (q, m), c (m,), a -> r (k, m), l (m,).

    From FOLDS on k models of one output: column q does not see the rows whose fold y[1] is q; l is the sum over columns.
    spare (2, m or more): room for folds.
    """
    folds, m = loss >= FOLDS, l.size
    # One call for both, in a loop of one column or of k: two calls would be two copies of all losses.
    for q in range(z.shape[0] if folds else 1):
        for i in range(m if folds else 0):
            spare[0, i] = 0.0 if y[1, i] == q else c[i]
        own, mine, weights, one = (z[q : q + 1], r[q : q + 1], spare[0, :m], spare[1, :m]) if folds else (z, r, c, l)
        _of_loss(loss - FOLDS if folds else loss, own, y, weights, a, mine, one)
>>>>>>> 3bf51b7 (wip)
        for i in range(m if folds else 0):
            l[i] = one[i] if q == 0 else l[i] + one[i]


<<<<<<< HEAD
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
=======
@njit(**_OPTIONS, forceinline=True)
def _of_loss(loss, z, y, c, a, r, l):
    """residuals() of everything but folds."""
    if loss == SQUARED:
        pointwise.squared(z, y[0], c, a, r, l)
    elif loss == LOGISTIC:
        pointwise.logistic(z, y[0], c, a, r, l)
    elif loss == SOFTMAX:
        pointwise.softmax(z, y[0], c, a, r, l)
    elif loss == HINGE:
        pointwise.hinge(z, y[0], c, a, r, l)
    elif loss == SQUARED_HINGE:
        pointwise.squared_hinge(z, y[0], c, a, r, l)
    elif loss == HUBER:
        pointwise.huber(z, y[0], c, a, r, l)
    elif loss == QUANTILE:
        pointwise.quantile(z, y[0], c, a, r, l)
    elif loss == POISSON:
        pointwise.poisson(z, y[0], c, a, r, l)
    elif loss == GAMMA:
        pointwise.gamma(z, y[0], c, a, r, l)
    elif loss == PRODUCT:
        curvature.product(z, y, c, a, r, l)
    elif loss == SOFTMAX_PRODUCT:
        curvature.softmax_product(z, y, c, a, r, l)
    else:
        curvature.squares(z, y, c, a, r, l)
>>>>>>> 3bf51b7 (wip)


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
<<<<<<< HEAD
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
=======
    filled = _dense_blocks(
        np.empty((2 * k + y.shape[0] + 1) * block), np.full(block, c[0]), np.empty((2, block)), np.empty((1 + k, WIDTH)),
        dense.room_for_floats(values, block), values, first, order, m, block, y, c, offset, coef, intercept, loss, a, keep,
        limits, biases, S, counts, tops, A, C, D, T, filled,
    )  # fmt: skip
>>>>>>> 3bf51b7 (wip)
    if C is not None and filled > 0:  # here, because a step of few rows would notice another call
        flush_all(A, C, D, T)
        filled = 0
    return filled


@njit(**_OPTIONS)
def _dense_blocks(
    room, every, spare, lanes, floats, values, first, order, m, block, y, c, offset, coef, intercept, loss, a, keep,
    limits, biases, S, counts, tops, A, C, D, T, filled,
):  # fmt: skip
    """sweep_dense with the room that it needs. The caller holds all arrays, so that views of them are cheap ones."""
    room, every, spare, lanes, floats = borrowed(room), borrowed(every), borrowed(spare), borrowed(lanes), borrowed(floats)
    values, order, y, c, coef, keep = borrowed(values), borrowed(order), borrowed(y), borrowed(c), borrowed(coef), borrowed(keep)
    limits, biases, S, counts, tops = borrowed(limits), borrowed(biases), borrowed(S), borrowed(counts), borrowed(tops)
    offset, intercept, A, C, D, T = borrowed(offset), borrowed(intercept), borrowed(A), borrowed(C), borrowed(D), borrowed(T)
    open_lanes(lanes, biases)
    terms = 0
    for start in range(0, m, block):
        begin, n = first + start, min(block, m - start)
        z, r, t, l = _views(room, A.shape[1], y.shape[0], n)
        weights = every[:n]
        _take_vectors(order, begin, y, c, t, weights)
        X, rows, at = dense.as_floats(values, order, begin, floats[:n])
        dense.margins_of_all(X, rows, at, coef, intercept, z)
        _shift_and_keep(z, order, begin, offset, keep)
        residuals(loss, z, t, weights, a, r, l, spare)
        if take_scalars(r, l, limits, S, counts, tops, C, lanes):
            filled = add_dense(X, rows, at, r, A, C, D, T, filled)
        terms += n // WIDTH + 1
        if terms > PANEL // 2:
            collect_all(lanes, biases, S, C)
            terms = 0
    collect_all(lanes, biases, S, C)
    return filled


@njit(**_OPTIONS)
def open_lanes(lanes, biases):
    """Empty accumulators (1 + k, WIDTH) for sums of losses and residuals on the grids of biases (2,)."""
    for q in range(lanes.shape[0]):
        for j in range(WIDTH):
            lanes[q, j] = biases[min(q, 1)]


@njit(**_OPTIONS)
def collect_all(lanes, biases, S, C):
    """Move what the accumulators hold into S (1 + k, 2), unless sums are plain."""
    if C is not None:
        for q in range(lanes.shape[0]):
            collect(lanes[q], biases[min(q, 1)], S[q])


@njit(**_OPTIONS)
def sweep_csr(
    indptr, indices, data, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
    limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """sweep_dense of compressed rows; they are flushed every `panel` rows."""
    k = A.shape[1]
    room, every = np.empty((2 * k + y.shape[0] + 1) * block), np.full(block, c[0])
    ends, spare = np.empty((2, block), np.int64), np.empty((2, block))
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
<<<<<<< HEAD
        residuals(what, loss, z, t, weights, r, l)
        if take_scalars(r, l, limits, biases, S, counts, tops, C):
=======
        residuals(loss, z, t, weights, a, r, l, spare)
        if take_vector_sums(r, l, limits, biases, S, counts, tops, C):
>>>>>>> 3bf51b7 (wip)
            held = filled
            for q in range(k):
                held = add_sparse(starts, stops, indices, data, r[q], A, C, D, T, q, filled, panel)
            filled = held
    return filled


@njit(**_OPTIONS, forceinline=True)
def _views(room, k, targets, n):
    """Room for n rows: margins and residuals (k, n), targets (q, n), losses (n,)."""
    ends = k * n, 2 * k * n, (2 * k + targets) * n
    z, r, t = room[: ends[0]].reshape(k, n), room[ends[0] : ends[1]].reshape(k, n), room[ends[1] : ends[2]].reshape(targets, n)
    return z, r, t, room[ends[2] : ends[2] + n]


@njit(**_OPTIONS, forceinline=True)
def _row(order, i):
    return order[i] if order.size > 0 else i


@njit(**_OPTIONS, forceinline=True)
def _take_vectors(order, begin, y, c, t, weights):
    """Targets and weights of a block's rows; one weight for all is there already.

    Loops: assigning slices would bring numba's broadcasting along, two seconds of compilation.
    """
    n = weights.size
    if order.size > 0:
        rows = order[begin : begin + n]
        for i in range(n):
            for q in range(y.shape[0]):
                t[q, i] = y[q, rows[i]]
            if c.size > 1:
                weights[i] = c[rows[i]]
    else:
        for q in range(y.shape[0]):
            _copy(y[q, begin : begin + n], t[q])
        if c.size > 1:
            _copy(c[begin : begin + n], weights)


@njit(**_OPTIONS, forceinline=True)
def _copy(values, out):
    for i in range(out.size):
        out[i] = values[i]


@njit(**_OPTIONS, forceinline=True)
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


@njit(**_OPTIONS, forceinline=True)
def take_scalars(r, l, limits, S, counts, tops, C, lanes):
    """Losses and residuals into accumulators, plain ones into S; False if a limit was exceeded: nothing else needs to be added."""
    if C is None:
        _add_plain(r, l, S)
        return True
    elif not within_limits(r, l, limits, counts, tops):
        return False
    else:
        spread(l, lanes[0])
        for q in range(r.shape[0]):
            spread(r[q], lanes[1 + q])
        return True


@njit(**_OPTIONS)
def take_vector_sums(r, l, limits, biases, S, counts, tops, C):
    """take_scalars straight into S."""
    if C is None:
        _add_plain(r, l, S)
        return True
    else:
        return take_block(r, l, limits, biases, S, counts, tops)


@njit(**_OPTIONS)
def _add_plain(r, l, S):
    S[0, 0] += add_plain(l)
    for q in range(r.shape[0]):
        S[1 + q, 0] += add_plain(r[q])


@njit(**_OPTIONS, forceinline=True)
def add_dense(X, order, first, r, A, C, D, T, filled):
    """Add R X for residuals r (k, n), X_i row first + i in `order`; returns how many rows A holds unflushed."""
    if C is None:
<<<<<<< HEAD
        dense.add_all(X, r, filled * 0, X.shape[0], A[0], later, shift)  # not 0: see accumulate_exact
=======
        dense.add_all(X, order, first, r, 0, r.shape[1], A[0])
>>>>>>> 3bf51b7 (wip)
        return filled
    elif D is None:
        return dense.accumulate_exact(X, order, first, r, A[0], C, T, filled)
    else:
        held = filled
        for q in range(r.shape[0]):
            held = dense.accumulate_fine(X, order, first, r[q], A[0, q], A[1, q], C, D, T[:2, q], T[2:, q], filled)
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
