"""Reference optima of the zoo: Newton's method in numpy, float64, independent of mpigd.

The objective is the one that README.md documents: the mean loss (half deviances) plus
l2/2 |u|^2, u the coefficients of columns divided by their standard deviation. The reference works
in an orthonormal basis of the centred and scaled columns, where Newton's method is as good as the
data allow, and certifies its result by the Newton decrement: half of its square estimates what is
left to gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

Array = np.ndarray[Any, Any]
RANK_RTOL = 1e-10  # singular values below this share of the largest are rounding of float64
ALIASED_RTOL = 1e-7  # R's tolerance: directions below it, rounding of float32 columns, are aliased
LEFT_RTOL = 1e-11  # stop when what is left is below this share of what there was to gain
MAX_STEPS = 200
RECEDING = 0.05  # Newton steps of the linear predictor that stay above it have no optimum to go to


class Design:
    """The columns of one data set in an orthonormal basis.

    X: (n, d) numbers as `mpigd import` wrote them. basis: (n, r + 1), a column of ones and r
    orthogonal columns of mean square 1. stretch: (r,), the norm of the standardised coefficients
    that a unit step along a basis column takes. near: how many directions lie between
    RANK_RTOL and ALIASED_RTOL, where the rank is a matter of definition.
    """

    def __init__(self, X: Array) -> None:
        n, self.features = X.shape
        self.X = X
        self.mean = X.mean(axis=0) if n else np.zeros(self.features)
        centred = X - self.mean
        rest = centred.mean(axis=0)
        centred -= rest
        self.mean = self.mean + rest
        self.constant = X.min(axis=0) == X.max(axis=0)
        deviation = np.sqrt(np.mean(centred**2, axis=0))
        self.deviation = np.where(self.constant, 0.0, deviation)
        live = self.deviation > 0.0
        standard = centred[:, live] / self.deviation[live]
        left, self._singular, _ = np.linalg.svd(standard, full_matrices=False)
        self._left = left * np.sqrt(n)
        top = self._singular[0] if self._singular.size else 0.0
        shares = self._singular / (top or 1.0)
        self._ranks = [int(np.sum(shares > rtol)) for rtol in (RANK_RTOL, ALIASED_RTOL)]
        self.near = self._ranks[0] - self._ranks[1]
        self.rank = self._ranks[0]

    def basis(self, aliased: bool) -> tuple[Array, Array]:
        """The basis (n, r + 1) and the stretch (r,); aliased: without nearly aliased directions."""
        r = self._ranks[1 if aliased else 0]
        ones = np.ones((self.X.shape[0], 1))
        stretch = np.sqrt(self.X.shape[0]) / self._singular[:r]
        return np.hstack([ones, self._left[:, :r]]), stretch

    def predictor(self, coef: Array, intercept: Array) -> Array:
        """The linear predictor (n, k) of stored coefficients (k, d) and intercepts (k,)."""
        far = np.longdouble(intercept) + (np.longdouble(coef) @ np.longdouble(self.mean))
        return (self.X - self.mean) @ coef.T + np.float64(far)


@dataclass(frozen=True)
class PointwiseLoss:
    """A loss of the linear predictor: value (z, y) -> (n,), derivatives (z, y) -> l', l''."""

    value: Callable[[Array, Array], Array]
    derivatives: Callable[[Array, Array], tuple[Array, Array]]
    null: Callable[[Array], float]


def _logistic_value(z: Array, y: Array) -> Array:
    return np.logaddexp(0.0, np.where(y > 0.5, -z, z))


def _logistic_derivatives(z: Array, y: Array) -> tuple[Array, Array]:
    e = np.exp(-np.abs(z))
    wrong = np.where((z < 0.0) == (y > 0.5), 1.0, e) / (1.0 + e)  # probability of the other class
    return np.where(y > 0.5, -wrong, wrong), e / (1.0 + e) ** 2


def _poisson_value(z: Array, y: Array) -> Array:
    far = z - np.log(np.where(y > 0.0, y, 1.0))
    return np.where(y > 0.0, y * (np.expm1(far) - far), np.exp(z))


def _poisson_derivatives(z: Array, y: Array) -> tuple[Array, Array]:
    mu = np.exp(z)
    return mu - y, mu


def _gamma_value(z: Array, y: Array) -> Array:
    far = np.log(y) - z
    return np.expm1(far) - far


def _gamma_derivatives(z: Array, y: Array) -> tuple[Array, Array]:
    far = np.log(y) - z
    return -np.expm1(far), np.exp(far)


def _squared_derivatives(z: Array, y: Array) -> tuple[Array, Array]:
    return z - y, np.ones_like(z)


def _log_mean(y: Array) -> float:
    return float(np.log(np.mean(y)))


