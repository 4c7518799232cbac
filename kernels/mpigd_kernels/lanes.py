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

from mpigd_kernels.host import wide

LANES = 8  # partial sums of a dot product, added pairwise in a fixed order at its end
# Rows whose dot products are made at once, to hide the latency of fma; where there are 16 vector registers, eight would not fit.
ROWS = 8 if wide() else 4
ADDED = 8  # rows added at once, to save loads and stores of the accumulator

_F32, F64, _I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_LINE = 64  # bytes of a cache line
VECTOR, _BYTE = ir.VectorType(F64, LANES), ir.IntType(8).as_pointer()


# Consecutive rows of a C-contiguous matrix of float32, float64, or the bits of halves as uint16: pointers to them, the number of
# columns, the type of an element and its bytes.
_Rows = namedtuple("_Rows", "pointers columns element item")


def rows_of(context, builder, kind, value, first, count):
    matrix = context.make_array(kind)(context, builder, value)
    columns = builder.extract_value(matrix.shape, 1)
    element = ir.HalfType() if kind.dtype == types.uint16 else context.get_data_type(kind.dtype)
    data = builder.bitcast(matrix.data, element.as_pointer())
    pointers = [builder.gep(data, [builder.mul(builder.add(first, I64(q)), columns)]) for q in range(count)]
    return _Rows(pointers, columns, element, {_F32: 4, F64: 8}.get(element, 2))


def columns_of(builder, rows, q, j, mask):
    """Columns j and after of row q as float64, exactly."""
    value = load_lanes(builder, rows.pointers[q], j, rows.element, mask)
    if rows.element == ir.HalfType():  # by way of float32, for which there is an instruction
        value = builder.fpext(value, ir.VectorType(_F32, LANES))
    return value if rows.element == F64 else builder.fpext(value, VECTOR)


def _hint(builder, pointer, offset):
    """Ask for the cache line so many bytes behind a pointer; reads nothing, whatever is there."""
    place = builder.gep(builder.bitcast(pointer, _BYTE), [offset])
    fetch = _function(builder, "llvm.prefetch.p0", ir.VoidType(), [_BYTE, _I32, _I32, _I32])
    builder.call(fetch, [place, _I32(0), _I32(2), _I32(1)])


def _fetcher(context, builder, kind, value, first, count, phase):
    """fetch(j): at column j of a pass over `count` rows, ask for its share of as many rows of `value`, unless that is None.

    Each of two phases asks for half of them, evenly, for a burst of hints would wait for the memory, and then the memory for the
    next burst. A phase takes pairs of lines, which the processor fetches together: single lines in turn are a fifth slower,
    as are hints for the first level of the cache, whose few outstanding misses are then all taken.
    """
    if isinstance(kind, types.NoneType):
        return lambda j: None
    later = rows_of(context, builder, kind, value, first, 1)
    step = count * LANES * later.item

    def fetch(j):
        begin = builder.mul(builder.udiv(j, I64(LANES)), I64(step))
        for pair in range(phase * 2 * _LINE, step, 4 * _LINE):
            for line in (pair, pair + _LINE):
                _hint(builder, later.pointers[0], builder.add(begin, I64(line)))

    return fetch


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
        builder, f"llvm.masked.load.v{LANES}{_suffix(element)}.p0", kind, [kind.as_pointer(), _I32, mask.type, kind]
    )
    return builder.call(masked, [place, _I32(1), mask, ir.Constant(kind, [0.0] * LANES)])


def store_lanes(builder, value, pointer, j, mask=None):
    place = builder.bitcast(builder.gep(pointer, [j]), VECTOR.as_pointer())
    if mask is None:
        builder.store(value, place, align=8)
        return
    kinds = [VECTOR, VECTOR.as_pointer(), _I32, mask.type]
    builder.call(_function(builder, f"llvm.masked.store.v{LANES}f64.p0", ir.VoidType(), kinds), [value, place, _I32(8), mask])


def fma_lanes(builder, a, b, c):
    return builder.call(_function(builder, f"llvm.fma.v{LANES}f64", VECTOR, [VECTOR] * 3), [a, b, c])


def every(builder, value, lanes=LANES):
    """A vector of one number."""
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def for_vectors(builder, columns, body):
    """body(j, mask) for every whole vector of columns (mask None), and once for the columns behind the last, if any."""
    panels = builder.udiv(columns, I64(LANES))
    with cgutils.for_range(builder, panels) as loop:
        body(builder.mul(loop.index, I64(LANES)), None)
    whole = builder.mul(panels, I64(LANES))
    with builder.if_then(builder.icmp_unsigned("<", whole, columns)):
        numbers = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
        body(whole, builder.icmp_unsigned("<", numbers, every(builder, builder.sub(columns, whole))))


def add_lanes(builder, vectors):
    """The sums of the lanes of each vector, as one vector: first half plus second half, until one lane is left of each.

    Two vectors that are half done share one, so that several rows take few shuffles; who shares changes no sum.
    """
    width, held = LANES, 1  # lanes of each row that are left, rows that a vector holds
    while width > 1:
        width //= 2
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0], vectors[0])]
        held *= 2 if len(vectors) > 1 else 1
        low = [row * 2 * width + lane for row in range(held) for lane in range(width)]
        halves = [ir.Constant(ir.VectorType(_I32, len(low)), [place + shift for place in low]) for shift in (0, width)]
        vectors = [builder.fadd(*(builder.shuffle_vector(a, b, half) for half in halves)) for a, b in pairs]
    return vectors[0]


