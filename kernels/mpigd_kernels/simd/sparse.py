"""One compressed sparse row at a time, LANES stored entries at once: dot products and accumulation.

As in rows.py the vectors are LLVM vector types, so that every CPU with fma gives the same bits. An
entry is a pair of a column number (int32 or int64) and a value (float32 or float64). Values are
None if all of them are one.

Coefficients w and accumulators A are arrays (d,), or the first and the second column of one array
of pairs (d, 2). Pairs are for vectors that do not fit into the cache: the cache line that a dot
product has waited for then also holds the accumulator that is needed a moment later.
"""

from collections import namedtuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from mpigd_kernels.simd.rows import (
    _I32,
    F64,
    I64,
    LANES,
    VECTOR,
    _function,
    add_lanes,
    every,
    fma_lanes,
    hint,
    load_lanes,
)

_LONGS, _MASK = ir.VectorType(I64, LANES), ir.VectorType(ir.IntType(1), LANES)
_ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
# Entries by which the coefficients of later entries are prefetched. If these do not fit into the
# cache, waiting for them is most of the time of a dot product.
_LATER = 64
_AHEAD = 64  # entries by which column numbers are prefetched before values


# The entries of a row.
#   indices, index  pointer to all column numbers of the matrix, and their LLVM type
#   values, value   the same for its values; None: all of them are one
#   ends            the first entry of the row, and the one behind its last
#   count           the number of entries of the whole matrix
#   base, shift     the array that column numbers point into: the number of column j stands at
#                   base + (j << shift), with shift 0 for an array (d,) and 1 for pairs (d, 2)
_Entries = namedtuple("_Entries", "indices index values value ends count base shift")


def _entries(context, builder, signature, args, column):
    # Return the _Entries of (start, stop, indices, values, array), `column` of a pair.
    def pointer(i):
        return context.make_array(signature.args[i])(context, builder, args[i]).data

    ones, shift = isinstance(signature.args[3], types.NoneType), signature.args[4].ndim - 1
    return _Entries(
        pointer(2),
        context.get_data_type(signature.args[2].dtype),
        None if ones else pointer(3),
        None if ones else context.get_data_type(signature.args[3].dtype),
        [context.cast(builder, args[i], signature.args[i], types.intp) for i in (0, 1)],
        context.make_array(signature.args[2])(context, builder, args[2]).nitems,
        builder.gep(pointer(4), [I64(column * shift)]),
        shift,
    )


def _values(builder, entries, k, mask):
    """Load the values of entries k to k + LANES - 1 as float64; the conversion is exact."""
    value = load_lanes(builder, entries.values, k, entries.value, mask)
    return value if entries.value == F64 else builder.fpext(value, VECTOR)


def _column(builder, entries, k):
    """Load the column of entry k."""
    j = builder.load(builder.gep(entries.indices, [k]))
    return j if entries.index == I64 else builder.zext(j, I64)


def _place(builder, entries, k):
    """Return the address of the number that the column of entry k points to."""
    return builder.gep(
        entries.base, [builder.shl(_column(builder, entries, k), I64(entries.shift))]
    )


def _in_turn(builder, entries, k, mask, one):
    """Write one(entry, q) for LANES entries k, k + 1, ...; with a mask for those in the row alone.

    The entries are taken one by one, since a masked gather or scatter takes some CPUs longer than
    all the rest of a short row. The nested ifs leave at the first entry that is not in the row.
    """

    def from_on(q):
        one(builder.add(k, I64(q)), q)
        if mask is None and q < LANES - 1:
            from_on(q + 1)
        elif q < LANES - 2:  # a row that fills all LANES has no mask
            with builder.if_then(
                builder.icmp_unsigned("<", builder.add(k, I64(q + 1)), entries.ends[1])
            ):
                from_on(q + 1)

    from_on(0)


def _collect(builder, entries, k, mask):
    """Gather the numbers that LANES entries from k on point to; prefetch those of later entries."""
    # Lanes without an entry stay zero, so that they add nothing to a dot product.
    found = cgutils.alloca_once(builder, VECTOR)
    builder.store(_ZEROS, found)
    later = builder.add(k, I64(_LATER))
    # At the end of all entries, `later` falls back to k: its column numbers would be read from
    # behind the array. Entries of following rows are prefetched too, since they lie behind this
    # row.
    later = builder.select(
        builder.icmp_signed("<=", later, builder.sub(entries.count, I64(LANES))), later, k
    )

    def take(entry, q):
        # The column number of the later entry is read; the number that it points to is only hinted.
        hint(builder, _place(builder, entries, builder.add(later, I64(q))), I64(0), I64(0), 3)
        number = builder.load(_place(builder, entries, entry))
        builder.store(builder.insert_element(builder.load(found), number, _I32(q)), found)

    _in_turn(builder, entries, k, mask, take)
    return builder.load(found)


