"""Means of many columns against Fractions, and columns that float32 damages or does not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpigd.tables import exact_means
from mpigd.tables.exact_means import ExactSums
from mpigd.tables.float32_check import Spread

finite = st.floats(allow_nan=False, allow_infinity=False)
BIG = np.finfo(float).max


def fractions(matrix):
    """The mean of each row's values that are not NaN, in rational numbers."""
    rows = [row[~np.isnan(row)].tolist() for row in matrix]
    return [float(sum(map(Fraction, row)) / len(row)) if row else None for row in rows]


nines = st.lists(finite | st.just(np.nan), min_size=9, max_size=9)


@settings(deadline=None)
@given(st.lists(nines, min_size=1, max_size=6), st.integers(1, 9))
def test_the_means_are_the_exact_ones_in_any_blocks(rows, step):
    matrix = np.array(rows)
    sums = ExactSums(len(rows))
    for start in range(0, 9, step):
        sums.add(matrix[:, start : start + step])
    assert sums.means() == fractions(matrix)


def test_the_means_of_extremes():
    tiny = 5e-324
    matrix = np.array(
        [
            [BIG, BIG, tiny, -BIG, -BIG, tiny], [1e300, 1, 1e-300, -1e300, -1, tiny], [np.nan] * 6,
            [0.0, -0.0, 0, np.nan, 0, 0], [tiny] * 6, [BIG] * 6, [-BIG] * 6,
            [2.0**-1022, -tiny, 0, 0, 0, 0],
            [1, 2.0**-60, 2.0**-200, 2.0**-700, -(2.0**-1074), np.nan],
        ]
    )  # fmt: skip
    before = matrix.copy()
    sums = ExactSums(len(matrix))
    sums.add(matrix)
    assert sums.means() == fractions(matrix)
    np.testing.assert_array_equal(matrix, before)
    assert ExactSums(2).means() == [None, None] and ExactSums(0).means() == []


@pytest.mark.parametrize("shape", [(7, 1000), (500, 30), (1, 5000), (3, 0), (0, 3)])
def test_the_means_of_ordinary_columns_in_any_slabs(shape, monkeypatch):
    monkeypatch.setattr(exact_means, "SLAB_VALUES", 700)
    monkeypatch.setattr(exact_means, "MOST_ROWS", 300)
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=shape) * 10.0 ** rng.integers(-9, 9, size=(shape[0], 1))
    matrix[rng.random(shape) < 0.1] = np.nan
    sums = ExactSums(shape[0])
    for block in np.array_split(matrix, 3, axis=1):
        sums.add(block)
    assert sums.means() == fractions(matrix)
    assert sums.count.tolist() == np.count_nonzero(~np.isnan(matrix), axis=1).tolist()


RNG = np.random.default_rng(0)
HARMLESS = {
    "tenths": np.round(RNG.uniform(-20, 40, 4000), 1),
    "hundredths of kelvin": np.round(RNG.normal(293, 4, 4000), 2),
    "hectopascals": np.round(RNG.normal(1013, 8, 4000), 1),
    "normal": RNG.normal(size=4000),
    "far from zero": RNG.normal(100, 1, 4000),
    "years": RNG.integers(1990, 2020, 4000),
    "prices": np.round(np.exp(RNG.normal(3, 2, 4000)), 2),
    "degrees": RNG.uniform(13.0, 13.1, 4000),
    "counts": RNG.poisson(3, 4000),
    "large whole numbers": RNG.integers(0, 2**24, 4000),
    "zero or one tenth": RNG.choice([0, 0.1], 4000),
    "constant": np.full(4000, 0.1),
    "large constant": np.full(4000, 1.6e9 + 1),
    "noise of computing": np.array([0.1 + 0.2, 0.3] * 2000),
    "seconds over years": RNG.integers(10**9, 2 * 10**9, 4000),
    "mostly missing": np.where(RNG.random(4000) < 0.99, np.nan, RNG.normal(size=4000)),
    "missing": np.full(4000, np.nan),
    "wide": 10.0 ** RNG.uniform(-30, 30, 4000),
    "with infinities": np.where(RNG.random(4000) < 0.1, np.inf, RNG.normal(size=4000)),
}
DAMAGED = {
    "seconds of a day": 1.6e9 + RNG.integers(0, 86400, 4000),
    "seconds of a day in order": 1.6e9 + np.arange(4000),
    "with zeros for never": np.where(
        RNG.random(4000) < 0.1, 0, 1.6e9 + RNG.integers(0, 86400, 4000)
    ),
    "with one other sentinel": np.where(
        np.arange(4000) == 9, -1.0, 1.6e9 + RNG.integers(0, 50, 4000)
    ),
    "milliseconds": 1.6e12 + RNG.integers(0, 10**7, 4000),
    "northing of a field": RNG.uniform(5_820_000, 5_820_100, 4000),
    "two values": RNG.choice([16777216, 16777217], 4000),
    "too small": RNG.uniform(size=4000) * 1e-50,
    "some too small": np.where(np.arange(4000) == 9, 1e-60, RNG.normal(size=4000)),
    "too large": RNG.normal(size=4000) * 1e40,
    "few": np.array([1.6e9, 1.6e9 + 1, np.nan]),
}


@pytest.mark.parametrize("name", [*HARMLESS, *DAMAGED])
@pytest.mark.parametrize("step", [1, 17, 4000])
def test_which_columns_float32_damages(name, step):
    column = (HARMLESS | DAMAGED)[name].astype(float)[: 200 if step == 1 else None]
    spread = Spread(2)
    for start in range(0, column.size, step):
        block = column[start : start + step]
        spread.add(np.stack([np.ones(block.size), block]))
    assert spread.damaged() == [False, name in DAMAGED]
    assert spread.zeros[1] == np.count_nonzero(column == 0)
    known = column[np.isfinite(column) & (column != 0)]
    if known.size:
        assert (spread.low[1], spread.high[1]) == (known.min(), known.max())


def test_what_is_said_of_a_damaged_column():
    spread = Spread(3)
    spread.add(np.array([[1.6e9, 1.6e9 + 5], [1e-60, 1], [1, 1e40]]))
    assert spread.damaged() == [True, True, True]
    assert (
        spread.why(0) == "float32 rounds values between 1600000000 and 1600000005 to steps of 128"
    )
    assert spread.why(1) == "non-zero values (1) become zero in float32"
    assert spread.why(2) == "values up to 1e+40, too large for float32"
