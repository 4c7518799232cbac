"""Newton's method for losses with kinks, on a smoothed objective whose smoothing is narrowed.

A step begins at a minimum of the objective that is smoothed over one width. It looks for the
minimum for a narrower width on the rows near their kinks alone, while the gradient of all other
rows is kept constant. A pass over all rows then tells whether that was right, and how far the true
objective may be above its optimum (mpigd/model/smoothing.py): `left` in the state. The run ends
once that bound is small enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.objective import Oracle
from mpigd.model.penalties import Penalty
from mpigd.model.smoothing import Line, Look, Smoothed
from mpigd.optim.base import (
    SAMPLE_RTOL,
    Array,
    Dot,
    OracleLike,
    State,
    advance,
    fresh,
    norm,
)
from mpigd.optim.preconditioner import ridge
from mpigd_kernels import linalg

# Factors by which a width shrinks in a step, and at once within a step.
STEP_NARROWS, STAGE_NARROWS = 16.0, 8.0
INNER = 100  # the most iterations of a step
# Of conjugate gradients: the most products, and the relative residual at which they end.
PRODUCTS, PRECISION = 500, 0.1
ROWS_PER_PARAMETER = 5  # the least number of rows near their kinks, per parameter
# A shift of a Hessian's diagonal, relative to its largest element: a narrow band may hold fewer
# rows than parameters.
SHIFT = 1e-8
# Relative to the first slope: the slopes accepted after a whole step and after a line search.
ACCEPTED, EXACT = 0.5, 0.1
# Trials of a line search, and how many of them may lead beyond a whole step.
TRIALS, EXPANSIONS = 60, 12
CUTS = 10  # the most cuts of a step that meets numbers that are not finite
# Relative to the gap: what may be left to gain before the width shrinks, and what the gradient
# may cost at the last width.
SOLVED, ALMOST = 0.1, 0.01
WIDER = 8.0  # factor on a width after two steps that have not found its minimum
STAGES = 10  # the most widths on a sample
# The share of rows that the error of a sample's margins may carry over their kinks, in units of
# that relative error.
CONCERNED = 2.0
STALLED = 5  # steps without progress that end a run
# Relative to the objective: a bound that is as good as zero, and a gain that is rounding alone.
FLAT, ROUNDING = 1e-13, 1e-24
NARROWEST = 1e-13  # relative to the first width: rounding of the margins leaves no room for less
# The optimum is assumed to be no farther away, in any parameter, than this times the sum of the
# first width and twice the distance moved so far.
REACH = 4.0
# The corner step is tried if the band holds at most this number of rows per parameter: at a
# vertex there is one row per parameter, or more if rows are repeated.
CORNER = 4
# Steps longer than this times the reach are cut, since beyond the kinks there may be nothing that
# holds them.
FAR = 10.0


Solve = Callable[[Array], Array]


@dataclass(frozen=True)
class SmoothedNewton:
    """Newton's method on smoothed objectives of decreasing width.

    Parameters
    ----------
    unit : float
        First width, in units of the linear predictors.
    samples : tuple of int
        Sizes of the samples, ascending, on which the first step descends.
    dense : bool
        False if a Hessian has too many elements; conjugate gradients are used instead.
    """

    unit: float
    samples: tuple[int, ...] = ()
    dense: bool = True
    name = "smoothed-newton"

    def start(self, w: Array) -> State:
        numbers = {"width": self.unit, "limit": 0.0, "lower": 0.0, "left": math.inf}
        numbers |= dict.fromkeys(("missed", "stalled", "flat"), 0.0)
        state = fresh("gradient", "iterate", like=w) | {"first": w.copy()}
        return state | {name: np.array([number]) for name, number in numbers.items()}

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        rows = cast(Oracle, oracle)
        of = Smoothed.of(rows, penalty)
        if state["step"][0] == 0:
            return self._after(*self._begin(w, state, rows, of, dot), of, state, dot)
        width, limit, value, missed = (
            float(state[name][0]) for name in ("width", "limit", "value", "missed")
        )
        # This is too far from the minimum to start with so few rows in the band.
        if missed > 1.0:
            look = of.look(state["iterate"], min(self.unit, WIDER * width))
            limit = max(limit, 2.0 * look.width)
        else:
            look = of.again(state["iterate"], width, state["gradient"])
        solver = self._solver(look.w, state, value, dot)
        narrower = width if missed else width / STEP_NARROWS
        part, here = of.near(look, limit, ROWS_PER_PARAMETER * w.size)
        found = solver.minimize(part, here, narrower)
        if part is not of:
            found = solver.confirm(of, look, found)
        best = replace(look, w=w, value=value)
        # The minimum as the width goes to zero may be a vertex, which the band then determines.
        if self.dense and of.curved(found) <= CORNER * w.size:
            best = min(best, solver.corner(of, found), key=lambda point: point.value)
        return self._after(best, found, of, state, dot)

    def _begin(
        self, w: Array, state: State, oracle: Oracle, of: Smoothed, dot: Dot
    ) -> tuple[Look, Look]:
        """Return the start, and a minimum for the first width.

        In place of the latter it is the last sample's optimum, if that is better than the start.
        """
        first = of.look(w, self.unit)
        solver = self._solver(w, state, first.value, dot)
        there, width = w, self.unit
        for m in self.samples:
            part = Smoothed.of(oracle.sample(m), of.penalty)
            there, width = self._on_sample(there, width, part, solver, w.size / m)
        if self.samples:
            look = of.look(there, width)
            if look.value < first.value:
                return first, look
        return first, solver.minimize(of, first, self.unit)

    def _on_sample(
        self, w: Array, width: float, part: Smoothed, solver: Solver, error: float
    ) -> tuple[Array, float]:
        """Minimise on a sample, to a width at which smoothing costs less than sampling.

        Returns the parameters (p,), and the width with which to begin on all rows.
        """
        look = solver.minimize(part, part.look(w, width), width)
        for _ in range(STAGES):
            if part.gap(look) <= SAMPLE_RTOL * error * abs(look.value):
                break
            look = solver.minimize(part, look, look.width / STAGE_NARROWS)
        # The margins of the other rows are off by about sqrt(error) of their spread: begin with
        # as many rows as may be carried over their kinks by that.
        return look.w, min(
            width, max(look.width, part.within(look, min(1.0, CONCERNED * math.sqrt(error))))
        )

    def _solver(self, w: Array, state: State, value: float, dot: Dot) -> Solver:
        moved = np.abs(w - state["first"]).max(initial=0.0)
        return Solver(dot, self.dense, REACH * (2.0 * float(moved) + self.unit), abs(value))

    def _after(
        self, best: Look, look: Look, of: Smoothed, state: State, dot: Dot
    ) -> tuple[Array, State]:
        """Return the better one of two points, and the state.

        The state holds what is known at `look`, where the next step begins.
        """
        gap, cost = of.gap(look), self._solver(look.w, state, look.value, dot).cost(of, look.g)
        before, lower, missed = (
            float(state["left"][0]),
            float(state["lower"][0]),
            float(state["missed"][0]) + 1.0,
        )
        if cost <= gap:  # otherwise the gradient is too large for the assumed reach
            lower, missed = max(lower, look.value - gap - cost), 0.0
        best = look if look.value < best.value else best
        left = max(0.0, best.value - lower)
        limit = 2.0 * max(look.width, float(state["limit"][0])) if missed else look.width
        stalled = 0.0 if left < 0.99 * before else float(state["stalled"][0]) + 1.0
        flat = (
            left <= FLAT * abs(best.value)
            or stalled >= STALLED
            or not look.width > NARROWEST * self.unit
        )
        after = advance(state, best.value, norm(look.g, dot))
        numbers = {
            "width": look.width,
            "limit": limit,
            "lower": lower,
            "left": left,
            "stalled": stalled,
        }
        numbers |= {"missed": missed, "flat": float(flat)}
        after |= {name: np.array([number]) for name, number in numbers.items()}
        return best.w, after | {"iterate": look.w.copy(), "gradient": look.g.copy()}


@dataclass(frozen=True)
class Solver:
    """Minimise smoothed objectives.

    Parameters
    ----------
    dot : Dot
        Inner product.
    dense : bool
        Whether there is room for a Hessian.
    reach : float
        Assumed bound on the distance of the optimum in any parameter.
    value : float
        Size of the objective.
    """

    dot: Dot
    dense: bool
    reach: float
    value: float

    def minimize(self, of: Smoothed, look: Look, width: float) -> Look:
        """Go from a point at one width to about the minimum for another or the same width.

        Parameters
        ----------
        of : Smoothed
            Smoothed objective.
        look : Look
            Point to start from, with what is known there.
        width : float
            Width of the minimum, at most that of `look`.
        """
        before = math.inf
        for _ in range(INNER):
            if of.strayed(look) or (of.linear is None and look.value == 0.0):
                break  # by the second condition the loss is zero, its least value
            last, gap = not look.width > width, of.gap(look)
            solve = self._inverse(of, look)
            d = self._cut(solve(-look.g))
            gain, length = -0.5 * self.dot(look.g, d), norm(look.g, self.dot)
            left = self.cost(of, look.g) if last else gain
            stuck = not gain > ROUNDING * self.value or (
                gain < FLAT * self.value and length >= before
            )
            new = (
                None
                if stuck or left <= (ALMOST if last else SOLVED) * gap
                else self._advance(of, look, d)
            )
            if new is None and last:
                break
            before = length if new else math.inf
            look = new or self._narrow(of, look, d, solve, max(width, look.width / STAGE_NARROWS))
        return look

    def confirm(self, of: Smoothed, look: Look, found: Look) -> Look:
        """Evaluate on all rows what was found on some.

        Parameters
        ----------
        of : Smoothed
            Smoothed objective of all rows.
        look : Look
            Point on all rows before.
        found : Look
            Point found on the rows near their kinks.

        Returns
        -------
        Look
            The point found, or if that is too far, a point on the way there, which is always
            downhill.
        """
        there = of.look(found.w, found.width)
        line, d = of.line(look, there), found.w - look.w
        slope, after = line.slopes(0.0)[0], self.dot(there.g, d)
        if not slope < 0.0 or after <= ACCEPTED * abs(slope):
            return there
        return of.look(look.w + _search(line, slope, after) * d, found.width)

    def corner(self, of: Smoothed, look: Look) -> Look:
        """Return the limit of the minimum as the width goes to zero, with the values there.

        It assumes that no row enters or leaves its band. The values are those for the width of
        `look`.
        """
        solve = self._inverse(of, look)
        return of.look(look.w + solve(-look.g) + look.width * solve(of.drift(look)), look.width)

    def cost(self, of: Smoothed, g: Array) -> float:
        """Return what a gradient g (p,) may cost.

        It is |g| times the reach, unless a ridge gives a better bound.
        """
        bend, far = ridge(of.penalty, g.size), np.abs(g) * self.reach
        each = np.where(
            bend > 0.0, np.minimum(far, 0.5 * g * g / np.where(bend > 0.0, bend, 1.0)), far
        )
        return self.dot(each, np.ones_like(each))

    def _inverse(self, of: Smoothed, look: Look) -> Solve:
        """Return a function that solves systems of the Hessian, shifted so as to be invertible."""
        bend = ridge(of.penalty, look.w.size)
        H = of.hessian(look) if self.dense else None
        diagonal = bend + (of.diagonal(look) if H is None else H.diagonal())
        shift = SHIFT * (float(diagonal.max(initial=0.0)) or 1.0 / look.width)
        if H is None:
            product = of.product(look)
            return lambda b: _conjugate_gradients(
                lambda v: product(v) + (bend + shift) * v, diagonal + shift, b, self.dot
            )
        H[np.diag_indices_from(H)] = diagonal + shift
        linalg.cholesky(H)
        return lambda b: _substituted(H, b)

    def _cut(self, d: Array) -> Array:
        longest = float(np.abs(d).max(initial=0.0))
        return d * (FAR * self.reach / longest) if longest > FAR * self.reach else d

    def _narrow(self, of: Smoothed, look: Look, d: Array, solve: Solve, width: float) -> Look:
        """Move to the minimum for a narrower width, if no row enters or leaves its band."""
        w = look.w + d + self._cut((look.width - width) * solve(of.drift(look)))
        try:
            return of.look(w, width)
        except NumericalError:  # all ranks raise it together: the step is too long
            return of.look(look.w, width)

    def _advance(self, of: Smoothed, look: Look, d: Array) -> Look | None:
        """Take a step along d, or to the minimum on the way; return None if that is uphill."""
        slope = self.dot(look.g, d)
        for _ in range(CUTS if slope < 0.0 else 0):
            try:
                there = of.look(look.w + d, look.width)
            except NumericalError:  # all ranks raise it together: the step is too long
                d = 0.01 * d
                slope *= 0.01
                continue
            after = self.dot(there.g, d)
            if abs(after) <= ACCEPTED * abs(slope):
                return there
            return of.look(look.w + _search(of.line(look, there), slope, after) * d, look.width)
        return None


def _substituted(U: Array, b: Array) -> Array:
    x = np.empty_like(b)
    linalg.solve(U, b, x)
    return x


def _conjugate_gradients(product: Solve, diagonal: Array, b: Array, dot: Dot) -> Array:
    """Return about H^-1 b, for products with H and its diagonal, which preconditions."""
    x, r = np.zeros_like(b), b.copy()
    y = r / diagonal
    d, ry = y, dot(r, y)
    goal = PRECISION * PRECISION * ry
    for _ in range(PRODUCTS):
        if not ry > goal:
            break
        Hd = product(d)
        alpha = ry / dot(d, Hd)
        x = x + alpha * d
        r = r - alpha * Hd
        y = r / diagonal
        ry, before = dot(r, y), ry
        d = y + (ry / before) * d
    return x


def _search(line: Line, slope: float, after: float) -> float:
    """Return about where a rising slope is zero, which is `slope` < 0 at 0 and `after` at 1."""
    low, high = (0.0, 1.0) if after > 0.0 else (1.0, math.inf)
    t = slope / (slope - after) if after > 0.0 else 2.0
    for trial in range(TRIALS):
        here, bend = line.slopes(t)
        if abs(here) <= EXACT * abs(slope):
            break
        low, high = (low, t) if here > 0.0 else (t, high)
        target = t - here / bend if bend > 0.0 else math.inf
        if math.isinf(high) and trial > EXPANSIONS:
            break
        if math.isinf(high):
            t = min(max(target, 1.5 * t), 8.0 * t)
        else:
            t = target if low < target < high and trial < TRIALS // 6 else 0.5 * (low + high)
    return t
