"""Dense rows: linear predictors (margins), residuals times rows, gathering, ranges of columns.

X (n, d) is C-contiguous, of float32, float64, or halves (float16) held as uint16 bits. Several
kernels take rows through `order` (int64): X_i is then row order[first + i]; with an empty `order`
it is row first + i.
"""

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
    """Set z_i = X_i . w + b. Each is a function of the row and w alone, not of its place in X."""
    _margins(X, np.empty(0, np.int64), 0, w, b, z)


@inlined
def _margins(X, order, first, w, b, z):
    """Compute the margins of rows first, first + 1, ... in `order`."""
    n = z.size
    whole = n // ROWS * ROWS
    for i in range(0, whole, ROWS):
        dot_rows(X, order, first + i, w, b, z, i)
    for i in range(whole, n):
        dot_row(X, order, first + i, w, b, z, i)


@inlined
def _add(X, order, first, r, start, stop, A):
    """Set A_j = fma(r_i, X_ij, A_j) for i = start to stop - 1, in turn.

    X_i is row first + i in `order`.
    """
    whole = start + (stop - start) // ADDED * ADDED
    # The prefetch hints name rows behind this block, one for every ADDED rows of it.
    behind = first + r.size
    for i in range(start, whole, ADDED):
        add_rows(X, order, first + i, r, i, A, behind + i // ADDED)
    for i in range(whole, stop):
        add_row(X, order, first + i, r, i, A, behind)


@inlined
def accumulate_exact(X, order, first, R, A, C, T, filled):
    """Add R X, each product rounded to the grid of its column, to the accumulators A (k, d).

    Parameters
    ----------
    X, order, first
        Rows; X_i is row first + i in `order`.
    R : (k, n) float64
        Residuals with their last significand bit set (odd; see sums.py).
    A : (k, d) float64
        Accumulators, which start at C.
    C : (d,) float64
        Biases.
    T : (2, k, d) float64
        Totals, into which A is flushed every PANEL rows.
    filled : int
        The number of rows that A holds before the call.

    Returns
    -------
    int
        The number of rows that A holds after the call.
    """
    start, n = (
        filled * 0,
        R.shape[1],
    )  # numba types a literal 0 apart from an int64: all callees would be compiled twice
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
    """Set Z (k, n) = W X' + b; X_i is row first + i in `order`.

    Every output has the bits of `margins`. Tiles of TILE rows and outputs take what they can; the
    remaining rows and outputs are computed one output at a time.
    """
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
    """Add R X to A (k, d) for rows i = start to stop - 1; X_i is row first + i in `order`.

    Each element of A is one chain of fma in the order of the rows, with tiles and without.
    """
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
    """Do what accumulate_exact does for output q alone, with one or two grids or plain sums.

    Parameters
    ----------
    r : (n,) float64
        Residuals.
    A : (1 or 2, k, d), T : (2 or 4, k, d) float64
        Accumulators and totals of all outputs.
    C, D : (d,) float64 or None
        Biases; two grids with D, plain sums without C.

    Notes
    -----
    For sums that are made once, while data are loaded: this compiles in a fraction of the time.
    """
    order, none = np.empty(0, np.int64), filled * 0  # see accumulate_exact
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
    """Return (X, order, first) in the form in which the other kernels read these n rows fastest.

    Halves are converted to float64 in `room` (n * d numbers), all other types are returned as they
    are. Converting a half takes the processor longer than anything else that is done with it, and
    every element is needed twice.
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
    """Set out (n, d) float64 to n rows of halves; out_i is row first + i in `order`."""
    for i in range(out.shape[0]):
        widen_row(X, order, first + i, out, i)


@compiled
def gather(X, rows, out):
    """Set out_i = X[rows_i].

    Prefetching rows ahead halves the time, since each scattered row is a wait for memory. Over a
    block that is read in order the same hint costs a third: the hardware sees that pattern by
    itself.
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
    """Lower `low` and raise `high` (d,) to the range of the columns; NaN is ignored."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            x = float64(X[i, j])
            low[j] = x if x < low[j] else low[j]
            high[j] = x if x > high[j] else high[j]


@compiled
def squared_deviation(X, center, out):
    """Set out_ij = (X_ij - center_j)**2 in float64."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            t = float64(X[i, j]) - center[j]
            out[i, j] = t * t


@compiled
def scrub(v, smallest):
    """Set elements of v (n,) with |v_i| < smallest to zero.

    Returns the index of the first element that is not finite, or -1.

    With the smallest normal number of the type as `smallest`, subnormal numbers are removed. A
    shared object built with fast maths may set flush-to-zero for the thread that loads it; sums
    over subnormals would then depend on which libraries a process has loaded.
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
    """Do accumulate_exact for one output, and add what rounding cuts off on a finer grid.

    The grid of biases C has accumulators A (d,) and totals T (2, d), the finer one of biases D has
    B and U. t = fma(r, x, a) rounds the product to a multiple of u; the rest r x - (t - a) is a
    function of the product alone.
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
