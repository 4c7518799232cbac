"""Compressed sparse rows (CSR): linear predictors (margins), accumulation, selection and checks.

A matrix is indptr (n + 1,) int64, indices (nnz,) int32 or int64, and data (nnz,) float32 or
float64; data None stands for values that are all one. `indptr` holds offsets into `indices` and
`data`, so rows a to b - 1 of a matrix are indptr[a : b + 1] with the other two whole. Kernels that
take rows in any order get the offsets as starts and stops (m,).
"""

from numpy import float64, uint64

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import fma, set_odd
from mpigd_kernels.entries import add_entries, dot_entries
from mpigd_kernels.sums import flush


@compiled
def margins(indptr, indices, data, w, b, z):
    """Compute margins_of all rows."""
    margins_of(indptr[:-1], indptr[1:], indices, data, w, b, z)


@compiled
def margins_of(starts, stops, indices, data, w, b, z):
    """Set z_i = X_i . w + b, over the row's entries in their stored order.

    w is (d,), or pairs (d, 2) of which it is the first column (entries.py).
    """
    for i in range(starts.size):
        z[i] = dot_entries(starts[i], stops[i], indices, data, w) + b


@compiled
def add_rows(starts, stops, indices, data, r, A):
    """Set A_j = fma(r_i, X_ij, A_j), in the order of the rows.

    As many entries ahead as these rows have are prefetched meanwhile: those of the next block.
    """
    ahead = stops[-1] - starts[0] if starts.size > 0 else 0
    for i in range(starts.size):
        add_entries(starts[i], stops[i], indices, data, A, r[i], ahead)


@compiled
def add_exact(starts, stops, indices, data, r, A, C, T, filled, panel):
    """Add r_i X_ij, each rounded to the grid of column j, to the accumulators A.

    Every `panel` rows, A - C moves into the totals T (2, h). A flush touches h columns, so `panel`
    grows with h over the entries of a row. The columns behind the first h have so few entries that
    they never fill up (exact.Bounds). `filled` rows are in A before the call; returns how many are
    after it.
    """
    start, n = 0, starts.size
    while start < n:
        stop = min(n, start + panel - filled)
        add_rows(starts[start:stop], stops[start:stop], indices, data, r[start:stop], A)
        filled += stop - start
        start = stop
        if filled == panel:
            flush(accumulators(A), C, T)
            filled = 0
    return filled


@compiled
def accumulators(A):
    """Return A (d,) itself, or the second column of pairs (d, 2)."""
    if A.ndim == 2:
        return A[:, 1]
    else:
        return A


@compiled
def add_fine(starts, stops, indices, data, r, A, B, C, D, T, U, filled, panel):
    """Do add_exact with a second, finer grid for what rounding to the first cuts off.

    B, D and U are the accumulators, biases and totals of the finer grid; see dense.accumulate_fine.
    """
    A, B = accumulators(A), accumulators(B)
    for i in range(starts.size):
        ri = r[i]
        for k in range(uint64(starts[i]), uint64(stops[i])):
            j, x = uint64(indices[k]), 1.0 if data is None else float64(data[k])
            a = A[j]
            t = fma(ri, x, a)
            B[j] += set_odd(fma(ri, x, a - t))
            A[j] = t
        filled += 1
        if filled == panel:
            flush(A, C, T)
            flush(B, D, U)
            filled = 0
    return filled


@compiled
def column_range(indices, data, low, high, count):
    """Update low, high (d,) to the range of the stored entries of each column, and count them.

    The number of entries of each column is added to count (d,) int64. NaN is ignored in the range.
    """
    for k in range(indices.size):
        j, x = uint64(indices[k]), float64(data[k])
        low[j] = x if x < low[j] else low[j]
        high[j] = x if x > high[j] else high[j]
        count[j] += 1


@compiled
def renumber(indices, place):
    """Set indices_k = place[indices_k]."""
    for k in range(indices.size):
        indices[k] = place[uint64(indices[k])]


@compiled
def all_ones(data):
    """Return whether every value is one."""
    k = 0
    while k < data.size and data[k] == 1.0:
        k += 1
    return k == data.size


@compiled
def squared_deviation(indices, data, center, out):
    """Set out_k = (data_k - center[indices_k])**2 in float64."""
    for k in range(indices.size):
        t = float64(data[k]) - center[uint64(indices[k])]
        out[k] = t * t


@compiled
def gather(indptr, indices, data, rows, out_indptr, out_indices, out_data):
    """Copy the given rows, in the given order, into a CSR triple that is large enough.

    With data None, the columns alone are copied.
    """
    at = 0
    out_indptr[0] = 0
    for i in range(rows.size):
        for k in range(uint64(indptr[rows[i]]), uint64(indptr[rows[i] + 1])):
            out_indices[at] = indices[k]
            if data is not None:
                out_data[at] = data[k]
            at += 1
        out_indptr[i + 1] = at


@compiled
def count_chosen(indptr, indices, place, out_indptr):
    """Set out_indptr (n + 1,) to that of the entries whose column has a place >= 0.

    Returns the number of these entries.
    """
    at = 0
    out_indptr[0] = 0
    for i in range(indptr.size - 1):
        for k in range(uint64(indptr[i]), uint64(indptr[i + 1])):
            at += place[uint64(indices[k])] >= 0
        out_indptr[i + 1] = at
    return at


@compiled
def take_chosen(indptr, indices, data, place, out_indices, out_data):
    """Copy these entries with their columns renumbered; with data None, the columns alone."""
    at = 0
    for k in range(uint64(indptr[0]), uint64(indptr[-1])):
        j = place[uint64(indices[k])]
        if j >= 0:
            out_indices[at] = j
            if data is not None:
                out_data[at] = data[k]
            at += 1


@compiled
def sort_rows(indptr, indices, data, d):
    """Sort each row's entries by column, in place.

    Returns the first row that has a column twice, or one outside 0 to d - 1; -1 if there is none.
    """
    for i in range(indptr.size - 1):
        for k in range(indptr[i], indptr[i + 1]):
            j, x, at = indices[k], data[k], k
            while at > indptr[i] and indices[at - 1] > j:
                indices[at], data[at] = indices[at - 1], data[at - 1]
                at -= 1
            indices[at], data[at] = j, x
            if j < 0 or j >= d or (at > indptr[i] and indices[at - 1] == j):
                return i
    return -1
