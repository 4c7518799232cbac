"""Dense rows in half precision: X (n, d) uint16 holds the bits of IEEE binary16 numbers, each column in a unit of its own.

numba knows no float16 on CPUs, but the conversion is one instruction on vectors (vcvtph2ps) and exact. A unit is a power
of two: dividing an accumulator, its bias and a product by it changes no bit of their significands, so that a panel is
added in the units of the columns and rounds as it would in those of the data.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mpigd_kernels.elementary import dot_row, fma, set_odd
from mpigd_kernels.sums import PANEL, flush

SMALLEST_NORMAL = 2.0**-14  # below it a half has a fixed step, and below half a step it is zero
ROUNDER = 1.5 * 2.0**42  # times 2**e: adding it rounds what lies in [2**e, 2**(e + 1)) to the 11 bits of a half

_OPTIONS = dict(nogil=True, cache=True, error_model="numpy")
_I16, _I64, _HALF, _F32, _F64 = ir.IntType(16), ir.IntType(64), ir.HalfType(), ir.FloatType(), ir.DoubleType()


@intrinsic
def widen(typingctx, bits):
    """The float64 of a half's bits, exactly."""

    def generate(context, builder, signature, args):
        return builder.fpext(builder.fpext(builder.bitcast(args[0], _HALF), _F32), _F64)

    return types.float64(types.uint16), generate


@intrinsic
def _bits(typingctx, x):
    """The bits of the half nearest to x; x must be a half already, for it passes through float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(builder.fptrunc(args[0], _F32), _HALF), _I16)

    return types.uint16(types.float64), generate


@intrinsic
def _power_below(typingctx, x):
    """The largest power of two not above |x|, for normal x; 0 for zero."""

    def generate(context, builder, signature, args):
        exponent = builder.and_(builder.bitcast(args[0], _I64), _I64(0x7FF0000000000000))
        return builder.bitcast(exponent, _F64)

    return types.float64(types.float64), generate


@njit(**_OPTIONS)
def narrow(X, inverse, out, lost, kept, gone):
    """out_ij = the half nearest to X_ij * inverse_j, which is at most 65504 in size; ties to even.

    Raises lost (d,) to the largest |X_ij inverse_j - out_ij|. Of the values other than zero it adds to kept (d,) how many
    stay so, and to gone (d,) how many become zero.
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


@njit(**_OPTIONS)
def widen_rows(X, unit, out):
    """out_ij (n, d) = X_ij unit_j in float64."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            out[i, j] = widen(X[i, j]) * unit[j]


@njit(**_OPTIONS)
def all_finite(X):
    """Whether no half among X (n, d) is infinite or not a number."""
    bad = 0
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            bad += 1 if (X[i, j] & 0x7C00) == 0x7C00 else 0
    return bad == 0


@njit(**_OPTIONS)
def margins(X, w, b, z):
    """z_i = X_i . w + b, for w (d,) times the columns' units."""
    for i in range(X.shape[0]):
        z[i] = dot_row(X, i, w) + b


@njit(**_OPTIONS)
def _scale(A, by):
    for j in range(A.size):
        A[j] *= by[j]


@njit(**_OPTIONS)
def _add_panel(X, r, start, stop, A):
    """A_j = fma(r_i, X_ij, A_j) for rows start to stop, eight rows at a time to save loads of A."""
    d = X.shape[1]
    whole = start + (stop - start) // 8 * 8
    for i in range(start, whole, 8):
        r0, r1, r2, r3, r4, r5, r6, r7 = r[i], r[i + 1], r[i + 2], r[i + 3], r[i + 4], r[i + 5], r[i + 6], r[i + 7]
        for j in range(d):
            a = fma(r0, widen(X[i, j]), A[j])
            a = fma(r1, widen(X[i + 1, j]), a)
            a = fma(r2, widen(X[i + 2, j]), a)
            a = fma(r3, widen(X[i + 3, j]), a)
            a = fma(r4, widen(X[i + 4, j]), a)
            a = fma(r5, widen(X[i + 5, j]), a)
            a = fma(r6, widen(X[i + 6, j]), a)
            A[j] = fma(r7, widen(X[i + 7, j]), a)
    for i in range(whole, stop):
        r0 = r[i]
        for j in range(d):
            A[j] = fma(r0, widen(X[i, j]), A[j])


@njit(**_OPTIONS)
def accumulate_exact(X, r, unit, inverse, A, C, T, filled):
    """dense.accumulate_exact of X_ij unit_j; inverse (d,) = 1 / unit."""
    start, n = 0, X.shape[0]
    while start < n:
        stop = min(n, start + PANEL - filled)
        _scale(A, inverse)
        _add_panel(X, r, start, stop, A)
        _scale(A, unit)
        filled += stop - start
        start = stop
        if filled == PANEL:
            flush(A, C, T)
            filled = 0
    return filled


@njit(**_OPTIONS)
def accumulate_native(X, r, unit, inverse, A):
    """A_j += r_i X_ij unit_j in float64, in the order of the rows."""
    _scale(A, inverse)
    _add_panel(X, r, 0, X.shape[0], A)
    _scale(A, unit)


@njit(**_OPTIONS)
def accumulate_fine(X, r, unit, A, B, C, D, T, U, filled):
    """dense.accumulate_fine of X_ij unit_j."""
    n, d = X.shape
    for i in range(n):
        ri = r[i]
        for j in range(d):
            x, a = widen(X[i, j]) * unit[j], A[j]
            t = fma(ri, x, a)
            B[j] += set_odd(fma(ri, x, a - t))
            A[j] = t
        filled += 1
        if filled == PANEL:
            flush(A, C, T)
            flush(B, D, U)
            filled = 0
    return filled


@njit(**_OPTIONS)
def column_range(X, low, high):
    """Lower `low` and raise `high` (d,) to the range of the columns, in their units."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            x = widen(X[i, j])
            low[j] = x if x < low[j] else low[j]
            high[j] = x if x > high[j] else high[j]


@njit(**_OPTIONS)
def squared_deviation(X, unit, center, out):
    """out_ij = (X_ij unit_j - center_j)**2 in float64."""
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            t = widen(X[i, j]) * unit[j] - center[j]
            out[i, j] = t * t
