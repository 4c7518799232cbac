"""Dense rows and several outputs at once: tiles of TILE rows by TILE outputs.

An element of X is loaded and converted to float64 once for TILE outputs instead of once for each. A
tile keeps TILE * TILE accumulator vectors (dot products) or TILE * TILE residual vectors
(accumulation) in registers.

The bits are those of lanes.py: every dot product, and every element of an accumulator, is the same
chain of fma in the same order, whichever rows and outputs share a tile.
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

# Rows and outputs of a tile: as many as the vector registers hold beside weights or accumulators.
TILE = 4


def _outputs(context, builder, kind, value, first):
    """Return pointers to rows first to first + TILE - 1 of a C-contiguous float64 matrix."""
    return rows_of(context, builder, kind, value, following(builder, first, TILE)).pointers


def _rows(context, builder, signature, args):
    """Return TILE rows from the i-th on of X in `order` (the first three arguments)."""
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
    # Raise TypingError unless all arguments are C-contiguous matrices.
    if not all(M.layout == "C" and M.ndim == 2 for M in matrices):
        raise TypingError(f"matrices must be C-contiguous: not {', '.join(map(str, matrices))}")


@intrinsic
def dot_tile(typingctx, X, order, i, W, q, b, Z, at):
    """Set Z[q + s, at + t] = X[i + t] . W[q + s] + b[q + s], s, t < TILE; X is taken in `order`."""
    _check(X, W, Z)

    def generate(context, builder, signature, args):
        output, at = (context.cast(builder, args[k], signature.args[k], types.intp) for k in (4, 7))
        rows = _rows(context, builder, signature, args)
        weights, margins = (
            _outputs(context, builder, signature.args[k], args[k], output) for k in (3, 6)
        )
        intercepts = context.make_array(signature.args[5])(context, builder, args[5]).data
        # sums[s][t] is the accumulator of output s and row t. They are stack variables in this
        # code; LLVM moves them into registers, since their addresses are never passed on.
        sums = [[cgutils.alloca_once(builder, VECTOR) for _ in range(TILE)] for _ in range(TILE)]
        for total in (total for row in sums for total in row):
            builder.store(ir.Constant(VECTOR, [0.0] * LANES), total)

        def add(j, mask):
            # Per vector of columns: TILE loads of weights, TILE loads of the rows, and TILE * TILE
            # fma. Lane l of sums[s][t] adds columns l, l + LANES, ... as a single dot product does.
            w = [load_lanes(builder, pointer, j, F64, mask) for pointer in weights]
            for t in range(TILE):
                x = columns_of(builder, rows, t, j, mask)
                for s in range(TILE):
                    builder.store(fma_lanes(builder, x, w[s], builder.load(sums[s][t])), sums[s][t])

        for_vectors(builder, rows.columns, add)
        # The TILE rows of output s lie side by side in Z[q + s], so their sums are stored as one
        # vector.
        for s in range(TILE):
            b = builder.load(builder.gep(intercepts, [builder.add(output, I64(s))]))
            # One number for each of the TILE rows, plus the intercept of output s.
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
    """Set A[q + s]_j = fma(R[q + s, at + t], X[i + t, j], A[q + s]_j), s, t < TILE.

    The rows t are added in turn, for every output s; X is taken in `order`.
    """
    _check(X, R, A)

    def generate(context, builder, signature, args):
        at, output = (context.cast(builder, args[k], signature.args[k], types.intp) for k in (4, 5))
        rows = _rows(context, builder, signature, args)
        given, accumulators = (
            _outputs(context, builder, signature.args[k], args[k], output) for k in (3, 6)
        )
        # residuals[s][t]: the residual of output s and row t in all lanes, kept over the loop of
        # columns.
        residuals = [
            [
                every(builder, builder.load(builder.gep(r, [i])))
                for i in following(builder, at, TILE)
            ]
            for r in given
        ]

        def add(j, mask):
            # The accumulators of TILE outputs are in registers while the TILE rows are added, t = 0
            # first: the order of rows is the same for each of them, and fixed.
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
    """Set A[j + t]_q = fma(P[i, t], Z[i, q], A[j + t]_q) for t < LANES, q >= j, all rows i in turn.

    P (m, LANES), Z (m, p) and A (p, p) are float64; p and j are multiples of LANES, so no mask is
    needed. The loop over rows is the innermost one: a tile of LANES rows of A by one or two vectors
    of columns stays in registers from row to row.
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
            """Add to LANES rows of A from column q on, for one or two `vectors` of columns."""
            places = following(builder, q, LANES * vectors)[::LANES]
            # sums[t][v]: vector v of row j + t of A. With two vectors, 16 of the 32 registers of
            # AVX-512.
            sums = [[cgutils.alloca_once(builder, VECTOR) for _ in places] for _ in accumulators]
            for pointer, row in zip(accumulators, sums, strict=True):
                for place, one in zip(places, row, strict=True):
                    builder.store(load_lanes(builder, pointer, place, F64), one)
            with cgutils.for_range(builder, m) as loop:
                # Offsets of row i in Z and in P. P[i, t] is spread over all lanes, and multiplied
                # by the vectors of Z.
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

        # The columns q >= j, two vectors at a time, then the last one if their number is odd.
        pairs = builder.udiv(builder.sub(p, first), I64(2 * LANES))
        with cgutils.for_range(builder, pairs) as loop:
            add(builder.add(first, builder.mul(loop.index, I64(2 * LANES))), 2)
        last = builder.add(first, builder.mul(pairs, I64(2 * LANES)))
        with builder.if_then(builder.icmp_unsigned("<", last, p)):
            add(last, 1)
        return context.get_dummy_value()

    return types.none(P, Z, A, j), generate