LOSSES = {
    "squared": PointwiseLoss(
        lambda z, y: 0.5 * (z - y) ** 2,
        _squared_derivatives,
        lambda y: float(np.mean(y)),
    ),
    "logistic": PointwiseLoss(
        _logistic_value,
        _logistic_derivatives,
        lambda y: float(np.log(np.mean(y > 0.5)) - np.log(np.mean(y < 0.5))),
    ),
    "poisson": PointwiseLoss(_poisson_value, _poisson_derivatives, _log_mean),
    "gamma": PointwiseLoss(_gamma_value, _gamma_derivatives, _log_mean),
}


def softmax_value(z: Array, y: Array) -> Array:
    """log(sum_q exp(z_q)) - z_y (n,) for z (n, k) and codes y (n,)."""
    far = z - np.take_along_axis(z, y.astype(np.int64)[:, None], axis=1)
    top = far.max(axis=1)
    result: Array = top + np.log(np.sum(np.exp(far - top[:, None]), axis=1))
    return result


def mean_loss(loss: str, z: Array, y: Array) -> float:
    """The mean loss of the linear predictor z (n, k)."""
    with np.errstate(all="ignore"):
        if loss == "softmax":
            return float(np.mean(softmax_value(z, y)))
        return float(np.mean(LOSSES[loss].value(z[:, 0], y)))


def objective(
    design: Design,
    y: Array,
    loss: str,
    l2: float,
    coef: Array,
    intercept: Array,
) -> float:
    """The documented objective at stored coefficients (k, d) and intercepts (k,)."""
    with np.errstate(all="ignore"):
        z = design.predictor(coef, intercept)
        penalty = 0.5 * l2 * float(np.sum((coef * design.deviation) ** 2))
    value = mean_loss(loss, z, y) + penalty
    return value if np.isfinite(value) else float("inf")


@dataclass(frozen=True)
class Optimum:
    """A reference optimum. value, null: the objective there and of the intercept alone.

    left: half the squared Newton decrement over null - value: the share that may be missing.
    exists: False if Newton's steps do not shrink although the objective has stopped falling: the
    data are separated (or a count has levels without events), and `value` is the infimum.
    """

    value: float
    null: float
    left: float
    steps: int
    exists: bool

    @property
    def gain(self) -> float:
        """The gain over the intercept alone; at least the objective's rounding."""
        return max(self.null - self.value, 1e-10 * abs(self.null), 1e-300)

    def excess(self, value: float) -> float:
        """Return the part of the gain that an objective of `value` misses."""
        return (value - self.value) / self.gain


def optimum(
    design: Design,
    y: Array,
    loss: str,
    l2: float,
    k: int = 1,
    aliased: bool = False,
) -> Optimum:
    """The optimum of the documented objective; k: classes of softmax, whose y are codes 0..k-1."""
    A, stretch = design.basis(aliased)
    ridge = np.concatenate([[0.0], l2 * stretch**2])
    with np.errstate(all="ignore"):
        if loss == "softmax":
            return _newton(_Softmax(A, y, ridge, k))
        if loss == "squared":
            return _squared(A, y, ridge)
        return _newton(_Single(A, y, ridge, LOSSES[loss]))


def _squared(A: Array, y: Array, ridge: Array) -> Optimum:
    """Ridge regression in closed form: the basis is orthogonal with mean squares of 1."""
    n = y.size
    w = (A.T @ y) / n / (1.0 + ridge)
    w += (A.T @ (y - A @ w) / n - ridge * w) / (1.0 + ridge)  # refined once
    residual = y - A @ w
    value = 0.5 * float(np.mean(residual**2)) + 0.5 * float(np.sum(ridge * w**2))
    slope = A.T @ residual / n - ridge * w
    null = 0.5 * float(np.mean((y - np.mean(y)) ** 2))
    left = 0.5 * float(np.sum(slope**2 / (1.0 + ridge)))
    return Optimum(value, null, left / max(null - value, 1e-10 * null, 1e-300), 1, True)


class _Single:
    """A loss of one linear predictor in the basis A (n, p), with ridge weights (p,)."""

    def __init__(self, A: Array, y: Array, ridge: Array, loss: PointwiseLoss) -> None:
        self.A, self.y, self.ridge, self.loss = A, y, ridge, loss

    def start(self) -> Array:
        w = np.zeros(self.A.shape[1])
        w[0] = self.loss.null(self.y)
        return w

    def predictor(self, w: Array) -> Array:
        return self.A @ w

    def value(self, w: Array, z: Array) -> float:
        return float(np.mean(self.loss.value(z, self.y)) + 0.5 * np.sum(self.ridge * w**2))

    def derivatives(self, w: Array, z: Array) -> tuple[Array, Array]:
        """The gradient and the Hessian at w."""
        n = self.y.size
        r, h = self.loss.derivatives(z, self.y)
        g = self.A.T @ r / n + self.ridge * w
        H = (self.A * (h / n)[:, None]).T @ self.A
        H[np.diag_indices_from(H)] += self.ridge
        return g, H


