"""Dense rows as explicit vectors: dot products, and rows added to an accumulator, several at once.

The functions here do not compute. They run while numba compiles, and write LLVM's intermediate code
with `builder`; the compiled kernel then executes that code. A Python `for` loop over rows is
therefore unrolled in the kernel, and `cgutils.for_range` writes a real loop.

The vectors are LLVM vector types of LANES float64, not a request to the optimiser. So the order of
additions is fixed in the code, and every CPU with fused multiply-add gives the same bits, whatever
the width of its own vectors. (A CPU with narrower vectors executes one of these as several.)
Columns behind the last whole vector are read as a masked vector, with zeros in the masked lanes; a
masked lane of a dot product adds zero times zero. The dot product of a row does not depend on how
many rows are taken at once: each row has an accumulator vector of its own.
"""

from collections import namedtuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

LANES = 8  # float64 of a vector: partial sums of a dot product, added pairwise in a fixed order
ROWS = 8  # rows whose lanes are added up together at the end of dot_rows, with few shuffles
ADDED = 4  # rows that add_rows takes at once, to save loads and stores of the accumulator
NEAR = 8192  # bytes by which prefetch hints run ahead of rows that are read in order
AHEAD = 32  # rows by which prefetch hints run ahead of rows that are read through an index

_F32, F64, _I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_LINE = 64  # bytes of a cache line
VECTOR, _BYTE = ir.VectorType(F64, LANES), ir.IntType(8).as_pointer()


# Rows of a C-contiguous matrix of float32, float64, or float16 (held as uint16 bits): pointers to
# the first element of each, the number of columns, the LLVM type of an element, its size in bytes.
_Rows = namedtuple("_Rows", "pointers columns element item")


def rows_of(context, builder, kind, value, numbers):
    # Return rows `numbers` (LLVM integers) of the matrix `value` of numba type `kind`.
    matrix = context.make_array(kind)(context, builder, value)
    columns = builder.extract_value(matrix.shape, 1)
    # numba has no float16 on CPUs, so halves arrive as uint16; LLVM does have the type.
    element = ir.HalfType() if kind.dtype == types.uint16 else context.get_data_type(kind.dtype)
    data = builder.bitcast(matrix.data, element.as_pointer())
    pointers = [builder.gep(data, [builder.mul(number, columns)]) for number in numbers]
    return _Rows(pointers, columns, element, {_F32: 4, F64: 8}.get(element, 2))


def following(builder, first, count):
    # Return the LLVM integers first, first + 1, ..., first + count - 1.
    return [builder.add(first, I64(q)) for q in range(count)]


# How rows are numbered: row(i) is the number of the i-th row, ahead(i) the number of a row that is
# needed soon, and `scattered` says (in compiled code) whether rows are read through an index.
_Order = namedtuple("_Order", "row ahead scattered")


def order_of(context, builder, kind, value):
    """Return the _Order of an int64 array: order[0], order[1], ..., or 0, 1, ... if it is empty."""
    order = context.make_array(kind)(context, builder, value)
    last = builder.sub(builder.extract_value(order.shape, 0), I64(1))
    scattered = builder.icmp_signed(">=", last, I64(0))
    # An empty array has no element to load. Its place is then a zero on the stack, so that `row`
    # needs no branch: it loads from there and selects i.
    nowhere = cgutils.alloca_once_value(builder, I64(0))

    def row(i):
        place = builder.select(scattered, builder.gep(order.data, [i]), nowhere)
        return builder.select(scattered, builder.load(place), i)

    def ahead(i):
        # Behind the end of the index the last row is hinted again; without an index row i itself is
        # (the hint then runs ahead by NEAR bytes instead, see _dot).
        later = builder.add(i, I64(AHEAD))
        return row(
            builder.select(
                builder.icmp_signed("<", last, later), builder.select(scattered, last, i), later
            )
        )

    return _Order(row, ahead, scattered)


def columns_of(builder, rows, q, j, mask):
    """Load columns j to j + LANES - 1 of row q as float64; the conversion is exact."""
    value = load_lanes(builder, rows.pointers[q], j, rows.element, mask)
    if rows.element == ir.HalfType():
        # By way of float32, since CPUs have an instruction for that conversion (vcvtph2ps).
        value = builder.fpext(value, ir.VectorType(_F32, LANES))
    return value if rows.element == F64 else builder.fpext(value, VECTOR)


def hint(builder, pointer, j, bytes_behind, level):
    """Write a prefetch of the cache line `bytes_behind` bytes behind element j of a row.

    A prefetch reads nothing into a register and cannot fault, so the address may lie outside the
    array. `level` is LLVM's locality: 3 keeps the line in all caches, 2 in all but the first.
    """
    place = builder.gep(builder.bitcast(builder.gep(pointer, [j]), _BYTE), [bytes_behind])
    fetch = _function(builder, "llvm.prefetch.p0", ir.VoidType(), [_BYTE, _I32, _I32, _I32])
    builder.call(fetch, [place, _I32(0), _I32(level), _I32(1)])  # a read, of data


