"""Dense rows in vectors: dot products of several rows at once, and several rows added to an accumulator at once.

The vectors are types of the intermediate code, not a wish to the optimiser: every CPU with fma gives the same bits, whatever its
own vectors hold, and no order of additions is left to the compiler. Columns beyond the last whole vector are read as a vector
too, with zeros behind them. A row's dot product does not depend on how many rows are taken at once.
"""

from collections import namedtuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

LANES = 8  # partial sums of a dot product, added pairwise in a fixed order at its end
ROWS = 8  # whose dot products are added up together, in few shuffles
ADDED = 4  # rows added at once, to save loads and stores of the accumulator
NEAR = 8192  # bytes by which hints run ahead of rows that lie in order
AHEAD = 32  # rows by which they run ahead of scattered ones

_F32, F64, _I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_LINE = 64  # bytes of a cache line
VECTOR, _BYTE = ir.VectorType(F64, LANES), ir.IntType(8).as_pointer()


# Rows of a C-contiguous matrix of float32, float64, or the bits of halves as uint16: pointers to them, the number of columns, the
# type of an element and its bytes.
_Rows = namedtuple("_Rows", "pointers columns element item")


def rows_of(context, builder, kind, value, numbers):
    matrix = context.make_array(kind)(context, builder, value)
    columns = builder.extract_value(matrix.shape, 1)
    element = ir.HalfType() if kind.dtype == types.uint16 else context.get_data_type(kind.dtype)
    data = builder.bitcast(matrix.data, element.as_pointer())
    pointers = [builder.gep(data, [builder.mul(number, columns)]) for number in numbers]
    return _Rows(pointers, columns, element, {_F32: 4, F64: 8}.get(element, 2))


def following(builder, first, count):
    return [builder.add(first, I64(q)) for q in range(count)]


# How rows are numbered: row(i), the number of the i-th, and ahead(i), that of one which is needed soon.
_Order = namedtuple("_Order", "row ahead scattered")


def order_of(context, builder, kind, value):
    """Rows order[0], order[1], ... of an array of int64, or 0, 1, ... where it is empty."""
    order = context.make_array(kind)(context, builder, value)
    last = builder.sub(builder.extract_value(order.shape, 0), I64(1))
    scattered = builder.icmp_signed(">=", last, I64(0))
    nowhere = cgutils.alloca_once_value(builder, I64(0))

    def row(i):
        place = builder.select(scattered, builder.gep(order.data, [i]), nowhere)
        return builder.select(scattered, builder.load(place), i)

    def ahead(i):
        later = builder.add(i, I64(AHEAD))
        return row(
            builder.select(
                builder.icmp_signed("<", last, later), builder.select(scattered, last, i), later
            )
        )

    return _Order(row, ahead, scattered)


def columns_of(builder, rows, q, j, mask):
    """Columns j and after of row q as float64, exactly."""
    value = load_lanes(builder, rows.pointers[q], j, rows.element, mask)
    if rows.element == ir.HalfType():  # by way of float32, for which there is an instruction
        value = builder.fpext(value, ir.VectorType(_F32, LANES))
    return value if rows.element == F64 else builder.fpext(value, VECTOR)


def hint(builder, pointer, j, bytes_behind, level):
    """Ask for the cache line of element j of a row, or so many bytes behind it; reads nothing, whatever is there."""
    place = builder.gep(builder.bitcast(builder.gep(pointer, [j]), _BYTE), [bytes_behind])
    fetch = _function(builder, "llvm.prefetch.p0", ir.VoidType(), [_BYTE, _I32, _I32, _I32])
    builder.call(fetch, [place, _I32(0), _I32(level), _I32(1)])


def _hint_lines(builder, rows, j, shift, level):
    """The hints for two vectors from column j on."""
    for line in range(0, 2 * LANES * rows.item, _LINE):
        hint(builder, rows.pointers[0], j, builder.add(shift, I64(line)), level)


