"""Coordinates for the optimiser: columns centred and divided by their scale, without touching X.

Uncentred columns can make the condition number a million. With centres m and scales s, u_j = s_j w_j and
b' = b + sum_j w_j m_j: margins are made with w and b, and gradients g'_j = (g_j - m_j g_b) / s_j after the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from mpigd.matrix.base import CSR, Columns, Dense, Into, Matrix, block_rows
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import total
from mpigd.reduction.exact import Bounds, ExactReducer
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
BLOCKS = 16  # of a sweep at once: each costs some calls from Python


@dataclass(frozen=True)
class Statistics:
    """Of all `rows`: weight sum C and largest c; per column (d,) extremes, stored entries, weighted mean and deviation.

    number (d,): the number in the data of each column, where the matrix was arranged (Matrix.arrange).
    """

    rows: int
    weight: float
    heaviest: float
    low: Array
    high: Array
    count: Array
    mean: Array
    deviation: Array
    entries: int
    number: Array | None = None

    @cached_property
    def largest(self) -> Array:
        return np.maximum(np.abs(self.low), np.abs(self.high), dtype=np.float64)

    def take(self, chosen: Array) -> Statistics:
        """Those of some columns."""
        low, high, count, mean, deviation = (
            part[chosen] for part in (self.low, self.high, self.count, self.mean, self.deviation)
        )
        return Statistics(
            self.rows,
            self.weight,
            self.heaviest,
            low,
            high,
            count,
            mean,
            deviation,
            int(count.sum()),
        )

    @cached_property
    def bounds(self) -> Bounds:
        """For all reducers of these columns, which share the arrays."""
        return Bounds.of(self.largest, self.count, self.entries, self.rows)


def measure(X: Matrix, c: Array, n: int, comm: Comm) -> Statistics:
    """Statistics of the columns of all ranks' rows, in the population formula, each sum exact. Two reads. Collective.

    Arranges the columns of X.
    """
    low, high, count = _extremes(X, n, comm)
    order = X.arrange(count)
    if order is not None:
        low, high, count = low[order], high[order], count[order]
    weight = float(total(c, comm)[0])
    heaviest = np.array([c.max() if c.size else 0.0])
    comm.allreduce(heaviest, "max")
    top = float(heaviest[0])
    entries = np.array([X.entries], dtype=np.int64)
    comm.allreduce(entries)
    size = int(entries[0])

    def column_sums(view: Callable[[Matrix], Matrix], largest: Array) -> Array:
        reducer = ExactReducer(comm, Bounds.of(largest, count, size, n), 1, n, top)
        return _weighted(X, c[np.newaxis], view, reducer).reshape(-1)

    divisor = weight or 1.0
    mean = column_sums(lambda block: block, np.maximum(np.abs(low), np.abs(high))) / divisor
    farthest = np.maximum((high - mean) ** 2, (low - mean) ** 2)
    squares = column_sums(lambda block: block.squared_deviation(mean), farthest)
    if isinstance(X, CSR):
        stored = column_sums(lambda block: block.ones(), np.ones_like(mean))
        squares = squares + mean * mean * np.maximum(weight - stored, 0.0)
    deviation = np.where(low == high, 0.0, np.sqrt(squares / divisor))
    number = None
    if isinstance(X, CSR):  # of many columns; extremes are numbers of the data
        low, high, number = low.astype(X.data.dtype), high.astype(X.data.dtype), X.number
    return Statistics(n, weight, top, low, high, count, mean, deviation, size, number)


def absolute_sums(X: Matrix, c: Array, n: int, statistics: Statistics, comm: Comm) -> Array:
    """sum_i c_i |x_ij| over all rows (d,). One read. Collective."""

    def view(block: Matrix) -> Matrix:
        squares = block.squared_deviation(np.zeros(X.d))
        values = squares.data if isinstance(squares, CSR) else cast(Dense, squares).values
        np.sqrt(values, out=values)
        return squares

    sums = _weighted(
        X, c[np.newaxis], view, ExactReducer(comm, statistics.bounds, 1, n, statistics.heaviest)
    )
    return sums.reshape(-1)


def weighted_squares(
    X: Matrix, h: Array, largest: float, statistics: Statistics, center: Array, comm: Comm
) -> tuple[Array, Array]:
    """sum_i h_qi (x_ij - center_j)**2 (k, d) over all rows, and sum_i h_qi (k,), for weights h (k, n) of at most `largest`.

    One read. Collective.
    """
    nothing = center * center  # what a missing entry, a zero, adds

    def view(block: Matrix) -> Matrix:
        squares = block.squared_deviation(center)
        if isinstance(squares, CSR):
            squares.data -= nothing[squares.indices]
        return squares

    far = np.maximum((statistics.high - center) ** 2, (statistics.low - center) ** 2) + nothing
    bounds = Bounds.of(far, statistics.count, statistics.entries, statistics.rows)
    squares = _weighted(
        X, h, view, ExactReducer(comm, bounds, h.shape[0], statistics.rows, largest)
    )
    sums = total(np.ascontiguousarray(h.T), comm)
    return (squares + np.outer(sums, nothing) if isinstance(X, CSR) else squares), sums


def _weighted(
    X: Matrix, c: Array, view: Callable[[Matrix], Matrix], reducer: ExactReducer
) -> Array:
    """sum_i c_qi f(x_ij) (k, d) over the stored values of all rows, for c (k, n) and f as `view` of a block says."""

    def visit(share: list[slice], into: Into) -> None:
        for rows in share:
            view(X.rows(rows)).accumulate(c[:, rows].copy(), c[0, rows].copy(), into)

    return np.asarray(reducer.sweep([blocks(X)], visit, reducer.n).gradient)


def _extremes(X: Matrix, n: int, comm: Comm) -> tuple[Array, Array, Array]:
    mine: Columns = X.columns()
    low, high, count = mine.low, mine.high, mine.count
    comm.allreduce(low, "min")
    comm.allreduce(high, "max")
    comm.allreduce(count)
    holes = count < n  # a sparse column's missing entries are zeros
    low, high = (
        np.where(holes, np.minimum(low, 0.0), low),
        np.where(holes, np.maximum(high, 0.0), high),
    )
    return low, high, count


def blocks(X: Matrix) -> list[slice]:
    step = BLOCKS * block_rows(X)
    return [slice(start, min(X.n, start + step)) for start in range(0, X.n, step)]


@dataclass(frozen=True)
class Scaling:
    """The map between optimiser coordinates (k, p) and coefficients: p = d, or d + 1 with the
    intercept last.

    center (d,), inverse (d,): 1 / scale, zero for a column whose coefficient stays 0: a constant
    one beside an intercept, or one of zeros.
    penalty (p,): what the square of a coordinate weighs in the ridge penalty.
    number (d,): the number in the data of each column; `coefficients` and `from_raw` speak of
    columns as the data number them.
    shift (d,): what was subtracted from the data's columns (mpigd/model/column_digits.py); these two speak
    of columns without that.
    """

    center: Array
    inverse: Array
    penalty: Array
    intercept: bool
    number: Array | None = None
    shift: Array | None = None

    @cached_property
    def p(self) -> int:
        return self.center.size + self.intercept

    @cached_property
    def levels(self) -> Array:
        """Which coordinates (p,) are the same number in all rows and unpenalised: the intercept, or
        columns in its place."""
        used = np.append(self.inverse, [1.0] * self.intercept) > 0.0
        return np.asarray(used & (self.penalty == 0.0))

    def take(self, chosen: Array) -> Scaling:
        """The map of some columns, and of the intercept."""
        rest = self.penalty[self.center.size :]
        return Scaling(
            self.center[chosen],
            self.inverse[chosen],
            np.append(self.penalty[chosen], rest),
            self.intercept,
        )

    def to_raw(self, w: Array, k: int) -> tuple[Array, Array]:
        """(coef (k, d), intercept (k,)) for parameters w (k * p,) or (k, p)."""
        coef, b = np.empty((k, self.center.size)), np.empty(k)
        vector.to_raw(
            w.reshape(-1) if w.ndim > 1 else w, self.center, self.inverse, self.intercept, coef, b
        )
        return coef, b

    def coefficients(self, w: Array, k: int) -> tuple[Array, Array]:
        """to_raw, with the columns in the order of the data."""
        arranged, b = self.to_raw(w, k)
        if self.shift is not None:
            b -= [vector.dot(row, self.shift) for row in arranged]
        if self.number is None:
            return arranged, b
        coef = np.empty_like(arranged)
        coef[:, self.number] = arranged
        return coef, b

    def from_raw(self, coef: Array, intercept: Array) -> Array:
        """The inverse of coefficients, up to columns whose coefficient is held at 0."""
        scale = np.divide(
            1.0, self.inverse, out=np.zeros_like(self.inverse), where=self.inverse > 0
        )
        coef = coef if self.number is None else coef[:, self.number]
        W = coef * scale
        if self.intercept:
            center = self.center if self.shift is None else self.center + self.shift
            used = self.inverse > 0
            moved = np.array([vector.dot(row * used, center) for row in coef])
            W = np.column_stack([W, intercept + moved])
        return np.ascontiguousarray(W).reshape(-1)

    def gradient(self, T: Array, S: Array, factor: float) -> tuple[float, Array]:
        """A sweep's totals (Reducer.sweep_for), times `factor` -> loss and gradient (k * p,) in these coordinates."""
        G = np.empty(T.shape[1] * self.p)
        return vector.to_gradient(T, S, self.center, self.inverse, self.intercept, factor, G), G