def _hint_lines(builder, rows, j, shift, level):
    """Write the hints for the cache lines of two vectors from column j on."""
    for line in range(0, 2 * LANES * rows.item, _LINE):
        hint(builder, rows.pointers[0], j, builder.add(shift, I64(line)), level)


def _function(builder, name, result, arguments):
    # Return LLVM's function `name`, declared in the module if it is not yet.
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _suffix(element):
    # Return the name that LLVM gives to an element type in the names of its intrinsics.
    return {_F32: "f32", F64: "f64"}.get(element, "f16")


def load_lanes(builder, pointer, j, element, mask=None):
    """Load LANES elements from pointer[j] on; with a mask its lanes, and zeros in the others."""
    kind = ir.VectorType(element, LANES)
    place = builder.bitcast(builder.gep(pointer, [j]), kind.as_pointer())
    if mask is None:
        return builder.load(place, align=1)
    # Masked lanes are not read at all, so the load cannot fault behind the end of an array. Rows
    # begin at any element, hence an alignment of one byte.
    masked = _function(
        builder,
        f"llvm.masked.load.v{LANES}{_suffix(element)}.p0",
        kind,
        [kind.as_pointer(), _I32, mask.type, kind],
    )
    return builder.call(masked, [place, _I32(1), mask, ir.Constant(kind, [0.0] * LANES)])


def store_lanes(builder, value, pointer, j, mask=None):
    # Store LANES float64 from pointer[j] on; with a mask its lanes alone.
    place = builder.bitcast(builder.gep(pointer, [j]), VECTOR.as_pointer())
    if mask is None:
        # Float64 arrays are aligned to 8 bytes at least, not to a vector.
        builder.store(value, place, align=8)
        return
    kinds = [VECTOR, VECTOR.as_pointer(), _I32, mask.type]
    builder.call(
        _function(builder, f"llvm.masked.store.v{LANES}f64.p0", ir.VoidType(), kinds),
        [value, place, _I32(8), mask],
    )


def fma_lanes(builder, a, b, c):
    # Return a * b + c of each lane, with one rounding.
    return builder.call(
        _function(builder, f"llvm.fma.v{LANES}f64", VECTOR, [VECTOR] * 3), [a, b, c]
    )


def every(builder, value, lanes=LANES):
    """Return a vector that holds one number in all of its `lanes`."""
    kind = ir.VectorType(value.type, lanes)
    # LLVM's idiom of a broadcast: write lane 0, then let a shuffle copy it to all lanes.
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def for_vectors(builder, columns, body, before=None):
    """Write body(j, mask) for all columns: a loop over whole vectors, then the columns left over.

    `mask` is None for a whole vector. Columns behind the last whole vector are one more body with a
    mask. The loop takes two vectors at a time, with before(j) (prefetch hints) in front of them.
    """
    pairs = builder.udiv(columns, I64(2 * LANES))
    with cgutils.for_range(builder, pairs) as loop:
        j = builder.mul(loop.index, I64(2 * LANES))
        if before is not None:
            before(j)
        body(j, None)
        body(builder.add(j, I64(LANES)), None)
    # With an odd number of whole vectors, one is left behind the pairs.
    whole = builder.mul(builder.udiv(columns, I64(LANES)), I64(LANES))
    with builder.if_then(builder.icmp_unsigned("<", builder.mul(pairs, I64(2 * LANES)), whole)):
        body(builder.sub(whole, I64(LANES)), None)
    # Lane t of the mask is set if column whole + t exists.
    with builder.if_then(builder.icmp_unsigned("<", whole, columns)):
        numbers = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
        body(
            whole, builder.icmp_unsigned("<", numbers, every(builder, builder.sub(columns, whole)))
        )


def add_lanes(builder, vectors):
    """Return the sums of the lanes of each vector (one of a power of two of them), as one vector.

    Each row is summed as first half plus second half, until one lane of it is left: ((l0 + l4) +
    (l2 + l6)) + ((l1 + l5) + (l3 + l7)) for eight lanes. That order is part of the model's
    definition, since it decides the bits.

    Two vectors that are half summed share one, so that eight rows take seven additions in place of
    twenty-four. Which rows share a vector does not change any sum.
    """
    width, held = LANES, 1  # lanes of each row that are left, rows that a vector holds
    while width > 1:
        width //= 2
        pairs = (
            list(zip(vectors[::2], vectors[1::2], strict=True))
            # A shuffle takes two vectors: the last one stands for both, and both halves come from
            # the first.
            if len(vectors) > 1
            else [(vectors[0], vectors[0])]
        )
        held *= 2 if len(vectors) > 1 else 1
        # A pair (a, b) is seen as one list of `held` rows with 2 * width lanes each. `low` takes
        # the first half of each row, and the same places plus `width` the second half.
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
    # Raise TypingError unless the arrays have the layout and dtype that the code assumes.
    if not (X.layout == "C" and all(v.layout == "C" and v.dtype == types.float64 for v in vectors)):
        raise TypingError(
            "rows and vectors must be C-contiguous, vectors float64: "
            f"not {X}, {', '.join(map(str, vectors))}"
        )
    if order.layout != "C" or order.dtype != types.int64:
        raise TypingError(f"an order must be contiguous int64: not {order}")


