"""The table of losses. A loss is a pointwise kernel of the margin; it never sees X.

To add a loss: a kernel in mpigd_kernels/pointwise.py, a type in residuals.py, a row in `LOSSES`
(CONTRIBUTING.md, "How to add").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd_kernels import curvature, pointwise, residuals

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Loss:
    """One loss: its kernels, and what the rest of the program must know of it.

    Parameters
    ----------
    name
        The name that `Config.loss` has.
    kernel
        (z (k, m), y (m,), c (m,), a, r (k, m), l (m,)) fills the per-sample gradients r and losses
        l.
    kind
        What the loss predicts: "regression", "binary" (a probability), "margin" (two classes, no
        probability), "multiclass".
    residual, curvature
        Upper bounds on |dloss/dz| and d2loss/dz2 as functions of the parameter a; None if there is
        none.
    smooth
        Whether the derivative is continuous.
    accepts, domain
        A test (m,) -> (m,) bool of the targets that the loss allows (None: all), and its
        description in words.
    mean
        (z (k, m), out (k, m)) fills `out` with mean responses or probabilities; None if the loss
        has neither.
    parameter
        Reads the loss's parameter a from the configuration.
    second
        The curvature kernel (z, y, c, a, h (k, m)), which fills h with second derivatives
        (mpigd_kernels/curvature.py).
    smoothed
        For a loss with kinks, the loss whose kinks are rounded off (smoothing.py); the parameter of
        that one is a pair.
    """

    name: str
    kernel: Callable[..., None]
    kind: str
    residual: Callable[[Any], float] | None
    curvature: Callable[[Any], float] | None
    smooth: bool = True
    accepts: Callable[[Array], Array] | None = None
    domain: str = "any number"
    mean: Callable[[Array, Array], None] | None = None
    parameter: Callable[[Config], float] = lambda config: 0.0
    second: Callable[..., None] | None = None
    smoothed: Loss | None = None

    def with_parameter(self, a: Any) -> Any:
        """Return the type that stands for this loss in a sweep, made with the parameter a."""
        (kind,) = (kind for kind, kernel in residuals.KERNELS.items() if kernel is self.kernel)
        return kind(a if isinstance(a, tuple) else float(a))

    @property
    def classifies(self) -> bool:
        return self.kind != "regression"


def _one(bound: float) -> Callable[[Any], float]:
    return lambda a: bound


def _flat(kernel: Callable[[Array, Array], None]) -> Callable[[Array, Array], None]:
    return lambda z, out: kernel(z[0], out[0])


# Losses that only smoothing.py uses. Their parameter is (quantile, width); the hinge's quantile
# is 1.
SMOOTHED_HINGE = Loss(
    "smoothed hinge",
    pointwise.smoothed_hinge,
    "margin",
    lambda a: 1.0,
    lambda a: 1.0 / a[1],
    second=curvature.smoothed_hinge,
)
SMOOTHED_QUANTILE = Loss(
    "smoothed quantile",
    pointwise.smoothed_quantile,
    "regression",
    lambda a: max(a[0], 1 - a[0]),
    lambda a: 1.0 / a[1],
    second=curvature.smoothed_quantile,
)
LOSSES = {
    loss.name: loss
    for loss in (
        Loss("squared", pointwise.squared, "regression", None, _one(1.0), second=curvature.squared),
        Loss(
            "logistic",
            pointwise.logistic,
            "binary",
            _one(1.0),
            _one(0.25),
            mean=_flat(pointwise.logistic_mean),
            second=curvature.logistic,
        ),
        Loss(
            "softmax",
            pointwise.softmax,
            "multiclass",
            _one(1.0),
            _one(0.5),
            mean=pointwise.softmax_mean,
            second=curvature.softmax,
        ),
        Loss(
            "hinge",
            pointwise.hinge,
            "margin",
            _one(1.0),
            None,
            smooth=False,
            smoothed=SMOOTHED_HINGE,
        ),
        Loss(
            "squared_hinge",
            pointwise.squared_hinge,
            "margin",
            None,
            _one(2.0),
            second=curvature.squared_hinge,
        ),
        Loss(
            "huber",
            pointwise.huber,
            "regression",
            lambda a: a,
            _one(1.0),
            parameter=lambda config: config.delta,
            second=curvature.huber,
        ),
        Loss(
            "quantile",
            pointwise.quantile,
            "regression",
            lambda a: max(a, 1 - a),
            None,
            smooth=False,
            parameter=lambda config: config.quantile,
            smoothed=SMOOTHED_QUANTILE,
        ),
        Loss(
            "poisson",
            pointwise.poisson,
            "regression",
            None,
            None,
            mean=_flat(pointwise.exponential_mean),
            accepts=lambda y: y >= 0,
            domain="numbers of at least 0",
            second=curvature.poisson,
        ),
        Loss(
            "gamma",
            pointwise.gamma,
            "regression",
            None,
            None,
            mean=_flat(pointwise.exponential_mean),
            accepts=lambda y: y > 0,
            domain="numbers above 0",
            second=curvature.gamma,
        ),
    )
}
