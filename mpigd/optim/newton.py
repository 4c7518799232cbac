"""Newton's method with a line search, preconditioned by and started from samples of the rows.

The optimum of a small sample is near that of all rows, and its Hessian close to theirs: conjugate
gradients preconditioned with it need few products, each one read of the data. Where a sample says too
little of the rows, the Hessian of all rows takes its place. Steps are cut or lengthened by the objective
along them, which costs no read: it is made of the linear predictors at both ends. Nocedal and Wright,
"Numerical Optimization" (2006), chapters 5 to 7; the inner tolerance after Eisenstat and Walker (SISC 1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State, advance, evaluate, fresh, norm
from mpigd.optim.conjugate import conjugate_gradients
from mpigd.optim.line import LineOracle, best_length
from mpigd.optim.pairs import stored
from mpigd.optim.preconditioner import Preconditioner, factors, roots, with_penalty
from mpigd.optim.sampled import Pulled, pull

LOOSEST, TIGHTEST = 0.2, 1e-3  # inner tolerances
ON_SAMPLE = 40  # most steps on a sample
SAMPLE_RTOL = 0.02  # a sample's optimum is about p / 2m from that of all rows: closer to it, by this factor, will do
NEVER_CHANGED = ("factor", "move", "change")  # arrays of the state that steps share
SETTLED = 0.3  # a relative decrease of the objective up to which the diagonal is not made anew
FLAT = 1e-14  # a decrease that drowns in the rounding of the objective, relative to it
LOST_DIGITS = 1e-10  # relative decreases below this are judged by slopes, not by values
MAX_END_SLOPE = 0.3  # of the slope at its start: a step that ends steeper was too short or too long
# A preconditioner of which a step needs more products, of which a tenth of the curvature is left along some direction,
# or whose step has to be cut to a quarter, is replaced by the Hessian of all rows.
MAX_PRODUCTS = 15
SAMPLED, WHOLE, REFINED = 0.0, 1.0, 2.0  # of whose Hessian steps are made; the last: with products too


class SecondOrderOracle(LineOracle, Protocol):
    """An oracle with second derivatives."""

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

    def sample(self, m: int) -> SecondOrderOracle:
        """The oracle of m rows drawn without replacement."""


@dataclass
class Point:
    """Parameters, value and gradient of the whole objective there, and the Hessian with the penalty's if it was asked for."""

    w: Array
    value: float
    g: Array
    H: Array | None = None


