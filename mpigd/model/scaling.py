"""Coordinates for the optimiser: columns centred and divided by their scale, without changing X.

Uncentred columns can make the condition number a million. With centres m and scales s, the
coordinates are u_j = s_j w_j and b' = b + sum_j w_j m_j. Margins are computed from w and b, and
gradients g'_j = (g_j - m_j g_b) / s_j after the sums over rows.

`measure` computes the statistics of the columns, `make_scaling` chooses centres and scales from
them, and `Scaling` maps between coordinates and coefficients.
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
BLOCKS = 16  # blocks of a sweep that are visited at once: each visit costs some calls from Python


@dataclass(frozen=True)
class Statistics:
    """Statistics of the columns over all rows.

    Parameters
    ----------
    rows
        Number of rows n over all ranks.
    weight, heaviest
        Sum and maximum of the sample weights c.
    low, high : (d,)
        Extremes of each column.
    count : (d,) int64
        Stored entries of each column.
    mean, deviation : (d,) float64
        Weighted mean and standard deviation (population formula).
    entries
        Stored entries of the whole matrix.
    number : (d,)
        The number in the data of each column if the matrix was arranged (Matrix.arrange), else
        None.
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
        """Return the statistics of the columns `chosen`."""
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
        """The bounds of these columns, whose arrays all reducers share."""
        return Bounds.of(self.largest, self.count, self.entries, self.rows)


