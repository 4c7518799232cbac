"""A numba type for LANES float64 as one value: compiled code handles LANES rows in one expression.

A loss written with +, -, *, /, comparisons, `where` and the functions of elementary.py accepts
float64 or `packed` alike. Both give the same bits, since every operation is the one of IEEE 754 on
each lane.

Loops over rows could be left to the compiler instead. It would make vectors of them behind run-time
checks, with a loop over the remaining rows one by one; for a block of few rows these take longer
than the arithmetic. For the same reason lanes behind the end of an array are filled with a neutral
value, not looped over.
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
    """LANES float64 as one value."""


class Which(types.Type):
    """LANES truth values: the result of a comparison of packed numbers."""


packed, which = Packed("packed"), Which("which")


# In memory and registers, the types are LLVM vectors: <8 x double>, and <8 x i1> for truth values.
@register_model(Packed)
class _PackedModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VECTOR)


@register_model(Which)
class _WhichModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _MASK)


def vector_of(builder, value):
    """Return a number as a vector that holds it in all lanes; return a vector as it is."""
    return value if value.type == VECTOR else every(builder, value)


def bits_of(builder, value):
    """Return the bits of a number or vector as integers, and a maker of such integer constants.

    The functions of elementary.py work on the bits of both in the same way.
    """
    kind = _BITS if value.type == VECTOR else I64
    return builder.bitcast(value, kind), lambda number: ir.Constant(
        kind, [number] * LANES if kind == _BITS else number
    )


def number_of(builder, bits):
    """Return the number or vector that has these bits."""
    return builder.bitcast(bits, VECTOR if bits.type == _BITS else F64)


def _operator(operation, result, code):
    """Define `operation` for two packed numbers, or for one and a float64.

    `result` is the type that it returns, code(builder, a, b) writes its vector instruction.
    """
    pairs = ((packed, packed), (packed, types.float64), (types.float64, packed))

    def generate(context, builder, sig, args):
        return code(builder, *(vector_of(builder, value) for value in args))

    # First the code for each pair of types, then the typing rule that lets numba find it.
    for pair in pairs:
        lower_builtin(operation, *pair)(generate)
    cases = [signature(result, *pair) for pair in pairs]
    infer_global(operation)(type(f"_{operation.__name__}", (ConcreteTemplate,), {"cases": cases}))


def _of_one(operation, code):
    # Define `operation` of one packed number.
    lower_builtin(operation, packed)(lambda context, builder, sig, args: code(builder, args[0]))
    infer_global(operation)(
        type(f"_{operation.__name__}", (ConcreteTemplate,), {"cases": [signature(packed, packed)]})
    )


def _size(builder, value):
    # Write the absolute value of each lane.
    name = f"llvm.fabs.v{LANES}f64"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [VECTOR]), name),
        [value],
    )


# The operators of compiled code, and the LLVM instruction of each. No fast-math flags are set, so
# the compiler may not reorder or contract them.
for _operation, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_operation, packed, lambda builder, a, b, name=_name: getattr(builder, name)(a, b))
# Ordered comparisons: False in lanes that are NaN, as with float64.
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
    """Return a if the condition holds, else b, lane by lane; each may be packed or one number."""
    result = packed if packed in (a, b) or condition == which else types.float64

    def generate(context, builder, sig, args):
        chosen, *values = args
        return builder.select(
            chosen, *(vector_of(builder, value) if result == packed else value for value in values)
        )

    return result(condition, a, b), generate


@intrinsic
def count(typingctx, condition):
    """Return how many of the LANES truth values hold."""

    def generate(context, builder, sig, args):
        # LANES truth values are LANES bits: one population count.
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), I64)

    return types.int64(which), generate


def _lanes(context, builder, kind, value, i, whole, part):
    """Write whole(pointer, i) if LANES numbers follow from i on, else part(pointer, i, mask).

    The mask holds the lanes that are inside the array. Returns, for each of the two branches, its
    value and the block that it ends in, of which `load` makes a phi.
    """
    array = context.make_array(kind)(context, builder, value)
    # Almost every vector is whole: the branch is marked as likely, and the mask is made in the
    # other.
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
    """Return v[i : i + LANES] of a contiguous v (n,) float64, with `fill` beyond its end."""

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
        # The value of whichever branch was taken.
        result = builder.phi(VECTOR)
        for value, block in ways:
            result.add_incoming(value, block)
        return result

    return packed(v, i, types.float64), generate


@intrinsic
def store(typingctx, v, i, x):
    """Set v[i : i + LANES] = x, as far as v (n,) float64 reaches."""

    def generate(context, builder, sig, args):
        i = context.cast(builder, args[1], sig.args[1], types.intp)

        def put(pointer, i, mask=None):
            store_lanes(builder, args[2], pointer, i, mask)

        _lanes(context, builder, sig.args[0], args[0], i, put, put)
        return context.get_dummy_value()

    return types.none(v, i, packed), generate
