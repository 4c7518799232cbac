"""Penalties on the parameters: L2, and L2 with L1 and bounds.

A penalty has a smooth part with a gradient and a nonsmooth ("rough") part, kinks and bounds, with a
proximal operator. Parameters are those of the optimiser's coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mpigd_kernels import vector

Array = np.ndarray[Any, Any]


class Penalty(Protocol):
    """The interface of a penalty to an optimiser.

    If `smooth` is true, there is no nonsmooth part and `prox` does nothing.
    """

    @property
    def smooth(self) -> bool: ...

    def value(self, w: Array) -> float:
        """Return the whole penalty at w, which must lie inside the bounds if there are any."""

    def rough_value(self, w: Array) -> float:
        """Return the nonsmooth part at w."""

    def add_gradient(self, w: Array, g: Array) -> None:
        """Add the gradient of the smooth part at w (p,) to g (p,), in place."""

    def add_curvature(self, v: Array, Hv: Array) -> None:
        """Add the smooth part's Hessian times v (p,) to Hv (p,), in place.

        This Hessian is diagonal and the same at all points.
        """

    def prox(self, w: Array, step: float) -> None:
        """Replace w (p,), in place, by argmin_u |u - w|^2 / 2 + step * nonsmooth part(u)."""

    def subgradient(self, w: Array, g: Array) -> Array:
        """Return the shortest subgradient of the whole objective.

        Parameters
        ----------
        w : (p,) float64
            Parameters.
        g : (p,) float64
            The gradient at w of the objective's smooth part, the smooth part of the penalty
            included.

        Returns
        -------
        subgradient : (p,) float64
        """


@dataclass(frozen=True)
class L2:
    """The ridge penalty strength / 2 * sum(weights * w**2).

    The weights (p,) are zero for intercepts.
    """

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
        """Do nothing: there is no nonsmooth part."""

    def subgradient(self, w: Array, g: Array) -> Array:
        return g


@dataclass(frozen=True)
class ElasticNet(L2):
    """L2 + sum(l1 * |w|), with w held within [low, high].

    l1, low and high have shape (p,). Zero lies within the bounds. l1 is zero for intercepts.
    """

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
        """Return the shortest subgradient (p,) at w.

        At a kink this is the part of g that l1 cannot balance; at a bound, only what points back
        inside.
        """
        up = g + self.l1 * np.where(w < 0.0, -1.0, 1.0)  # the slope to the right of w
        down = g - self.l1 * np.where(w > 0.0, -1.0, 1.0)  # the slope to the left of w
        return np.where(
            (up < 0.0) & (w < self.high), up, np.where((down > 0.0) & (w > self.low), down, 0.0)
        )

    def take(self, places: Array) -> ElasticNet:
        """Return the penalty of some parameters alone, chosen by their positions."""
        return ElasticNet(
            self.strength,
            self.weights[places],
            self.l1[places],
            self.low[places],
            self.high[places],
        )


def bounds(low: float, high: float, inverse: Array) -> tuple[Array, Array]:
    """Return bounds (d,), (d,) of coordinates u for which low <= inverse * u <= high.

    The inequalities hold after rounding too. Constant columns (inverse 0) stay at 0.

    Parameters
    ----------
    low, high
        Bounds on coefficients; infinite if there is none.
    inverse : (d,) float64
        1 / scale of each column.
    """

    def limit(side: float) -> Array:
        u = np.divide(side, inverse, out=np.zeros_like(inverse), where=inverse > 0.0)
        return np.where(np.abs(u) * inverse > abs(side), np.nextafter(u, 0.0), u)

    return limit(low), limit(high)
