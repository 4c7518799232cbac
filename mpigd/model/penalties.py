"""Penalties on the parameters. Smooth ones give a gradient; others will give a proximal operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mpigd_kernels import vector

Array = np.ndarray[Any, Any]


class Penalty(Protocol):
    """What an optimiser asks of a penalty. `smooth`: it has a gradient; else a proximal operator."""

    smooth: bool

    def value(self, w: Array) -> float: ...

    def add_gradient(self, w: Array, g: Array) -> None:
        """g += gradient at w."""


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
