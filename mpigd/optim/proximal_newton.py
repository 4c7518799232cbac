"""Proximal Newton with working sets, for l1, elastic net and bounds.

Each step chooses the columns whose coefficients are not zero, or are pulled away from zero. It
minimises the objective over these alone by Newton steps on their own matrix, X (n, s), and then
evaluates the gradient of all columns once. The Hessian is that of s columns, summed exactly. Its
quadratic model with the penalty's kinks is minimised by coordinate descent (quadratic_model.py).

References
----------
Lee, Sun, Saunders, "Proximal Newton-type methods" (SIAM J. Optim. 2014); working sets after
Massias, Gramfort, Salmon, "Celer" (ICML 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.penalties import ElasticNet, Penalty
from mpigd.optim import quadratic_model as quadratic
from mpigd.optim.accelerated import Accelerated
from mpigd.optim.base import (
    SAMPLE_RTOL,
    Array,
    Dot,
    OracleLike,
    State,
    advance,
    evaluate,
    fresh,
    norm,
)

FEWEST = 64  # the least number of columns of a working set
# The most Newton steps in a working set, the most steps on a sample, and how often a step may be
# cut in half.
INNER, ON_SAMPLE, HALVINGS = 20, 40, 40
# Steps in a working set end if its own subgradient is below this fraction of that of all columns.
BETTER = 0.1
DECREASE = 1e-4  # the least decrease of a step, relative to what the model predicts
# Decreases relative to the objective: below the first, slopes judge them; the second is rounding.
DROWNED, FLAT = 1e-9, 1e-15
# For a model of more than LITTLE parameters, this share of its subgradient may be left. To find
# its minimum would then take as long as a Hessian, and it is not the minimum of the objective,
# unless the objective is quadratic.
ROUGH, LITTLE = 0.02, 600
LARGER = 3.0  # the least ratio of a sample's size to the one before
# Steps of FISTA, if more coefficients are not zero than a Hessian may have columns.
FIRST_ORDER_STEPS = 20


class ColumnOracle(OracleLike, Protocol):
    """An oracle with second derivatives, available for some of the columns or rows alone."""

    @property
    def quadratic(self) -> bool:
        """Whether the objective is its own quadratic model."""

    def look_at(self, w: Array) -> None: ...

    def hessian(self) -> Array: ...

    def columns(self, chosen: Array) -> ColumnOracle | None:
        """Return the oracle of the chosen columns, with all other coefficients zero.

        Returns None if the rows are not in memory.
        """

    def sample(self, m: int) -> ColumnOracle: ...


@dataclass
class Point:
    """Parameters, objective, gradient of its smooth part, and decrease that the model predicted.

    `flat` says that no further decrease was found.
    """

    w: Array
    value: float
    g: Array
    promise: float = 0.0
    flat: bool = False


@dataclass(frozen=True)
class ProximalNewton:
    """Proximal Newton with working sets.

    Parameters
    ----------
    k : int
        Number of outputs.
    intercept : bool
        Whether the last parameter of each output is an intercept.
    samples : tuple of int
        Sizes of the samples, ascending, on which the first step descends.
    largest : int
        The most numbers that a Hessian may have.
    """

    k: int
    intercept: bool
    samples: tuple[int, ...]
    largest: int
    name = "proximal-newton"

    def start(self, w: Array) -> State:
        return fresh("gradient", like=w) | {"flat": np.zeros(1), "curvature": np.ones(1)}

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        net, source = with_kinks(penalty), cast(ColumnOracle, oracle)
        curvature = float(state["curvature"][0])
        if state["step"][0] == 0:
            w = w.copy()
            net.prox(w, 0.0)  # move w into the bounds
            point = self._begin(Point(w, *evaluate(w, oracle, net)), source, net, dot)
        else:
            point, curvature = self._improve(
                Point(w, float(state["value"][0]), state["gradient"]), source, net, dot, curvature
            )
        after = advance(state, point.value, norm(net.subgradient(point.w, point.g), dot))
        after["gradient"], after["flat"] = point.g, np.array([float(point.flat)])
        after["curvature"][0] = curvature
        return point.w, after

    def _begin(self, point: Point, oracle: ColumnOracle, net: ElasticNet, dot: Dot) -> Point:
        """Return the optimum of the last sample, or the starting point.

        The starting point is kept unless the objective of all rows is smaller at the optimum of the
        sample. A sample says nothing about rows that are few and of great weight, and what it does
        not determine may lie far away.
        """
        w = point.w
        try:
            for m in spread(self.samples):
                w = self._on_sample(w, oracle.sample(m), w.size / m, net, dot)
            there = Point(w, *evaluate(w, oracle, net)) if w is not point.w else point
        except NumericalError:  # all ranks raise it together
            return point
        return there if there.value < point.value else point

    def _on_sample(
        self, w: Array, part: ColumnOracle, error: float, net: ElasticNet, dot: Dot
    ) -> Array:
        point, curvature = Point(w, *evaluate(w, part, net)), 1.0
        for _ in range(ON_SAMPLE):
            point, curvature = self._improve(point, part, net, dot, curvature)
            if point.flat or point.promise <= SAMPLE_RTOL * error * abs(point.value):
                break
        return point.w

    def _improve(
        self, point: Point, oracle: ColumnOracle, net: ElasticNet, dot: Dot, curvature: float
    ) -> tuple[Point, float]:
        """Take one step over all columns, from a point at which their gradient is known."""
        p = point.w.size // self.k
        chosen = self.working_set(point, net)
        if chosen is None and self.k * p * p <= self.largest:
            return newton_step(point, oracle, net, dot), curvature
        part = None if chosen is None else oracle.columns(chosen)
        if chosen is None or part is None:
            return _accelerate(point, oracle, net, dot, curvature)
        places = self._places(chosen, p)
        own, inner = net.take(places), Point(point.w[places], point.value, point.g[places])
        goal = BETTER * norm(net.subgradient(point.w, point.g), dot)
        promise = 0.0
        for _ in range(INNER):
            inner = newton_step(inner, part, own, dot)
            promise = max(promise, inner.promise)
            if inner.flat or norm(own.subgradient(inner.w, inner.g), dot) <= goal:
                break
        moved = np.zeros_like(point.w)
        moved[places] = inner.w
        value, g = evaluate(moved, oracle, net)
        left = norm(net.subgradient(moved, g), dot)
        stuck = inner.flat and not left < norm(net.subgradient(point.w, point.g), dot)
        return Point(moved, value, g, promise, stuck), curvature

    def working_set(self, point: Point, net: ElasticNet) -> Array | None:
        """Return the columns of the working set, ascending.

        They are those whose coefficients are not zero, and as many again of steepest descent, but
        at least FEWEST in all.

        Parameters
        ----------
        point : Point
            Parameters (k * p,) and gradient.
        net : ElasticNet
            Penalty.

        Returns
        -------
        array or None
            Numbers of columns. None stands for all columns, or means that a Hessian has no room for
            new ones.
        """
        k, d = self.k, point.w.size // self.k - self.intercept
        W = point.w.reshape(k, -1)[:, :d]
        pull = np.abs(net.subgradient(point.w, point.g)).reshape(k, -1)[:, :d].max(axis=0)
        held = (W != 0.0).any(axis=0)
        pull[held] = np.inf
        size = max(FEWEST, 2 * int(np.count_nonzero(held)))
        most = math.isqrt(self.largest // k) - 1
        if (2 * size >= d and d <= most) or 2 * np.count_nonzero(held) > most:
            return None
        order = np.argsort(-pull, kind="stable")[: min(size, most)]
        return np.sort(order[pull[order] > 0.0])

    def _places(self, chosen: Array, p: int) -> Array:
        """Return the indices of the chosen columns and of the intercepts among the parameters."""
        one = np.append(chosen, [p - 1] * self.intercept).astype(np.int64)
        return np.concatenate([one + q * p for q in range(self.k)])


def spread(samples: tuple[int, ...]) -> tuple[int, ...]:
    """Drop sizes of samples that the next size hardly exceeds: its own steps cost little more."""
    return tuple(
        m
        for m, after in zip(samples, (*samples[1:], math.inf), strict=False)
        if after >= LARGER * m
    )


def with_kinks(penalty: Penalty) -> ElasticNet:
    """Return the penalty as an elastic net, possibly without l1 and bounds."""
    if isinstance(penalty, ElasticNet):
        return penalty
    weights, strength = penalty.weights, penalty.strength  # type: ignore[attr-defined]
    far = np.full_like(weights, np.inf)
    return ElasticNet(strength, weights, np.zeros_like(weights), -far, far)


def newton_step(point: Point, oracle: ColumnOracle, net: ElasticNet, dot: Dot) -> Point:
    """Move to the minimum of the quadratic model, or towards it until the objective falls enough.

    Parameters
    ----------
    point : Point
        Parameters (k * m,), objective and gradient there.
    oracle : ColumnOracle
        Objective without its penalty.
    net : ElasticNet
        Penalty on these parameters.
    dot : Dot
        Inner product.

    Returns
    -------
    Point
        The new point; `flat` is set if no decrease is left.
    """
    oracle.look_at(point.w)
    H = oracle.hessian()
    m = H.shape[1]
    tolerance = ROUGH if m > LITTLE and not oracle.quadratic else quadratic.SOLVED
    target = np.empty_like(point.w)
    for q, block in enumerate(H):
        part = np.arange(q * m, (q + 1) * m)
        own = net.take(part)
        block[np.diag_indices(m)] += own.strength * own.weights
        target[part] = quadratic.minimize(block, point.g[part], point.w[part], own, dot, tolerance)
    promise = -_change(point, target, net, dot)
    if not promise > 0.0:
        return Point(point.w, point.value, point.g, 0.0, flat=True)
    t = 1.0
    for _ in range(HALVINGS):
        there = target if t == 1.0 else point.w + t * (target - point.w)
        net.prox(there, 0.0)
        found = _look(there, oracle, net, promise)
        if found is not None and _fell(point, found, net, dot) >= DECREASE * t * promise:
            found.flat = promise <= FLAT * abs(point.value)
            return found
        t *= 0.5
        if t * promise <= FLAT * abs(point.value):
            break
    return Point(point.w, point.value, point.g, promise, flat=True)


def _look(w: Array, oracle: OracleLike, net: ElasticNet, promise: float) -> Point | None:
    try:
        return Point(w, *evaluate(w, oracle, net), promise)
    except NumericalError:  # all ranks raise it together: the step is too long
        return None


def _change(point: Point, there: Array, net: ElasticNet, dot: Dot) -> float:
    """Return the change of the objective by its linear model, kinks included."""
    return dot(point.g, there - point.w) + dot(net.l1, np.abs(there) - np.abs(point.w))


def _fell(point: Point, found: Point, net: ElasticNet, dot: Dot) -> float:
    """Return the decrease of the objective.

    If the values have lost their digits, it is computed from the slopes by the trapezoidal rule.
    """
    if found.promise > DROWNED * abs(point.value):
        return point.value - found.value
    step = found.w - point.w
    return -0.5 * (
        _change(point, found.w, net, dot)
        + dot(found.g, step)
        + dot(net.l1, np.abs(found.w) - np.abs(point.w))
    )


def _accelerate(
    point: Point, oracle: OracleLike, net: ElasticNet, dot: Dot, curvature: float
) -> tuple[Point, float]:
    """Take some steps of FISTA, if there are too many columns for a Hessian."""
    w, fista = point.w, Accelerated(curvature, backtrack=True)
    state = fista.start(w)
    for _ in range(FIRST_ORDER_STEPS):
        w, state = fista.step(w, state, oracle, net, dot)
    value, g = evaluate(w, oracle, net)
    return Point(w, value, g, max(0.0, point.value - value)), float(state["curvature"][0])
