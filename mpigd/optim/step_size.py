"""How curved the objective is: the step sizes of `--lr auto`."""

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
ITERATIONS = 12
SAFETY = 1.1  # power iteration approaches the largest eigenvalue from below
GOLDEN = 0.6180339887498949


def largest_eigenvalue(oracle: Oracle) -> float:
    """Of X'CX / sum c in the optimiser's coordinates, by power iteration from a fixed vector. Collective."""
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
    """Bound on d2loss/dz2, or for log links four times its mean at the start, a guess to be corrected."""
    bound = objective.loss.curvature
    if bound is not None:
        return bound(objective.parameter)
    return 4.0 * (mean_response if objective.loss.name == "poisson" else 1.0)


def heaviest_row(objective: Objective, batch: Batch, comm: Comm) -> float:
    """max over the batch's rows of n c_i |x_i|^2 / sum c, in the optimiser's coordinates. Collective."""
    scaling, statistics = objective.scaling, objective.statistics
    X = objective.rows.X.rows(batch.rows)
    lengths, empty = np.zeros(X.n), np.zeros(X.n)
    weights = scaling.inverse**2
    X.squared_deviation(scaling.center).margins(weights, float(scaling.intercept), lengths)
    X.ones().margins(
        weights * scaling.center**2, 0.0, empty
    )  # what the stored entries' columns have if not stored
    missing = max(0.0, vector.dot(weights, scaling.center**2))
    lengths += np.maximum(missing - empty, 0.0)
    heaviest = np.array([np.max(lengths * objective.rows.c[batch.rows], initial=0.0)])
    comm.allreduce(heaviest, "max")
    return float(heaviest[0]) * objective.n / statistics.weight if statistics.weight else 0.0


def full_curvature(objective: Objective, reducer: Reducer, bend: float, ridge: float) -> float:
    """Bound on the curvature of the whole objective: `bend` bounds the loss's, `ridge` the penalty's. Collective."""
    everything = Batch(slice(None), objective.n, 0, 0, True)
    value = bend * largest_eigenvalue(objective.on(everything, reducer)) + ridge
    return value if value > 0.0 else 1.0


def batch_curvature(
    objective: Objective, reducer: Reducer, sample: Batch, size: int, bend: float, ridge: float
) -> float:
    """Expected smoothness of the mean over `size` drawn rows, from a sample (Gower et al., ICML 2019). Collective."""
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
