"""The losses: one row of a table each. A loss is a pointwise kernel of the margin; it never sees X."""

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
    """One loss.

    kernel: (z (k, m), y (m,), c (m,), a, r (k, m), l (m,)) fills residuals and losses.
    kind: what it predicts: "regression", "binary" (a probability), "margin" (two classes, no probability), "multiclass".
    residual, curvature: bounds on |dloss/dz| and d2loss/dz2 as functions of the parameter a; None: unbounded.
    second: the curvature kernel (z, y, c, a, h (k, m)): fills second derivatives (mpigd_kernels/curvature.py).
    smooth: has a continuous derivative. accepts, domain: which y, tested and in words.
    mean: margins z (k, m) -> mean response or probabilities, in place of `out` (k, m).
    smoothed: of a loss with kinks, the one whose kinks are rounded off (mpigd/model/smoothing.py); its parameter is a pair.
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
        """What a sweep takes: the type that stands for this loss there, with the parameter."""
        (kind,) = (kind for kind, kernel in residuals.KERNELS.items() if kernel is self.kernel)
        return kind(a if isinstance(a, tuple) else float(a))

    @property
    def classifies(self) -> bool:
        return self.kind != "regression"


def _one(bound: float) -> Callable[[Any], float]:
    return lambda a: bound


def _flat(kernel: Callable[[Array, Array], None]) -> Callable[[Array, Array], None]:
    return lambda z, out: kernel(z[0], out[0])


# Losses that only smoothing.py uses. Their parameter: (quantile, width), the hinge's quantile is 1.
SMOOTHED_HINGE = Loss(
    "smoothed hinge", pointwise.smoothed_hinge, "margin", lambda a: 1.0, lambda a: 1.0 / a[1], second=curvature.smoothed_hinge,
)  # fmt: skip
SMOOTHED_QUANTILE = Loss(
    "smoothed quantile", pointwise.smoothed_quantile, "regression", lambda a: max(a[0], 1 - a[0]), lambda a: 1.0 / a[1],
    second=curvature.smoothed_quantile,
)  # fmt: skip
LOSSES = {
    loss.name: loss
    for loss in (
        Loss("squared", pointwise.squared, "regression", None, _one(1.0), second=curvature.squared),
        Loss(
            "logistic", pointwise.logistic, "binary", _one(1.0), _one(0.25), mean=_flat(pointwise.logistic_mean),
            second=curvature.logistic,
        ),
        Loss(
            "softmax", pointwise.softmax, "multiclass", _one(1.0), _one(0.5), mean=pointwise.softmax_mean,
            second=curvature.softmax,
        ),
        Loss("hinge", pointwise.hinge, "margin", _one(1.0), None, smooth=False, smoothed=SMOOTHED_HINGE),
        Loss("squared_hinge", pointwise.squared_hinge, "margin", None, _one(2.0), second=curvature.squared_hinge),
        Loss(
            "huber", pointwise.huber, "regression", lambda a: a, _one(1.0), parameter=lambda config: config.delta,
            second=curvature.huber,
        ),
        Loss(
            "quantile", pointwise.quantile, "regression", lambda a: max(a, 1 - a), None, smooth=False,
            parameter=lambda config: config.quantile, smoothed=SMOOTHED_QUANTILE,
        ),
        Loss(
            "poisson", pointwise.poisson, "regression", None, None, mean=_flat(pointwise.exponential_mean),
            accepts=lambda y: y >= 0, domain="numbers of at least 0", second=curvature.poisson,
        ),
        Loss(
            "gamma", pointwise.gamma, "regression", None, None, mean=_flat(pointwise.exponential_mean),
            accepts=lambda y: y > 0, domain="numbers above 0", second=curvature.gamma,
        ),
    )
}  # fmt: skip
