"""Eight numbers at once: the same bits as one at a time, and not a byte beyond an array's end."""

import numpy as np
import pytest
from numba import njit

from mpigd_kernels.elementary import exp, fma, log, set_odd
from mpigd_kernels.simd.vector_type import LANES, count, load, store, where

STRICT = dict(error_model="numpy")


@njit(inline="always", **STRICT)
def formula(x, y):
    """Every operator, with numbers on either side."""
    e = exp(-abs(x)) + 2.0 / (y * y + 1.0)
    s = where(x >= y, fma(x, 3.0, y), 1.0 - x)
    return set_odd(where(x == 0.5, y, s * e - log(abs(y) + 0.25)))


@njit(**STRICT)
def at_once(x, y, out):
    for i in range(0, x.size, LANES):
        store(out, i, formula(load(x, i, 0.0), load(y, i, 0.0)))


@njit(**STRICT)
def one_by_one(x, y, out):
    for i in range(x.size):
        out[i] = formula(x[i], y[i])


@njit(**STRICT)
def below(x, limit, fill):
    few, strict = 0, 0
    for i in range(0, x.size, LANES):
        few += count(load(x, i, fill) <= limit)
        strict += count(load(x, i, fill) < limit)
    return few, strict


@pytest.mark.parametrize("n", [*range(1, 18), 64, 1001])
def test_the_bits_are_those_of_single_numbers_and_what_follows_stays(n):
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((2, n)) * np.exp(3 * rng.standard_normal((2, n)))
    x[::3], y[::4] = 0.5, -0.0
    if n > 4:
        x[1:5] = np.nan, np.inf, -np.inf, 1e-310
    with np.errstate(all="ignore"):
        room, alone = np.full(n + LANES, 7.0), np.empty(n)
        at_once(x, y, room[:n])
        one_by_one(x, y, alone)
    np.testing.assert_array_equal(
        room[:n].view(np.uint64)[~np.isnan(alone)], alone.view(np.uint64)[~np.isnan(alone)]
    )
    np.testing.assert_array_equal(np.isnan(room[:n]), np.isnan(alone))
    assert (room[n:] == 7.0).all()


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_truth_is_counted_and_what_is_missing_is_filled(n):
    x = np.where(np.arange(n) % 3 == 0, 1.0, np.nan)
    missing = -n % LANES
    assert below(x, 1.0, 2.0) == (np.sum(x == 1.0), 0)
    assert below(x, 1.0, 0.0) == (np.sum(x == 1.0) + missing, missing)