def _function(builder, name, result, arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _suffix(element):
    return {_F32: "f32", F64: "f64"}.get(element, "f16")


def load_lanes(builder, pointer, j, element, mask=None):
    """LANES elements from pointer[j] on; with a mask those of its lanes, zeros in the others."""
    kind = ir.VectorType(element, LANES)
    place = builder.bitcast(builder.gep(pointer, [j]), kind.as_pointer())
    if mask is None:
        return builder.load(place, align=1)
    masked = _function(
        builder,
        f"llvm.masked.load.v{LANES}{_suffix(element)}.p0",
        kind,
        [kind.as_pointer(), _I32, mask.type, kind],
    )
    return builder.call(masked, [place, _I32(1), mask, ir.Constant(kind, [0.0] * LANES)])


def store_lanes(builder, value, pointer, j, mask=None):
    place = builder.bitcast(builder.gep(pointer, [j]), VECTOR.as_pointer())
    if mask is None:
        builder.store(value, place, align=8)
        return
    kinds = [VECTOR, VECTOR.as_pointer(), _I32, mask.type]
    builder.call(
        _function(builder, f"llvm.masked.store.v{LANES}f64.p0", ir.VoidType(), kinds),
        [value, place, _I32(8), mask],
    )


def fma_lanes(builder, a, b, c):
    return builder.call(
        _function(builder, f"llvm.fma.v{LANES}f64", VECTOR, [VECTOR] * 3), [a, b, c]
    )


def every(builder, value, lanes=LANES):
    """A vector of one number."""
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def for_vectors(builder, columns, body, before=None):
    """body(j, mask) for every whole vector of columns (mask None), and once for the columns behind the last, if any.

    Two at a time, with before(j) in front of them.
    """
    pairs = builder.udiv(columns, I64(2 * LANES))
    with cgutils.for_range(builder, pairs) as loop:
        j = builder.mul(loop.index, I64(2 * LANES))
        if before is not None:
            before(j)
        body(j, None)
        body(builder.add(j, I64(LANES)), None)
    whole = builder.mul(builder.udiv(columns, I64(LANES)), I64(LANES))
    with builder.if_then(builder.icmp_unsigned("<", builder.mul(pairs, I64(2 * LANES)), whole)):
        body(builder.sub(whole, I64(LANES)), None)
    with builder.if_then(builder.icmp_unsigned("<", whole, columns)):
        numbers = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
        body(
            whole, builder.icmp_unsigned("<", numbers, every(builder, builder.sub(columns, whole)))
        )


def add_lanes(builder, vectors):
    """The sums of the lanes of each vector, as one vector: first half plus second half, until one lane is left of each.

    Two vectors that are half done share one, so that several rows take few shuffles; who shares changes no sum.
    """
    width, held = LANES, 1  # lanes of each row that are left, rows that a vector holds
    while width > 1:
        width //= 2
        pairs = (
            list(zip(vectors[::2], vectors[1::2], strict=True))
            if len(vectors) > 1
            else [(vectors[0], vectors[0])]
        )
        held *= 2 if len(vectors) > 1 else 1
        low = [row * 2 * width + lane for row in range(held) for lane in range(width)]
        halves = [
            ir.Constant(ir.VectorType(_I32, len(low)), [place + shift for place in low])
            for shift in (0, width)
        ]
        vectors = [
            builder.fadd(*(builder.shuffle_vector(a, b, half) for half in halves)) for a, b in pairs
        ]
    return vectors[0]


def _check(X, order, *vectors):
    if not (X.layout == "C" and all(v.layout == "C" and v.dtype == types.float64 for v in vectors)):
        raise TypingError(
            f"rows and vectors must be C-contiguous, vectors float64: not {X}, {', '.join(map(str, vectors))}"
        )
    if order.layout != "C" or order.dtype != types.int64:
        raise TypingError(f"an order must be contiguous int64: not {order}")


def _dot(count):
    """The code of dot products of `count` rows, one after another: the processor fetches what it sees read in order by itself."""

    def generate(context, builder, signature, args):
        first, at = (context.cast(builder, args[i], signature.args[i], types.intp) for i in (2, 6))
        order = order_of(context, builder, signature.args[1], args[1])
        w, z = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (3, 5)
        )
        sums = cgutils.alloca_once(builder, VECTOR, count)
        shift = builder.select(order.scattered, I64(0), I64(NEAR))
        with cgutils.for_range(builder, I64(count)) as loop:
            i = builder.add(first, loop.index)
            X, later = (
                rows_of(context, builder, signature.args[0], args[0], [number(i)])
                for number in (order.row, order.ahead)
            )
            total = builder.gep(sums, [loop.index])
            builder.store(ir.Constant(VECTOR, [0.0] * LANES), total)

            def add(j, mask, X=X, total=total):
                weights = load_lanes(builder, w, j, F64, mask)
                builder.store(
                    fma_lanes(
                        builder, columns_of(builder, X, 0, j, mask), weights, builder.load(total)
                    ),
                    total,
                )

            for_vectors(
                builder,
                X.columns,
                add,
                lambda j, later=later: _hint_lines(builder, later, j, shift, 2),
            )
        result = add_lanes(
            builder, [builder.load(builder.gep(sums, [I64(q)])) for q in range(count)]
        )
        b = context.cast(builder, args[4], signature.args[4], types.float64)
        result = builder.fadd(result, every(builder, b, count))
        builder.store(
            result, builder.bitcast(builder.gep(z, [at]), result.type.as_pointer()), align=8
        )
        return context.get_dummy_value()

    return generate


