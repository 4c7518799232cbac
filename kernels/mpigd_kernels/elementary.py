"""Elementary functions with the same bits everywhere: fused multiply-add, exp and log.

The exp and log of libm change with its version, and the vector body and the tail of a compiled loop
may differ if a vector library is present. The functions here use +, *, /, fma and bit patterns
alone. So a result does not depend on its position in an array, on the thread, or on the width of
the CPU's vectors. All of them take float64 or `packed` (packed.py).

Callers must be compiled with error_model="numpy" (no branch on a zero divisor), or loops over these
functions do not vectorise.
"""

import math

from numba import njit, types
from numba.extending import intrinsic

from mpigd_kernels.lanes import fma_lanes
from mpigd_kernels.packed import bits_of, number_of, packed, vector_of, where


@intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c with one rounding."""

    def generate(context, builder, signature, args):
        if signature.return_type == packed:
            return fma_lanes(builder, *(vector_of(builder, value) for value in args))
        return builder.fma(*args)

    if packed in (a, b, c):
        return packed(
            *(packed if kind == packed else types.float64 for kind in (a, b, c))
        ), generate
    return types.float64(types.float64, types.float64, types.float64), generate


def _kind(a):
    """Return the type float64, or packed if `a` is packed."""
    return packed if a == packed else types.float64


@intrinsic
def set_odd(typingctx, a):
    """Return `a` with the last bit of its significand set."""

    def generate(context, builder, signature, args):
        bits, constant = bits_of(builder, args[0])
        return number_of(builder, builder.or_(bits, constant(1)))

    return _kind(a)(_kind(a)), generate


@intrinsic
def _power_of_two(typingctx, shifted):
    """Return 2**n, given shifted = 1.5 * 2**52 + n.

    n stands in the low bits of the significand. Shifting it, plus the exponent's bias 1023, by 52
    bits makes it the exponent; the higher bits are shifted out.
    """

    def generate(context, builder, signature, args):
        bits, constant = bits_of(builder, args[0])
        return number_of(builder, builder.shl(builder.add(bits, constant(1023)), constant(52)))

    return _kind(shifted)(_kind(shifted)), generate


@intrinsic
def _exponent_above(typingctx, a, split):
    """Return the exponent e, as float64, for which a / 2**e lies in [split, 2 split).

    a > 0 must be normal, and 0.5 < split < 1. The difference of the bits of a and of split, shifted
    arithmetically by 52 bits, is that exponent.
    """

    def generate(context, builder, signature, args):
        bits, constant = bits_of(builder, args[0])
        first = vector_of(builder, args[1]) if signature.args[0] == packed else args[1]
        exponent = builder.ashr(builder.sub(bits, bits_of(builder, first)[0]), constant(52))
        return builder.sitofp(exponent, args[0].type)

    return _kind(a)(_kind(a), types.float64), generate


SHIFT = 1.5 * 2.0**52  # adding it rounds to an integer and leaves that in the low bits
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.6931471805599453, 2.3190468138462996e-17
E2, E3, E4, E5, E6, E7, E8, E9, E10, E11, E12, E13 = (1 / math.factorial(i) for i in range(2, 14))


@njit(inline="always", error_model="numpy")
def exp(x):
    """Return e**x to 2 units in the last place.

    From 709.79 on the result is infinity, below -708 it is the value there (3e-308); NaN stays.

    With n the integer nearest to x / log 2 and t = x - n log 2 (log 2 in two words), e**x is 2**n
    e**t. e**t is its Taylor polynomial of degree 13.
    """
    x = where(x < -708.0, -708.0, x)
    bounded = where(x > 710.0, 710.0, x)
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
    # 2**n as 2 * 2**(n - 1), since n is 1024 above 709.44, which is no exponent of a float64.
    # Results that are too large overflow to infinity by themselves.
    return (2.0 * q) * _power_of_two(shifted - 1.0)


@njit(inline="always", error_model="numpy")
def scaled_log(n, s):
    """Return n log 2 + 2 atanh(s) for |s| <= 0.1716: the logarithm of 2**n (1 + s) / (1 - s).

    atanh(s) is its series s + s**3 / 3 + ... + s**21 / 21.
    """
    t = s * s
    q = 1 / 21.0
    q = fma(q, t, 1 / 19.0)
    q = fma(q, t, 1 / 17.0)
    q = fma(q, t, 1 / 15.0)
    q = fma(q, t, 1 / 13.0)
    q = fma(q, t, 1 / 11.0)
    q = fma(q, t, 1 / 9.0)
    q = fma(q, t, 1 / 7.0)
    q = fma(q, t, 1 / 5.0)
    q = fma(q, t, 1 / 3.0)
    return fma(n, LN2_HIGH, fma(2.0 * s * t, q, fma(n, LN2_LOW, 2.0 * s)))


@njit(inline="always", error_model="numpy")
def log(x):
    """Return log(x) for normal x from 2e-308 to 6e307.

    With x = m 2**n, m in [0.7, 1.42), it is scaled_log of s = (m - 1) / (m + 1).
    """
    n = _exponent_above(x, 0.7071067811865475)
    m = x * _power_of_two(SHIFT - n)
    return scaled_log(n, (m - 1.0) / (m + 1.0))


@njit(inline="always", error_model="numpy")
def log1p_unit(e):
    """Return log(1 + e) for 0 <= e <= 1.

    1 + e = 2**n (1 + s) / (1 - s) with s = (e - n) / (e + 2 + n); n is 1 from sqrt(2) - 1 on, else
    0.
    """
    n = where(e > 0.41421356237309503, 1.0, 0.0)
    return scaled_log(n, (e - n) / ((2.0 + n) + e))


@njit(inline="always", error_model="numpy")
def expit_and_log1p(e):
    """Return 1 / (1 + e) and log1p_unit(e), to 3 units in the last place.

    Both share one division, since divisions are slower than anything else here.
    """
    n = where(e > 0.41421356237309503, 1.0, 0.0)
    one, other = 1.0 + e, (2.0 + n) + e
    both = 1.0 / (one * other)
    return both * other, scaled_log(n, (e - n) * (both * one))
