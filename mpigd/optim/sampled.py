"""A penalty for samples of the rows: what a sample does not determine is pulled towards the starting point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array
from mpigd_kernels import vector

LEAST_SQUARE = 0.5  # of a column's mean square over all rows: a sample with less says too little of it


class Sampled(Protocol):
    def look_at(self, w: Array) -> None: ...

    def hessian_diagonal(self) -> Array: ...

    def column_squares(self) -> Array: ...


@dataclass(frozen=True)
class Pulled:
    """A penalty plus strength / 2 * (w - center)**2, summed over the parameters; strength and center (p,)."""

    penalty: Penalty
    center: Array
    strength: Array
    smooth: bool = True

    def value(self, w: Array) -> float:
        far = w - self.center
        return self.penalty.value(w) + 0.5 * float(vector.dot(self.strength * far, far))

    def rough_value(self, w: Array) -> float:
        return 0.0

    def add_gradient(self, w: Array, g: Array) -> None:
        self.penalty.add_gradient(w, g)
        g += self.strength * (w - self.center)

    def add_curvature(self, v: Array, Hv: Array) -> None:
        self.penalty.add_curvature(v, Hv)
        Hv += self.strength * v

    def prox(self, w: Array, step: float) -> None:
        """There is no rough part."""

    def subgradient(self, w: Array, g: Array) -> Array:
        return g


def pull(penalty: Penalty, w: Array, part: Sampled, m: int) -> Pulled:
    """The penalty for a sample of m rows, pulled towards w (p,). Two reads of the sample.

    The pull on every coordinate is that of one more row: it decides only what no row of the sample does, like
    the coefficient of a level whose rows there have no event. Where a column's numbers are far smaller in the sample
    than in all rows (a rare level), half of the missing curvature is added. The typical curvature is the mean of the
    Hessian's diagonal at w.
    """
    part.look_at(w)
    diagonal, squares = part.hessian_diagonal(), part.column_squares()
    typical = vector.dot(diagonal, np.ones(w.size)) / max(1, np.count_nonzero(diagonal))
    return Pulled(penalty, w, typical * (1.0 / m + np.maximum(0.0, LEAST_SQUARE - squares) * (diagonal > 0.0)))
