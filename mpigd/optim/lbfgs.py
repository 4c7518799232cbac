"""L-BFGS with a strong-Wolfe line search, for smooth objectives with many parameters.

Near the optimum differences of values are lost to rounding, and slopes decide instead.

References
----------
Nocedal, "Updating quasi-Newton matrices with limited storage" (Math. Comp. 1980). The line search
is algorithms 3.5 and 3.6 of Nocedal and Wright, "Numerical Optimization" (2006), with cubic
interpolation; slopes near the optimum: Hager and Zhang, SIOPT 2005.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State, advance, evaluate, fresh, norm
from mpigd.optim.lbfgs_memory import Pairs, stored

DECREASE, SLOPE = 1e-4, 0.9  # constants of the strong Wolfe conditions
# The factor by which trial steps grow, and the most trials of each stage of the line search.
EXPAND, TRIALS = 4.0, 20
# The objective is called flat after this many steps that lower neither value nor gradient.
STALLED = 10
DROWNED = 1e-10  # relative to the value: smaller differences are judged by slopes


@dataclass(frozen=True)
class Trial:
    """A point on the search line: step length, value and slope there, and its gradient.

    Value and slope are infinite if the objective is not finite there.
    """

    a: float
    value: float
    slope: float
    g: Array


@dataclass(frozen=True)
class LBFGS:
    """Steps along -H g, with H from the last `memory` pairs of steps and gradient changes.

    Parameters
    ----------
    memory : int
        Number of pairs to keep.
    first : float
        Length of the first step over that of the gradient, about the inverse of the objective's
        curvature.
    """

    memory: int = 10
    first: float = 1.0
    name = "lbfgs"

    def start(self, w: Array) -> State:
        counts = {name: np.zeros(1) for name in ("stalled", "flat")}
        return fresh("gradient", like=w) | counts | {"best": np.full(2, math.inf)}

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        value, g, pairs = float(state["value"][0]), state["gradient"], stored(state, self.memory)
        if state["step"][0] == 0:
            value, g = evaluate(w, oracle, penalty)
        d = pairs.direction(g, None, dot)
        slope = dot(g, d)
        if not slope < 0.0:  # caused by rounding: restart
            d, slope, pairs = -g, -dot(g, g), Pairs(self.memory)

        def along(a: float) -> Trial:
            try:
                there, gradient = evaluate(w + a * d, oracle, penalty)
            except NumericalError:  # all ranks raise it together: the step is too long
                return Trial(a, math.inf, math.inf, g)
            return Trial(a, there, dot(gradient, d), gradient)

        length = norm(g, dot)
        first = 1.0 if pairs.moves else self.first
        found = search(along, Trial(0.0, value, slope, g), first) if slope < 0.0 else None
        # Drop the pairs and try once more from the gradient, or report that the objective is
        # flat.
        if found is None:
            after = _advance(state, value, length, g, Pairs())
            after["flat"][0] = float(not pairs.moves)
            return w.copy(), after
        moved = w + found.a * d
        pairs.remember(moved - w, found.g - g, dot)
        after = _advance(state, found.value, norm(found.g, dot), found.g, pairs)
        now = np.array([found.value, after["gradient_norm"][0]])
        after["stalled"][0] = 0.0 if (now < state["best"]).any() else state["stalled"][0] + 1
        after["best"] = np.minimum(now, state["best"])
        after["flat"][0] = float(after["stalled"][0] >= STALLED)
        return moved, after


def _advance(state: State, value: float, length: float, g: Array, pairs: Pairs) -> State:
    """Return the state one step further, with this gradient and these pairs."""
    after = advance(
        {name: state[name] for name in ("step", "stalled", "flat", "best")}, value, length
    )
    return after | {"gradient": g} | pairs.named()


def search(along: Callable[[float], Trial], start: Trial, first: float) -> Trial | None:
    """Return a point that meets the strong Wolfe conditions, or None.

    Growing steps find a bracket, and zooming shrinks it.

    Parameters
    ----------
    along : callable
        Evaluates the objective at a step length.
    start : Trial
        Trial at step length 0.
    first : float
        Step length to try first.
    """
    low, a = start, first
    for _ in range(TRIALS):
        here = along(a)
        if _too_high(here, start) or (
            low.a > 0.0 and here.value >= low.value and not _drowned(here, start)
        ):
            return _zoom(along, start, low, here)
        if abs(here.slope) <= -SLOPE * start.slope:
            return here
        if here.slope >= 0.0:
            return _zoom(along, start, here, low)
        low, a = here, EXPAND * a
    return low if low.a > 0.0 else None


def _zoom(along: Callable[[float], Trial], start: Trial, low: Trial, high: Trial) -> Trial | None:
    """Shrink a bracket, whose best end is `low`, around an acceptable step."""
    for _ in range(TRIALS):
        here = along(_between(low, high))
        if _too_high(here, start) or (here.value >= low.value and not _drowned(here, start)):
            high = here
            continue
        if abs(here.slope) <= -SLOPE * start.slope:
            return here
        if here.slope * (high.a - low.a) >= 0.0:
            high = low
        low = here
    return low if low.a > 0.0 else None


def _drowned(here: Trial, start: Trial) -> bool:
    return abs(here.value - start.value) <= DROWNED * abs(start.value)


def _too_high(here: Trial, start: Trial) -> bool:
    """Return whether the decrease is not sufficient.

    If the difference of values is lost to rounding, the slopes of a quadratic decide.
    """
    if _drowned(here, start):
        return not here.slope <= (2.0 * DECREASE - 1.0) * start.slope
    return not here.value <= start.value + DECREASE * here.a * start.slope


def _between(low: Trial, high: Trial) -> float:
    """Return the minimum of the cubic through both ends, kept off them, or the middle.

    The middle is returned if the cubic has no minimum there.
    """
    span = high.a - low.a
    if math.isfinite(high.value):
        b = low.slope + high.slope - 3.0 * (high.value - low.value) / span
        inside = b * b - low.slope * high.slope
        if inside >= 0.0:
            root = math.copysign(math.sqrt(inside), span)
            below = high.slope - low.slope + 2.0 * root
            if below != 0.0:
                t = 1.0 - (high.slope + root - b) / below
                if 0.1 <= t <= 0.9:
                    return low.a + t * span
        return low.a + 0.5 * span
    return low.a + 0.1 * span
