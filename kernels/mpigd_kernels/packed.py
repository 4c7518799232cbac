"""Eight numbers as one: a type of compiled code, so that what is said of a row is done for eight rows at once.

A loss written with +, -, *, /, comparisons, `where` and the functions of elementary.py takes float64 or `packed` alike, with the
same bits, since every operation is IEEE's. Left to the compiler, a loop over rows becomes vectors behind checks and a remainder
row by row, which takes a block of few rows longer than its arithmetic. For the same reason lanes beyond an array's end are
filled, not looped over.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from mpigd_kernels.lanes import F64, I64, LANES, VECTOR, every, load_lanes, store_lanes

_BITS, _MASK = ir.VectorType(I64, LANES), ir.VectorType(ir.IntType(1), LANES)


class Packed(types.Type):
    """LANES float64."""


class Which(types.Type):
    """LANES truth values: what a comparison gives."""


packed, which = Packed("packed"), Which("which")


@register_model(Packed)
class _PackedModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VECTOR)


@register_model(Which)
class _WhichModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _MASK)


def vector_of(builder, value):
    """A number as a vector of it; a vector as it is."""
    return value if value.type == VECTOR else every(builder, value)


def bits_of(builder, value):
    """(the bits of a number or vector as integers, a function that makes integers constants of that kind)."""
    kind = _BITS if value.type == VECTOR else I64
    return builder.bitcast(value, kind), lambda number: ir.Constant(
        kind, [number] * LANES if kind == _BITS else number
    )


def number_of(builder, bits):
    """The number or vector that has these bits."""
    return builder.bitcast(bits, VECTOR if bits.type == _BITS else F64)


def _operator(operation, result, code):
    """`operation` of two packed numbers, or of one and a number."""
    pairs = ((packed, packed), (packed, types.float64), (types.float64, packed))

    def generate(context, builder, sig, args):
        return code(builder, *(vector_of(builder, value) for value in args))

    for pair in pairs:
        lower_builtin(operation, *pair)(generate)
    cases = [signature(result, *pair) for pair in pairs]
    infer_global(operation)(type(f"_{operation.__name__}", (ConcreteTemplate,), {"cases": cases}))


def _of_one(operation, code):
    lower_builtin(operation, packed)(lambda context, builder, sig, args: code(builder, args[0]))
    infer_global(operation)(
        type(f"_{operation.__name__}", (ConcreteTemplate,), {"cases": [signature(packed, packed)]})
    )


def _size(builder, value):
    name = f"llvm.fabs.v{LANES}f64"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [VECTOR]), name),
        [value],
    )


for _operation, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_operation, packed, lambda builder, a, b, name=_name: getattr(builder, name)(a, b))
for _operation, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _operator(_operation, which, lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b))
_of_one(operator.neg, lambda builder, value: builder.fneg(value))
_of_one(abs, _size)


@intrinsic
def where(typingctx, condition, a, b):
    """a where the condition holds, else b, for truth values and numbers, packed or not."""
    result = packed if packed in (a, b) or condition == which else types.float64

    def generate(context, builder, sig, args):
        chosen, *values = args
        return builder.select(
            chosen, *(vector_of(builder, value) if result == packed else value for value in values)
        )

    return result(condition, a, b), generate


@intrinsic
def count(typingctx, condition):
    """How many hold."""

    def generate(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), I64)

    return types.int64(which), generate


def _lanes(context, builder, kind, value, i, whole, part):
    """whole(pointer, i) if LANES numbers of an array follow from i on, else part(pointer, i, mask of those that do)."""
    array = context.make_array(kind)(context, builder, value)
    left = builder.sub(builder.extract_value(array.shape, 0), i)
    with builder.if_else(builder.icmp_signed(">=", left, I64(LANES)), likely=True) as (
        then,
        otherwise,
    ):
        with then:
            first, before = whole(array.data, i), builder.block
        with otherwise:
            numbers = ir.Constant(_BITS, list(range(LANES)))
            second, after = (
                part(array.data, i, builder.icmp_signed("<", numbers, every(builder, left))),
                builder.block,
            )
    return (first, before), (second, after)


@intrinsic
def load(typingctx, v, i, fill):
    """v[i : i + LANES] of a contiguous v (n,) float64, packed, `fill` beyond its end."""

    def generate(context, builder, sig, args):
        i = context.cast(builder, args[1], sig.args[1], types.intp)

        def part(pointer, i, mask):
            return builder.select(
                mask, load_lanes(builder, pointer, i, F64, mask), every(builder, args[2])
            )

        ways = _lanes(
            context,
            builder,
            sig.args[0],
            args[0],
            i,
            lambda p, i: load_lanes(builder, p, i, F64),
            part,
        )
        result = builder.phi(VECTOR)
        for value, block in ways:
            result.add_incoming(value, block)
        return result

    return packed(v, i, types.float64), generate


@intrinsic
def store(typingctx, v, i, x):
    """v[i : i + LANES] = x, as far as v (n,) float64 reaches."""

    def generate(context, builder, sig, args):
        i = context.cast(builder, args[1], sig.args[1], types.intp)

        def put(pointer, i, mask=None):
            store_lanes(builder, args[2], pointer, i, mask)

        _lanes(context, builder, sig.args[0], args[0], i, put, put)
        return context.get_dummy_value()

    return types.none(v, i, packed), generate
