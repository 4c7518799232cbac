"""Dense rows: margins, and residuals times rows. X (n, d) is C-contiguous float32, float64, or the bits of halves as uint16."""

import numpy as np
from numba import types
from numba.extending import overload
from numpy import float64

from mpigd_kernels.compiled import compiled, inlined
from mpigd_kernels.elementary import fma, set_odd
from mpigd_kernels.elements import number, prefetch_row
from mpigd_kernels.lanes import ADDED, AHEAD, ROWS, add_row, add_rows, dot_row, dot_rows, widen_row
from mpigd_kernels.sums import PANEL, flush
from mpigd_kernels.tiles import TILE, add_tile, dot_tile


@compiled
def margins(X, w, b, z):
    """z_i = X_i . w + b: a pure function of the row, wherever it lies."""
    _margins(X, np.empty(0, np.int64), 0, w, b, z)


@inlined
def _margins(X, order, first, w, b, z):
    """margins of rows first, first + 1, ... in `order`."""
    n = z.size
    whole = n // ROWS * ROWS
    for i in range(0, whole, ROWS):
        dot_rows(X, order, first + i, w, b, z, i)
    for i in range(whole, n):
        dot_row(X, order, first + i, w, b, z, i)


@inlined
def _add(X, order, first, r, start, stop, A):
    """A_j = fma(r_i, X_ij, A_j) for i = start to stop, where X_i is row first + i in `order`."""
    whole = start + (stop - start) // ADDED * ADDED
    behind = first + r.size
    for i in range(start, whole, ADDED):
        add_rows(X, order, first + i, r, i, A, behind + i // ADDED)
    for i in range(whole, stop):
        add_row(X, order, first + i, r, i, A, behind)


@inlined
def accumulate_exact(X, order, first, R, A, C, T, filled):
    """Add R X, each product rounded to the grid of its column, into A (k, d) and, every PANEL rows, into the totals T (2, k, d).

    X_i is row first + i in `order`. A starts at C and R (k, n) is odd (sums.py). `filled` rows are in A already; returns how
    many are at the end.
    """
    start, n = (
        filled * 0,
        R.shape[1],
    )  # a plain 0 is a type of its own: all that is called would be compiled twice
    while start < n:
        stop = min(n, start + PANEL - filled)
        add_all(X, order, first, R, start, stop, A)
        filled += stop - start
        start = stop
        if filled == PANEL:
            for q in range(A.shape[0]):
                flush(A[q], C, T[:, q])
            filled = 0
    return filled


@inlined
def margins_of_all(X, order, first, W, b, Z):
    """Z (k, n) = W X' + b, every output with the bits of `margins`; X_i is row first + i in `order`."""
    k, n = Z.shape
    tiled = k // TILE * TILE if k >= TILE else 0
    whole = n // TILE * TILE
    for i in range(0, whole if tiled else 0, TILE):
        for q in range(0, tiled, TILE):
            dot_tile(X, order, first + i, W, q, b, Z, i)
    for q in range(tiled):
        for i in range(whole, n):
            dot_row(X, order, first + i, W[q], b[q], Z[q], i)
    for q in range(tiled, k):
        _margins(X, order, first, W[q], b[q], Z[q])


@inlined
def add_all(X, order, first, R, start, stop, A):
    """A (k, d) += R X for i = start to stop, each element a chain of fma in that order; X_i is row first + i in `order`."""
    k = A.shape[0]
    tiled = k // TILE * TILE if k >= TILE else 0
    whole = start + (stop - start) // TILE * TILE
    for i in range(start, whole if tiled else start, TILE):
        for q in range(0, tiled, TILE):
            add_tile(X, order, first + i, R, i, q, A)
    for q in range(tiled):
        for i in range(whole, stop):
            add_row(X, order, first + i, R[q], i, A[q], first + i)
    for q in range(tiled, k):
        _add(X, order, first, R[q], start, stop, A[q])


@compiled
def add_one(X, r, A, C, D, T, q, filled):
    """accumulate_exact of output q alone, r (n,), A (1 or 2, k, d), T (2 or 4, k, d); on two grids with D, plain sums without C.

    For what is added up once, in loading: it is compiled in a fraction of the time.
    """
    order, none = np.empty(0, np.int64), filled * 0  # as in accumulate_exact
    if C is None:
        _add(X, order, none, r, none, r.size, A[0, q])
        return filled
    elif D is None:
        start, n = none, r.size
        while start < n:
            stop = min(n, start + PANEL - filled)
            _add(X, order, none, r, start, stop, A[0, q])
            filled += stop - start
            start = stop
            if filled == PANEL:
                flush(A[0, q], C, T[:, q])
                filled = 0
        return filled
    else:
        return accumulate_fine(
            X, order, none, r, A[0, q], A[1, q], C, D, T[:2, q], T[2:, q], filled
        )


def as_floats(X, order, first, n, room):
    """(X, order, first) as the other kernels read n rows fastest: halves as float64 in `room`, all others as they are.

    Converting a half takes the processor longer than anything else that is done with it, and every element is needed twice.
    """
    raise NotImplementedError("for compiled code")


@overload(as_floats)
def _as_floats(X, order, first, n, room):
    def widened(X, order, first, n, room):
        rows = room[: n * X.shape[1]].reshape(n, X.shape[1])
        widen(X, order, first, rows)
        return rows, order[:0], first * 0

    return (
        widened if X.dtype == types.uint16 else lambda X, order, first, n, room: (X, order, first)
    )


@compiled
def widen(X, order, first, out):
    """out_i (n, d) float64 = X_i, halves, where X_i is row first + i in `order`, as far as there are any."""
    for i in range(out.shape[0]):
        widen_row(X, order, first + i, out, i)


@compiled
def gather(X, rows, out):
    """out_i = X[rows_i]. Asking for rows ahead halves the time: scattered rows are a wait for memory each.

    Over a block that is read in order the same hint costs a third: the hardware sees that pattern by itself.
    """
    n, d = rows.size, X.shape[1]
    for i in range(min(AHEAD, n)):
        prefetch_row(X, rows[i])
    for i in range(n):
        if i + AHEAD < n:
            prefetch_row(X, rows[i + AHEAD])
        row = rows[i]
        for j in range(d):
            out[i, j] = X[row, j]


@compiled
def column_range(X, low, high):
    """Lower `low` and raise `high` (d,) to the range of the columns; NaN is passed over."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            x = float64(X[i, j])
            low[j] = x if x < low[j] else low[j]
            high[j] = x if x > high[j] else high[j]


@compiled
def squared_deviation(X, center, out):
    """out_ij = (X_ij - center_j)**2 in float64."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            t = float64(X[i, j]) - center[j]
            out[i, j] = t * t


@compiled
def scrub(v, smallest):
    """Set elements of v (n,) below `smallest` in size to zero; returns the index of the first not finite, or -1.

    With the smallest normal number of the type, subnormals go: a shared object built with fast maths may set
    flush-to-zero for the thread that loads it, and a sum would then depend on who loaded what.
    """
    bad = 0
    for i in range(v.size):
        x = float64(v[i])
        bad += 0 if abs(x) < np.inf else 1
        v[i] = v[i] * 0 if abs(x) < smallest else v[i]
    if bad:
        for i in range(v.size):
            if not abs(float64(v[i])) < np.inf:
                return i
    return -1


@compiled
def accumulate_fine(X, order, first, r, A, B, C, D, T, U, filled):
    """accumulate_exact, and what rounding to the grid of C cuts off each product, on the finer grid of D, into B and U.

    t = fma(r, x, a) rounds the product to a multiple of u; the rest r x - (t - a) is a function of the product alone.
    """
    for i in range(r.size):
        ri, row = r[i], order[first + i] if order.size > 0 else first + i
        for j in range(X.shape[1]):
            x, a = number(X[row, j]), A[j]
            t = fma(ri, x, a)
            B[j] += set_odd(fma(ri, x, a - t))
            A[j] = t
        filled += 1
        if filled == PANEL:
            flush(A, C, T)
            flush(B, D, U)
            filled = 0
    return filled
