"""Likelihoods of a trained model, and the meaning of weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpigd.model.objective import Objective
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import total
from mpigd_kernels import likelihood

Array = np.ndarray[Any, Any]
TWO_PI = 6.283185307179586


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