@intrinsic
def dot_rows(typingctx, X, order, i, w, b, z, at):
    """z[at : at + ROWS] = X[i : i + ROWS] . w + b, where X is taken in `order`: LANES partial sums each by fma, added pairwise.

    Meanwhile what comes soon is fetched.
    """
    _check(X, order, w, z)
    return types.none(X, order, i, w, b, z, at), _dot(ROWS)


@intrinsic
def dot_row(typingctx, X, order, i, w, b, z, at):
    """z[at] = X[i] . w + b, with the bits of dot_rows."""
    _check(X, order, w, z)
    return types.none(X, order, i, w, b, z, at), _dot(1)


@intrinsic
def widen_row(typingctx, X, order, i, out, at):
    """out[at] (float64) = X[i], where X is taken in `order`; meanwhile what comes soon is fetched."""
    _check(X, order, out)

    def generate(context, builder, signature, args):
        first, row = (context.cast(builder, args[k], signature.args[k], types.intp) for k in (2, 4))
        order = order_of(context, builder, signature.args[1], args[1])
        given, later = (
            rows_of(context, builder, signature.args[0], args[0], [number(first)])
            for number in (order.row, order.ahead)
        )
        (place,) = rows_of(context, builder, signature.args[3], args[3], [row]).pointers
        shift = builder.select(order.scattered, I64(0), I64(NEAR))

        def widen(j, mask):
            store_lanes(builder, columns_of(builder, given, 0, j, mask), place, j, mask)

        for_vectors(
            builder, given.columns, widen, lambda j: _hint_lines(builder, later, j, shift, 2)
        )
        return context.get_dummy_value()

    return types.none(X, order, i, out, at), generate


def _add(count):
    """The code of A_j = fma(r_i, X_ij, A_j) for `count` rows in turn."""

    def generate(context, builder, signature, args):
        first, at, ahead = (
            context.cast(builder, args[i], signature.args[i], types.intp) for i in (2, 4, 6)
        )
        order = order_of(context, builder, signature.args[1], args[1])
        numbers = [order.row(i) for i in following(builder, first, count)]
        X = rows_of(context, builder, signature.args[0], args[0], numbers)
        # Scattered rows are fetched from one dot product to the next; here a hint that costs nothing stands for them.
        later = builder.select(order.scattered, numbers[0], ahead)
        later = rows_of(context, builder, signature.args[0], args[0], [later])
        r, A = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (3, 5)
        )
        residuals = [
            every(builder, builder.load(builder.gep(r, [i]))) for i in following(builder, at, count)
        ]

        def add(j, mask):
            a = load_lanes(builder, A, j, F64, mask)
            for q, residual in enumerate(residuals):
                a = fma_lanes(builder, residual, columns_of(builder, X, q, j, mask), a)
            store_lanes(builder, a, A, j, mask)

        for_vectors(builder, X.columns, add, lambda j: _hint_lines(builder, later, j, I64(NEAR), 2))
        return context.get_dummy_value()

    return generate


@intrinsic
def add_rows(typingctx, X, order, i, r, at, A, ahead):
    """A_j = fma(r_q, X_pj, A_j) for q = at, at + 1, ... and p = i, i + 1, ..., ADDED rows of X in `order`, in turn.

    Meanwhile row `ahead`, and NEAR bytes, of X is fetched, if rows are taken as they lie.
    """
    _check(X, order, r, A)
    return types.none(X, order, i, r, at, A, ahead), _add(ADDED)


@intrinsic
def add_row(typingctx, X, order, i, r, at, A, ahead):
    """The same for one row."""
    _check(X, order, r, A)
    return types.none(X, order, i, r, at, A, ahead), _add(1)
