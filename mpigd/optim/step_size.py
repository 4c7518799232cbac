"""Bounds on the curvature of the objective, from which `--lr auto` derives the step size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpigd.data.batches import Batch
from mpigd.model.objective import Objective, Oracle
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import Reducer
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
# Steps of the power iteration, one pass over the data each.
ITERATIONS = 12
SAFETY = 1.1  # power iteration approaches the largest eigenvalue from below
# The golden ratio less one: its multiples modulo 1 make the fixed starting vector.
GOLDEN = 0.6180339887498949


def largest_eigenvalue(oracle: Oracle) -> float:
    """Estimate the largest eigenvalue of X'CX / sum c by power iteration. Collective.

    X is in the optimiser's coordinates, C the diagonal matrix of the row weights c. The iteration
    starts from a fixed vector, and the result is raised by the factor SAFETY.
    """
    v = 0.5 + np.arange(1, oracle.objective.size + 1) * GOLDEN % 1.0
    value = 0.0
    for _ in range(ITERATIONS):
        length = math.sqrt(vector.dot(v, v))
        if length == 0.0:
            return 0.0
        v /= length
        v, previous = oracle.squared_curvature(v), v
        value = float(vector.dot(previous, v))
    return SAFETY * value


def loss_curvature(objective: Objective, mean_response: float) -> float:
    """Return a bound on d2loss/dz2, the curvature of the loss in the linear predictor.

    For log links there is none, and the result is four times the mean curvature at the start, a
    guess that backtracking corrects.

    Parameters
    ----------
    objective : Objective
        Mean loss over all rows.
    mean_response : float
        Weighted mean of y.
    """
    bound = objective.loss.curvature
    if bound is not None:
        return bound(objective.parameter)
    return 4.0 * (mean_response if objective.loss.name == "poisson" else 1.0)


def heaviest_row(objective: Objective, batch: Batch, comm: Comm) -> float:
    """Return max over the batch's rows of n c_i |x_i|^2 / sum c. Collective.

    x_i is a row in the optimiser's coordinates, and c_i its weight.

    Parameters
    ----------
    objective : Objective
        Mean loss over all n rows.
    batch : Batch
        Rows to look at.
    comm : Comm
        Communicator of all ranks.
    """
    scaling, statistics = objective.scaling, objective.statistics
    X = objective.rows.X.rows(batch.rows)
    lengths, empty = np.zeros(X.n), np.zeros(X.n)
    weights = scaling.inverse**2
    X.squared_deviation(scaling.center).margins(weights, float(scaling.intercept), lengths)
    # The squares that the columns of the stored entries would add if these were not stored.
    X.ones().margins(weights * scaling.center**2, 0.0, empty)
    missing = max(0.0, vector.dot(weights, scaling.center**2))
    lengths += np.maximum(missing - empty, 0.0)
    heaviest = np.array([np.max(lengths * objective.rows.c[batch.rows], initial=0.0)])
    comm.allreduce(heaviest, "max")
    return float(heaviest[0]) * objective.n / statistics.weight if statistics.weight else 0.0


def full_curvature(objective: Objective, reducer: Reducer, bend: float, ridge: float) -> float:
    """Return a bound on the curvature of the whole objective. Collective.

    Parameters
    ----------
    objective : Objective
        Mean loss over all rows.
    reducer : Reducer
        Sums over rows and ranks.
    bend : float
        Bound on the curvature of the loss.
    ridge : float
        Bound on the curvature of the penalty.
    """
    everything = Batch.whole(objective.n)
    value = bend * largest_eigenvalue(objective.on(everything, reducer)) + ridge
    return value if value > 0.0 else 1.0


def batch_curvature(
    objective: Objective, reducer: Reducer, sample: Batch, size: int, bend: float, ridge: float
) -> float:
    """Return the expected smoothness of the mean loss over randomly drawn rows. Collective.

    Parameters
    ----------
    objective : Objective
        Mean loss over all rows.
    reducer : Reducer
        Sums over rows and ranks.
    sample : Batch
        Rows from which it is estimated.
    size : int
        Rows of a mini-batch.
    bend : float
        Bound on the curvature of the loss.
    ridge : float
        Bound on the curvature of the penalty.

    References
    ----------
    Gower et al., "SGD: general analysis and improved rates", ICML 2019.
    """
    n = objective.n
    smooth = bend * largest_eigenvalue(objective.on(sample, reducer))
    rough = bend * heaviest_row(objective, sample, reducer.comm)
    if n > 1:
        smooth = (
            (n * (size - 1) * smooth + (n - size) * rough) / (size * (n - 1))
            if size < n
            else smooth
        )
    return smooth + ridge if smooth + ridge > 0.0 else 1.0
