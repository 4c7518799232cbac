"""The best length of a step, from the objective along it."""

from __future__ import annotations

import math
from typing import Protocol

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike

MAX_END_SLOPE = 0.1  # of the slope at the start
MAX_TRIALS, MAX_DOUBLINGS = 40, 20


class Line(Protocol):
    def at(self, t: float) -> tuple[float, float]:
        """The mean loss at w + t s and its derivative by t; infinite where it is not finite. Costs no read."""


class LineOracle(OracleLike, Protocol):
    def line(self, w: Array, there: Array) -> Line:
        """The mean loss along the way from w to there, from the linear predictors at both ends: a read for each that is not
        remembered."""


def best_length(
    w: Array, s: Array, g: Array, oracle: LineOracle, penalty: Penalty, dot: Dot
) -> float:
    """The t >= 0 at which loss and smooth penalty along w + t s are about least; g (p,) is their gradient at w.

    0 where the objective does not fall along s. Collective.
    """
    first = dot(g, s)
    if not first < 0.0:
        return 0.0
    line = oracle.line(w, w + s)

    def look(t: float) -> tuple[float, float]:
        value, change = line.at(t)
        if not math.isfinite(value):
            return math.inf, math.inf
        there, bent = w + t * s, g * 0.0
        penalty.add_gradient(there, bent)
        return value + penalty.value(there), change + dot(bent, s)

    start = look(0.0)[0]
    low, high, at_low, at_high = 0.0, math.inf, first, math.inf
    t = 1.0
    for trial in range(MAX_TRIALS):
        value, here = look(t)
        # A slope may be small beyond the minimum too, where few rows make that at the start steep.
        if abs(here) <= -MAX_END_SLOPE * first and (here <= 0.0 or value < start):
            return t
        if here > 0.0:
            high, at_high = t, here
        else:
            low, at_low = t, here
        if high == math.inf:
            if trial >= MAX_DOUBLINGS:
                return t
            t = 2.0 * low
        elif at_high == math.inf:
            t = low + 0.25 * (high - low)
        else:  # the secant, kept off both ends
            share = at_low / (at_low - at_high)
            t = low + (high - low) * min(0.9, max(0.1, share))
    return low
