"""Likelihoods of a trained model and of the best intercept alone, and the meaning of weights."""

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
# Newton's method for the intercept alone: the most steps, the relative step at which it ends, and
# the largest mean whose logarithm is taken.
NULL_STEPS, ENOUGH, HUGE = 100, 1e-8, 1e300


def weighting(objective: Objective, comm: Comm) -> tuple[bool, int]:
    """Return how weights count. Collective.

    Parameters
    ----------
    objective
        The objective of all rows.
    comm
        The communicator of these ranks.

    Returns
    -------
    repeated : bool
        Whether all weights are whole numbers, which count as repeated rows.
    count : int
        The number of rows with a weight that is not 0.
    """
    c = objective.rows.c
    # Without weights c is one number, broadcast.
    times, some = (c.size, c[:1]) if c.strides == (0,) else (1, c)
    counts = times * np.array(
        [np.count_nonzero(some != np.floor(some)), np.count_nonzero(some)], dtype=np.int64
    )
    comm.allreduce(counts)
    return int(counts[0]) == 0, int(counts[1])


def log_likelihood(
    loss: str, half_deviance: float, saturated: float, weight: float, dispersion: float
) -> float:
    """Return the log-likelihood of a model.

    A normal distribution has its most likely variance; a gamma distribution has the estimated
    dispersion.

    Parameters
    ----------
    loss
        Name of the loss.
    half_deviance
        Half the deviance, weighted.
    saturated
        The saturated log-likelihood, weighted, without terms of the dispersion.
    weight
        Sum of the weights, which is the number of rows.
    dispersion
        The estimated dispersion (for gamma).
    """
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
    """Return the log-likelihood if weights are relative precisions; None for gamma. Collective.

    Row i has variance sigma^2 / c_i, with the most likely sigma (as R's logLik.lm).

    Parameters
    ----------
    objective
        The objective of all rows.
    half_deviance
        Half the deviance, weighted.
    count
        The number of rows with a weight.
    comm
        The communicator of these ranks.
    """
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
    """Return the deviance of the best model with an intercept alone. Collective.

    It is found by Newton's method within a bracket, from y, weights and offsets only. It is None if
    a number overflows.
    """
    rows, loss = objective.rows, objective.loss
    c = np.ascontiguousarray(rows.c)
    offset = np.zeros(rows.y.size) if rows.offset is None else rows.offset
    r, l, h = np.empty((1, offset.size)), np.empty(offset.size), np.empty((1, offset.size))
    assert loss.second is not None
    ends = np.array([np.max(-offset, initial=-np.inf), np.max(offset, initial=-np.inf)])
    comm.allreduce(ends, "max")
    middle = _link_of_mean(objective, comm)
    # At these intercepts the row with the largest, or smallest, offset has the mean response.
    low, high = middle - float(ends[1]), middle + float(ends[0])
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
                # The loss is flat here: the remaining gain is of the order of the step squared.
                return 2.0 * value
            b = b if low < b < high else 0.5 * (low + high)
    except NotFinite:
        return None
    return 2.0 * value


def _link_of_mean(objective: Objective, comm: Comm) -> float:
    """Return the margin of the mean response. Collective."""
    mean = float(total(objective.rows.c * objective.rows.y, comm)[0]) / objective.statistics.weight
    if objective.loss.name == "squared":
        return mean
    if objective.loss.name == "logistic":
        mean = mean / (1.0 - mean) if mean < 1.0 else HUGE
    return float(vector.logarithm(min(max(mean, 1.0 / HUGE), HUGE)))
