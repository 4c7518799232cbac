"""Sums of outer products of compressed rows, made of the pairs of each row's entries.

Columns are renumbered. The first ones are dense columns, centred and scaled, and the intercept's.
The sums of their products with one another are those of curvature.add_outer. The other columns are
taken as they are stored, divided by a power of two so that |v| < 1.

The sums of products of such sparse columns, with dense columns and with one another, are integers.
A term is rounded to a multiple of 2**-s, where s is that of its rarer column; 2**s times the number
of that column's entries in all rows is at most 2**62. Sums of int64 do not depend on their order,
and accumulators that cannot overflow are never flushed.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy import float64, int64, uint64

from mpigd_kernels.compiled import compiled, inlined
from mpigd_kernels.curvature import PANEL, add_outer, flush_outer

FINEST, ROOM = 50, 62  # the largest number of bits of a term, and of a sum
_SHIFT = 1.5 * 2.0**52  # its last bit is worth 1, so that adding it rounds to integers
_SHIFT_BITS = 0x4338000000000000  # the bits of _SHIFT
_FEW = 16  # rows of at most this many entries are sorted by counting
_TILE = 64  # rows and columns of a block that is mirrored at once


@intrinsic
def _rounded_product(typingctx, a, b):
    """Return the integer nearest to a * b, as int64; |a * b| < 2**51."""

    def generate(context, builder, signature, args):
        # One rounding, to the last bit of _SHIFT; the integer then stands in the low bits of the
        # significand, and the difference of the bits is its value.
        shifted = builder.fma(*args, ir.Constant(ir.DoubleType(), _SHIFT))
        whole = ir.IntType(64)
        return builder.sub(builder.bitcast(shifted, whole), ir.Constant(whole, _SHIFT_BITS))

    return types.int64(types.float64, types.float64), generate


@compiled
def take_entries(indptr, indices, data, place, inverse, center, scale, dense, Z, J, V, ends):
    """Divide the rows of a panel into dense columns and sparse entries.

    Parameters
    ----------
    indptr, indices, data
        The m rows (csr.py); data None: all values are one.
    place : (d,) int
        The new number of each column; those of dense columns are below `dense`.
    inverse : float64
        For each sparse column, the power of two that its values are multiplied by.
    center, scale : float64
        For dense columns, and the intercept's last in `scale`.
    dense : int
        The number of dense columns.
    Z : (m, p or more) float64
        The result: (x - center) * scale of dense columns, and `scale` in the intercept's.
    J, V : uint64, float64
        The result: numbers of sparse columns from 0 on, ascending in every row, and x * inverse.
    ends : (m + 1,) int64
        The result: the entries of row i are those from ends[i] to ends[i + 1] - 1.
    """
    most = int64(0)
    for i in range(indptr.size - 1):
        most = max(most, indptr[i + 1] - indptr[i])
    numbers, values = np.empty(most, uint64), np.empty(most)
    at = uint64(0)
    for i in range(indptr.size - 1):
        for j in range(dense):
            Z[i, j] = (0.0 - center[j]) * scale[j]
        for j in range(dense, scale.size):
            Z[i, j] = scale[j]
        m = uint64(0)
        for k in range(uint64(indptr[i]), uint64(indptr[i + 1])):
            j = uint64(place[uint64(indices[k])])
            x = 1.0 if data is None else float64(data[k])
            if j < dense:
                Z[i, j] = (x - center[j]) * scale[j]
            else:
                j -= uint64(dense)
                numbers[m], values[m] = j, x * inverse[j]
                m += uint64(1)
        _sort(numbers, values, m, J, V, at)
        at += m
        ends[i + 1] = at


@inlined
def _sort(numbers, values, m, J, V, first):
    """Write the first m entries, sorted by column, to J and V from J[first] on.

    A few entries are each counted into place, without branches that a CPU cannot predict; more are
    sorted by insertion.
    """
    if m <= _FEW:
        for k in range(m):
            t = first
            for e in range(m):
                t += uint64(numbers[e] < numbers[k])
            J[t], V[t] = numbers[k], values[k]
        return
    for k in range(m):
        t = first + k
        while t > first and J[t - uint64(1)] > numbers[k]:
            J[t], V[t] = J[t - uint64(1)], V[t - uint64(1)]
            t -= uint64(1)
        J[t], V[t] = numbers[k], values[k]


@compiled
def add_pairs(h, Z, J, V, ends, power, B, C):
    """Add h_i v z to B and h_i v v' to C, each term times power = 2**s and rounded to an integer.

    B is (p - dense, width of Z) and C a packed triangle, both int64. C holds the pair j <= k at k
    (k + 1) / 2 + j.
    """
    for i in range(h.size):
        if h[i] == 0.0:
            continue
        first = uint64(ends[i])
        for f in range(first, uint64(ends[i + 1])):
            k = J[f]
            r = h[i] * V[f] * power[k]
            for q in range(B.shape[1]):
                B[k, q] += _rounded_product(r, Z[i, q])
            row = k * (k + uint64(1)) // uint64(2)
            for e in range(first, f + uint64(1)):
                C[row + J[e]] += _rounded_product(r, V[e])


@compiled
def add_outer_csr(
    indptr, indices, data, H, place, inverse, center, scale, dense, power, A, T, B, C
):
    """Add sum_i H_qi x_i x_i' over all rows, for every q.

    Parameters
    ----------
    indptr, indices, data, place, inverse, center, scale, dense
        See take_entries.
    H : (q, n) float64
        Curvatures.
    power : (p - dense,) float64
        2**s of each sparse column.
    A, T : (q, w, w), (q, 2, p, p) float64
        Accumulators and totals of curvature.py. A must be BIAS, and is left so; w is a multiple of
        LANES.
    B, C : (q, ...), (q, ...) int64
        See add_pairs.
    """
    n, most = H.shape[1], 0
    for start in range(0, n, PANEL):
        most = max(most, indptr[min(n, start + PANEL)] - indptr[start])
    Z, ends = np.zeros((PANEL, A.shape[1])), np.zeros(PANEL + 1, int64)
    J, V = np.empty(most, uint64), np.empty(most)
    for start in range(0, n, PANEL):
        stop = min(n, start + PANEL)
        part = Z[: stop - start]
        take_entries(
            indptr[start : stop + 1],
            indices,
            data,
            place,
            inverse,
            center,
            scale,
            dense,
            part,
            J,
            V,
            ends,
        )
        for q in range(H.shape[0]):
            h = H[q, start:stop]
            add_outer(part, h, A[q])
            flush_outer(A[q], T[q])
            add_pairs(h, part, J, V, ends, power, B[q], C[q])


@compiled
def join_outer(T, B, C, dense, power, units, unit, center, inverse, factor, H):
    """Set H (p, p), symmetric, to sum_i h_i x_i x_i' * factor, centred and scaled.

    Parameters
    ----------
    T, B, C
        The sums that add_outer_csr has left. T is (2, h, h), h = `dense` plus one for an intercept.
    dense : int
        The number of dense columns.
    power, unit, center, inverse
        For the sparse columns. Without an intercept centres are zero.
    units : (h,) float64
        For dense columns and the intercept's.
    factor : float
        The factor of the sum.
    H : (p, p) float64
        The result. Columns stand in their new numbers, the intercept's last.
    """
    head, p = units.size, H.shape[0]
    rest, one = p - head, head > dense
    for j in range(head):
        for q in range(j, head):
            a, b = (j if j < dense else p - 1), (q if q < dense else p - 1)
            H[b, a] = (T[0, j, q] + T[1, j, q]) * units[j] * units[q] * factor
    weight = H[p - 1, p - 1] if one else 0.0
    sums = np.zeros(rest)  # sum_i h_i x_ik
    for k in range(rest):
        u, m = unit[k] * factor / power[k], center[k]
        for j in range(dense):
            mean = H[p - 1, j] * m if one else 0.0
            H[dense + k, j] = (float64(B[k, j]) * (u * units[j]) - mean) * inverse[k]
        if one:
            sums[k] = float64(B[k, dense]) * (u * units[dense])
            H[p - 1, dense + k] = (sums[k] - m * weight) * inverse[k]
        row = k * (k + 1) // 2
        for j in range(k + 1):
            raw = float64(C[row + j]) * (u * unit[j])
            mean = center[j] * sums[k] + m * sums[j] - m * center[j] * weight
            H[dense + k, dense + j] = (raw - mean) * inverse[k] * inverse[j]
    for first in range(0, p, _TILE):
        for column in range(0, first + 1, _TILE):
            for i in range(first, min(p, first + _TILE)):
                for j in range(column, min(i, column + _TILE)):
                    H[j, i] = H[i, j]
