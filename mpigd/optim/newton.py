"""Newton's method in a trust region, preconditioned by and started from samples of the rows.

The optimum of a small sample is near that of all rows, and its Hessian close to theirs: conjugate gradients preconditioned
with it need few products, each one read. Steihaug, "The conjugate gradient method and trust regions in large scale
optimization" (SINUM 1983); Nocedal and Wright, "Numerical Optimization" (2006), chapters 4 and 7; the inner tolerance
after Eisenstat and Walker (SISC 1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State, advance, evaluate, fresh, norm
from mpigd.optim.pairs import stored
from mpigd.optim.preconditioner import Preconditioner, factors, roots, with_penalty

LOOSEST, TIGHTEST = 0.2, 1e-3  # inner tolerances
INNER, ON_SAMPLE = 200, 40  # most products in a step, most steps on a sample
ENOUGH = 0.02  # a sample's optimum is no closer to that of all rows than about p / 2m: half a per cent of it will do
LARGE = ("factor", "hessian", "move", "change")  # in the state, and never changed in place
SETTLED = 0.3  # a relative decrease of the objective up to which the diagonal is not made anew
FLAT = 1e-14  # a decrease that drowns in the rounding of the objective, relative to it


class SecondOrderOracle(OracleLike, Protocol):
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

    def sample(self, m: int) -> SecondOrderOracle:
        """The oracle of m rows drawn without replacement."""


@dataclass
class Point:
    """Where an iteration stands: parameters, value and gradient of the whole objective; the radius of trust around it.

    H: the Hessian with the penalty's, where steps are made of it.
    """

    w: Array
    value: float
    g: Array
    radius: float = math.inf
    tolerance: float = LOOSEST
    moved: bool = True
    flat: bool = False
    H: Array | None = None


@dataclass(frozen=True)
class Newton:
    """Each step: conjugate gradients on the quadratic model within the radius, then one evaluation that takes or refuses it.

    samples: their sizes, ascending, that the first step descends on, one from the other's
    optimum; the last one gives the preconditioner. descend: False keeps the starting point. whole: what oracles call the
    Hessian is all of it. direct: that of all rows, factorised anew in every step, in place of conjugate gradients. dense:
    False where its p^2 numbers are too many: its diagonal then preconditions, and what conjugate gradients have learned.
    """

    samples: tuple[int, ...]
    descend: bool = True
    whole: bool = True
    direct: bool = False
    dense: bool = True
    name = "newton"

    def start(self, w: Array) -> State:
        state = fresh("gradient", like=w)
        return state | {"radius": np.array([math.inf]), "tolerance": np.array([LOOSEST]), "flat": np.zeros(1)}

    def step(self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot) -> tuple[Array, State]:
        return self._step(w, state, cast(SecondOrderOracle, oracle), penalty, dot)

    def _step(self, w: Array, state: State, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot) -> tuple[Array, State]:
        factor = state.get("factor", np.zeros(0))
        if state["step"][0] == 0:
            w, factor = self._begin(w, oracle, penalty, dot)
            return w, _after(state, stand(w, oracle, penalty, self.direct), factor, dot)
        H = state.get("hessian")
        value, radius, tolerance = (float(state[name][0]) for name in ("value", "radius", "tolerance"))
        point = Point(w, value, state["gradient"], radius, tolerance, H=H)
        if H is None:
            oracle.look_at(w)
        if not self.dense:
            M = Preconditioner(factor if factor.size else roots(oracle, penalty), stored(state), dot)
        else:
            M = Preconditioner(factor if H is None else factors(H))
        point = advance_point(point, M, oracle, penalty, dot, self.direct)
        if not self.dense:  # where that much is left of the objective, little of the diagonal has changed
            factor = M.U if abs(point.value - value) <= SETTLED * abs(value) else np.zeros(0)
        return point.w, _after(state, point, factor, dot) | (M.learned.named() if M.learned else {})

    def _begin(self, w: Array, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot) -> tuple[Array, Array]:
        """The optimum of the last sample and the Cholesky factor of its Hessian, where one is wanted."""
        factor = np.zeros(0)
        if self.samples and self.descend:
            for m in self.samples:
                w, factor = self._on_sample(w, oracle.sample(m), factor, w.size / m, penalty, dot)
        elif self.dense and not self.direct:
            part = oracle.sample(self.samples[-1]) if self.samples else oracle
            part.look_at(w)
            factor = factors(with_penalty(part.hessian(), penalty, w.size))
        return w, factor

    def _on_sample(
        self, w: Array, part: SecondOrderOracle, factor: Array, error: float, penalty: Penalty, dot: Dot
    ) -> tuple[Array, Array]:
        """Newton steps on a sample until they gain less than `error`, about its optimum's own, asks for.

        Without a `factor` from a smaller sample they are made of the Hessian; with one they are conjugate gradients: on a
        core a Hessian of many columns costs as much as many products.
        """
        direct = self.dense and self.whole and not factor.size
        point = stand(w, part, penalty, direct)
        for _ in range(ON_SAMPLE):
            if not direct:
                part.look_at(point.w)
                if not self.dense:
                    factor = roots(part, penalty)
                elif not factor.size:
                    factor = factors(with_penalty(part.hessian(), penalty, w.size))
            elif point.moved and point.H is not None:
                factor = factors(point.H)
            M = Preconditioner(factor)
            gain = 0.5 * dot(point.g, M.solve(point.g))
            if point.flat or gain <= ENOUGH * error * abs(point.value):
                break
            point = advance_point(point, M, part, penalty, dot, direct)
        if not self.dense:
            return point.w, np.zeros(0)
        if not direct:
            part.look_at(point.w)
            factor = factors(with_penalty(part.hessian(), penalty, w.size))
        y = Preconditioner(factor).solve(point.g)
        # The last step is that of Newton: what it finds needs no evaluation.
        return (point.w - y if 0.5 * dot(point.g, y) < point.radius * point.radius else point.w), factor


def stand(w: Array, oracle: SecondOrderOracle, penalty: Penalty, direct: bool) -> Point:
    """What is to be known of w."""
    if not direct:
        return Point(w, *evaluate(w, oracle, penalty))
    value, g, H = oracle.derivatives(w)
    penalty.add_gradient(w, g)
    return Point(w, value + penalty.value(w), g, H=with_penalty(H, penalty, w.size))


def _after(state: State, point: Point, factor: Array, dot: Dot) -> State:
    rest = {name: array for name, array in state.items() if not name.startswith(LARGE)}
    after = advance(rest, point.value, norm(point.g, dot))
    after["gradient"] = point.g
    after["radius"], after["tolerance"] = np.array([point.radius]), np.array([point.tolerance])
    after["flat"] = np.array([float(point.flat)])
    if point.H is not None:
        after["hessian"] = point.H
    return after | ({"factor": factor} if factor.size else {})


def advance_point(point: Point, M: Preconditioner, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot, direct: bool) -> Point:
    """One step from `point`, at which the oracle looks; `direct`: M is the Hessian there. The same point if refused."""
    if direct:
        s, gain, length = newton_step(point, M, dot)
    else:
        s, gain, length = steihaug(point, M, oracle, penalty, dot)
    there = point.w + s
    try:
        new = stand(there, oracle, penalty, direct)
    except NumericalError:  # raised on all ranks together: too far
        return replace(point, radius=0.25 * length, moved=False, flat=False)
    change, g = new.value - point.value, new.g
    if gain <= 1e-6 * abs(point.value):  # the difference of the values has lost its digits: the trapezoid of the slopes
        change = 0.5 * (dot(point.g, s) + dot(g, s))
    ratio = -change / gain if gain > 0.0 else 0.0
    radius = point.radius
    if not ratio > 0.25:
        radius = 0.25 * length
    elif ratio > 0.75 and length >= 0.99 * point.radius:
        radius = 2.0 * point.radius
    if not ratio > 1e-4:
        flat = gain <= FLAT * abs(point.value)
        return replace(point, radius=radius, moved=False, flat=flat)
    shrunk = norm(g, dot) / (norm(point.g, dot) or 1.0)
    return replace(new, radius=radius, tolerance=min(LOOSEST, max(TIGHTEST, shrunk)), flat=not dot(g, g) > 0.0)


def newton_step(point: Point, M: Preconditioner, dot: Dot) -> tuple[Array, float, float]:
    """-M^-1 g, cut to the radius: the step, the model's decrease, the step's length in the norm of M."""
    s = -M.solve(point.g)
    square = -dot(point.g, s)
    length = math.sqrt(max(0.0, square))
    cut = min(1.0, point.radius / length) if length > 0.0 else 1.0
    return cut * s, (cut - 0.5 * cut * cut) * square, cut * length


def steihaug(
    point: Point, M: Preconditioner, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot
) -> tuple[Array, float, float]:
    """Conjugate gradients on the model until its gradient, in the norm of M^-1, has shrunk to the tolerance or the
    radius is met: the step, the model's decrease, the step's length in the norm of M."""
    s, r = np.zeros_like(point.w), -point.g
    y = M.solve(r)
    d, ry = y, dot(r, y)
    first, gain = ry, 0.0
    ss, sd, dd = 0.0, 0.0, ry  # products of s and d in M: by recurrence
    for _ in range(INNER):
        if not ry > point.tolerance * point.tolerance * first or ry <= 0.0:
            break
        Hd = oracle.hessian_vector(d)
        penalty.add_gradient(d, Hd)
        M.learn(d, Hd)
        bend = dot(d, Hd)
        alpha = ry / bend if bend > 0.0 else math.inf
        if not ss + 2.0 * alpha * sd + alpha * alpha * dd < point.radius * point.radius:
            # Without a boundary and without curvature along d there is no step of the model: that of the preconditioner.
            room = point.radius * point.radius - ss
            far = (-sd + math.sqrt(max(0.0, sd * sd + dd * room))) / dd if math.isfinite(point.radius) else 1.0
            return s + far * d, gain + far * ry - 0.5 * far * far * bend, min(point.radius, math.sqrt(dd))
        s = s + alpha * d
        gain += 0.5 * alpha * ry
        ss, sd = ss + 2.0 * alpha * sd + alpha * alpha * dd, sd + alpha * dd
        r = r - alpha * Hd
        y = M.solve(r)
        ry, before = dot(r, y), ry
        beta = ry / before
        d = y + beta * d
        sd, dd = beta * sd, ry + beta * beta * dd
    return s, gain, math.sqrt(ss)
