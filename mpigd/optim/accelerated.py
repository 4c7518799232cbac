"""Accelerated proximal gradients for full mode, with restarts, and backtracking if needed.

Backtracking is for losses whose curvature has no bound. Without l1 and bounds the proximal operator
does nothing, and this is Nesterov's method (1983).

References
----------
Step sequence and backtracking: Beck and Teboulle, "FISTA" (SIAM J. Imaging Sci. 2009). Restart by
the gradient: O'Donoghue and Candes, "Adaptive restart for accelerated gradient schemes" (2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State, advance, evaluate, fresh, norm
from mpigd_kernels import vector

# Backtracking stops raising the curvature at this bound.
LARGEST = 1e300


@dataclass(frozen=True)
class Accelerated:
    """Proximal steps of 1 / curvature from a point extrapolated along the last step.

    Parameters
    ----------
    curvature : float
        Bound on the Hessian's largest eigenvalue.
    backtrack : bool
        Take `curvature` only as a first guess. It is raised until the quadratic model at each point
        bounds the smooth part there (one more evaluation per step), and falls slowly.
    name : str
        Value of the option --optimizer.
    """

    curvature: float
    backtrack: bool = False
    name: str = "nesterov"

    def start(self, w: Array) -> State:
        state = fresh("previous", like=w)
        state["previous"][:] = w
        state["theta"], state["curvature"] = np.ones(1), np.array([self.curvature])
        return state

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        theta = float(state["theta"][0])
        # A continued run may have another learning rate, so only a curvature that was found by
        # backtracking is kept.
        curvature = float(state["curvature"][0]) if self.backtrack else self.curvature
        following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * theta * theta))
        ahead = np.empty_like(w)
        vector.extrapolate(w, state["previous"], (theta - 1.0) / following, ahead)
        value, g = evaluate(ahead, oracle, penalty)
        length = norm(penalty.subgradient(ahead, g), dot)
        moved, curvature = self._move(ahead, value, g, curvature, oracle, penalty, dot)
        # If the momentum points against the step, restart.
        uphill = dot(ahead - moved, moved - w) > 0.0
        after = advance(state, value, length)
        after["previous"][:] = moved if uphill else w
        after["theta"][0] = 1.0 if uphill else following
        after["curvature"][0] = curvature
        return moved, after

    def _move(
        self,
        ahead: Array,
        value: float,
        g: Array,
        curvature: float,
        oracle: OracleLike,
        penalty: Penalty,
        dot: Dot,
    ) -> tuple[Array, float]:
        """Return the step from `ahead`, and the curvature with which it was taken."""
        curvature *= 0.9 if self.backtrack else 1.0
        value -= penalty.rough_value(ahead)
        while True:
            moved = ahead.copy()
            vector.descend(moved, g, 1.0 / curvature)
            penalty.prox(moved, 1.0 / curvature)
            step = moved - ahead
            square = dot(step, step)
            if not self.backtrack or square == 0.0 or curvature > LARGEST:
                return moved, curvature
            reached = _smooth_value(moved, oracle, penalty)
            # The last term allows for rounding: near the optimum the decrease is smaller than the
            # error of the objective.
            if reached <= value + dot(g, step) + 0.5 * curvature * square + 1e-12 * abs(value):
                return moved, curvature
            curvature *= 2.0


def _smooth_value(w: Array, oracle: OracleLike, penalty: Penalty) -> float:
    try:
        return evaluate(w, oracle, penalty)[0] - penalty.rough_value(w)
    except NumericalError:  # all ranks raise it together: the step is too long
        return math.inf
