"""Arithmetic that is the same everywhere: fused multiply-add, exp, log from IEEE operations only.

libm's exp and log change with its version, and vector body and tail of a compiled loop may differ where a vector
library is present. These use +, *, /, fma and bit patterns only, so a number does not depend on its position in
an array, the thread, or the width of the CPU's vectors. They need error_model="numpy" (no branch on a zero
divisor) in the caller, or loops over them do not vectorise.
"""

import math

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

LANES = 16  # of a dot product: a fixed number, summed in a fixed order, whatever the CPU's vectors hold

_F32, _F64, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F64, LANES)


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding."""

    def generate(context, builder, signature, args):
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), generate


@intrinsic
def set_odd(typingctx, a):
    """`a` with the last bit of its significand set."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.or_(builder.bitcast(args[0], _I64), _I64(1)), _F64)

    return types.float64(types.float64), generate


@intrinsic
def _power_of_two(typingctx, shifted):
    """2**n from 1.5 * 2**52 + n: n stands in the low bits of the significand."""

    def generate(context, builder, signature, args):
        bits = builder.add(builder.bitcast(args[0], _I64), _I64(1023))
        return builder.bitcast(builder.shl(bits, _I64(52)), _F64)

    return types.float64(types.float64), generate


@intrinsic
def _exponent_above(typingctx, a, split):
    """The exponent e, as float64, for which a / 2**e lies in [split, 2 split); a > 0 and normal, 0.5 < split < 1."""

    def generate(context, builder, signature, args):
        bits = builder.sub(builder.bitcast(args[0], _I64), builder.bitcast(args[1], _I64))
        return builder.sitofp(builder.ashr(bits, _I64(52)), _F64)

    return types.float64(types.float64, types.float64), generate


@intrinsic
def dot_row(typingctx, X, i, w):
    """X[i] . w in float64: LANES partial sums by fma, added pairwise, then the rest of the row in order.

    The lanes are vectors of the intermediate code, not a wish to the optimiser, so every CPU with fma gives the
    same bits, and no order of additions is left to the compiler. Rows of uint16 are the bits of halves (half.py).
    """
    if not (X.layout == w.layout == "C" and w.dtype == types.float64):
        raise TypingError(f"rows and weights must be C-contiguous, weights float64: not {X} and {w}")
    element = X.dtype

    def generate(context, builder, signature, args):
        matrix = context.make_array(signature.args[0])(context, builder, args[0])
        weights = context.make_array(signature.args[2])(context, builder, args[2]).data
        columns = builder.extract_value(matrix.shape, 1)
        row = builder.mul(context.cast(builder, args[1], signature.args[1], types.intp), columns)
        data = builder.gep(matrix.data, [row])
        fma_lanes = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f64"
        )

        def load(pointer, index, kind, wide):
            place = builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())
            value = builder.load(place, align=1)
            if half and kind != wide:  # by way of float32, for which there is an instruction
                value = builder.fpext(value, ir.VectorType(_F32, LANES) if wide == _VECTOR else _F32)
            return value if kind == wide else builder.fpext(value, wide)

        half = element == types.uint16
        kind = ir.HalfType() if half else context.get_data_type(element)
        partial = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES))
        panels = builder.udiv(columns, _I64(LANES))
        with cgutils.for_range(builder, panels) as loop:
            j = builder.mul(loop.index, _I64(LANES))
            x = load(data, j, ir.VectorType(kind, LANES), _VECTOR)
            product = builder.call(fma_lanes, [x, load(weights, j, _VECTOR, _VECTOR), builder.load(partial)])
            builder.store(product, partial)
        total = cgutils.alloca_once_value(builder, _add_lanes(builder, builder.load(partial)))
        with cgutils.for_range_slice(builder, builder.mul(panels, _I64(LANES)), columns, _I64(1), _I64) as (j, _):
            x = load(data, j, kind, _F64)
            builder.store(builder.fma(x, load(weights, j, _F64, _F64), builder.load(total)), total)
        return builder.load(total)

    return types.float64(X, i, w), generate


