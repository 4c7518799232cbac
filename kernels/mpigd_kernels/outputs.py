"""Compressed sparse rows and several outputs at once: an entry is read once for all of them.

The array `lines` (d, 2 or 3, k rounded up to whole vectors) holds side by side what all k outputs
need of a column:

    lines[j, 0]  the coefficients of column j
    lines[j, 1]  its accumulators
    lines[j, 2]  its accumulators on the finer grid, if sums are kept on two grids

LANES outputs are one vector. They are also one cache line if `lines` starts with one
(host.aligned). Lanes behind the last output hold zeros.

Here the lanes of a vector are outputs, not entries of a row as in entries.py. Every output has the
bits that it has alone there: the LANES partial sums of its dot product are LANES vectors here, and
are added in the same pairwise order.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

from mpigd_kernels.compiled import compiled
from mpigd_kernels.entries import _ZEROS, _column, _each, _entries, _fetch, _in_turn
from mpigd_kernels.lanes import (
    F64,
    I64,
    LANES,
    VECTOR,
    every,
    fma_lanes,
    hint,
    load_lanes,
    store_lanes,
)
from mpigd_kernels.sums import flush_all

_BITS = ir.VectorType(I64, LANES)
# Entries by which the lines of later columns are prefetched: this halves the time if `lines` does
# not fit into the cache.
_AHEAD = 32


def width(k):
    """Return how many numbers each part of a column has in `lines`: k, rounded up to vectors."""
    return -(-k // LANES) * LANES


def turned_in(room, lines, block):
    """Return `room` as numbers of rows by outputs, (block, width(k)); None without lines."""
    raise NotImplementedError("for compiled code")


@overload(turned_in)
def _turned_in(room, lines, block):
    if isinstance(lines, types.NoneType):
        return lambda room, lines, block: None
    return lambda room, lines, block: room[: block * lines.shape[2]].reshape(block, lines.shape[2])


@compiled
def margins_of(starts, stops, indices, data, lines, b, turned, z):
    """Compute the linear predictors of all outputs, as csr.margins_of does for one.

    Parameters
    ----------
    starts, stops : (m,) int64
        The first entry of each row, and the one behind its last.
    indices : (nnz,) int32 or int64
        Column numbers of all entries.
    data : (nnz,) float32 or float64, or None
        Their values; None if all are one.
    lines : (d, 2 or 3, width(k)) float64
        See the module.
    b : (k,) float64
        Intercepts.
    turned : (m or more, width(k)) float64
        Scratch memory, rows by outputs.
    z : (k, m) float64
        The result.
    """
    for i in range(starts.size):
        for group in range(0, lines.shape[2], LANES):
            dot_outputs(starts[i], stops[i], indices, data, lines, group, turned, i)
    for q in range(b.size):
        for i in range(starts.size):
            z[q, i] = turned[i, q] + b[q]


@compiled
def add(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel):
    """Add residuals times rows for all outputs, as sweep.add_sparse does for one.

    Parameters
    ----------
    starts, stops, indices, data, lines, turned
        See margins_of.
    r : (k, m) float64
        Residuals.
    A : (1 or 2, k, d) float64
        The accumulators in `lines`, as a view that flush_all reads.
    C, D, T
        Biases of the grid and of the finer one (None: one grid), and totals; see sums.flush_all.
    filled : int
        The number of rows that the accumulators hold before the call.
    panel : int
        The number of rows after which accumulators are flushed.

    Returns
    -------
    int
        The number of rows that the accumulators hold after the call.
    """
    k, n = r.shape
    for i in range(n):
        for q in range(turned.shape[1]):
            # Rows by outputs, so that the residuals of LANES outputs are one vector.
            turned[i, q] = r[q, i] if q < k else 0.0
    # Prefetch as many entries ahead as the block of rows has: they are those of the next block.
    ahead = stops[-1] - starts[0] if n > 0 else 0
    for i in range(n):
        for group in range(0, lines.shape[2], LANES):
            if D is None:
                add_outputs(starts[i], stops[i], indices, data, lines, group, turned, i, ahead)
            else:
                add_outputs_fine(starts[i], stops[i], indices, data, lines, group, turned, i, ahead)
        filled += 1
        if filled == panel:
            flush_all(A, C, D, T)
            filled = 0
    return filled


@compiled
def begin(lines, part, C):
    """Set the accumulators of a part of lines to their biases C (d,)."""
    for j in range(C.size):
        for q in range(lines.shape[2]):
            lines[j, part, q] = C[j]


@compiled
def take_rest(lines, part, C, head, rest):
    """Move the sums of columns head to d - 1 into rest (k, d - head); set their accumulators to C.

    The exact totals cover the first `head` columns alone; the accumulators of the others never fill
    up.
    """
    for j in range(head, C.size):
        for q in range(rest.shape[0]):
            rest[q, j - head] = lines[j, part, q] - C[j]
            lines[j, part, q] = C[j]


def _every_entry(builder, entries, body):
    """Write body(k, q) for every entry k of the row, where q is its number within LANES entries."""
    _each(builder, entries, lambda k, mask: _in_turn(builder, entries, k, mask, body))


def _value(builder, entries, k):
    """Return the value of entry k as float64 in all lanes."""
    x = builder.load(builder.gep(entries.values, [k]))
    return every(builder, x if entries.value == F64 else builder.fpext(x, F64))


def _vectors(context, builder, signature, args):
    """Return the entries, a function `place`, and the address of turned[at, group].

    place(k, part) is the address of LANES outputs, from `group` on, in a part of the line of entry
    k's column.
    """
    entries = _entries(context, builder, signature, args, 0)
    lines, turned = (
        context.make_array(signature.args[i])(context, builder, args[i]) for i in (4, 6)
    )
    group, at = (context.cast(builder, args[i], signature.args[i], types.intp) for i in (5, 7))
    parts, width = (builder.extract_value(lines.shape, i) for i in (1, 2))
    # Numbers from one column of `lines` to the next.
    column = builder.mul(parts, width)

    def place(k, part):
        # lines[column of k, part, group], counted from the beginning of `lines`.
        first = builder.add(group, builder.mul(width, I64(part)))
        return builder.gep(
            entries.base, [builder.add(builder.mul(_column(builder, entries, k), column), first)]
        )

    return entries, place, builder.gep(turned.data, [builder.add(builder.mul(at, width), group)])


def _check(lines, turned):
    # Raise TypingError unless the arrays have the layout and dtype that the code assumes.
    if not all(array.layout == "C" and array.dtype == types.float64 for array in (lines, turned)):
        raise TypingError(f"lines must be C-contiguous and float64: not {lines}, {turned}")


@intrinsic
def dot_outputs(typingctx, start, stop, indices, values, lines, group, turned, at):
    """Compute dot_entries for the LANES outputs from `group` on, and store them in turned[at]."""
    _check(lines, turned)

    def generate(context, builder, signature, args):
        entries, place, out = _vectors(context, builder, signature, args)
        # sums[q] holds lane q of dot_entries for each of the LANES outputs: it adds the entries q,
        # q + LANES, ... of the row.
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(LANES)]
        for one in sums:
            builder.store(_ZEROS, one)

        def add_one(k, q):
            later = builder.add(k, I64(_AHEAD))
            later = builder.select(builder.icmp_unsigned("<", later, entries.count), later, k)
            # The coefficients of a later entry, and its accumulators, which add_outputs needs a
            # moment later. Behind the last entry, k itself is hinted.
            for part in (0, 1):
                hint(builder, place(later, part), I64(0), I64(0), 3)
            weights, before = load_lanes(builder, place(k, 0), I64(0), F64), builder.load(sums[q])
            if entries.values is None:
                builder.store(builder.fadd(before, weights), sums[q])
            else:
                builder.store(
                    fma_lanes(builder, _value(builder, entries, k), weights, before), sums[q]
                )

        _every_entry(builder, entries, add_one)
        left = [builder.load(one) for one in sums]
        # First half plus second half, as lanes.add_lanes does with the partial sums of one output.
        while len(left) > 1:
            half = len(left) // 2
            left = [builder.fadd(a, b) for a, b in zip(left[:half], left[half:], strict=True)]
        store_lanes(builder, left[0], out, I64(0))
        return context.get_dummy_value()

    return types.none(start, stop, indices, values, lines, group, turned, at), generate


def _add(fine):
    """Return the code generator of A_j = fma(r, values_k, A_j) for LANES outputs.

    If `fine`, what the addition rounds off is added to accumulators on a finer grid (csr.add_fine).
    """

    def generate(context, builder, signature, args):
        entries, place, given = _vectors(context, builder, signature, args)
        r = load_lanes(builder, given, I64(0), F64)

        def add_one(k, q):
            # Once for LANES entries: their column numbers, and their values, take at most 64 bytes.
            if q == 0:
                _fetch(builder, entries, builder.add(k, args[8]))
            x = None if entries.values is None else _value(builder, entries, k)

            def plus(a):
                return builder.fadd(a, r) if x is None else fma_lanes(builder, r, x, a)

            a = load_lanes(builder, place(k, 1), I64(0), F64)
            t = plus(a)
            store_lanes(builder, t, place(k, 1), I64(0))
            if fine:
                # t = fl(a + r x) is on the coarse grid, and r x - (t - a) is what was rounded off:
                # fma computes it with one rounding. Its last bit is set (elementary.set_odd), so
                # that adding it to the accumulator b of the finer grid is never a tie.
                odd = builder.or_(
                    builder.bitcast(plus(builder.fsub(a, t)), _BITS),
                    ir.Constant(_BITS, [1] * LANES),
                )
                b = load_lanes(builder, place(k, 2), I64(0), F64)
                store_lanes(
                    builder, builder.fadd(b, builder.bitcast(odd, VECTOR)), place(k, 2), I64(0)
                )

        _every_entry(builder, entries, add_one)
        return context.get_dummy_value()

    return generate


@intrinsic
def add_outputs(typingctx, start, stop, indices, values, lines, group, turned, at, ahead):
    """Do add_entries for the LANES outputs from `group` on, with the residuals turned[at].

    The entries `ahead` entries further are prefetched.
    """
    _check(lines, turned)
    return types.none(start, stop, indices, values, lines, group, turned, at, types.intp), _add(
        False
    )


@intrinsic
def add_outputs_fine(typingctx, start, stop, indices, values, lines, group, turned, at, ahead):
    """Do add_outputs on both grids."""
    _check(lines, turned)
    return types.none(start, stop, indices, values, lines, group, turned, at, types.intp), _add(
        True
    )
