"""Dense rows in half precision: X (n, d) uint16 holds the bits of IEEE binary16 numbers.

numba has no float16 on CPUs, but the conversion is one exact instruction on vectors (vcvtph2ps).

Each column is stored in a unit of its own, a power of two. Dividing an accumulator, its bias and a
product by it does not change any bit of their significands. So sums are made in the units of the
columns, and round as they would in those of the data (matrix/half.py).
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elements import number

SMALLEST_NORMAL = 2.0**-14  # below it a half has a fixed step, and below half a step it is zero
# Adding ROUNDER * 2**e rounds a number in [2**e, 2**(e + 1)) to the 11 bits of a half's
# significand.
ROUNDER = 1.5 * 2.0**42

_I16, _I64, _HALF, _F32, _F64 = (
    ir.IntType(16),
    ir.IntType(64),
    ir.HalfType(),
    ir.FloatType(),
    ir.DoubleType(),
)


@intrinsic
def _bits(typingctx, x):
    """Return the bits of x as a half.

    x must be the value of a half: it passes through float32, which would round it twice.
    """

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(builder.fptrunc(args[0], _F32), _HALF), _I16)

    return types.uint16(types.float64), generate


@intrinsic
def _power_below(typingctx, x):
    """Return the largest power of two not above |x|, for normal x; 0 for zero."""

    def generate(context, builder, signature, args):
        exponent = builder.and_(builder.bitcast(args[0], _I64), _I64(0x7FF0000000000000))
        return builder.bitcast(exponent, _F64)

    return types.float64(types.float64), generate


@compiled
def narrow(X, inverse, out, lost, kept, gone):
    """Set out_ij to the half nearest to X_ij * inverse_j (ties to even).

    Parameters
    ----------
    X : (n, d) float32 or float64
        The rows.
    inverse : (d,) float64
        Inverse units; |X_ij * inverse_j| must be at most 65504.
    out : (n, d) uint16
        The result.
    lost : (d,) float64
        Raised to the largest |X_ij inverse_j - out_ij|.
    kept, gone : (d,) int64
        Raised by how many values other than zero stay so, and by how many become zero.
    """
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            x = X[i, j] * inverse[j]
            shift = ROUNDER * max(_power_below(x), SMALLEST_NORMAL)
            h = (x + shift) - shift
            out[i, j] = _bits(h)
            off = abs(x - h)
            lost[j] = off if off > lost[j] else lost[j]
            kept[j] += 1 if h != 0.0 else 0
            gone[j] += 1 if (h == 0.0) & (X[i, j] != 0.0) else 0


@compiled
def widen_rows(X, unit, out):
    """Set out_ij (n, d) = X_ij unit_j in float64."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            out[i, j] = number(X[i, j]) * unit[j]


@compiled
def all_finite(X):
    """Return whether no half of X (n, d) is infinite or NaN."""
    bad = 0
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            bad += 1 if (X[i, j] & 0x7C00) == 0x7C00 else 0
    return bad == 0


@compiled
def column_range(X, low, high):
    """Lower `low` and raise `high` (d,) to the range of the columns, in their units."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            x = number(X[i, j])
            low[j] = x if x < low[j] else low[j]
            high[j] = x if x > high[j] else high[j]


@compiled
def squared_deviation(X, unit, center, out):
    """Set out_ij = (X_ij unit_j - center_j)**2 in float64."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            t = number(X[i, j]) * unit[j] - center[j]
            out[i, j] = t * t
