"""Columns whose mean is large against their deviation: how many digits of their differences there
are, and how they are kept.

A float64 has 53 bits. Of a column with a mean of 2**k deviations, k bits are the mean's. Three
things then lose the rest: the storage itself, which nothing brings back; margins x.w + b, whose two
parts cancel; gradients g_j - m_j g_b, likewise. The latter two are avoided where the mean exceeds
FAR deviations: training subtracts the mean from the stored values first, and the intercept takes it
up at the end. The stored coefficients belong to the columns as they are, so predictions still
cancel: their error is about 2**-bits of the column's effect, bits as `digits` counts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpigd.data import column_selection
from mpigd.data.extreme_values import power
from mpigd.matrix.base import Matrix
from mpigd.model.scaling import Statistics, measure
from mpigd.parallel.comm import Comm

Array = np.ndarray[Any, Any]
FAR = 2.0**16  # deviations; below, the grids of the sums (2**-43) cost a gradient less than 1e-8
# Bits. Measured with 10: rounding of the data moves a coefficient by 5e-6 of itself, and that of
# a float64 model's coefficients and margins moves predictions by 2e-4 of the column's effect.
FEWEST = 10.0
SHOWN = 6  # columns named in a warning
TINY = 2.0**-475  # a number whose square is lost in a sum (mpigd/reduction/base.py: SMALLEST)


def centred(
    X: Matrix,
    c: Array,
    n: int,
    intercept: bool,
    comm: Comm,
) -> tuple[Matrix, Statistics, Array | None, Statistics]:
    """X, its statistics, and what was subtracted from its columns (d,) or None; the statistics with
    the columns' own extremes.

    Only where an intercept can take it up, and from float64: others have no digits that this would
    save. A column of compressed rows with missing entries, which are zeros, is never that far from
    zero. Two reads, or four. Collective.
    """
    statistics = measure(X, c, n, comm)
    deviation, full = statistics.deviation, statistics.count == n
    far = (np.abs(statistics.mean) > FAR * deviation) & (deviation > 0.0) & full
    if not (intercept and X.dtype == np.float64 and far.any()):
        return X, statistics, None, statistics
    shift = np.where(far, statistics.mean, 0.0)
    moved = column_selection.shifted(X, shift)
    after = measure(moved, c, n, comm)
    return moved, after, shift, dataclasses.replace(statistics, deviation=after.deviation)


def digits(statistics: Statistics, dtype: np.dtype[Any]) -> Array:
    """Bits (d,) that `dtype` has for a column's differences: its deviation over the unit in the
    last place of its mean.

    In the order of the data's columns. A constant column has all it needs, unless it is so large
    that it may have become constant by rounding: whole numbers of its size are not all there.
    """
    unit = np.spacing(np.abs(statistics.mean).astype(dtype)).astype(np.float64)
    constant = statistics.deviation == 0.0
    with np.errstate(over="ignore"):  # of a mean of zero
        bits = np.log2(np.where(constant, 1.0, statistics.deviation) / unit)
    bits[constant] = np.where(unit[constant] < 2.0, np.inf, 0.0)
    return _as_in_the_data(bits, statistics)


def _as_in_the_data(values: Array, statistics: Statistics) -> Array:
    if statistics.number is None:
        return values
    ordered = np.empty_like(values)
    ordered[statistics.number] = values
    return ordered


def columns_without_digits(statistics: Statistics, dtype: np.dtype[Any]) -> Array:
    """Numbers of the columns, as the data count them, whose differences have fewer than FEWEST
    bits.

    None of float16: such columns are refused when they are read (mpigd/matrix/half.py).
    """
    if dtype == np.float16:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(digits(statistics, dtype) < FEWEST)


def warning(of: Statistics, dtype: np.dtype[Any], names: Sequence[str] | None) -> str | None:
    """A sentence on these columns, or on columns of tiny numbers, and what to do; None if there are none."""
    found = columns_without_digits(of, dtype)
    if not found.size:
        return _of_tiny_columns(of, names)
    bits, mean = digits(of, dtype), _as_in_the_data(of.mean, of)
    each = []
    for j in found[:SHOWN]:
        name = f"column {j}" if names is None else repr(names[j])
        each.append(f"{name} (mean {mean[j]:.3g}, {max(0, int(bits[j]))} bits)")
    more = f", ... ({found.size})" if found.size > SHOWN else ""
    other = " and store it as float64" if dtype == np.float32 else ""
    return (
        f"{dtype} leaves less than {FEWEST:.0f} bits for the differences between the values of "
        f"{', '.join(each)}{more}: their coefficients cannot be trusted; "
        f"subtract a constant near the mean{other} before the data are written"
    )


def _of_tiny_columns(of: Statistics, names: Sequence[str] | None) -> str | None:
    """A sentence on columns that are not constant, but whose squares are lost in sums."""
    size = _as_in_the_data(np.maximum(np.abs(of.low), np.abs(of.high)).astype(np.float64), of)
    varies = _as_in_the_data(of.low != of.high, of)
    tiny = np.flatnonzero(varies & (size < TINY))
    if not tiny.size:
        return None
    each = [f"column {j}" if names is None else repr(names[j]) for j in tiny[:SHOWN]]
    more = f", ... ({tiny.size})" if tiny.size > SHOWN else ""
    return (
        f"the squares of all values of {', '.join(each)}{more} are too small for sums in float64: their coefficients may stay 0; "
        f"divide the columns by {power(float(size[tiny[0]])):g} before the data are written"
    )