@dataclass(frozen=True)
class Newton:
    """Steps of conjugate gradients on the quadratic model, or of the factorised Hessian of all rows.

    samples: their sizes, ascending, on which the first step descends, one from the other's optimum; the last one
    gives the preconditioner. start_value: the objective at the starting point, which a sample's optimum has to
    undercut; None keeps the starting point. whole: what oracles call the Hessian is all of it. direct: steps are made
    of the Hessian of all rows from the beginning. dense: False where its p^2 numbers are too many: its diagonal then
    preconditions, and what conjugate gradients have learned.
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

    def step(self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot) -> tuple[Array, State]:
        second = cast(SecondOrderOracle, oracle)
        if state["step"][0] == 0:
            return self._first(w, state, second, penalty, dot)
        kind, factor = float(state["kind"][0]), state.get("factor", np.zeros(0))
        point = Point(w, float(state["value"][0]), state["gradient"])
        M = self._preconditioner(w, state, second, penalty, dot, kind)
        spectrum, products = 1.0, 0
        if kind == WHOLE:
            s = -M.solve(point.g)
        else:
            s, spectrum, products = conjugate_gradients(point.g, M, second, penalty, dot, float(state["tolerance"][0]))
        slope = dot(point.g, s)
        new, length = move(point, s, second, penalty, dot, kind != SAMPLED)
        moved = new is not point
        flat = not slope < 0.0 or (not moved and -0.5 * slope <= FLAT * abs(point.value))
        after = _advanced(state, new, dot)
        poor = products > MAX_PRODUCTS or not moved or (kind == SAMPLED and min(4.0 * length, 10.0 * spectrum) < 1.0)
        after_kind = self._next(kind, poor and not flat, moved)
        flat = flat or (not moved and after_kind == kind)
        shrunk = norm(new.g, dot) / (norm(point.g, dot) or 1.0)
        after["tolerance"] = np.array([min(LOOSEST, max(TIGHTEST, shrunk))])
        after["kind"], after["flat"] = np.array([after_kind]), np.array([float(flat)])
        after["spectrum"] = np.array([spectrum])
        if not self.dense:  # where that much is left of the objective, little of the diagonal has changed
            settled = abs(new.value - point.value) <= SETTLED * abs(point.value)
            kept = {"factor": M.U} if settled else {}
            kept |= M.learned.named() if M.learned else {}
        elif after_kind == SAMPLED:
            kept = {"factor": factor}
        if not self.dense or after_kind == SAMPLED:
            missed = math.inf if length != 1.0 else abs(point.value - new.value + 0.5 * slope)
            return new.w, _with_decrement(after | kept, new, M, spectrum, dot, missed)
        return new.w, self._factorised(after, new, second, penalty, dot)

    def _preconditioner(
        self, w: Array, state: State, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot, kind: float
    ) -> Preconditioner:
        factor = state.get("factor", np.zeros(0))
        if kind != WHOLE:
            oracle.look_at(w)
        if self.dense:
            return Preconditioner(factor)
        return Preconditioner(factor if factor.size else roots(oracle, penalty), stored(state), dot)

    def _next(self, kind: float, poor: bool, moved: bool) -> float:
        """Of whose Hessian the next step is made."""
        if not self.dense or not poor:
            return kind
        if kind == SAMPLED:
            return WHOLE if self.whole else REFINED
        return REFINED if kind == WHOLE and not moved else kind

    def _first(self, w: Array, state: State, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot) -> tuple[Array, State]:
        kind, factor = float(state["kind"][0]), np.zeros(0)
        if self.samples and self.start_value is not None:
            point, factor, led = self._from_samples(w, oracle, penalty, dot)
            if not led and self.dense:
                kind = WHOLE if self.whole else REFINED
        else:
            point = stand(w, oracle, penalty, kind != SAMPLED)
            if self.dense and kind == SAMPLED:
                part = oracle.sample(self.samples[-1]) if self.samples else oracle
                part.look_at(w)
                factor = factors(with_penalty(part.hessian(), penalty, w.size))
        after = _advanced(state, point, dot)
        after["kind"] = np.array([kind])
        if kind != SAMPLED:
            return point.w, self._factorised(after, point, oracle, penalty, dot)
        after |= {"factor": factor} if self.dense else {}
        return point.w, after

    def _from_samples(
        self, w: Array, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot
    ) -> tuple[Point, Array, bool]:
        """Where the samples lead, the factor of the last one's Hessian, and whether that was downhill for all rows."""
        there, factor, assumed = w, np.zeros(0), 0.0
        for m in self.samples:
            there, factor = self._on_sample(w, there, oracle.sample(m), factor, m, penalty, dot)
        assumed = cast(float, self.start_value)
        try:
            point = stand(there, oracle, penalty, False)
            if point.value < assumed:
                return point, factor, True
        except NumericalError:  # raised on all ranks together: too far
            pass
        start = stand(w, oracle, penalty, False)
        t = best_length(start.w, there - start.w, start.g, oracle, penalty, dot)
        return (stand(w + t * (there - w), oracle, penalty, False) if t > 0.0 else start), factor, False

    def _on_sample(
        self, w0: Array, w: Array, part: SecondOrderOracle, factor: Array, m: int, penalty: Penalty, dot: Dot
    ) -> tuple[Array, Array]:
        """Newton steps on a sample until they gain less than its optimum's own error asks for.

        What the sample does not determine is pulled towards w0 (sampled.py). Without a `factor` from a smaller sample
        steps are made of the Hessian; with one they are conjugate gradients: a Hessian of many columns costs as much as
        many products.
        """
        direct = self.dense and self.whole and not factor.size
        own = pull(penalty, w0, part, m)
        point = stand(w, part, own, direct)
        for _ in range(ON_SAMPLE):
            M = self._on_sample_preconditioner(point, part, factor, own)
            factor = M.U
            gain = 0.5 * dot(point.g, M.solve(point.g))
            if not gain > SAMPLE_RTOL * w.size / m * abs(point.value):
                break
            if point.H is None:
                part.look_at(point.w)
            s = -M.solve(point.g) if direct else conjugate_gradients(point.g, M, part, own, dot, LOOSEST)[0]
            new, _ = move(point, s, part, own, dot, direct)
            if new is point:
                break
            point = new
        if not self.dense:
            return point.w, np.zeros(0)
        if not direct:
            part.look_at(point.w)
            factor = factors(with_penalty(part.hessian(), own, w.size))
        # The last step is that of Newton: what it finds needs no evaluation.
        return point.w - Preconditioner(factor).solve(point.g), factor

    def _on_sample_preconditioner(
        self, point: Point, part: SecondOrderOracle, factor: Array, own: Pulled
    ) -> Preconditioner:
        if point.H is not None:
            return Preconditioner(factors(point.H))
        if self.dense and factor.size:
            return Preconditioner(factor)
        part.look_at(point.w)
        if not self.dense:
            return Preconditioner(roots(part, own))
        return Preconditioner(factors(with_penalty(part.hessian(), own, point.w.size)))

    def _factorised(self, after: State, point: Point, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot) -> State:
        """The state with the factor of the Hessian of all rows at the point."""
        H = point.H
        if H is None:
            oracle.look_at(point.w)
            H = with_penalty(oracle.hessian(), penalty, point.w.size)
        M = Preconditioner(factors(H))
        return _with_decrement(after | {"factor": M.U}, point, M, 1.0, dot)


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


def _advanced(state: State, point: Point, dot: Dot) -> State:
    rest = {name: array for name, array in state.items() if not name.startswith(NEVER_CHANGED)}
    after = advance(rest, point.value, norm(point.g, dot))
    after["gradient"] = point.g
    return after


def _with_decrement(
    after: State, point: Point, M: Preconditioner, spectrum: float, dot: Dot, unexplained: float = 0.0
) -> State:
    """The state with g'H^-1 g, twice what a quadratic would have left of the objective: where losses fall off like
    exponentials, that is all of it. spectrum: the least eigenvalue seen of M^-1 H; unexplained: what a model of the
    objective at another point has missed of the last step's change."""
    left = dot(point.g, M.solve(point.g)) / min(1.0, spectrum)
    return after | {"decrement": np.array([max(left, unexplained)])}
