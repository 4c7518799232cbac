"""One pass over rows: margins, pointwise, accumulation, a block after the other, so that memory is read once.

The three phases stay functions of their own (dense.py, csr.py, pointwise.py, sums.py); this is the loop around them, compiled,
because at the speed of memory a block takes less time than a few calls from Python. What is not there has size zero: one type
for all, so that little is compiled. Only accumulators without `C` (plain sums) or `D` (one grid) are None, and compiled away.
"""

import numpy as np
from numba import types
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
from mpigd_kernels.compiled import compiled, inlined
from mpigd_kernels.elements import borrowed
from mpigd_kernels.residuals import residuals
from mpigd_kernels.sums import WIDTH, flush_all


def room_for(k, targets, block, width):
    """float64 numbers of room that a sweep takes for k outputs, so many targets a row, and `width` numbers more a row."""
    return (1 + k) * WIDTH + (2 * k + targets + 4 + width) * block


@inlined
def _parts(room, k, targets, block):
    """Of the room: accumulators (1 + k, WIDTH), twice a block's rows, a weight of each, what views() divides, the rest."""
    first = (1 + k) * WIDTH
    second, third = first + 2 * block, first + 3 * block
    last = third + (2 * k + targets + 1) * block
    lanes, spare = room[:first].reshape(1 + k, WIDTH), room[first:second].reshape(2, block)
    return lanes, spare, room[second:third], room[third:last], room[last:]


@compiled
def sweep_dense(
    room, values, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
    limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """Add the sums of m rows of values (n, d) at coef (k, d), intercept (k,) to accumulators; returns how many A holds unflushed.

    Rows are first, first + 1, ... of everything, or, where `order` has any, order[first], ... : of values, of the targets y
    (q, n), weights c (n,) or one for all, offset (n,) or none. keep (k, n), or nothing, takes their margins. what, loss:
    of residuals(). limits, biases, S, counts, tops: of sums.take_block. A (1 or 2, k, d), C, D (d,),
    T (2 or 4, k, d): accumulators, biases and totals of the grid and of a finer one; plain sums into A where C is None.
    room: of room_for(); d numbers more a row where values are halves. The caller holds all arrays, so that views are cheap.
    """
    room, values, order, y, c, coef = (
        borrowed(room),
        borrowed(values),
        borrowed(order),
        borrowed(y),
        borrowed(c),
        borrowed(coef),
    )
    limits, biases, S, counts, tops = (
        borrowed(limits),
        borrowed(biases),
        borrowed(S),
        borrowed(counts),
        borrowed(tops),
    )
    keep, A, C, D, T = borrowed(keep), borrowed(A), borrowed(C), borrowed(D), borrowed(T)
    offset, intercept = borrowed(offset), borrowed(intercept)
    lanes, spare, every, vectors, rest = _parts(room, A.shape[1], y.shape[0], block)
    open_lanes(lanes, biases)
    every.fill(c[0])
    terms = 0
    for start in range(0, m, block):
        begin, n = first + start, min(block, m - start)
        z, r, t, l = views(vectors, A.shape[1], y.shape[0], n)
        weights = every[:n]
        take_vectors(order, begin, y, c, t, weights)
        X, rows, at = dense.as_floats(values, order, begin, n, rest)
        dense.margins_of_all(X, rows, at, coef, intercept, z)
        shift_and_keep(z, order, begin, offset, keep)
        residuals(what, loss, z, t, weights, r, l, spare)
        if take_scalars(r, l, limits, S, counts, tops, C, lanes):
            filled = add_dense(X, rows, at, r, A, C, D, T, filled)
        terms = keep_lanes_low(lanes, biases, S, C, terms, n)
    collect_all(lanes, biases, S, C)
    return flush_rest(A, C, D, T, filled)


@inlined
def flush_rest(A, C, D, T, filled):
    """Flush what A holds; here, because a step of few rows would notice another call."""
    if C is None:
        return filled
    else:
        if filled > 0:
            flush_all(A, C, D, T)
        return 0


@compiled
def sweep_csr(
    room, indptr, indices, data, lines, first, order, m, block, y, c, offset, coef, intercept, what, loss, keep,
    limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """sweep_dense of compressed rows; they are flushed every `panel` rows. lines: where coef and A lie (outputs.py), or None.

    room: two numbers more a row, and those of a column's part of lines.
    """
    room, indptr, indices, data, order = (
        borrowed(room),
        borrowed(indptr),
        borrowed(indices),
        borrowed(data),
        borrowed(order),
    )
    lines, y, c, coef, keep = (
        borrowed(lines),
        borrowed(y),
        borrowed(c),
        borrowed(coef),
        borrowed(keep),
    )
    limits, biases, S, counts, tops = (
        borrowed(limits),
        borrowed(biases),
        borrowed(S),
        borrowed(counts),
        borrowed(tops),
    )
    offset, intercept, A, C, D, T = (
        borrowed(offset),
        borrowed(intercept),
        borrowed(A),
        borrowed(C),
        borrowed(D),
        borrowed(T),
    )
    lanes, spare, every, vectors, rest = _parts(room, A.shape[1], y.shape[0], block)
    ends, turned = (
        rest[: 2 * block].view(np.int64).reshape(2, block),
        outputs.turned_in(rest[2 * block :], lines, block),
    )
    open_lanes(lanes, biases)
    every.fill(c[0])
    terms = 0
    for start in range(0, m, block):
        begin, n = first + start, min(block, m - start)
        z, r, t, l = views(vectors, A.shape[1], y.shape[0], n)
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
            filled = add_all_sparse(
                starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel
            )
        terms = keep_lanes_low(lanes, biases, S, C, terms, n)
    collect_all(lanes, biases, S, C)
    return filled


@inlined
def add_dense(X, order, first, r, A, C, D, T, filled):
    """Add R X for residuals r (k, n), X_i row first + i in `order`; returns how many rows A holds unflushed."""
    if C is None:
        dense.add_all(
            X, order, first, r, filled * 0, r.shape[1], A[0]
        )  # not 0: see accumulate_exact
        return filled
    elif D is None:
        return dense.accumulate_exact(X, order, first, r, A[0], C, T, filled)
    else:
        held = filled
        for q in range(r.shape[0]):
            held = dense.accumulate_fine(
                X, order, first, r[q], A[0, q], A[1, q], C, D, T[:2, q], T[2:, q], filled
            )
        return held


@compiled
def add_sparse(starts, stops, indices, values, r, A, C, D, T, q, filled, panel):
    """add_dense for output q of compressed rows."""
    if C is None:
        csr.add_rows(starts, stops, indices, values, r, A[0, q])
        return filled
    elif D is None:
        return csr.add_exact(starts, stops, indices, values, r, A[0, q], C, T[:, q], filled, panel)
    else:
        return csr.add_fine(
            starts,
            stops,
            indices,
            values,
            r,
            A[0, q],
            A[1, q],
            C,
            D,
            T[:2, q],
            T[2:, q],
            filled,
            panel,
        )


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
        return outputs.add(
            starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel
        )

    return one_by_one if isinstance(lines, types.NoneType) else all_at_once
