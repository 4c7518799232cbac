"""exp, log, log1p and the dot product against high precision.

The bits must not depend on the position of a number in its array.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from mpigd_kernels import elementary
from mpigd_kernels.dense import margins
from mpigd_kernels.simd.rows import LANES
from mpigd_kernels.sums import make_odd

DIGITS = 40


@njit(error_model="numpy")
def each_exp(x, out):
    for i in range(x.size):
        out[i] = elementary.exp(x[i])


@njit(error_model="numpy")
def each_log(x, out):
    for i in range(x.size):
        out[i] = elementary.log(x[i])


@njit(error_model="numpy")
def each_log1p_unit(x, out):
    for i in range(x.size):
        out[i] = elementary.log1p_unit(x[i])


@njit(error_model="numpy")
def each_fma(a, b, c, out):
    for i in range(a.size):
        out[i] = elementary.fma(a[i], b[i], c[i])


def of(function, x):
    x = np.asarray(x, dtype=np.float64)
    out = np.full(x.shape, 7.0)
    function(x, out)
    return out


def worst(function, truth, x):
    """The largest error over x in units in the last place of the true value."""
    with localcontext() as context:
        context.prec = DIGITS
        top = Decimal(0)
        for argument, found in zip(x, of(function, x), strict=True):
            exact = truth(Decimal(float(argument)))
            unit = Decimal(math.ulp(float(exact)))
            top = max(top, abs(Decimal(float(found)) - exact) / unit)
    return float(top)


def exp_arguments():
    rng = np.random.default_rng(0)
    near_halves = (np.arange(-900, 900, 7) + 0.5) * math.log(2)  # where the power of two changes
    near = np.concatenate(
        [near_halves, np.nextafter(near_halves, np.inf), np.nextafter(near_halves, -np.inf)]
    )
    x = np.concatenate([
        rng.uniform(-708, 709.78, 1500), rng.uniform(-1, 1, 500), near,
        10.0 ** rng.uniform(-300, 0, 100),
        [0.0, -0.0, 5e-324, -708.0, 708.9, 709.0, 709.2, 709.5, 709.782712893384],
    ])  # fmt: skip
    return x[(x >= -708) & (x < 709.7827)]


def test_exp_to_two_units_in_the_last_place():
    assert worst(each_exp, Decimal.exp, exp_arguments()) < 2.0
    assert of(each_exp, [0.0, -0.0, 5e-324]).tolist() == [1.0, 1.0, 1.0]


def test_exp_at_and_beyond_its_ends():
    assert (
        of(each_exp, [709.79, 710.0, 711.0, 800.0, 1e6, 1e300, math.inf]).tolist() == [math.inf] * 7
    )
    floor = of(each_exp, [-708.0, -708.5, -745.0, -800.0, -1e6, -1e300, -math.inf])
    assert np.all(floor == floor[0])
    assert floor[0] == pytest.approx(math.exp(-708), rel=1e-15)
    assert np.isnan(of(each_exp, [math.nan, -math.nan])).all()


def test_exp_never_falls():
    for center in (-700.0, -0.35, 0.0, 0.3465735902799727, 5.0, 709.4):
        x = center + np.arange(-2000, 2000) * 1e-13
        assert np.all(np.diff(of(each_exp, x)) >= -2 * math.ulp(math.exp(center)))


def log_arguments():
    rng = np.random.default_rng(1)
    splits = 0.7071067811865475 * 2.0 ** np.arange(-1000, 1022, 13)  # where the exponent changes
    return np.concatenate([
        10.0 ** rng.uniform(-307, 307.7, 1500), 1 + rng.uniform(-0.4, 0.5, 500),
        1 + 10.0 ** rng.uniform(-15, -1, 200), 1 - 10.0 ** rng.uniform(-15, -1, 200),
        splits, np.nextafter(splits, 0), np.nextafter(splits, np.inf),
        [np.finfo(float).tiny, math.nextafter(1, 0), math.nextafter(1, 2), math.e, 6e307],
    ])  # fmt: skip


def test_log_to_two_units_in_the_last_place():
    assert worst(each_log, Decimal.ln, log_arguments()) < 2.0
    assert of(each_log, [1.0])[0] == 0.0


def test_log_hides_nothing():
    assert np.isnan(of(each_log, [math.nan, math.inf])).all()


def test_log1p_unit_to_two_units_in_the_last_place():
    rng = np.random.default_rng(2)
    e = np.concatenate(
        [rng.uniform(0, 1, 1500), 10.0 ** rng.uniform(-300, 0, 500), [1.0, 0.5, 3e-308]]
    )

    def truth(x):
        return (1 + x).ln() if x > Decimal("1e-18") else x - x * x / 2

    assert worst(each_log1p_unit, truth, e) < 2.0
    assert of(each_log1p_unit, [0.0])[0] == 0.0
    assert np.isnan(of(each_log1p_unit, [math.nan]))[0]


@pytest.mark.parametrize("function", [each_exp, each_log, each_log1p_unit])
def test_same_bits_at_every_place_and_length(function):
    """The vector body of a loop and its tail must agree, at every alignment."""
    x = np.random.default_rng(3).uniform(0, 1, 88)
    alone = np.concatenate([of(function, x[i : i + 1]) for i in range(x.size)])
    for offset in range(8):
        for length in range(1, 81):
            part = slice(offset, offset + length)
            assert of(function, x[part]).tobytes() == alone[part].tobytes()
    assert of(function, np.repeat(x, 2)[::2]).tobytes() == alone.tobytes()


def test_fma_rounds_once():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 500)) * 10.0 ** rng.integers(-30, 30, (2, 500))
    c = -(a * b) * rng.choice(
        [1.0, 1 + 2.0**-52, 1e-17, 1e17], 500
    )  # cancels all but the rounding error, or nearly
    out = np.empty(500)
    each_fma(a, b, c, out)
    exact = [
        float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)
    ]
    assert out.tolist() == exact
    assert np.any(out != a * b + c)


def test_set_odd_moves_by_at_most_one_unit_away_from_zero():
    v = np.random.default_rng(5).normal(size=400) * 10.0 ** np.arange(-200, 200)
    v = np.concatenate([v, 2.0 ** np.arange(-999, 1000.0), -(2.0 ** np.arange(-999, 1000.0))])
    odd = v.copy()
    make_odd(odd)
    bits = odd.view(np.int64) - v.view(np.int64)
    assert np.all(odd.view(np.int64) & 1 == 1)
    assert np.all((bits == 0) | (bits == 1))


def fused(a, b, c):
    return float(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def dot_in_lanes(x, w):
    """The order that dot_rows documents: LANES partial sums, halves added to halves."""
    lanes = [0.0] * LANES
    for j in range(x.size):
        lanes[j % LANES] = fused(x[j], w[j], lanes[j % LANES])
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [low + high for low, high in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dot_rows_add_in_its_documented_order(dtype):
    rng = np.random.default_rng(6)
    for d in (*range(LANES + 3), 2 * LANES - 1, 2 * LANES, 3 * LANES + 5, 100):
        X, w = (
            (rng.normal(size=(11, d)) * 10.0 ** rng.integers(-4, 4, (11, d))).astype(dtype),
            rng.normal(size=d),
        )
        z = np.empty(11)
        margins(X, w, 0.0, z)
        assert z.tolist() == [dot_in_lanes(row, w) for row in X]


def test_dot_rows_refuse_what_it_would_read_wrongly():
    X, w, z = np.ones((6, 4)), np.ones(4), np.empty(6)
    wrong = [
        (np.asfortranarray(X), w),
        (X[:, :2], w[:2]),
        (X[::2], w),
        (X, np.ones(8)[::2]),
        (X, w.astype(np.float32)),
    ]
    for matrix, weights in wrong:
        with pytest.raises(TypingError, match="C-contiguous"):
            margins(matrix, weights, 0.0, z)