def measure(X: Matrix, c: Array, n: int, comm: Comm) -> Statistics:
    """Return the statistics of all ranks' rows, each sum exact. Two reads. Collective.

    This rearranges the columns of X by their number of entries (Matrix.arrange).

    Parameters
    ----------
    X
        This rank's rows (m, d).
    c : (m,) float64
        Sample weights.
    n
        Number of rows over all ranks.
    comm
        The communicator of these ranks.
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
    # A sparse matrix may have many columns, so their extremes take as little memory as possible.
    # They are numbers of the data, so its dtype holds them exactly.
    if isinstance(X, CSR):
        low, high, number = low.astype(X.data.dtype), high.astype(X.data.dtype), X.number
    return Statistics(n, weight, top, low, high, count, mean, deviation, size, number)


def absolute_sums(X: Matrix, c: Array, n: int, statistics: Statistics, comm: Comm) -> Array:
    """Return sum_i c_i |x_ij| over all rows (d,), exact. One read. Collective.

    Parameters
    ----------
    X
        This rank's rows (m, d).
    c : (m,) float64
        Sample weights.
    n
        Number of rows over all ranks.
    statistics
        Statistics of these columns.
    comm
        The communicator of these ranks.
    """

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
    """Return sums over all rows of weighted squares of centred columns. One read. Collective.

    Parameters
    ----------
    X
        This rank's rows (n, d).
    h : (k, n) float64
        Weights of the rows, for each of k outputs.
    largest
        An upper bound on |h|, equal on all ranks.
    statistics
        Statistics of these columns.
    center : (d,) float64
    comm
        The communicator of these ranks.

    Returns
    -------
    squares : (k, d) float64
        Sum_i h_qi (x_ij - center_j)**2.
    sums : (k,) float64
        Sum_i h_qi.
    """
    nothing = center * center  # the square of a missing entry, which is a zero

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
    """Return sum_i c_qi f(x_ij) (k, d) over the stored values of all rows.

    c has shape (k, n); `view` applies f to the values of a block.
    """

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
    holes = count < n  # missing entries of a sparse column are zeros
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
    """The map between optimiser coordinates (k, p) and coefficients.

    p = d, or d + 1 with the intercept last.

    Parameters
    ----------
    center : (d,) float64
        What is subtracted from each column.
    inverse : (d,) float64
        1 / scale; zero for a column whose coefficient stays 0: a constant column beside an
        intercept, or a column of zeros.
    penalty : (p,) float64
        The weight of a coordinate's square in the ridge penalty.
    intercept
        Whether there is an intercept.
    number : (d,)
        The number in the data of each column, or None. `coefficients` and `from_raw` use the data's
        order of the columns.
    shift : (d,)
        What was subtracted from the data's columns (column_digits.py), or None. `coefficients` and
        `from_raw` are for columns without this shift.
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
        """Mask (p,) bool of the unpenalised coordinates whose column is the same in all rows.

        These are the intercept, or columns in its place.
        """
        used = np.append(self.inverse, [1.0] * self.intercept) > 0.0
        return np.asarray(used & (self.penalty == 0.0))

    def take(self, chosen: Array) -> Scaling:
        """Return the map of the columns `chosen`, and of the intercept."""
        rest = self.penalty[self.center.size :]
        return Scaling(
            self.center[chosen],
            self.inverse[chosen],
            np.append(self.penalty[chosen], rest),
            self.intercept,
        )

    def to_raw(self, w: Array, k: int) -> tuple[Array, Array]:
        """Return coefficients of the centred, arranged columns.

        Parameters
        ----------
        w : (k * p,) or (k, p) float64
            Parameters in the optimiser's coordinates.
        k
            The number of outputs.

        Returns
        -------
        coef : (k, d) float64
        intercept : (k,) float64
        """
        coef, b = np.empty((k, self.center.size)), np.empty(k)
        vector.to_raw(
            w.reshape(-1) if w.ndim > 1 else w, self.center, self.inverse, self.intercept, coef, b
        )
        return coef, b

    def coefficients(self, w: Array, k: int) -> tuple[Array, Array]:
        """Return coefficients of the data's own columns: in their order, without the shift.

        Parameters
        ----------
        w : (k * p,) or (k, p) float64
            Parameters in the optimiser's coordinates.
        k
            The number of outputs.

        Returns
        -------
        coef : (k, d) float64
        intercept : (k,) float64
        """
        arranged, b = self.to_raw(w, k)
        if self.shift is not None:
            b -= [vector.dot(row, self.shift) for row in arranged]
        if self.number is None:
            return arranged, b
        coef = np.empty_like(arranged)
        coef[:, self.number] = arranged
        return coef, b

    def from_raw(self, coef: Array, intercept: Array) -> Array:
        """Return the parameters of coefficients of the data's own columns.

        This inverts `coefficients`, except for columns whose coefficient is held at 0.

        Parameters
        ----------
        coef : (k, d) float64
        intercept : (k,) float64

        Returns
        -------
        w : (k * p,) float64
            Parameters in the optimiser's coordinates.
        """
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
        """Return loss and gradient (k * p,) in these coordinates, from a sweep's totals.

        Parameters
        ----------
        T : (1, 2 or 4, k, d) float64
            Totals of the gradient (Reducer.sweep_for).
        S : (1 + k, 2) float64
            Totals of loss and residuals.
        factor
            Multiplies the sums.
        """
        G = np.empty(T.shape[1] * self.p)
        return vector.to_gradient(T, S, self.center, self.inverse, self.intercept, factor, G), G


def make_scaling(
    statistics: Statistics,
    intercept: bool,
    standardize: bool,
    ridge: float = 0.0,
    shift: Array | None = None,
) -> Scaling:
    """Return centres, scales and ridge weights for columns with these statistics.

    Columns are centred only if an intercept can take the centres up. Without an intercept the scale
    is the root mean square about zero.

    Beside an intercept a constant column carries no information, and its coefficient stays 0.
    Without an intercept it is a column like others and takes the intercept's place. Its standard
    deviation is 0, and so is its penalty if columns are standardised: a column of ones without an
    intercept then gives the same model as an intercept. With standardize=False the penalty includes
    such a column.

    Parameters
    ----------
    statistics
        Statistics of the columns over all rows.
    intercept
        Whether the model has one.
    standardize
        Whether the penalty applies to standardised columns.
    ridge
        L2 divided by the loss's curvature. Without standardisation the penalty adds this, over the
        squared scale, to the curvature of a coordinate, so it belongs into the scale: otherwise a
        column of tiny numbers would have an enormous curvature.
    shift : (d,)
        What was subtracted from the data's columns, or None.
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
