"""One pass over rows, block by block: linear predictors, residuals and losses, accumulation.

A block of rows stays in the cache through these three phases, so the data are read from memory
once. The phases are functions of their own (dense.py, csr.py, pointwise.py, sums.py). The loop
around them is compiled too, because at the speed of memory a block takes less time than a few calls
from Python.

Arrays that are absent have size zero, so that each argument has one type and few versions are
compiled. Only `C` (None: plain sums) and `D` (None: one grid) are None, and the code for the other
case is then not compiled.
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
    """Return how many float64 of scratch memory a sweep needs.

    Parameters
    ----------
    k : int
        The number of outputs.
    targets : int
        Targets of a row.
    block : int
        Rows of a block.
    width : int
        Further numbers for each row of a block (see the sweeps).
    """
    return (1 + k) * WIDTH + (2 * k + targets + 4 + width) * block


@inlined
def _parts(room, k, targets, block):
    """Divide `room` into the parts of a sweep's scratch memory.

    They are the accumulators of losses and residuals (1 + k, WIDTH), two numbers a row (2, block),
    a weight for each row (block,), what blocks.views divides, and the rest.
    """
    first = (1 + k) * WIDTH
    second, third = first + 2 * block, first + 3 * block
    last = third + (2 * k + targets + 1) * block
    lanes, spare = room[:first].reshape(1 + k, WIDTH), room[first:second].reshape(2, block)
    return lanes, spare, room[second:third], room[third:last], room[last:]


@compiled
def sweep_dense(
    room, values, first, order, m, block, y, c, offset, coef, intercept, what,
    loss, keep, limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """Add the sums of m dense rows, at the given coefficients, to accumulators.

    Parameters
    ----------
    room : (room_for(k, q, block, width),) float64
        Scratch memory. width is 0, or d if values are halves.
    values : (rows, d) float32, float64, or uint16 (the bits of halves)
        C-contiguous rows.
    first, order, m
        The rows are first, first + 1, ..., first + m - 1; if `order` (int64) is not empty, they are
        order[first], order[first + 1], ... instead. The numbers count rows of values, y, c and
        offset alike.
    block : int
        Rows that are processed at once.
    y : (q, n) float64
        Targets.
    c : (n,) or (1,) float64
        Weights, or one weight for all rows.
    offset : (n,) or (0,) float64
        Added to the linear predictors.
    coef, intercept : (k, d), (k,) float64
        The model.
    what, loss
        See residuals.residuals.
    keep : (k, n) float64, or empty
        Receives the linear predictors.
    limits, biases, S, counts, tops
        See sums.take_block.
    A : (1 or 2, k, d) float64
        Accumulators of the grid and of the finer one. Plain sums go into A[0] if C is None.
    C, D : (d,) float64 or None
        Biases of the grid and of the finer one.
    T : (2 or 4, k, d) float64
        Totals, two words for each grid.
    filled : int
        The number of rows that A holds before the call.
    panel : int
        Not used for dense rows (sums.PANEL is); the argument of sweep_csr.

    Returns
    -------
    int
        The number of rows that A holds unflushed.

    Notes
    -----
    The caller keeps all arrays alive, so that views of them are taken without counting references.
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
    """Flush what A holds. Inlined here, because a step of few rows would notice another call."""
    if C is None:
        return filled
    else:
        if filled > 0:
            flush_all(A, C, D, T)
        return 0


@compiled
def sweep_csr(
    room, indptr, indices, data, lines, first, order, m, block, y, c, offset, coef, intercept, what,
    loss, keep, limits, biases, S, counts, tops, A, C, D, T, filled, panel,
):  # fmt: skip
    """Add the sums of m compressed rows to accumulators, as sweep_dense does.

    Parameters
    ----------
    room
        As in sweep_dense; width is 2, and with `lines` the width of a column's part of them more.
    indptr, indices, data
        The rows; see csr.py.
    lines : (d, 2 or 3, width) float64 or None
        The array in which coef and A lie, for several outputs at once (outputs.py).
    panel : int
        The number of rows after which accumulators are flushed.

    Returns
    -------
    int
        The number of rows that A holds unflushed.
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
    """Add R X for residuals r (k, n); X_i is row first + i in `order`.

    Returns how many rows A holds unflushed.
    """
    if C is None:
        dense.add_all(
            X, order, first, r, filled * 0, r.shape[1], A[0]
        )  # filled * 0 instead of 0: see dense.accumulate_exact
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
    """Do add_dense for output q of compressed rows."""
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
    """Compute csr.margins_of for each output, or outputs.margins_of if `lines` are given."""
    raise NotImplementedError("for compiled code")


@overload(sparse_margins)  # of the two functions, the one that is needed is compiled
def _sparse_margins(starts, stops, indices, data, coef, lines, b, turned, z):
    def one_by_one(starts, stops, indices, data, coef, lines, b, turned, z):
        for q in range(b.size):
            csr.margins_of(starts, stops, indices, data, coef[q], b[q], z[q])

    def all_at_once(starts, stops, indices, data, coef, lines, b, turned, z):
        outputs.margins_of(starts, stops, indices, data, lines, b, turned, z)

    return one_by_one if isinstance(lines, types.NoneType) else all_at_once


def add_all_sparse(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel):
    """Do add_sparse for each output, or outputs.add if `lines` are given."""
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
