"""One pass over rows: margins, pointwise, accumulation, a block after the other, so that memory is read once.

The three phases stay functions of their own (dense.py, csr.py, pointwise.py, sums.py); this is the loop around them, compiled,
because at the speed of memory a block takes less time than a few calls from Python. What is not there has size zero: one type
for all, so that little is compiled. Only accumulators without `C` (plain sums) or `D` (one grid) are None, and compiled away.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

from mpigd_kernels import csr, dense, outputs
from mpigd_kernels.blocks import (
    collect_all,
    keep_lanes_low,
    open_lanes,
    row_of,
    shift_and_keep,
    take_scalars,
    take_vectors,
    views,
)
from mpigd_kernels.elements import borrowed
from mpigd_kernels.residuals import residuals
from mpigd_kernels.sums import WIDTH, flush_all

_OPTIONS = dict(nogil=True, cache=True, error_model="numpy")


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
    filled = _dense_blocks(
        np.empty((2 * k + y.shape[0] + 1) * block), np.full(block, c[0]), np.empty((2, block)), np.empty((1 + k, WIDTH)),
        dense.room_for_floats(values, block), values, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
        limits, biases, S, counts, tops, A, C, D, T, filled,
    )  # fmt: skip
    if C is not None and filled > 0:  # here, because a step of few rows would notice another call
        flush_all(A, C, D, T)
        filled = 0
    return filled


@njit(**_OPTIONS)
def _dense_blocks(
    room, every, spare, lanes, floats, values, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
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
        z, r, t, l = views(room, A.shape[1], y.shape[0], n)
        weights = every[:n]
        take_vectors(order, begin, y, c, t, weights)
        X, rows, at = dense.as_floats(values, order, begin, floats[:n])
        dense.margins_of_all(X, rows, at, coef, intercept, z)
        shift_and_keep(z, order, begin, offset, keep)
        residuals(what, loss, z, t, weights, r, l, spare)
        if take_scalars(r, l, limits, S, counts, tops, C, lanes):
            filled = add_dense(X, rows, at, r, A, C, D, T, filled)
        terms = keep_lanes_low(lanes, biases, S, C, terms, n)
    collect_all(lanes, biases, S, C)
    return filled


@njit(**_OPTIONS)
def sweep_csr(
    indptr, indices, data, lines, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
    limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """sweep_dense of compressed rows; they are flushed every `panel` rows. lines: where coef and A lie (outputs.py), or None."""
    k = A.shape[1]
    return _sparse_blocks(
        np.empty((2 * k + y.shape[0] + 1) * block), np.full(block, c[0]), np.empty((2, block)), np.empty((1 + k, WIDTH)),
        np.empty((2, block), np.int64), outputs.turned_for(lines, block), indptr, indices, data, lines, first, order, m, block,
        y, c, offset, coef, intercept, what, loss, keep, limits, biases, S, counts, tops, A, C, D, T, filled, panel,
    )  # fmt: skip


@njit(**_OPTIONS)
def _sparse_blocks(
    room, every, spare, lanes, ends, turned, indptr, indices, data, lines, first, order, m, block, y, c, offset, coef, intercept,
    what, loss, keep, limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """sweep_csr with the room that it needs. The caller holds all arrays, so that views of them are cheap ones."""
    room, every, spare, lanes, ends = borrowed(room), borrowed(every), borrowed(spare), borrowed(lanes), borrowed(ends)
    indptr, indices, data, order = borrowed(indptr), borrowed(indices), borrowed(data), borrowed(order)
    turned, lines = borrowed(turned), borrowed(lines)
    y, c, coef, keep = borrowed(y), borrowed(c), borrowed(coef), borrowed(keep)
    limits, biases, S, counts, tops = borrowed(limits), borrowed(biases), borrowed(S), borrowed(counts), borrowed(tops)
    offset, intercept, A, C, D, T = borrowed(offset), borrowed(intercept), borrowed(A), borrowed(C), borrowed(D), borrowed(T)
    k, terms = A.shape[1], 0
    open_lanes(lanes, biases)
    for start in range(0, m, block):
        begin, n = first + start, min(block, m - start)
        z, r, t, l = views(room, k, y.shape[0], n)
        weights = every[:n]
        take_vectors(order, begin, y, c, t, weights)
        starts, stops = ends[0, :n], ends[1, :n]
        for i in range(n):
            row = row_of(order, begin + i)
            starts[i], stops[i] = indptr[row], indptr[row + 1]
        sparse_margins(starts, stops, indices, data, coef, lines, intercept, turned, z)
        shift_and_keep(z, order, begin, offset, keep)
        residuals(what, loss, z, t, weights, r, l, spare)
        if take_scalars(r, l, limits, S, counts, tops, C, lanes):
            filled = add_all_sparse(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel)
        terms = keep_lanes_low(lanes, biases, S, C, terms, n)
    collect_all(lanes, biases, S, C)
    return filled


@njit(**_OPTIONS, forceinline=True)
def add_dense(X, order, first, r, A, C, D, T, filled):
    """Add R X for residuals r (k, n), X_i row first + i in `order`; returns how many rows A holds unflushed."""
    if C is None:
        dense.add_all(X, order, first, r, filled * 0, r.shape[1], A[0])  # not 0: see accumulate_exact
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
    """add_dense for output q of compressed rows."""
    if C is None:
        csr.add_rows(starts, stops, indices, values, r, A[0, q])
        return filled
    elif D is None:
        return csr.add_exact(starts, stops, indices, values, r, A[0, q], C, T[:, q], filled, panel)
    else:
        return csr.add_fine(starts, stops, indices, values, r, A[0, q], A[1, q], C, D, T[:2, q], T[2:, q], filled, panel)


def sparse_margins(starts, stops, indices, data, coef, lines, b, turned, z):
    """csr.margins_of each output, or where coefficients lie in `lines` outputs.margins_of all of them."""
    raise NotImplementedError("for compiled code")


@overload(sparse_margins)  # the one that is not needed is not compiled
def _sparse_margins(starts, stops, indices, data, coef, lines, b, turned, z):
    def one_by_one(starts, stops, indices, data, coef, lines, b, turned, z):
        for q in range(b.size):
            csr.margins_of(starts, stops, indices, data, coef[q], b[q], z[q])

    def all_at_once(starts, stops, indices, data, coef, lines, b, turned, z):
        outputs.margins_of(starts, stops, indices, data, lines, b, turned, z)

    return one_by_one if isinstance(lines, types.NoneType) else all_at_once


def add_all_sparse(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel):
    """add_sparse for each output, or outputs.add for all of them."""
    raise NotImplementedError("for compiled code")


@overload(add_all_sparse)
def _add_all_sparse(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel):
    def one_by_one(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel):
        held = filled
        for q in range(r.shape[0]):
            held = add_sparse(starts, stops, indices, data, r[q], A, C, D, T, q, filled, panel)
        return held

    def all_at_once(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel):
        return outputs.add(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel)

    return one_by_one if isinstance(lines, types.NoneType) else all_at_once