def _fetch(builder, entries, k):
    """Prefetch the column numbers and values of the entries from k on."""
    hint(builder, entries.indices, builder.add(k, I64(_AHEAD)), I64(0), 3)
    if entries.values is not None:
        hint(builder, entries.values, k, I64(0), 3)


def _each(builder, entries, body):
    """Write body(k, mask) for every LANES entries of the row, and once for the entries left over.

    `mask` is None except for the entries left over.
    """
    start, stop = entries.ends
    panels = builder.udiv(builder.sub(stop, start), I64(LANES))
    with cgutils.for_range(builder, panels) as loop:
        body(builder.add(start, builder.mul(loop.index, I64(LANES))), None)
    whole = builder.add(start, builder.mul(panels, I64(LANES)))
    with builder.if_then(builder.icmp_unsigned("<", whole, stop)):
        # Lane t of the mask is set if entry whole + t belongs to the row.
        rest = every(builder, builder.sub(stop, whole))
        body(whole, builder.icmp_unsigned("<", ir.Constant(_LONGS, list(range(LANES))), rest))


def _check(indices, values, vector):
    # Raise TypingError unless the arrays have the layout and dtype that the code assumes.
    arrays = [indices, vector] if isinstance(values, types.NoneType) else [indices, values, vector]
    if (
        not all(array.layout == "C" for array in arrays)
        or vector.dtype != types.float64
        or vector.ndim > 2
    ):
        raise TypingError(
            f"entries must be C-contiguous, vectors float64: not {', '.join(map(str, arrays))}"
        )


@intrinsic
def dot_entries(typingctx, start, stop, indices, values, w):
    """Return the sum of values_k w[indices_k] over entries k = start to stop - 1.

    Lane t adds the entries start + t, start + t + LANES, ... in this order by fma; the LANES
    partial sums are then added pairwise (rows.add_lanes). The result is a function of the row's
    entries in their stored order.
    """
    _check(indices, values, w)

    def generate(context, builder, signature, args):
        entries = _entries(context, builder, signature, args, 0)
        total = cgutils.alloca_once(builder, VECTOR)
        builder.store(_ZEROS, total)

        def add(k, mask):
            weights, before = _collect(builder, entries, k, mask), builder.load(total)
            if entries.values is None:
                # Values are all one: fma(1, w, s) is w + s, and masked lanes add zeros.
                builder.store(builder.fadd(before, weights), total)
            else:
                builder.store(
                    fma_lanes(builder, _values(builder, entries, k, mask), weights, before), total
                )

        _each(builder, entries, add)
        return builder.extract_element(add_lanes(builder, [builder.load(total)]), _I32(0))

    return types.float64(start, stop, indices, values, w), generate


@intrinsic
def add_entries(typingctx, start, stop, indices, values, A, r, ahead):
    """Set A_j = fma(r, values_k, A_j), j = indices_k, for entries k = start to stop - 1.

    A row must not hold a column twice: the order of two additions to one A_j would then matter.
    Column numbers and values of the entries `ahead` entries further are prefetched.
    """
    _check(indices, values, A)

    def generate(context, builder, signature, args):
        entries = _entries(context, builder, signature, args, 1)
        one_fma = _function(builder, "llvm.fma.f64", F64, [F64] * 3)

        def add(k, mask):
            _fetch(builder, entries, builder.add(k, args[6]))
            # Values are loaded and converted as a vector; each of its lanes is then added on its
            # own.
            x = None if entries.values is None else _values(builder, entries, k, mask)

            # Load, fma and store of one A_j. The columns of a row are all different, so these do
            # not depend on one another and overlap in the processor.
            def add_one(entry, q):
                place = _place(builder, entries, entry)
                a = builder.load(place)
                if x is None:
                    builder.store(builder.fadd(a, args[5]), place)
                else:
                    builder.store(
                        builder.call(one_fma, [args[5], builder.extract_element(x, _I32(q)), a]),
                        place,
                    )

            _in_turn(builder, entries, k, mask, add_one)

        _each(builder, entries, add)
        return context.get_dummy_value()

    return types.none(start, stop, indices, values, A, types.float64, types.intp), generate
