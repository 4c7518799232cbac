"""Likelihoods of a trained model, and of the best intercept alone; how many rows the weights stand for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpigd.model.objective import Objective
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import NotFinite, total
from mpigd_kernels import likelihood, vector

Array = np.ndarray[Any, Any]
TWO_PI = 6.283185307179586
NULL_STEPS, ENOUGH, HUGE = 100, 1e-8, 1e300  # of Newton's method for the intercept alone


def weighting(objective: Objective, comm: Comm) -> tuple[bool, int]:
    """Whether all weights are whole numbers, which count as repeated rows; and how many rows have a weight. Collective."""
    c = objective.rows.c
    times, some = (
        (c.size, c[:1]) if c.strides == (0,) else (1, c)
    )  # without weights c is one number, repeated
    counts = times * np.array(
        [np.count_nonzero(some != np.floor(some)), np.count_nonzero(some)], dtype=np.int64
    )
    comm.allreduce(counts)
    return int(counts[0]) == 0, int(counts[1])


def log_likelihood(
    loss: str, half_deviance: float, saturated: float, weight: float, dispersion: float
) -> float:
    """Of a normal distribution at its most likely variance; of a gamma distribution at the dispersion estimated."""
    if loss == "squared":
        return (
            -0.5 * weight * (math.log(TWO_PI * 2.0 * half_deviance / weight) + 1.0)
            if half_deviance > 0.0
            else math.inf
        )
    if loss == "gamma":
        shape = 1.0 / dispersion
        return (
            saturated
            - shape * (half_deviance + weight)
            + weight * (shape * math.log(shape) - math.lgamma(shape))
        )
    return saturated - half_deviance


def of_relative_weights(
    objective: Objective, half_deviance: float, count: int, comm: Comm
) -> float | None:
    """The log-likelihood where row i has variance sigma^2 / c_i, at the most likely sigma (as R's logLik.lm); None for gamma."""
    if objective.loss.name != "squared":
        return None
    if not half_deviance > 0.0:
        return math.inf
    c = np.ascontiguousarray(objective.rows.c[objective.rows.c > 0.0])
    minus_logarithms = np.empty_like(c)
    likelihood.gamma(c, minus_logarithms)
    logarithms = -float(total(minus_logarithms, comm)[0])
    return 0.5 * (logarithms - count * (math.log(TWO_PI * 2.0 * half_deviance / count) + 1.0))


def null_deviance(objective: Objective, comm: Comm) -> float | None:
    """The deviance of the best model with an intercept alone, by Newton's method within a bracket; None where that overflows.

    Looks at y, weights and offsets only.
    """
    rows, loss = objective.rows, objective.loss
    c = np.ascontiguousarray(rows.c)
    offset = np.zeros(rows.y.size) if rows.offset is None else rows.offset
    r, l, h = np.empty((1, offset.size)), np.empty(offset.size), np.empty((1, offset.size))
    assert loss.second is not None
    ends = np.array([np.max(-offset, initial=-np.inf), np.max(offset, initial=-np.inf)])
    comm.allreduce(ends, "max")
    middle = _link_of_mean(objective, comm)
    low, high = (
        middle - float(ends[1]),
        middle + float(ends[0]),
    )  # where the mean response is met by some row's offset
    b = 0.5 * (low + high)
    try:
        for _ in range(NULL_STEPS):
            z = (offset + b)[np.newaxis]
            loss.kernel(z, rows.y, c, objective.parameter, r, l)
            loss.second(z, rows.y, c, objective.parameter, h)
            slope, value, bend = (float(x) for x in total(np.column_stack([r[0], l, h[0]]), comm))
            low, high = (low, b) if slope > 0.0 else (b, high)
            before, b = b, b - slope / bend if bend > 0.0 else low
            if abs(b - before) <= ENOUGH * max(1.0, abs(before)) or not low < high:
                return 2.0 * value  # flat there: what is left to gain is the square of that
            b = b if low < b < high else 0.5 * (low + high)
    except NotFinite:
        return None
    return 2.0 * value


def _link_of_mean(objective: Objective, comm: Comm) -> float:
    """The margin of the mean response."""
    mean = float(total(objective.rows.c * objective.rows.y, comm)[0]) / objective.statistics.weight
    if objective.loss.name == "squared":
        return mean
    if objective.loss.name == "logistic":
        mean = mean / (1.0 - mean) if mean < 1.0 else HUGE
    return float(vector.logarithm(min(max(mean, 1.0 / HUGE), HUGE)))