class _Softmax:
    """The softmax loss of k classes; parameters are orthonormal contrasts (k - 1, p), one vector.

    Adding the same vector to all outputs changes no probability, and the sum over outputs is zero
    at a ridge optimum: contrasts leave that direction out and keep the penalty as it is.
    """

    def __init__(self, A: Array, y: Array, ridge: Array, k: int) -> None:
        self.A, self.y, self.ridge, self.k = A, y.astype(np.int64), ridge, k
        self.rows = np.arange(y.size)
        ones = np.ones((k, 1))
        self.contrasts = np.linalg.qr(np.hstack([ones, np.eye(k)[:, :-1]]))[0][:, 1:]

    def start(self) -> Array:
        w = np.zeros((self.k - 1, self.A.shape[1]))
        w[:, 0] = np.log(np.bincount(self.y, minlength=self.k) / self.y.size) @ self.contrasts
        return w.ravel()

    def predictor(self, w: Array) -> Array:
        return self.A @ w.reshape(self.k - 1, -1).T @ self.contrasts.T

    def value(self, w: Array, z: Array) -> float:
        penalty = 0.5 * np.sum(self.ridge * w.reshape(self.k - 1, -1) ** 2)
        return float(np.mean(softmax_value(z, self.y)) + penalty)

    def derivatives(self, w: Array, z: Array) -> tuple[Array, Array]:
        """The gradient and the Hessian at w."""
        n, size = self.A.shape
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        r = p.copy()
        r[self.rows, self.y] = 0.0
        r[self.rows, self.y] = -r.sum(axis=1)  # p - 1 as minus the sum of the others
        g = (r @ self.contrasts).T @ self.A / n + self.ridge * w.reshape(self.k - 1, -1)
        # E[(C - mean)(C - mean)'] under p: no cancellation where one probability rounds to 1.
        far = self.contrasts[None] - (p @ self.contrasts)[:, None, :]
        H = np.zeros((self.k - 1, size, self.k - 1, size))
        for i in range(self.k - 1):
            for j in range(i + 1):
                h = np.sum(p * far[:, :, i] * far[:, :, j], axis=1)
                H[i, :, j, :] = (self.A * (h / n)[:, None]).T @ self.A
                H[j, :, i, :] = H[i, :, j, :]
            H[i, :, i, :][np.diag_indices(size)] += self.ridge
        return g.ravel(), H.reshape(w.size, w.size)


def _solve(H: Array, g: Array, damping: float) -> Array:
    """(H + damping I)^-1 g, by Cholesky's method if that is accurate."""
    damped = H.copy()
    damped[np.diag_indices_from(damped)] += damping
    scale = 1.0 / np.sqrt(np.diag(damped))
    damped *= scale
    damped *= scale[:, None]
    try:
        return np.asarray(linalg.cho_solve(linalg.cho_factor(damped), scale * g) * scale)
    except linalg.LinAlgError:
        values, vectors = np.linalg.eigh(damped)
        inverse = np.where(values > 1e-15 * values[-1], 1.0 / values, 0.0)
        return np.asarray(scale * (vectors @ (inverse * (vectors.T @ (scale * g)))))


def _newton(problem: _Single | _Softmax) -> Optimum:
    """Newton's method with Levenberg's damping, from the optimum of the intercept alone.

    The basis is orthonormal, so that a multiple of the identity damps the linear predictor. On a
    separable way the curvature falls with the remaining gain, and the damping has to follow.
    """
    w = problem.start()
    z = problem.predictor(w)
    value = null = problem.value(w, z)
    damping, least = 1e-2 * null, 1e-15 * null
    receding = steps = 0
    left = moved = np.inf
    while steps < MAX_STEPS:
        steps += 1
        g, H = problem.derivatives(w, z)
        left = np.inf
        while True:
            step = -_solve(H, g, damping)
            slope, bend = float(g @ step), float(step @ (H @ step))
            along = problem.predictor(step)
            new = problem.value(w + step, z + along)
            if np.isinf(left):  # that of the least damped step is the certificate
                left, moved = -slope / 2, float(np.max(np.abs(along)))
            settled = left <= LEFT_RTOL * (null - value) and new <= value + 1e-14 * abs(value)
            if new <= value + 1e-3 * (slope + 0.5 * bend) or settled or damping > 1e12 * null:
                break
            damping *= 10.0
        if not new <= value + 1e-14 * abs(value):
            break
        w = w + step
        z, value = problem.predictor(w), min(value, new)
        damping = max(damping / 10.0, least)
        done = left <= LEFT_RTOL * max(null - value, 1e-10 * abs(null))
        # A few steps more tell an optimum, where steps vanish, from a way to infinity.
        receding += done
        if done and (moved < RECEDING or receding > 4):
            break
    gain = max(null - value, 1e-10 * abs(null), 1e-300)
    return Optimum(value, null, left / gain, steps, moved < RECEDING)
