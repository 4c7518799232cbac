"""Penalties on the parameters: a smooth part with a gradient, and a rough part (kinks, bounds) with a proximal operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mpigd_kernels import vector

Array = np.ndarray[Any, Any]


class Penalty(Protocol):
    """What an optimiser asks of a penalty. `smooth`: there is no rough part, and `prox` does nothing."""

    @property
    def smooth(self) -> bool: ...

    def value(self, w: Array) -> float:
        """All of it; inside the bounds, where there are bounds."""

    def rough_value(self, w: Array) -> float:
        """That of the rough part alone."""

    def add_gradient(self, w: Array, g: Array) -> None:
        """g += gradient of the smooth part at w."""

    def add_curvature(self, v: Array, Hv: Array) -> None:
        """Hv += the smooth part's Hessian, which is diagonal and the same everywhere, times v."""

    def prox(self, w: Array, step: float) -> None:
        """w becomes argmin_u |u - w|^2 / 2 + step * rough part(u)."""

    def subgradient(self, w: Array, g: Array) -> Array:
        """The shortest subgradient of the whole objective at w (p,), of whose smooth part g is the gradient."""


@dataclass(frozen=True)
class L2:
    """strength / 2 * sum(weights * w**2); the weights (p,) are zero for intercepts."""

    strength: float
    weights: Array
    smooth = True

    def value(self, w: Array) -> float:
        if not self.strength:
            return 0.0
        return 0.5 * self.strength * float(vector.dot(self.weights * w, w))

    def add_gradient(self, w: Array, g: Array) -> None:
        if self.strength:
            g += self.strength * self.weights * w

    def add_curvature(self, v: Array, Hv: Array) -> None:
        if self.strength:
            Hv += self.strength * self.weights * v

    def rough_value(self, w: Array) -> float:
        return 0.0

    def prox(self, w: Array, step: float) -> None:
        """There is no rough part."""

    def subgradient(self, w: Array, g: Array) -> Array:
        return g


@dataclass(frozen=True)
class ElasticNet(L2):
    """L2 + sum(l1 * |w|), and w held within [low, high]; all (p,), zero lies within. l1 is zero for intercepts."""

    l1: Array
    low: Array
    high: Array
    smooth = False

    def value(self, w: Array) -> float:
        return super().value(w) + self.rough_value(w)

    def rough_value(self, w: Array) -> float:
        return float(vector.dot(self.l1, np.abs(w)))

    def prox(self, w: Array, step: float) -> None:
        vector.soft_threshold(w, step, self.l1, self.low, self.high)

    def subgradient(self, w: Array, g: Array) -> Array:
        """At a kink the part of g that l1 cannot balance; at a bound only what points back inside."""
        up = g + self.l1 * np.where(w < 0.0, -1.0, 1.0)  # the slope from w to the right
        down = g - self.l1 * np.where(w > 0.0, -1.0, 1.0)  # and that from the left
        return np.where(
            (up < 0.0) & (w < self.high), up, np.where((down > 0.0) & (w > self.low), down, 0.0)
        )

    def take(self, places: Array) -> ElasticNet:
        """That of some of the parameters."""
        return ElasticNet(
            self.strength,
            self.weights[places],
            self.l1[places],
            self.low[places],
            self.high[places],
        )


def bounds(low: float, high: float, inverse: Array) -> tuple[Array, Array]:
    """Limits (d,) of coordinates u for which low <= inverse * u <= high, also after rounding; constant columns stay at 0."""

    def limit(side: float) -> Array:
        u = np.divide(side, inverse, out=np.zeros_like(inverse), where=inverse > 0.0)
        return np.where(np.abs(u) * inverse > abs(side), np.nextafter(u, 0.0), u)

    return limit(low), limit(high)
