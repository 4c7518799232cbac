"""Compressed rows met by several outputs at once: the outputs of a column lie side by side, so that an entry is read once.

lines (d, 2 or 3, k rounded up to whole vectors): of each column the coefficients of all outputs, their accumulators and, where
sums are kept on a finer grid too, those of it. LANES outputs are one vector, and one memory line where `lines` starts with one;
what is left of the last vector holds zeros. Every output has the bits that it has alone (entries.py).
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
_AHEAD = 32  # entries by which the lines of their columns are fetched: half the time where these do not fit into the cache


def width(k):
    """Numbers of a column's part of lines: k rounded up to whole vectors."""
    return -(-k // LANES) * LANES


def turned_in(room, lines, block):
    """A number of every output for each row of a block, in room; None where there are no lines."""
    raise NotImplementedError("for compiled code")


@overload(turned_in)
def _turned_in(room, lines, block):
    if isinstance(lines, types.NoneType):
        return lambda room, lines, block: None
    return lambda room, lines, block: room[: block * lines.shape[2]].reshape(block, lines.shape[2])


@compiled
def margins_of(starts, stops, indices, data, lines, b, turned, z):
    """csr.margins_of for all outputs: b (k,), z (k, m); turned (m or more, k rounded up): room."""
    for i in range(starts.size):
        for group in range(0, lines.shape[2], LANES):
            dot_outputs(starts[i], stops[i], indices, data, lines, group, turned, i)
    for q in range(b.size):
        for i in range(starts.size):
            z[q, i] = turned[i, q] + b[q]


@compiled
def add(starts, stops, indices, data, r, lines, turned, A, C, D, T, filled, panel):
    """sweep.add_sparse for all outputs: r (k, m); A (1 or 2, k, d): the accumulators in lines."""
    k, n = r.shape
    for i in range(n):
        for q in range(turned.shape[1]):
            turned[i, q] = r[q, i] if q < k else 0.0
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
    """rest (k, d - head) = what accumulators hold of the columns from `head` on, which are set back to C."""
    for j in range(head, C.size):
        for q in range(rest.shape[0]):
            rest[q, j - head] = lines[j, part, q] - C[j]
            lines[j, part, q] = C[j]


def _every_entry(builder, entries, body):
    """body(k, q) for every entry k, the q-th of LANES."""
    _each(builder, entries, lambda k, mask: _in_turn(builder, entries, k, mask, body))


def _value(builder, entries, k):
    """A vector of the value of entry k."""
    x = builder.load(builder.gep(entries.values, [k]))
    return every(builder, x if entries.value == F64 else builder.fpext(x, F64))


def _vectors(context, builder, signature, args):
    """The entries; place(k, part), where LANES outputs of entry k's column lie in a part of lines; and that of turned[at]."""
    entries = _entries(context, builder, signature, args, 0)
    lines, turned = (
        context.make_array(signature.args[i])(context, builder, args[i]) for i in (4, 6)
    )
    group, at = (context.cast(builder, args[i], signature.args[i], types.intp) for i in (5, 7))
    parts, width = (builder.extract_value(lines.shape, i) for i in (1, 2))
    column = builder.mul(parts, width)

    def place(k, part):
        first = builder.add(group, builder.mul(width, I64(part)))
        return builder.gep(
            entries.base, [builder.add(builder.mul(_column(builder, entries, k), column), first)]
        )

    return entries, place, builder.gep(turned.data, [builder.add(builder.mul(at, width), group)])


def _check(lines, turned):
    if not all(array.layout == "C" and array.dtype == types.float64 for array in (lines, turned)):
        raise TypingError(f"lines must be C-contiguous and float64: not {lines}, {turned}")


@intrinsic
def dot_outputs(typingctx, start, stop, indices, values, lines, group, turned, at):
    """dot_entries for the LANES outputs from `group` on -> turned[at]."""
    _check(lines, turned)

    def generate(context, builder, signature, args):
        entries, place, out = _vectors(context, builder, signature, args)
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(LANES)]
        for one in sums:
            builder.store(_ZEROS, one)

        def add_one(k, q):
            later = builder.add(k, I64(_AHEAD))
            later = builder.select(builder.icmp_unsigned("<", later, entries.count), later, k)
            for part in (0, 1):  # what the accumulation needs a moment later, too
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
        while len(left) > 1:  # as add_lanes does with the partial sums of one output
            half = len(left) // 2
            left = [builder.fadd(a, b) for a, b in zip(left[:half], left[half:], strict=True)]
        store_lanes(builder, left[0], out, I64(0))
        return context.get_dummy_value()

    return types.none(start, stop, indices, values, lines, group, turned, at), generate


def _add(fine):
    """The code of A_j = fma(r, values_k, A_j) for LANES outputs and, if `fine`, of what that rounds off (csr.add_fine)."""

    def generate(context, builder, signature, args):
        entries, place, given = _vectors(context, builder, signature, args)
        r = load_lanes(builder, given, I64(0), F64)

        def add_one(k, q):
            if q == 0:
                _fetch(builder, entries, builder.add(k, args[8]))
            x = None if entries.values is None else _value(builder, entries, k)

            def plus(a):
                return builder.fadd(a, r) if x is None else fma_lanes(builder, r, x, a)

            a = load_lanes(builder, place(k, 1), I64(0), F64)
            t = plus(a)
            store_lanes(builder, t, place(k, 1), I64(0))
            if fine:
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
    """add_entries for the LANES outputs from `group` on, with the residuals turned[at]; fetches the entries `ahead`."""
    _check(lines, turned)
    return types.none(start, stop, indices, values, lines, group, turned, at, types.intp), _add(
        False
    )


@intrinsic
def add_outputs_fine(typingctx, start, stop, indices, values, lines, group, turned, at, ahead):
    """add_outputs on both grids."""
    _check(lines, turned)
    return types.none(start, stop, indices, values, lines, group, turned, at, types.intp), _add(
        True
    )
