"""The null model: the best intercept alone. It is where training starts, and what a fit's gain is measured from.

Looks at targets, weights and offsets, never at X. Every number is a function of the set of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.comm import Comm
from mpigd.model.constant import best_constant
from mpigd.model.objective import Objective
from mpigd.reduce import NotFinite, total
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
SLAB = 1 << 18  # rows whose losses are made at once
STEPS = 200  # of Newton's method for the intercept
RTOL = 1e-15  # of the mean loss: what a step would gain less is not taken
SURE = 1e-9  # a share of a class is taken for at least this: no intercept is infinite


@dataclass(frozen=True)
class NullModel:
    """The best intercepts (k,), zero without an intercept, and the mean loss there; no penalty acts on them."""

    intercept: Array
    value: float

    def start(self, p: int) -> Array:
        """Parameters (k * p,) in the optimiser's coordinates: the intercept is the last of each output."""
        w = np.zeros((self.intercept.size, p))
        if self.intercept.any():
            w[:, -1] = self.intercept
        return w.reshape(-1)


def fit_null(objective: Objective, mean: float, comm: Comm) -> NullModel:
    """The null model of an objective whose targets have this weighted mean. Collective.

    The value is infinite where the loss overflows even there (offsets far out of range).
    """
    b = np.zeros(objective.k)
    if objective.scaling.intercept and objective.statistics.weight > 0.0:
        b = _intercepts(objective, mean, comm)
    try:
        return NullModel(b, sums(objective, b, comm)[0])
    except NotFinite:
        return NullModel(np.zeros(objective.k), math.inf)


def _intercepts(objective: Objective, mean: float, comm: Comm) -> Array:
    loss = objective.loss
    if loss.smoothed:
        return np.array([best_constant(objective, comm)])
    if loss.kind == "multiclass":
        y, c = objective.rows.y, objective.rows.c
        sums = np.array([total(np.where(y == q, c, 0.0), comm)[0] for q in range(objective.k)])
        shares = np.maximum(sums / objective.statistics.weight, SURE)
        return np.array([float(vector.logarithm(share)) for share in shares])
    guess = link_of_mean(loss.name, mean)
    if objective.rows.offset is None and loss.name in ("squared", "logistic", "poisson", "gamma"):
        return np.array([guess])
    return np.array([_minimum(objective, guess, comm)])


def link_of_mean(loss: str, mean: float) -> float:
    """The linear predictor of the mean response."""
    if loss in ("logistic", "squared_hinge", "hinge"):
        mean = min(max(mean, SURE), 1.0 - SURE)
        return float(vector.logarithm(mean / (1.0 - mean))) if loss == "logistic" else 2.0 * mean - 1.0
    if loss in ("poisson", "gamma"):
        return float(vector.logarithm(mean)) if mean > 0.0 else 0.0
    return mean


def _minimum(objective: Objective, guess: float, comm: Comm) -> float:
    """The intercept of the least mean loss: Newton's method kept in a bracket, which is bisected or
    widened where a step leaves it."""
    low, high, b, reach = -math.inf, math.inf, guess, 0.0
    for _ in range(STEPS):
        try:
            value, slope, bend = sums(objective, np.array([b]), comm)
        except NotFinite:  # raised on all ranks together: too far
            if not math.isfinite(low):
                return guess
            high, b = b, 0.5 * (low + b)
            continue
        if abs(slope) == 0.0:
            return b
        low, high = (low, b) if slope > 0.0 else (b, high)
        reach = 2.0 * reach or abs(slope)
        step = -slope / bend if bend > 0.0 else math.copysign(reach, -slope)
        if abs(slope * step) <= RTOL * value:  # twice what is left to gain
            return b + step
        b = b + step if low < b + step < high else _inside(low, high, math.copysign(reach, -slope))
    return b


def _inside(low: float, high: float, step: float) -> float:
    """The middle of the bracket, or a step beyond its one end."""
    if math.isfinite(low) and math.isfinite(high):
        return 0.5 * (low + high)
    return (low if math.isfinite(low) else high) + step


def sums(objective: Objective, b: Array, comm: Comm) -> tuple[float, float, float]:
    """Mean loss, and its first two derivatives by the first intercept, at intercepts b (k,).

    Collective; NotFinite on all ranks.
    """
    parts = np.zeros((objective.rows.y.size, 3))
    for rows in range(0, parts.shape[0], SLAB):
        _fill(objective, b, slice(rows, rows + SLAB), parts)
    weight = objective.statistics.weight or 1.0
    value, slope, bend = (float(part) / weight for part in total(parts, comm))
    return value, slope, bend


def _fill(objective: Objective, b: Array, rows: slice, parts: Array) -> None:
    of, loss, a = objective.rows, objective.loss, objective.parameter
    y, c = of.y[rows], np.ascontiguousarray(of.c[rows])
    z = np.repeat(b[:, np.newaxis], y.size, axis=1)
    if of.offset is not None:
        z += of.offset[rows]
    r, l = np.empty_like(z), np.empty(y.size)
    loss.kernel(z, y, c, a, r, l)
    parts[rows, 0], parts[rows, 1] = l, r[0]
    if loss.second is not None and loss.kind != "multiclass":
        loss.second(z, y, c, a, r)
        parts[rows, 2] = r[0]


def mean_curvature(objective: Objective, null: NullModel, comm: Comm) -> float:
    """The mean second derivative of the loss at the null model, of the largest output; 1 where that says nothing. Collective."""
    loss = objective.loss
    if loss.second is None:
        return 1.0
    if loss.kind == "multiclass":
        shares = np.array([float(vector.exponential(b)) for b in null.intercept])
        shares /= vector.dot(shares, np.ones(shares.size))
        return float(np.max(shares * (1.0 - shares)))
    try:
        bend = sums(objective, null.intercept, comm)[2]
    except NotFinite:
        return 1.0
    return bend if bend > 0.0 and math.isfinite(bend) else 1.0