def _check(X, *vectors):
    if not (X.layout == "C" and all(v.layout == "C" and v.dtype == types.float64 for v in vectors)):
        raise TypingError(f"rows and vectors must be C-contiguous, vectors float64: not {X}, {', '.join(map(str, vectors))}")


def _dot(count):
    """The code of dot products of `count` rows at once, while half of as many rows of `later` is fetched."""

    def generate(context, builder, signature, args):
        first, ahead = (context.cast(builder, args[i], signature.args[i], types.intp) for i in (1, 6))
        X = rows_of(context, builder, signature.args[0], args[0], first, count)
        fetch = _fetcher(context, builder, signature.args[5], args[5], ahead, count, 0)
        w, z = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (2, 4))
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(count)]
        for total in sums:
            builder.store(zero, total)

        def add(j, mask):
            fetch(j)
            weights = load_lanes(builder, w, j, F64, mask)
            for q, total in enumerate(sums):
                builder.store(fma_lanes(builder, columns_of(builder, X, q, j, mask), weights, builder.load(total)), total)

        for_vectors(builder, X.columns, add)
        result = add_lanes(builder, [builder.load(total) for total in sums])
        b = context.cast(builder, args[3], signature.args[3], types.float64)
        result = builder.fadd(result, every(builder, b, count))
        builder.store(result, builder.bitcast(builder.gep(z, [first]), result.type.as_pointer()), align=8)
        return context.get_dummy_value()

    return generate


@intrinsic
def dot_rows(typingctx, X, i, w, b, z, later, ahead):
    """z[i : i + ROWS] = X[i : i + ROWS] . w + b: LANES partial sums each by fma, added pairwise.

    Meanwhile half of rows ahead : ahead + ROWS of `later` is fetched.
    """
    _check(X, w, z)
    return types.none(X, i, w, b, z, later, ahead), _dot(ROWS)


@intrinsic
def dot_row(typingctx, X, i, w, b, z, later, ahead):
    """z[i] = X[i] . w + b, with the bits of dot_rows."""
    _check(X, w, z)
    return types.none(X, i, w, b, z, later, ahead), _dot(1)


def _add(count):
    """The code of A_j = fma(r_i, X_ij, A_j) for `count` rows in turn, while half of as many of `later` is fetched."""

    def generate(context, builder, signature, args):
        first, ahead = (context.cast(builder, args[i], signature.args[i], types.intp) for i in (1, 5))
        X = rows_of(context, builder, signature.args[0], args[0], first, count)
        fetch = _fetcher(context, builder, signature.args[4], args[4], ahead, count, 1)
        r, A = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (2, 3))
        residuals = [every(builder, builder.load(builder.gep(r, [builder.add(first, I64(q))]))) for q in range(count)]

        def add(j, mask):
            fetch(j)
            a = load_lanes(builder, A, j, F64, mask)
            for q, residual in enumerate(residuals):
                a = fma_lanes(builder, residual, columns_of(builder, X, q, j, mask), a)
            store_lanes(builder, a, A, j, mask)

        for_vectors(builder, X.columns, add)
        return context.get_dummy_value()

    return generate


@intrinsic
def add_rows(typingctx, X, i, r, A, later, ahead):
    """A_j = fma(r_q, X_qj, A_j) for rows q = i to i + ADDED - 1 in turn.

    Meanwhile the other half of rows ahead : ahead + ADDED of `later` is fetched.
    """
    _check(X, r, A)
    return types.none(X, i, r, A, later, ahead), _add(ADDED)


@intrinsic
def add_row(typingctx, X, i, r, A, later, ahead):
    """The same for one row."""
    _check(X, r, A)
    return types.none(X, i, r, A, later, ahead), _add(1)


@intrinsic
def prefetch_row(typingctx, X, i):
    """Ask for the cache lines of X[i] (X C-contiguous); changes nothing."""

    def generate(context, builder, signature, args):
        first = context.cast(builder, args[1], signature.args[1], types.intp)
        row = rows_of(context, builder, signature.args[0], args[0], first, 1)
        with cgutils.for_range_slice(builder, I64(0), row.columns, I64(_LINE // row.item), I64) as (j, _):
            _hint(builder, row.pointers[0], builder.mul(j, I64(row.item)))
        return context.get_dummy_value()

    return types.none(X, i), generate


@intrinsic
def half(typingctx, bits):
    """The float32 of a half's bits, exactly."""

    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), _F32)

    return types.float32(types.uint16), generate


@intrinsic
def number(typingctx, x):
    """The float64 of an element: of float32, float64, or a half's bits as uint16."""

    def generate(context, builder, signature, args):
        value = args[0]
        if signature.args[0] == types.uint16:
            value = builder.fpext(builder.bitcast(value, ir.HalfType()), _F32)
        return value if value.type == F64 else builder.fpext(value, F64)

    return types.float64(x), generate
