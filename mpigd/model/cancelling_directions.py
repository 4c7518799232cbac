"""Second derivatives along directions in which columns nearly cancel.

A Hessian's elements, and its products with a vector, are summed on grids that fit the columns'
reach. If the linear predictors of a direction are far smaller than its coefficients, such sums keep
no digits of them. Here the linear predictors are computed first, row by row, and then summed on a
grid of their own size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.model.hessian import Curvature
from mpigd.model.scaling import blocks
from mpigd.reduction.base import power_above, total
from mpigd.reduction.exact import ExactReducer
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
EPSILON = 2.0**-53  # unit roundoff of float64


def predictors(curvature: Curvature, d: Array) -> Array:
    """Return linear predictors (k, n) of this rank's rows for d (k * p,), without offsets.

    It costs one read.
    """
    objective = curvature.objective
    coef, b = objective.scaling.to_raw(d, objective.k)
    z = np.empty((objective.k, objective.rows.X.n))
    for rows in blocks(objective.rows.X):
        part = objective.rows.X.rows(rows)
        for q in range(objective.k):
            own = np.empty(part.n)
            part.margins(coef[q], b[q], own)
            z[q, rows] = own
    return z


def curvatures_along(curvature: Curvature, D: Array, factor: float) -> tuple[Array, Array]:
    """Return d'Hd for several directions, and how much of it may be rounding. One read. Collective.

    Parameters
    ----------
    curvature
        The Hessian H at a point.
    D : (m, k * p) float64
        The directions d.
    factor
        Multiplies the sums over rows.

    Returns
    -------
    values : (m,) float64
        D'Hd.
    rounding : (m,) float64
        The part of it that may be rounding.
    """
    objective, h = curvature.objective, curvature.h
    k, scaling, of = objective.k, objective.scaling, objective.statistics
    c = np.ascontiguousarray(objective.rows.c)
    squares = np.empty((c.size, len(D)))
    for i, d in enumerate(D):
        z = predictors(curvature, d)
        squares[:, i] = _products(objective.loss.kind, h, c, z, z)
    objective.counter.reads += objective.width * objective.share
    sizes = np.append(
        (of.deviation**2 + of.mean**2) * scaling.inverse**2, [1.0] * scaling.intercept
    )
    sizes = np.tile(sizes * float(total(h[0] if k == 1 else c, curvature.comm)[0]), k)
    rounding = np.array([vector.dot(d * d, sizes) for d in D]) * (
        4.0 * scaling.p * EPSILON * EPSILON
    )
    return total(squares, curvature.comm) * factor, rounding * factor


def product_along(curvature: Curvature, d: Array, factor: float) -> Array:
    """Return the Hessian times a direction, accurate to 2^-43 of its largest linear predictor.

    It costs one read. Collective.

    Parameters
    ----------
    curvature
        The Hessian at a point.
    d : (k * p,) float64
        The direction.
    factor
        Multiplies the sums over rows.
    """
    objective, comm = curvature.objective, curvature.comm
    X, k, c = objective.rows.X, objective.k, np.ascontiguousarray(objective.rows.c)
    z = predictors(curvature, d)
    r = _residuals(objective.loss.kind, curvature.h, c, z)
    top = np.array([np.max(np.abs(r), initial=0.0)])
    comm.allreduce(top, "max")
    if not top[0] > 0.0:
        return np.zeros(d.size)
    bound = float(power_above(top[0]))
    nothing = np.zeros(X.n)
    reducer = ExactReducer(comm, objective.statistics.bounds, k, objective.n, 1.0, objective.fine)

    def visit(share: list[slice], into: Any) -> None:
        for rows in share:
            X.rows(rows).accumulate(r[:, rows] / bound, nothing[rows].copy(), into)

    objective.counter.reads += objective.width * objective.share
    return reducer.sweep_for(
        lambda T, S: objective.scaling.gradient(T, S, factor * bound)[1],
        [blocks(X)],
        visit,
        objective.n,
    )


def _residuals(kind: str, h: Array, c: Array, z: Array) -> Array:
    """Return the derivative (k, n) of each row's gradient along z (k, n), its linear predictors."""
    if kind != "multiclass":
        return np.asarray(h * z)
    mean = np.zeros(c.size)
    for p, own in zip(h, z, strict=True):  # not numpy's sum: outputs are added in a fixed order
        mean += p * own
    return np.asarray(c * h * (z - mean))


def _products(kind: str, h: Array, c: Array, z: Array, t: Array) -> Array:
    """Return the second derivative (n,) of each row's loss along z and t (k, n)."""
    r, found = _residuals(kind, h, c, z), np.zeros(c.size)
    if kind == "multiclass":  # only differences between outputs matter; the mean would cost digits
        mean = np.zeros(c.size)
        for p, own in zip(h, t, strict=True):
            mean += p * own
        t = t - mean
    for change, own in zip(r, t, strict=True):
        found += change * own
    return found
