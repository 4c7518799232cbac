"""Dense rows and several outputs at once: an element is converted to float64 once for TILE outputs instead of once for each.

The bits are those of lanes.py: every dot product and every element of an accumulator is the same chain of fma.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from mpigd_kernels.lanes import (
    F64,
    I64,
    LANES,
    VECTOR,
    add_lanes,
    columns_of,
    every,
    fma_lanes,
    following,
    for_vectors,
    load_lanes,
    order_of,
    rows_of,
    store_lanes,
)  # fmt: skip

TILE = 4  # rows and outputs at once: as many as the registers hold beside weights or accumulators


def _outputs(context, builder, kind, value, first):
    """Pointers to TILE consecutive rows of a C-contiguous float64 matrix."""
    return rows_of(context, builder, kind, value, following(builder, first, TILE)).pointers


def _rows(context, builder, signature, args):
    """TILE rows from the i-th on, of X in `order`: the first three arguments."""
    first = context.cast(builder, args[2], signature.args[2], types.intp)
    order = order_of(context, builder, signature.args[1], args[1])
    return rows_of(
        context,
        builder,
        signature.args[0],
        args[0],
        [order.row(i) for i in following(builder, first, TILE)],
    )


def _check(*matrices):
    if not all(M.layout == "C" and M.ndim == 2 for M in matrices):
        raise TypingError(f"matrices must be C-contiguous: not {', '.join(map(str, matrices))}")


@intrinsic
def dot_tile(typingctx, X, order, i, W, q, b, Z, at):
    """Z[q + s, at + t] = X[i + t] . W[q + s] + b[q + s] for s, t < TILE, where X is taken in `order`."""
    _check(X, W, Z)

    def generate(context, builder, signature, args):
        output, at = (context.cast(builder, args[k], signature.args[k], types.intp) for k in (4, 7))
        rows = _rows(context, builder, signature, args)
        weights, margins = (
            _outputs(context, builder, signature.args[k], args[k], output) for k in (3, 6)
        )
        intercepts = context.make_array(signature.args[5])(context, builder, args[5]).data
        sums = [[cgutils.alloca_once(builder, VECTOR) for _ in range(TILE)] for _ in range(TILE)]
        for total in (total for row in sums for total in row):
            builder.store(ir.Constant(VECTOR, [0.0] * LANES), total)

        def add(j, mask):
            w = [load_lanes(builder, pointer, j, F64, mask) for pointer in weights]
            for t in range(TILE):
                x = columns_of(builder, rows, t, j, mask)
                for s in range(TILE):
                    builder.store(fma_lanes(builder, x, w[s], builder.load(sums[s][t])), sums[s][t])

        for_vectors(builder, rows.columns, add)
        for s in range(TILE):
            b = builder.load(builder.gep(intercepts, [builder.add(output, I64(s))]))
            z = builder.fadd(
                add_lanes(builder, [builder.load(total) for total in sums[s]]),
                every(builder, b, TILE),
            )
            builder.store(
                z, builder.bitcast(builder.gep(margins[s], [at]), z.type.as_pointer()), align=8
            )
        return context.get_dummy_value()

    return types.none(X, order, i, W, q, b, Z, at), generate


@intrinsic
def add_tile(typingctx, X, order, i, R, at, q, A):
    """A[q + s]_j = fma(R[q + s, at + t], X[i + t, j], A[q + s]_j) for t < TILE in turn, for every s < TILE."""
    _check(X, R, A)

    def generate(context, builder, signature, args):
        at, output = (context.cast(builder, args[k], signature.args[k], types.intp) for k in (4, 5))
        rows = _rows(context, builder, signature, args)
        given, accumulators = (
            _outputs(context, builder, signature.args[k], args[k], output) for k in (3, 6)
        )
        residuals = [
            [
                every(builder, builder.load(builder.gep(r, [i])))
                for i in following(builder, at, TILE)
            ]
            for r in given
        ]

        def add(j, mask):
            a = [load_lanes(builder, pointer, j, F64, mask) for pointer in accumulators]
            for t in range(TILE):
                x = columns_of(builder, rows, t, j, mask)
                a = [fma_lanes(builder, residuals[s][t], x, a[s]) for s in range(TILE)]
            for s in range(TILE):
                store_lanes(builder, a[s], accumulators[s], j, mask)

        for_vectors(builder, rows.columns, add)
        return context.get_dummy_value()

    return types.none(X, order, i, R, at, q, A), generate


@intrinsic
def add_outer_tiles(typingctx, P, Z, A, j):
    """A[j + t]_q = fma(P[i, t], Z[i, q], A[j + t]_q) for all rows i in turn, t < LANES and q >= j.

    P (m, LANES), Z (m, p), A (p, p), p and j multiples of LANES: accumulators stay in registers from row to row.
    """
    _check(P, Z, A)

    def generate(context, builder, signature, args):
        first = context.cast(builder, args[3], signature.args[3], types.intp)
        given, rows = (
            context.make_array(signature.args[k])(context, builder, args[k]) for k in (0, 1)
        )
        m, p = (builder.extract_value(rows.shape, axis) for axis in (0, 1))
        accumulators = rows_of(
            context, builder, signature.args[2], args[2], following(builder, first, LANES)
        ).pointers

        def add(q, vectors):
            """To LANES rows of A from column q on."""
            places = following(builder, q, LANES * vectors)[::LANES]
            sums = [[cgutils.alloca_once(builder, VECTOR) for _ in places] for _ in accumulators]
            for pointer, row in zip(accumulators, sums, strict=True):
                for place, one in zip(places, row, strict=True):
                    builder.store(load_lanes(builder, pointer, place, F64), one)
            with cgutils.for_range(builder, m) as loop:
                row, own = builder.mul(loop.index, p), builder.mul(loop.index, I64(LANES))
                z = [
                    load_lanes(builder, rows.data, builder.add(row, place), F64) for place in places
                ]
                for t in range(LANES):
                    r = every(
                        builder, builder.load(builder.gep(given.data, [builder.add(own, I64(t))]))
                    )
                    for one, x in zip(sums[t], z, strict=True):
                        builder.store(fma_lanes(builder, r, x, builder.load(one)), one)
            for pointer, row in zip(accumulators, sums, strict=True):
                for place, one in zip(places, row, strict=True):
                    store_lanes(builder, builder.load(one), pointer, place)

        pairs = builder.udiv(builder.sub(p, first), I64(2 * LANES))
        with cgutils.for_range(builder, pairs) as loop:
            add(builder.add(first, builder.mul(loop.index, I64(2 * LANES))), 2)
        last = builder.add(first, builder.mul(pairs, I64(2 * LANES)))
        with builder.if_then(builder.icmp_unsigned("<", last, p)):
            add(last, 1)
        return context.get_dummy_value()

    return types.none(P, Z, A, j), generate
