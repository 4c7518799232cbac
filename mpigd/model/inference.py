"""Standard errors and related statistics, from the information matrix at the optimum.

The matrix is summed exactly over all rows. Statistics exist for losses that are half deviances of
exponential families (McCullagh and Nelder, "Generalized Linear Models", 1989). The covariance of
the coefficients is dispersion * (X'WX + ridge)^-1, with W the expected second derivatives times the
weights.

With a ridge penalty this is the inverse of the penalised information, without a sandwich: the
covariance about the penalised optimum, conditional on the penalty. The intervals do not cover the
penalty's bias. Degrees of freedom are those of the fit, trace((X'WX + ridge)^-1 X'WX) (Hastie,
Tibshirani, Friedman, "The Elements of Statistical Learning", 7.6).

Weights that are whole numbers count as repeated rows (statsmodels' freq_weights): their sum is the
number of rows. Other weights are relative precisions (statsmodels' var_weights, and the weights of
R's lm and glm): the number of rows is the number of weights above 0. If a dispersion is estimated,
the unit of such weights makes no difference; if the dispersion is 1, it does, as in R.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.batches import Batch
from mpigd.model import likelihoods
from mpigd.model.aliasing import Independent, independent
from mpigd.model.hessian import Curvature
from mpigd.model.null_model import null_deviance
from mpigd.model.objective import Objective
from mpigd.model.penalties import L2, Penalty
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import Reducer, total
from mpigd_kernels import curvature, likelihood, linalg, vector

Array = np.ndarray[Any, Any]
Errors = list[float | None]
# With --statistics auto, statistics are computed up to this many columns and up to this n p^2,
# which is half a second for one core.
MOST_COLUMNS = 500
MOST_PRODUCTS = 2e9
MOST_PARAMETERS = 4000  # the most whose information matrix is factorised with --statistics yes
REDUCED_STEPS = 8  # the most steps of Newton's method over the columns that are kept
# In squared standard errors: the distance from the optimum at which Newton's method ends, and the
# distance from its first point above which curvatures are computed again.
NO_FURTHER, MOVED = 1e-16, 1e-8


@dataclass(frozen=True)
class Family:
    """A loss as a distribution.

    Parameters
    ----------
    information
        The kernel of expected second derivatives.
    dispersed
        Whether a dispersion is estimated, by Pearson's statistic.
    saturated
        Y (m,) -> the log-likelihood of a row whose mean is y, without the terms that depend on the
        dispersion; None if it is not needed.
    """

    information: Callable[..., None]
    dispersed: bool = False
    saturated: Callable[[Array, Array], None] | None = None


FAMILIES = {
    "squared": Family(curvature.squared, dispersed=True),
    "logistic": Family(curvature.logistic),
    "poisson": Family(curvature.poisson, saturated=likelihood.poisson),
    # The observed second derivative is y / mu; its expectation is 1.
    "gamma": Family(curvature.squared, dispersed=True, saturated=likelihood.gamma),
}


def why_never(config: Config) -> str | None:
    """Return why a run with these options cannot have statistics, or None if it can."""
    if config.loss not in FAMILIES:
        return (
            f"the {config.loss} loss has no standard errors: those that have are "
            f"{', '.join(FAMILIES)}"
        )
    if config.l1:
        return (
            "an l1 penalty has no standard errors: its optimum is not a smooth function of the data"
        )
    if config.mode != "full":
        return (
            f"standard errors belong to the optimum, and {config.mode} mode does not reach it: "
            "use --mode full"
        )
    return None


def why_not(config: Config, penalty: Penalty, n: int, p: int, reason: str) -> str | None:
    """Return why a run has no statistics, or None if it has.

    Parameters
    ----------
    config
        Options of the run.
    penalty
        Its penalty.
    n
        The number of rows over all ranks.
    p
        The number of parameters.
    reason
        Why the run ended (its stop reason).
    """
    if config.statistics == "no":
        return "the model was trained with --statistics no"
    if (never := why_never(config)) is not None:
        return never
    if not isinstance(penalty, L2):
        return "this penalty has no standard errors"
    if reason not in ("tolerance", "flat"):
        return f"standard errors belong to the optimum, and the run ended before it ({reason})"
    if p > MOST_PARAMETERS:
        return (
            f"the information matrix of {p:,} parameters is too large to factorise: "
            f"{MOST_PARAMETERS:,} are the most"
        )
    if config.statistics == "auto" and (p > MOST_COLUMNS or float(n) * p * p > MOST_PRODUCTS):
        return f"{n:,} rows of {p:,} parameters take a while: train with --statistics yes"
    return None


def infer(w: Array, objective: Objective, penalty: L2, reducer: Reducer) -> dict[str, Any]:
    """Return statistics at the optimum, as plain values. One read or a few. Collective.

    Parameters
    ----------
    w : (p,) float64
        The optimum in the optimiser's coordinates.
    objective
        The objective of all rows, without the penalty.
    penalty
        The ridge penalty.
    reducer
        The run's reducer.

    Returns
    -------
    statistics
        A dictionary; {"refused": sentence} if statistics do not exist. `standard_errors` (d,) and
        `intercept_error` belong to the original columns. They are None for a column that was left
        out: one without a deviation beside an intercept, or, without a penalty, one that depends on
        columns before it in the data (R's NA). If there are some of the latter, `coef` (d,) and
        `intercept` are those of the other columns alone, with the same predictions.
    """
    comm, weight, family = reducer.comm, objective.statistics.weight, FAMILIES[objective.loss.name]
    ridge = penalty.strength * weight * penalty.weights
    found = _factors(w, objective, family, ridge, reducer)
    if found is None:
        why = "columns depend on each other, and the ridge penalty is too small to tell them apart"
        return {"refused": why}
    reduced = not found.kept.all()
    if reduced:
        w, moved = _without_dropped(w, found, objective, family, reducer)
        if moved and (found := _factors(w, objective, family, ridge, reducer) or found):
            w = found.project(w)
    variances = _variances(found.U, np.eye(len(found.U)))
    degrees = len(found.U) - float(vector.dot(ridge[found.parameters], variances))
    half_deviance, pearson, saturated = _sums(w, objective, family, comm)
    repeated, count = likelihoods.weighting(objective, comm)
    rows = weight if repeated else float(count)
    if (few := _too_few(rows, weight, degrees, family, repeated)) is not None:
        return {"refused": few}
    dispersion = pearson / (rows - degrees) if family.dispersed else 1.0
    log_likelihood: float | None
    if repeated or not family.dispersed:
        log_likelihood = likelihoods.log_likelihood(
            objective.loss.name, half_deviance, saturated, weight, dispersion
        )
    else:
        log_likelihood = likelihoods.of_relative_weights(objective, half_deviance, count, comm)
    errors, intercept_error = _original(found.U, variances, found.parameters, objective, dispersion)
    return {
        "dispersion": dispersion,
        "degrees_of_freedom": degrees,
        "residual_degrees": rows - degrees,
        "weight": weight,
        "rows": count,
        "repeated": repeated,
        "deviance": 2.0 * half_deviance,
        "null_deviance": null_deviance(objective, comm),
        "pearson": pearson,
        "log_likelihood": log_likelihood,
        "aic": None if log_likelihood is None else 2.0 * (degrees - log_likelihood),
        "standard_errors": errors,
        "intercept_error": intercept_error,
        **(_reduced(w, found, errors, objective) if reduced else {}),
    }


def _too_few(
    rows: float, weight: float, degrees: float, family: Family, repeated: bool
) -> str | None:
    """Return why there are too few rows or too little weight for these parameters, or None."""
    if not rows > degrees:
        return (
            f"{rows:,.0f} rows are too few for {degrees:.6g} parameters: no degrees of freedom "
            "are left"
        )
    if repeated or family.dispersed or weight > degrees:
        return None
    return (
        f"the weights sum to {weight:.6g}, which would be the number of rows: standard errors of "
        "this loss depend on the unit of "
        f"the weights: divide them by their mean, {weight / rows:.6g} (coefficients stay the same)"
    )


def _factors(
    w: Array,
    objective: Objective,
    family: Family,
    ridge: Array,
    reducer: Reducer,
) -> Independent | None:
    """Return factors of the expected information at w (p,). Collective.

    It costs one read, or a few if columns depend on each other.
    """
    expected = copy.copy(objective)
    expected.loss = dataclasses.replace(objective.loss, second=family.information)
    z, rows = objective.margins(w), objective.rows
    batch = Batch.whole(objective.n)
    information = Curvature(expected, z, batch, reducer).matrices(1.0)[0]
    h = np.empty_like(z)
    family.information(z, rows.y, np.ascontiguousarray(rows.c), objective.parameter, h)
    return independent(information, ridge, h[0], objective, reducer.comm)


def _without_dropped(
    w: Array,
    found: Independent,
    objective: Objective,
    family: Family,
    reducer: Reducer,
) -> tuple[Array, bool]:
    """Return the optimum over the kept columns, and whether margins moved much towards it.

    If dropped columns are combinations of kept ones only up to rounding, the projection is not yet
    the optimum of the kept columns; the difference is of the size of this rounding. Collective.
    """
    w, weight, first = found.project(w), objective.statistics.weight, math.inf
    oracle = objective.on(Batch.whole(objective.n), reducer)
    for _ in range(REDUCED_STEPS):
        value, g = oracle.value_and_gradient(w)
        step = np.empty(len(found.U))
        slope = g[found.parameters] * weight
        linalg.solve(found.U, slope, step)
        unit = 2.0 * value if family.dispersed and value > 0.0 else 1.0
        length = vector.dot(slope, step) / unit  # squared distance in standard errors
        first = length if math.isinf(first) else first
        if not length > NO_FURTHER:
            break
        w[found.parameters] -= step
    return w, first > MOVED


def _reduced(w: Array, found: Independent, errors: Errors, objective: Objective) -> dict[str, Any]:
    """Return the coefficients without the columns left out, and the numbers of these columns."""
    coef, b = objective.scaling.coefficients(w, 1)
    pairs = zip(coef[0].tolist(), errors, strict=True)
    values = [None if error is None else value for value, error in pairs]
    number, d = objective.scaling.number, objective.scaling.center.size
    gone = found.order[~found.kept]
    gone = gone[gone < d]
    dropped = sorted(int(j) for j in (gone if number is None else number[gone]))
    return {"coef": values, "intercept": float(b[0]), "dropped": dropped}


def _variances(U: Array, directions: Array) -> Array:
    """Return v' (U'U)^-1 v for each row v of `directions` (m, p), as (m,)."""
    out, x = np.empty(directions.shape[0]), np.empty(U.shape[0])
    for i, v in enumerate(directions):
        linalg.solve(U, v, x)
        out[i] = vector.dot(v, x)
    return out


def _original(
    U: Array, variances: Array, used: Array, objective: Objective, dispersion: float
) -> tuple[list[float | None], float | None]:
    """Return standard errors for the original columns and the intercept.

    coef_j = u_j / s_j and b = u_p - sum_j u_j m_j / s_j for the parameters u.
    """
    scaling = objective.scaling
    d = scaling.center.size
    errors: list[float | None] = [None] * d
    number = np.arange(d) if scaling.number is None else scaling.number
    for place, j in enumerate(used):
        if j < d:
            errors[number[j]] = math.sqrt(dispersion * variances[place]) * float(scaling.inverse[j])
    if not scaling.intercept or d not in used:
        return errors, None
    center = scaling.center if scaling.shift is None else scaling.center + scaling.shift
    shift = np.append(-center * scaling.inverse, 1.0)[used]
    return errors, math.sqrt(dispersion * float(_variances(U, shift[np.newaxis])[0]))


def _sums(w: Array, objective: Objective, family: Family, comm: Comm) -> tuple[float, float, float]:
    """Return weighted sums over all rows. Collective.

    They are half the deviance, Pearson's statistic (dispersion 1), and the saturated
    log-likelihood.
    """
    rows, z = objective.rows, objective.margins(w)
    r, l, s = np.empty_like(z), np.empty(z.shape[1]), np.zeros(z.shape[1])
    c = np.ascontiguousarray(rows.c)
    objective.loss.kernel(z, rows.y, c, objective.parameter, r, l)
    if family.saturated is not None:
        family.saturated(rows.y, s)
    h = np.empty_like(z)
    family.information(z, rows.y, c, objective.parameter, h)
    squares = np.divide(r[0] * r[0], h[0], out=np.zeros_like(l), where=h[0] > 0.0)
    half_deviance, pearson, saturated = total(np.column_stack([l, squares, c * s]), comm)
    return float(half_deviance), float(pearson), float(saturated)
