"""Line search along a step, on the linear predictors at both its ends.

Trials between the ends cost no pass over the data.
"""

from __future__ import annotations

import math
from typing import Protocol

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike

MAX_END_SLOPE = 0.1  # relative to the slope at the start
# The most trials, and the most of them that may double the step length.
MAX_TRIALS, MAX_DOUBLINGS = 40, 20


class Line(Protocol):
    def at(self, t: float) -> tuple[float, float]:
        """Return the mean loss at w + t s and its derivative by t, without a pass over the data.

        They are infinite if the loss is not finite.
        """


class LineOracle(OracleLike, Protocol):
    def line(self, w: Array, there: Array) -> Line:
        """Return the mean loss along the way from w (p,) to there (p,).

        It is computed from the linear predictors at both ends. That costs a pass over the data for
        each end whose linear predictors are not kept.
        """


def best_length(
    w: Array, s: Array, g: Array, oracle: LineOracle, penalty: Penalty, dot: Dot
) -> float:
    """Return the t >= 0 at which the objective along w + t s is about least. Collective.

    Parameters
    ----------
    w : array (p,) of float64
        Parameters.
    s : array (p,) of float64
        Step.
    g : array (p,) of float64
        Gradient of loss and smooth penalty at w.
    oracle : LineOracle
        Objective without its penalty.
    penalty : Penalty
        Smooth penalty.
    dot : Dot
        Inner product.

    Returns
    -------
    float
        The length t, 0 if the objective does not fall along s.
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
        # A slope may be small beyond the minimum too, if a few rows make that at the start steep.
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
        else:  # the secant, kept away from both ends
            share = at_low / (at_low - at_high)
            t = low + (high - low) * min(0.9, max(0.1, share))
    return low