def make_scaling(
    statistics: Statistics,
    intercept: bool,
    standardize: bool,
    ridge: float = 0.0,
    shift: Array | None = None,
) -> Scaling:
    """Centre only where an intercept can take it up; without one the scale is the root mean square
    about zero.

    Beside an intercept a constant column says nothing, and its coefficient stays 0. Without one it
    is a column like others that takes the intercept's place. Its standard deviation is 0, and so is
    then its penalty if columns are standardised: a column of ones and no intercept is the same
    model as an intercept. Penalties on the columns as they are (standardize=False) include it.

    ridge: l2 over the loss's curvature. Without standardisation the penalty bends a coordinate by
    that over its squared scale, so it belongs into the scale: a column of tiny numbers would have
    an enormous curvature otherwise.
    """
    mean, deviation = statistics.mean, statistics.deviation
    center = mean if intercept else np.zeros_like(mean)
    scale = deviation if intercept else np.sqrt(deviation**2 + mean**2)
    if not standardize:
        scale = np.where(scale > 0, np.sqrt(scale * scale + ridge), 0.0)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    weights = (deviation * inverse) ** 2 if standardize else inverse**2
    if intercept:
        weights = np.append(np.where(inverse > 0, 1.0, 0.0) if standardize else weights, 0.0)
    return Scaling(center, inverse, weights, intercept, statistics.number, shift)
