"""Newton's method with a line search, preconditioned by and started from samples of the rows.

The optimum of a small sample is near that of all rows, and its Hessian close to theirs. So
conjugate gradients that are preconditioned with it need few Hessian-vector products, each one pass
over the data. If a sample says too little about the rows, the Hessian of all rows replaces it.
Steps are shortened or lengthened by the objective along them. That costs no pass over the data,
since it is computed from the linear predictors at both ends.

References
----------
Nocedal and Wright, "Numerical Optimization" (2006), chapters 5 to 7; the inner tolerance after
Eisenstat and Walker (SISC 1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State, advance, fresh, norm
from mpigd.optim.change_of_basis import Basis
from mpigd.optim.cholesky import factorise
from mpigd.optim.conjugate_gradients import conjugate_gradients
from mpigd.optim.lbfgs_memory import stored
from mpigd.optim.newton_steps import Point, SecondOrderOracle, move, stand
from mpigd.optim.preconditioner import Preconditioner, roots, with_penalty
from mpigd.optim.sampled_newton import SampleDescent

# The most products of a step if no other Hessian can replace the preconditioner.
INNER = 200
LOOSEST, TIGHTEST = 0.2, 1e-3  # of the residual of conjugate gradients
NEVER_CHANGED = ("factor", "basis", "move", "change")  # prefixes of arrays that steps share
# If the objective decreases by at most this, relative to it, the diagonal is not computed again.
SETTLED = 0.05
FLAT = 1e-14  # a decrease below the rounding of the objective, relative to it
# The Hessian of all rows replaces a preconditioner if a step needs more products than this, if a
# tenth of the curvature or less is left along some direction, or if a step has to be cut to a
# quarter.
MAX_PRODUCTS = 15
# The Hessian from which steps are computed: that of a sample, that of all rows, or the latter
# with Hessian-vector products too.
SAMPLED, WHOLE, REFINED = 0.0, 1.0, 2.0


@dataclass(frozen=True)
class Newton:
    """Newton's method by conjugate gradients on the quadratic model, or by a factorised Hessian.

    Parameters
    ----------
    samples : tuple of int
        Sizes of the samples, ascending, on which the first step descends, each from the optimum of
        the one before; the last one gives the preconditioner.
    start_value : float or None
        Objective at the starting point. The point found on samples must be below it. None keeps the
        starting point.
    whole : bool
        Whether `hessian` of an oracle is the whole Hessian, not its diagonal blocks alone.
    direct : bool
        Whether all steps use the Hessian of all rows.
    dense : bool
        False if the p^2 numbers of a Hessian are too many. Its diagonal then preconditions, with
        the pairs that conjugate gradients have learned.
    name : str
        Value of the option --optimizer.
    """

    samples: tuple[int, ...]
    start_value: float | None = None
    whole: bool = True
    direct: bool = False
    dense: bool = True
    name: str = "newton"

    def start(self, w: Array) -> State:
        state = fresh("gradient", like=w)
        kind = WHOLE if self.direct else SAMPLED
        return state | {
            "tolerance": np.array([LOOSEST]),
            "flat": np.zeros(1),
            "decrement": np.array([math.inf]),
            "kind": np.array([kind]),
            "spectrum": np.ones(1),
        }

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        second = cast(SecondOrderOracle, oracle)
        if state["step"][0] == 0:
            return self._first(w, state, second, penalty, dot)
        kind = float(state["kind"][0])
        point = Point(w, float(state["value"][0]), state["gradient"])
        M = self._preconditioner(w, state, second, penalty, dot, kind)
        spectrum, products = 1.0, 0
        if kind == WHOLE:
            s = -M.solve(point.g)
        else:
            most = MAX_PRODUCTS + 1 if kind == SAMPLED and self.dense else INNER
            s, spectrum, products = conjugate_gradients(
                point.g, M, second, penalty, dot, float(state["tolerance"][0]), most
            )
        slope = dot(point.g, s)
        new, length = move(point, s, second, penalty, dot, kind != SAMPLED)
        moved = new is not point
        # The objective is flat if the step is not downhill, or cannot be taken and would gain less
        # than rounding.
        flat = not slope < 0.0 or (not moved and -0.5 * slope <= FLAT * abs(point.value))
        after = _advanced(state, new, dot)
        # Whether the preconditioner is to be replaced; see MAX_PRODUCTS.
        poor = (
            products > MAX_PRODUCTS
            or not moved
            or (kind == SAMPLED and min(4.0 * length, 10.0 * spectrum) < 1.0)
        )
        after_kind = self._next(kind, poor and not flat, moved)
        flat = flat or (not moved and after_kind == kind)
        # The inner tolerance follows the decrease of the gradient (Eisenstat and Walker).
        shrunk = norm(new.g, dot) / (norm(point.g, dot) or 1.0)
        after["tolerance"] = np.array([min(LOOSEST, max(TIGHTEST, shrunk))])
        after["kind"], after["flat"] = np.array([after_kind]), np.array([float(flat)])
        after["spectrum"] = np.array([spectrum])
        if not self.dense:
            # If the objective has decreased this little, the diagonal has changed little.
            settled = abs(new.value - point.value) <= SETTLED * abs(point.value)
            kept = {"factor": M.U} if settled else {}
            kept |= M.learned.named() if M.learned else {}
        elif after_kind == SAMPLED:
            kept = M.named()
        if not self.dense or after_kind == SAMPLED:
            # The error of the quadratic model on the decrease of a whole step.
            missed = math.inf if length != 1.0 else abs(point.value - new.value + 0.5 * slope)
            return new.w, _with_decrement(after | kept, new, M, spectrum, dot, missed)
        basis = Basis.of(state, w.size) if kind != SAMPLED else Basis.none(w.size)
        return new.w, self._factorised(after, new, second, penalty, dot, basis)

    def _preconditioner(
        self,
        w: Array,
        state: State,
        oracle: SecondOrderOracle,
        penalty: Penalty,
        dot: Dot,
        kind: float,
    ) -> Preconditioner:
        if kind != WHOLE:
            oracle.look_at(w)
        if self.dense:
            return Preconditioner.of(state, w.size)
        return Preconditioner(
            state["factor"] if "factor" in state else roots(oracle, penalty), stored(state), dot
        )

    def _next(self, kind: float, poor: bool, moved: bool) -> float:
        """Return the kind of Hessian from which the next step is computed."""
        if not self.dense or not poor:
            return kind
        if kind == SAMPLED:
            return WHOLE if self.whole else REFINED
        return REFINED if kind == WHOLE and not moved else kind

    def _first(
        self, w: Array, state: State, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        kind, M = float(state["kind"][0]), None
        if self.samples and self.start_value is not None:
            descent = SampleDescent(self.samples, self.dense, self.whole)
            point, M, led = descent.lead(w, self.start_value, oracle, penalty, dot)
            if not led and self.dense:
                kind = WHOLE if self.whole else REFINED
        else:
            point = stand(w, oracle, penalty, kind != SAMPLED)
            if self.dense and kind == SAMPLED:
                part = oracle.sample(self.samples[-1]) if self.samples else oracle
                part.look_at(w)
                M = factorise(
                    with_penalty(part.hessian(), penalty, w.size),
                    w,
                    part,
                    penalty,
                    Basis.none(w.size),
                )
        after = _advanced(state, point, dot)
        after["kind"] = np.array([kind])
        if kind != SAMPLED:
            return point.w, self._factorised(after, point, oracle, penalty, dot, Basis.none(w.size))
        return point.w, after | (M.named() if M else {})

    def _factorised(
        self,
        after: State,
        point: Point,
        oracle: SecondOrderOracle,
        penalty: Penalty,
        dot: Dot,
        basis: Basis,
    ) -> State:
        """Return the state with the factor of the Hessian of all rows at the point.

        `basis` is that of an earlier Hessian.
        """
        H = point.H
        if H is None:
            oracle.look_at(point.w)
            H = with_penalty(oracle.hessian(), penalty, point.w.size)
        M = factorise(H, point.w, oracle, penalty, basis)
        if not M.trusted:
            after["kind"] = np.array([REFINED])
        return _with_decrement(after | M.named(), point, M, 1.0, dot)


def polished(w: Array, state: State) -> Array | None:
    """Return the parameters after a Newton step at w (p,), or None.

    It is None if the state holds no factor of the Hessian of all rows at w.
    """
    if "factor" not in state or state["factor"].ndim == 1 or state["kind"][0] == SAMPLED:
        return None
    return w - Preconditioner.of(state, w.size).solve(state["gradient"])


def _advanced(state: State, point: Point, dot: Dot) -> State:
    rest = {name: array for name, array in state.items() if not name.startswith(NEVER_CHANGED)}
    after = advance(rest, point.value, norm(point.g, dot))
    after["gradient"] = point.g
    return after


def _with_decrement(
    after: State,
    point: Point,
    M: Preconditioner,
    spectrum: float,
    dot: Dot,
    unexplained: float = 0.0,
) -> State:
    """Return the state with g'H^-1 g as its `decrement`.

    That is twice what a quadratic would have left of the objective; if losses fall off like
    exponentials, it is all that is left. `spectrum` is the least eigenvalue seen of M^-1 H, and
    `unexplained` what a quadratic model at another point has missed of the last step's change.
    """
    left = dot(point.g, M.solve(point.g)) / min(1.0, spectrum) if M.trusted else math.inf
    return after | {"decrement": np.array([max(left, unexplained)])}
