"""Points of a second-order method, and steps between them with a line search."""

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
# Relative to the slope at the start of a step: if it ends steeper, it was too short or too long.
MAX_END_SLOPE = 0.3


class SecondOrderOracle(LineOracle, Protocol):
    """An oracle with second derivatives."""

    @property
    def outputs(self) -> int:
        """The number of outputs that share a loss (softmax); their parameters are concatenated."""

    def derivatives(self, w: Array) -> tuple[float, Array, Array]:
        """Return the value, the gradient (p,) and `hessian` at w (p,)."""

    def look_at(self, w: Array) -> None:
        """Set the point w (p,) at which second derivatives are taken from now on."""

    def hessian_vector(self, v: Array) -> Array:
        """Return the Hessian times v (p,)."""

    def hessian(self) -> Array:
        """Return the Hessian (1, p, p), or its diagonal blocks (k, p / k, p / k)."""

    def hessian_diagonal(self) -> Array:
        """Return the diagonal of the Hessian (p,)."""

    def column_squares(self) -> Array:
        """Return the weighted mean square of every parameter's column (p,)."""

    def curvatures_along(self, D: Array) -> tuple[Array, Array]:
        """Return d'Hd (m,) for directions D (m, p), and a bound on its rounding error (m,)."""

    def product_along(self, d: Array) -> Array:
        """Return the Hessian times d (p,), accurate if columns nearly cancel in d."""

    def sample(self, m: int) -> SecondOrderOracle:
        """Return the oracle of m rows drawn without replacement."""


@dataclass
class Point:
    """Parameters (p,), value and gradient (p,) of the whole objective there, and maybe its Hessian.

    The Hessian includes the penalty's, and is None unless it was asked for.
    """

    w: Array
    value: float
    g: Array
    H: Array | None = None


def stand(w: Array, oracle: SecondOrderOracle, penalty: Penalty, direct: bool) -> Point:
    """Evaluate the point at w. Collective.

    Parameters
    ----------
    w : array (p,) of float64
        Parameters.
    oracle : SecondOrderOracle
        Objective without its penalty.
    penalty : Penalty
        Smooth penalty.
    direct : bool
        Whether the point gets its Hessian.
    """
    if not direct:
        return Point(w, *evaluate(w, oracle, penalty))
    value, g, H = oracle.derivatives(w)
    penalty.add_gradient(w, g)
    return Point(w, value + penalty.value(w), g, with_penalty(H, penalty, w.size))


def move(
    point: Point, s: Array, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot, direct: bool
) -> tuple[Point, float]:
    """Take a step along s, of length 1 unless the objective along s requires another. Collective.

    Parameters
    ----------
    point : Point
        Where the step begins.
    s : array (p,) of float64
        Step.
    oracle : SecondOrderOracle
        Objective without its penalty.
    penalty : Penalty
        Smooth penalty.
    dot : Dot
        Inner product.
    direct : bool
        Whether the new point gets its Hessian.

    Returns
    -------
    tuple (Point, float)
        The new point and the length of the step in units of s; `point` itself if no length leads
        down.
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
    except NumericalError:  # all ranks raise it together: the step is too long
        return None


def _fell(point: Point, new: Point, slope: float, end: float) -> bool:
    """Return whether the objective fell.

    If the difference of the values has lost its digits, the slopes of a quadratic decide.
    """
    if -slope <= LOST_DIGITS * abs(point.value):
        return abs(end) < -slope
    return new.value < point.value