def _add_lanes(builder, vector):
    """Sum of a vector's lanes: first half plus second half, until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_I32, width), list(range(start, start + width))))
            for start in (0, width)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, _I32(0))


@intrinsic
def prefetch_row(typingctx, X, i):
    """Ask for the cache lines of X[i] (X C-contiguous), to be there when they are needed; changes nothing."""
    item = X.dtype.bitwidth // 8

    def generate(context, builder, signature, args):
        matrix = context.make_array(signature.args[0])(context, builder, args[0])
        columns = builder.extract_value(matrix.shape, 1)
        start = builder.mul(context.cast(builder, args[1], signature.args[1], types.intp), columns)
        byte = ir.IntType(8).as_pointer()
        hint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]), "llvm.prefetch.p0"
        )
        with cgutils.for_range_slice(builder, start, builder.add(start, columns), _I64(64 // item), _I64) as (j, _):
            line = builder.bitcast(builder.gep(matrix.data, [j]), byte)
            builder.call(hint, [line, _I32(0), _I32(2), _I32(1)])
        return context.get_dummy_value()

    return types.none(X, i), generate


SHIFT = 1.5 * 2.0**52  # adding it rounds to an integer and leaves that in the low bits
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.6931471805599453, 2.3190468138462996e-17
E2, E3, E4, E5, E6, E7, E8, E9, E10, E11, E12, E13 = (1 / math.factorial(i) for i in range(2, 14))


@njit(inline="always", error_model="numpy")
def exp(x):
    """e**x to 2 units in the last place; from 709.79 on infinity, below -708 the value there (3e-308); NaN stays."""
    x = -708.0 if x < -708.0 else x
    bounded = 710.0 if x > 710.0 else x
    shifted = fma(bounded, LOG2_E, SHIFT)
    n = shifted - SHIFT
    t = fma(n, -LN2_HIGH, bounded)
    t = fma(n, -LN2_LOW, t)
    q = fma(E13, t, E12)
    q = fma(q, t, E11)
    q = fma(q, t, E10)
    q = fma(q, t, E9)
    q = fma(q, t, E8)
    q = fma(q, t, E7)
    q = fma(q, t, E6)
    q = fma(q, t, E5)
    q = fma(q, t, E4)
    q = fma(q, t, E3)
    q = fma(q, t, E2)
    q = fma(q, t, 1.0)
    q = fma(q, t, 1.0)
    # 2**n as 2 * 2**(n - 1): above 709.44 n is 1024, and what is too large overflows of itself
    return (2.0 * q) * _power_of_two(shifted - 1.0)


@njit(inline="always", error_model="numpy")
def _atanh_tail(t):
    """1/3 + t/5 + t**2/7 + ... for t = s**2 <= 1/9: atanh(s) = s + s t * this."""
    q = 1 / 35.0
    q = fma(q, t, 1 / 33.0)
    q = fma(q, t, 1 / 31.0)
    q = fma(q, t, 1 / 29.0)
    q = fma(q, t, 1 / 27.0)
    q = fma(q, t, 1 / 25.0)
    q = fma(q, t, 1 / 23.0)
    q = fma(q, t, 1 / 21.0)
    q = fma(q, t, 1 / 19.0)
    q = fma(q, t, 1 / 17.0)
    q = fma(q, t, 1 / 15.0)
    q = fma(q, t, 1 / 13.0)
    q = fma(q, t, 1 / 11.0)
    q = fma(q, t, 1 / 9.0)
    q = fma(q, t, 1 / 7.0)
    q = fma(q, t, 1 / 5.0)
    return fma(q, t, 1 / 3.0)


@njit(inline="always", error_model="numpy")
def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1, as 2 atanh(e / (2 + e))."""
    s = e / (2.0 + e)
    t = s * s
    return fma(2.0 * s * t, _atanh_tail(t), 2.0 * s)


@njit(inline="always", error_model="numpy")
def log(x):
    """log(x) for normal x of 2e-308 to 6e307: n log 2 + 2 atanh((m - 1) / (m + 1)), x = m 2**n, m in [0.7, 1.42)."""
    n = _exponent_above(x, 0.7071067811865475)
    m = x * _power_of_two(SHIFT - n)
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    return fma(n, LN2_HIGH, fma(2.0 * s * t, _atanh_tail(t), fma(n, LN2_LOW, 2.0 * s)))
