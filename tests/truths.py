"""Data sets and the independent truths that tests of training compare with.

The truth of an objective is `objective`: plain numpy on whole arrays, with standardisation done the
naive way. Its optimum is `optimum`, by scipy. Neither shares a line with mpigd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, xlogy

from mpigd.config.schema import Config

Array = np.ndarray[Any, Any]
TWO_CLASSES = ("logistic", "hinge", "squared_hinge")
ALL_LOSSES = (*TWO_CLASSES, "softmax", "squared", "huber", "quantile", "poisson", "gamma")
SMOOTH = [loss for loss in ALL_LOSSES if loss not in ("hinge", "quantile")]


@dataclass(frozen=True)
class Table:
    """A whole data set: X (n, d), y, weights c and offset (n,) or None."""

    X: Array
    y: Array
    c: Array | None = None
    offset: Array | None = None

    def take(self, rows: Array | slice) -> Table:
        parts = (
            None if part is None else part[rows] for part in (self.X, self.y, self.c, self.offset)
        )
        return Table(*parts)  # type: ignore[arg-type]


def generate(
    loss: str, n: int = 200, d: int = 4, seed: int = 0, weights: bool = False, holes: float = 0.4
) -> Table:
    """Generate rows that a model with this loss could have produced.

    A share `holes` of their entries is zero.
    """
    rng = np.random.default_rng([seed, n, d, ALL_LOSSES.index(loss)])
    X = np.round(rng.normal(size=(n, d)) * 3 + 1, 3) * (rng.random((n, d)) > holes)
    z = X @ rng.normal(size=d) * 0.3 + 0.2
    noise = rng.normal(size=n)
    y = {
        "softmax": lambda: np.digitize(z + noise, [-0.7, 0.8]).astype(float),
        "poisson": lambda: rng.poisson(np.exp(np.clip(0.5 * z, -3, 2))).astype(float),
        "gamma": lambda: rng.gamma(2.0, np.exp(np.clip(0.5 * z, -3, 2)) / 2) + 1e-3,
    }.get(loss, lambda: (z + noise > 0).astype(float) if loss in TWO_CLASSES else z + noise)()
    return Table(X, y, np.round(rng.exponential(size=n), 3) + 0.01 if weights else None)


def pointwise(loss: str, z: Array, y: Array, config: Config) -> tuple[Array, Array]:
    """Losses (n,) and their derivatives by the margins z (n, k)."""
    t, s = z[:, 0] if z.ndim == 2 else z, 2 * y - 1
    if loss == "softmax":
        own = np.eye(z.shape[1])[y.astype(int)]
        norm = logsumexp(z, axis=1, keepdims=True)
        return norm[:, 0] - (own * z).sum(axis=1), np.exp(z - norm) - own
    with np.errstate(over="ignore"):
        value, slope = {
            "squared": lambda: (0.5 * (t - y) ** 2, t - y),
            "logistic": lambda: (np.logaddexp(0, t) - y * t, expit(t) - y),
            "hinge": lambda: (np.maximum(0, 1 - s * t), np.where(s * t < 1, -s, 0.0)),
            "squared_hinge": lambda: (
                np.maximum(0, 1 - s * t) ** 2,
                -2 * s * np.maximum(0, 1 - s * t),
            ),
            "huber": lambda: (
                np.where(
                    abs(t - y) <= config.delta,
                    0.5 * (t - y) ** 2,
                    config.delta * (abs(t - y) - 0.5 * config.delta),
                ),
                np.clip(t - y, -config.delta, config.delta),
            ),
            "quantile": lambda: (
                np.maximum(config.quantile * (y - t), (config.quantile - 1) * (y - t)),
                np.where(y > t, -config.quantile, 1 - config.quantile),
            ),
            "poisson": lambda: (np.exp(t) - y + xlogy(y, y) - y * t, np.exp(t) - y),
            "gamma": lambda: (y * np.exp(-t) - 1 - np.log(y) + t, 1 - y * np.exp(-t)),
        }[loss]()
    return value, slope[:, None]


def objective(
    table: Table, config: Config, coef: Array, intercept: Array
) -> tuple[float, Array, Array]:
    """F, dF/dcoef (k, d) and dF/dintercept (k,) for coefficients of the original columns.

    Labels of y are 0..k-1.
    """
    c = np.ones(len(table.y)) if table.c is None else table.c
    z = table.X @ coef.T + intercept + (0 if table.offset is None else table.offset[:, None])
    value, slope = pointwise(config.loss, z, table.y, config)
    share = (c / c.sum())[:, None]
    scale = (
        np.sqrt(np.average((table.X - np.average(table.X, 0, c)) ** 2, 0, c))
        if config.standardize
        else 1.0
    )
    penalty = 0.5 * config.l2 * np.sum((coef * scale) ** 2)
    gradient = (share * slope).T @ table.X + config.l2 * coef * np.square(scale)
    return float(share[:, 0] @ value + penalty), gradient, (share * slope).sum(axis=0)


def optimum(table: Table, config: Config) -> tuple[float, Array, Array]:
    """The smallest F of a smooth loss, and where: L-BFGS on standardised columns."""
    k = len(np.unique(table.y)) if config.loss == "softmax" else 1
    center = np.average(table.X, 0, table.c) if config.intercept else np.zeros(table.X.shape[1])
    scale = np.sqrt(np.average((table.X - center) ** 2, 0, table.c))
    inverse = np.divide(
        1, scale, out=np.zeros_like(scale), where=scale > 1e-9 * np.abs(table.X).max(axis=0)
    )

    def raw(u: Array) -> tuple[Array, Array]:
        W = u.reshape(k, -1)
        coef = W[:, :-1] * inverse
        return coef, (W[:, -1] if config.intercept else np.zeros(k)) - coef @ center

    def both(u: Array) -> tuple[float, Array]:
        value, g, g0 = objective(table, config, *raw(u))
        return value, np.column_stack(
            [(g - np.outer(g0, center)) * inverse, g0 * config.intercept]
        ).ravel()

    start = np.zeros(k * (table.X.shape[1] + 1))
    limits = dict(maxiter=20000, maxfun=40000, ftol=0, gtol=1e-12, maxcor=50)
    for _ in range(3):  # L-BFGS gives up early; a fresh start from where it stood goes on
        start = minimize(both, start, jac=True, method="L-BFGS-B", options=limits).x
    return both(start)[0], *raw(start)
