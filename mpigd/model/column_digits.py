"""Digits of columns whose mean is large against their deviation, and how training keeps them.

A float64 has 53 bits. In a column with a mean of 2**k deviations, the mean takes k of them. Three
things then lose the rest: storage itself, which cannot be repaired; margins x.w + b, whose two
parts cancel; and gradients g_j - m_j g_b, likewise. The latter two are avoided if the mean exceeds
FAR deviations: training subtracts the mean from the stored values first, and the intercept absorbs
it at the end. The stored coefficients belong to the original columns, so predictions still cancel:
their error is about 2**-bits of the column's effect, with bits as `digits` counts them.
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
# Deviations from which on a mean is subtracted. Below, the grids of the sums (2**-43) cost a
# gradient less than 1e-8.
FAR = 2.0**16
# Bits. Measured with 10: rounding of the data moves a coefficient by 5e-6 of itself, and that of
# a float64 model's coefficients and margins moves predictions by 2e-4 of the column's effect.
FEWEST = 10.0
SHOWN = 6  # the most columns that a warning names
TINY = 2.0**-475  # squares of smaller numbers are lost in sums (mpigd/reduction/base.py: SMALLEST)


def centred(
    X: Matrix,
    c: Array,
    n: int,
    intercept: bool,
    comm: Comm,
) -> tuple[Matrix, Statistics, Array | None, Statistics]:
    """Subtract the means of columns that are far from zero. Two reads, or four. Collective.

    This happens only if an intercept can absorb the means, and only for float64: other types have
    no digits that it would save. A column of compressed rows with missing entries, which are zeros,
    is never that far from zero.

    Parameters
    ----------
    X
        This rank's rows (m, d).
    c : (m,) float64
        Sample weights.
    n
        The number of rows over all ranks.
    intercept
        Whether the model has one.
    comm
        The communicator of these ranks.

    Returns
    -------
    X
        The matrix, with shifted columns if there are any.
    statistics
        Statistics of that matrix.
    shift : (d,) float64 or None
        What was subtracted.
    own
        The same statistics, but with the original columns' extremes and means.
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
    """Return the bits that a type has for the differences between a column's values.

    They are counted by the column's deviation over the unit in the last place of its mean. A
    constant column has all the bits that it needs, unless it is so large that rounding may have
    made it constant: a type cannot hold all whole numbers of that size.

    Parameters
    ----------
    statistics
        Statistics of the columns.
    dtype
        The type in which the data are stored.

    Returns
    -------
    bits : (d,) float64
        In the data's order of the columns.
    """
    unit = np.spacing(np.abs(statistics.mean).astype(dtype)).astype(np.float64)
    constant = statistics.deviation == 0.0
    with np.errstate(over="ignore"):  # for a mean of zero the unit is tiny
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
    """Return the data's numbers of the columns whose differences have fewer than FEWEST bits.

    For float16 there are none: such columns are rejected when they are read (mpigd/matrix/half.py).
    """
    if dtype == np.float16:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(digits(statistics, dtype) < FEWEST)


def warning(of: Statistics, dtype: np.dtype[Any], names: Sequence[str] | None) -> str | None:
    """Return a warning about columns without digits, or columns of tiny numbers, or None.

    Parameters
    ----------
    of
        Statistics of the original columns.
    dtype
        The type in which the data are stored.
    names
        Names of the columns in the data's order, or None.
    """
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
    """Return a warning about columns that vary, but whose squares are lost in sums, or None."""
    size = _as_in_the_data(np.maximum(np.abs(of.low), np.abs(of.high)).astype(np.float64), of)
    varies = _as_in_the_data(of.low != of.high, of)
    tiny = np.flatnonzero(varies & (size < TINY))
    if not tiny.size:
        return None
    each = [f"column {j}" if names is None else repr(names[j]) for j in tiny[:SHOWN]]
    more = f", ... ({tiny.size})" if tiny.size > SHOWN else ""
    return (
        f"the squares of all values of {', '.join(each)}{more} are too small for sums in "
        "float64: their coefficients may stay 0; "
        f"divide the columns by {power(float(size[tiny[0]])):g} before the data are written"
    )
