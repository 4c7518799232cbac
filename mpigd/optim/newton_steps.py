"""Points of a second-order method, and steps between them whose length the objective along them decides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from mpigd.errors import NumericalError
from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, evaluate
from mpigd.optim.line_search import LineOracle, best_length
from mpigd.optim.preconditioner import with_penalty

LOST_DIGITS = 1e-10  # relative decreases below this are judged by slopes, not by values
MAX_END_SLOPE = 0.3  # of the slope at its start: a step that ends steeper was too short or too long


class SecondOrderOracle(LineOracle, Protocol):
    """An oracle with second derivatives."""

    @property
    def outputs(self) -> int:
        """How many outputs the parameters are of, one after the other, that share a loss (softmax)."""

    def derivatives(self, w: Array) -> tuple[float, Array, Array]:
        """Value, gradient (p,) and `hessian` at w (p,)."""

    def look_at(self, w: Array) -> None:
        """Second derivatives are those at w (p,) from now on."""

    def hessian_vector(self, v: Array) -> Array:
        """The Hessian times v."""

    def hessian(self) -> Array:
        """The Hessian (1, p, p), or its diagonal blocks (k, p / k, p / k)."""

    def hessian_diagonal(self) -> Array:
        """The diagonal of the Hessian (p,)."""

    def column_squares(self) -> Array:
        """The weighted mean square of every parameter's column (p,)."""

    def curvatures_along(self, D: Array) -> tuple[Array, Array]:
        """d'Hd (m,) for directions D (m, p), and how much of it rounding may be."""

    def product_along(self, d: Array) -> Array:
        """The Hessian times d (p,), accurate where columns nearly cancel in it."""

    def sample(self, m: int) -> SecondOrderOracle:
        """The oracle of m rows drawn without replacement."""


@dataclass
class Point:
    """Parameters, value and gradient of the whole objective there, and the Hessian with the penalty's if it was asked for."""

    w: Array
    value: float
    g: Array
    H: Array | None = None


def stand(w: Array, oracle: SecondOrderOracle, penalty: Penalty, direct: bool) -> Point:
    """The point at w; `direct`: with its Hessian."""
    if not direct:
        return Point(w, *evaluate(w, oracle, penalty))
    value, g, H = oracle.derivatives(w)
    penalty.add_gradient(w, g)
    return Point(w, value + penalty.value(w), g, with_penalty(H, penalty, w.size))


def move(
    point: Point, s: Array, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot, direct: bool
) -> tuple[Point, float]:
    """The point after a step along s, and its length in s: 1, unless the objective along s asks for another.

    Returns `point` itself where no length goes down.
    """
    slope = dot(point.g, s)
    if not slope < 0.0:
        return point, 0.0
    full = _try(point.w + s, oracle, penalty, direct)
    end = math.inf if full is None else dot(full.g, s)
    if full is not None and abs(end) <= -MAX_END_SLOPE * slope and _fell(point, full, slope, end):
        return full, 1.0
    t = best_length(point.w, s, point.g, oracle, penalty, dot)
    found = _try(point.w + t * s, oracle, penalty, direct) if t > 0.0 and t != 1.0 else None
    best, length = point, 0.0
    for other, far in ((full, 1.0), (found, t)):
        if other is None or not _fell(point, other, slope, dot(other.g, s)):
            continue
        if best is point or other.value < best.value:
            best, length = other, far
    return best, length


def _try(w: Array, oracle: SecondOrderOracle, penalty: Penalty, direct: bool) -> Point | None:
    try:
        return stand(w, oracle, penalty, direct)
    except NumericalError:  # raised on all ranks together: too far
        return None


def _fell(point: Point, new: Point, slope: float, end: float) -> bool:
    """Whether the objective fell; where the difference of the values has lost its digits, by the slopes of a quadratic."""
    if -slope <= LOST_DIGITS * abs(point.value):
        return abs(end) < -slope
    return new.value < point.value
