"""Decide before the first step whether sums need one grid or two.

The decision compares a bound on what rounding to one grid costs a gradient with what is asked for.
There are two demands, and a second grid is used for data that miss one of them. First, the norm of
the error in the optimiser's coordinates stays below a tenth of what the tolerance asks for. Second,
whatever the tolerance, no column's sum is off by more than 1e-9 of the sum of its terms' sizes:
outliers make a grid coarse, and if weights span many decades, all terms of light rows vanish in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.model.losses import Loss
from mpigd.model.objective import Objective
from mpigd.model.scaling import absolute_sums
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import Reducer, grid, power_above
from mpigd.reduction.exact import ExactReducer, rounding
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
FINEST = 1e-9  # the accuracy of gradients if no tolerance is given
# The largest error bound over the sum of sizes. Errors are at most a tenth of their bound, even
# if terms vanish.
COARSEST = 1e-8


def needs_fine(
    objective: Objective, y: Array, mean: float, spread: float, tol: float, comm: Comm
) -> bool:
    """Return whether sums need two grids. Collective.

    Parameters
    ----------
    objective
        The objective of all rows.
    y : (m,) float64
        Targets or class codes of this rank's rows.
    mean, spread
        Mean and standard deviation of y over all rows.
    tol
        The tolerance of the run, or 0.
    comm
        The communicator of these ranks.
    """
    loss, heaviest = objective.loss, objective.statistics.heaviest
    known = None if loss.residual is None else loss.residual(objective.parameter)
    distance = np.array([np.max(np.abs(y - mean), initial=0.0) if known is None else known])
    comm.allreduce(distance, "max")
    farthest = float(distance[0])
    columns = objective.statistics.bounds
    half_unit = rounding(
        grid(columns.largest * float(power_above(farthest * heaviest)), columns.terms), 1
    )
    if _norm(objective, half_unit) > 0.1 * (tol or FINEST) * _unit(loss, spread):
        return True
    # Residuals of such a loss are about as large as y's deviations from its mean.
    follows_y = loss.smooth and not loss.classifies
    typical = min(farthest, spread) if follows_y else farthest
    return _too_coarse(objective, half_unit / typical, comm) if typical > 0.0 else False


def _unit(loss: Loss, spread: float) -> float:
    """Return the usual size of a per-sample gradient, for targets or codes of this deviation."""
    return (min(1.0, spread) if loss.classifies else spread) or 1.0


def _norm(objective: Objective, half_unit: Array) -> float:
    """Return a bound on the norm of the grid's error of a full gradient.

    The norm is that of the optimiser's coordinates.
    """
    weight = objective.statistics.weight or 1.0
    scaled = half_unit * objective.n * objective.scaling.inverse / weight
    return float(np.sqrt(objective.k * vector.dot(scaled, scaled)))


def gradient_error(objective: Objective, reducer: Reducer) -> float | None:
    """Return a bound on the norm of the grids' error of a gradient.

    Parameters
    ----------
    objective
        The objective of all rows.
    reducer
        The reducer that has just summed this gradient.

    Returns
    -------
    error : float or None
        In the optimiser's coordinates; None if the reducer's sums have no grid.
    """
    if not isinstance(reducer, ExactReducer):
        return None
    scaling, weight = objective.scaling, objective.statistics.weight or 1.0
    lost = reducer.residual_error()
    columns = (reducer.error_bound() + np.abs(scaling.center) * lost) * scaling.inverse
    errors = np.append(columns, [lost] * scaling.intercept) / weight
    return float(np.sqrt(objective.k * vector.dot(errors, errors)))


def _too_coarse(objective: Objective, half_unit: Array, comm: Comm) -> bool:
    """Whether half a unit a term exceeds COARSEST of some column's sum of c |x|. Collective.

    That sum costs a read, so a bound is tested first: mean |x| is at least |mean x|, and at least
    mean x**2 over the largest |x|.
    """
    of, rows = objective.statistics, objective.rows
    lost = half_unit * of.count
    share = np.divide(of.deviation, of.largest, out=np.zeros_like(of.mean), where=of.largest > 0.0)
    least = np.maximum(np.abs(of.mean), share * of.deviation) * of.weight
    doubtful = lost > COARSEST * least
    if not np.any(doubtful & (of.largest > 0.0)):
        return False
    sizes = absolute_sums(rows.X, rows.c, objective.n, of, comm)
    return bool(np.any((lost > COARSEST * sizes) & (sizes > 0.0)))