def _dot(count):
    """Return the code generator of dot products of `count` rows.

    The rows are read one after another, not side by side, since the processor prefetches by itself
    what it sees read in order. Each has an accumulator vector in `sums`; lane t of it adds columns
    t, t + LANES, t + 2 LANES, ... in this order.
    """

    def generate(context, builder, signature, args):
        first, at = (context.cast(builder, args[i], signature.args[i], types.intp) for i in (2, 6))
        order = order_of(context, builder, signature.args[1], args[1])
        w, z = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (3, 5)
        )
        sums = cgutils.alloca_once(builder, VECTOR, count)
        # Rows in order: hint NEAR bytes further in the same memory. Rows through an index: hint the
        # same columns of the row that is needed AHEAD rows later.
        shift = builder.select(order.scattered, I64(0), I64(NEAR))
        with cgutils.for_range(builder, I64(count)) as loop:
            i = builder.add(first, loop.index)
            # X is row i, `later` the row to hint.
            X, later = (
                rows_of(context, builder, signature.args[0], args[0], [number(i)])
                for number in (order.row, order.ahead)
            )
            total = builder.gep(sums, [loop.index])
            builder.store(ir.Constant(VECTOR, [0.0] * LANES), total)

            def add(j, mask, X=X, total=total):
                # Lane by lane: total = fma(X_ij, w_j, total).
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
        # One vector of `count` sums; the intercept is added to each and they are stored together.
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
    """Set z[at : at + ROWS] = X[i : i + ROWS] . w + b, with the rows of X taken in `order`.

    Each dot product is LANES partial sums by fma, added pairwise. Prefetch hints for the rows that
    follow are part of the loop.
    """
    _check(X, order, w, z)
    return types.none(X, order, i, w, b, z, at), _dot(ROWS)


@intrinsic
def dot_row(typingctx, X, order, i, w, b, z, at):
    """Set z[at] = X[i] . w + b, with the bits of dot_rows."""
    _check(X, order, w, z)
    return types.none(X, order, i, w, b, z, at), _dot(1)


@intrinsic
def widen_row(typingctx, X, order, i, out, at):
    """Set out[at] (float64) = X[i], with X taken in `order`; prefetch what follows."""
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
    """Return the code generator of A_j = fma(r_i, X_ij, A_j) for `count` rows in turn.

    A vector of A is loaded once, takes its term of each row in the order of the rows, and is stored
    once. Every A_j is thus the same chain of fma as with one row at a time.
    """

    def generate(context, builder, signature, args):
        first, at, ahead = (
            context.cast(builder, args[i], signature.args[i], types.intp) for i in (2, 4, 6)
        )
        order = order_of(context, builder, signature.args[1], args[1])
        numbers = [order.row(i) for i in following(builder, first, count)]
        X = rows_of(context, builder, signature.args[0], args[0], numbers)
        # Scattered rows were prefetched by the dot products, and are in the cache. The hint then
        # names a row that is there already, which costs nothing and saves a branch.
        later = builder.select(order.scattered, numbers[0], ahead)
        later = rows_of(context, builder, signature.args[0], args[0], [later])
        r, A = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (3, 5)
        )
        # Each residual fills all lanes of a vector, before the loop over columns.
        residuals = [
            every(builder, builder.load(builder.gep(r, [i]))) for i in following(builder, at, count)
        ]

        def add(j, mask):
            a = load_lanes(builder, A, j, F64, mask)
            # The terms of the rows in turn: this chain of fma is what fixes the order.
            for q, residual in enumerate(residuals):
                a = fma_lanes(builder, residual, columns_of(builder, X, q, j, mask), a)
            store_lanes(builder, a, A, j, mask)

        for_vectors(builder, X.columns, add, lambda j: _hint_lines(builder, later, j, I64(NEAR), 2))
        return context.get_dummy_value()

    return generate


@intrinsic
def add_rows(typingctx, X, order, i, r, at, A, ahead):
    """Set A_j = fma(r_q, X_pj, A_j) for ADDED rows p = i, i + 1, ... of X in `order`, in turn.

    The residuals are r_q, q = at, at + 1, .... If rows are read in order, memory from NEAR bytes
    behind the beginning of row `ahead` is prefetched.
    """
    _check(X, order, r, A)
    return types.none(X, order, i, r, at, A, ahead), _add(ADDED)


@intrinsic
def add_row(typingctx, X, order, i, r, at, A, ahead):
    """Do the same as add_rows for one row."""
    _check(X, order, r, A)
    return types.none(X, order, i, r, at, A, ahead), _add(1)
