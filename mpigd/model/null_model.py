"""The null model: the best intercept alone.

Training starts from it, and the gain of a fit is measured from it. It depends on targets, weights
and offsets, never on X. Every number is a function of the set of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.model.constant_model import best_constant
from mpigd.model.losses import Loss
from mpigd.model.objective import Objective
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.reduction.base import NotFinite, total
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
SLAB = 1 << 16  # rows whose losses are computed at once
STEPS = 200  # the most steps of Newton's method for the intercept
RTOL = 1e-15  # a step that gains less than this share of the mean loss is the last one
SURE = 1e-9  # the least share of a class, so that no intercept is infinite
# Losses whose best constant is the link function of the mean.
CLOSED_FORM = ("squared", "logistic", "poisson", "gamma")


@dataclass(frozen=True)
class NullModel:
    """The best intercepts and the loss there.

    Parameters
    ----------
    intercept : (k,) float64
        Zero for a model without an intercept.
    value
        The mean loss at these intercepts, infinite if it overflows.
    curvature
        The mean second derivative of the loss, for the output for which it is largest; 1 if the
        loss has none.
    """

    intercept: Array
    value: float
    curvature: float

    def start(self, p: int) -> Array:
        """Return parameters (k * p,) in the optimiser's coordinates.

        The intercept is the last of each output's p parameters; all others are 0.
        """
        w = np.zeros((self.intercept.size, p))
        if self.intercept.any():
            w[:, -1] = self.intercept
        return w.reshape(-1)


def fit_null(objective: Objective, mean: float, comm: Comm) -> NullModel:
    """Return the null model of an objective. Collective.

    Parameters
    ----------
    objective
        The objective of all rows.
    mean
        The weighted mean of its targets (of class codes, for classes).
    comm
        The communicator of these ranks.
    """
    rows = _targets(objective, mean, comm)
    b = np.zeros(objective.k)
    if objective.scaling.intercept and objective.statistics.weight > 0.0:
        b = _intercepts(rows, mean)
    try:
        value = rows.mean(b, losses)
        bend = _largest_curvature(rows, b)
    except NotFinite:  # all ranks raise it together
        return NullModel(np.zeros(objective.k), math.inf, 1.0)
    return NullModel(b, value, bend if bend > 0.0 else 1.0)


def null_deviance(objective: Objective, comm: Comm) -> float | None:
    """Return the deviance of the best model with an intercept alone. Collective.

    The model of the objective need not have an intercept. The result is None if a number overflows.

    Parameters
    ----------
    objective
        The objective of all rows, with a loss of one output that is half a deviance.
    comm
        The communicator of these ranks.
    """
    weight = objective.statistics.weight
    mean = float(total(objective.rows.c * objective.rows.y, comm)[0]) / weight
    rows = _targets(objective, mean, comm)
    try:
        # `_intercepts` stops short of shares below SURE.
        b = _minimum(rows, _guess(rows, mean))
        return 2.0 * weight * rows.mean(np.array([b]), losses)
    except NotFinite:  # all ranks raise it together
        return None


@dataclass(frozen=True)
class Targets:
    """Targets y (m,), weights c (m,) and offsets (m,) or None of this rank's rows.

    n and weight count the rows and sum the weights of all ranks; the loss has k outputs.
    """

    loss: Loss
    parameter: float
    k: int
    y: Array
    c: Array
    offset: Array | None
    n: int
    weight: float
    comm: Comm

    def mean(self, b: Array, what: Callable[[Targets, Array, slice], Array]) -> float:
        """Return the weighted mean over all rows of a number that each row has. Collective.

        Parameters
        ----------
        b : (k,) float64
            Intercepts.
        what
            Maps these targets, b and a slice of rows to the rows' numbers times their weights (m,).

        Raises
        ------
        NotFinite
            On all ranks, if a number is not finite.
        """
        numbers = np.empty(self.y.size)
        for start in range(0, numbers.size, SLAB):
            rows = slice(start, min(numbers.size, start + SLAB))
            numbers[rows] = what(self, b, rows)
        return float(total(numbers, self.comm)[0]) / (self.weight or 1.0)

    def predictors(self, b: Array, rows: slice) -> Array:
        z = np.repeat(b[:, np.newaxis], rows.stop - rows.start, axis=1)
        if self.offset is not None:
            z += self.offset[rows]
        return z

    def gradients(self, b: Array, rows: slice) -> tuple[Array, Array]:
        """Return per-sample gradients and losses of some rows.

        Parameters
        ----------
        b : (k,) float64
            Intercepts.
        rows
            A slice of m of this rank's rows.

        Returns
        -------
        r : (k, m) float64
        l : (m,) float64
        """
        z, y, c = self.predictors(b, rows), self.y[rows], np.ascontiguousarray(self.c[rows])
        r, l = np.empty_like(z), np.empty(y.size)
        self.loss.kernel(z, y, c, self.parameter, r, l)
        return r, l


def losses(of: Targets, b: Array, rows: slice) -> Array:
    return of.gradients(b, rows)[1]


def slopes(of: Targets, b: Array, rows: slice) -> Array:
    return np.asarray(of.gradients(b, rows)[0][0])


def curvatures(of: Targets, b: Array, rows: slice) -> Array:
    """Return second derivatives (m,) of the losses, for one output; 0 if the loss has none."""
    if of.loss.second is None:
        return np.zeros(rows.stop - rows.start)
    z, c = of.predictors(b, rows), np.ascontiguousarray(of.c[rows])
    h = np.empty_like(z)
    of.loss.second(z, of.y[rows], c, of.parameter, h)
    return np.asarray(h[0])


def _targets(objective: Objective, mean: float, comm: Comm) -> Targets:
    """Return this rank's rows; for classes without offsets, one row for each class.

    Such a row has the weight of all rows of its class.
    """
    rows, loss, weight = objective.rows, objective.loss, objective.statistics.weight
    y, c, offset, n = rows.y, rows.c, rows.offset, objective.n
    if loss.classifies and offset is None and objective.k == 1:
        y, c, comm = np.arange(2.0), np.array([1.0 - mean, mean]) * weight, SelfComm()
        n = 2
    elif loss.classifies and offset is None:
        y = np.arange(float(objective.k))
        c = np.array([float(total(np.where(rows.y == q, rows.c, 0.0), comm)[0]) for q in y])
        comm, n = SelfComm(), objective.k
    return Targets(loss, objective.parameter, objective.k, y, c, offset, n, weight, comm)


def _largest_curvature(rows: Targets, b: Array) -> float:
    """Return the mean second derivative of the loss at intercepts b (k,). Collective.

    Of several outputs, the largest one counts.
    """
    if rows.loss.kind != "multiclass":
        return rows.mean(b, curvatures)
    shares = np.array([float(vector.exponential(one)) for one in b])
    shares /= vector.dot(shares, np.ones(rows.k))
    return float(np.max(shares * (1.0 - shares)))


def _intercepts(rows: Targets, mean: float) -> Array:
    loss = rows.loss
    if loss.smoothed:
        return np.array([best_constant(rows, rows.comm)])
    if loss.kind == "multiclass":
        shares = [
            float(total(np.where(rows.y == q, rows.c, 0.0), rows.comm)[0]) / rows.weight
            for q in range(rows.k)
        ]
        return np.array([float(vector.logarithm(max(share, SURE))) for share in shares])
    guess = _guess(rows, mean)
    if rows.offset is None and loss.name in CLOSED_FORM:
        return np.array([guess])
    return np.array([_minimum(rows, guess)])


def _guess(rows: Targets, mean: float) -> float:
    """Return the intercept that gives the mean response at the mean offset. Collective."""
    guess = link_of_mean(rows.loss.name, mean)
    if rows.offset is not None:
        guess -= float(total(rows.c * rows.offset, rows.comm)[0]) / rows.weight
    return guess


def link_of_mean(loss: str, mean: float) -> float:
    """Return the linear predictor at which `mean` is the mean response of the loss `loss`."""
    if loss in ("logistic", "squared_hinge", "hinge"):
        mean = min(max(mean, SURE), 1.0 - SURE)
        return (
            float(vector.logarithm(mean / (1.0 - mean))) if loss == "logistic" else 2.0 * mean - 1.0
        )
    if loss in ("poisson", "gamma"):
        return float(vector.logarithm(mean)) if mean > 0.0 else 0.0
    return mean


def _minimum(rows: Targets, guess: float) -> float:
    """Return the intercept of the least mean loss. Collective.

    Newton's method is kept in a bracket, which is bisected or widened if a step leaves it.
    """
    low, high, b, reach = -math.inf, math.inf, guess, 0.0
    for _ in range(STEPS):
        try:
            value, slope, bend = (
                rows.mean(np.array([b]), what) for what in (losses, slopes, curvatures)
            )
        except NotFinite:  # all ranks raise it together: the step was too long
            if not math.isfinite(low):
                return guess
            high, b = b, 0.5 * (low + b)
            continue
        if slope == 0.0:
            return b
        low, high = (low, b) if slope > 0.0 else (b, high)
        reach = 2.0 * reach or abs(slope)
        step = -slope / bend if bend > 0.0 else math.copysign(reach, -slope)
        if abs(slope * step) <= RTOL * value:  # the left side is twice what a step still gains
            return b + step
        b = b + step if low < b + step < high else _inside(low, high, math.copysign(reach, -slope))
    return b


def _inside(low: float, high: float, step: float) -> float:
    """Return the middle of the bracket; if it is open, a point one step beyond its finite end."""
    if math.isfinite(low) and math.isfinite(high):
        return 0.5 * (low + high)
    return (low if math.isfinite(low) else high) + step
