"""Optimisers against references in plain numpy, step by step.

Learning rates are compared with their formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from mpigd.errors import NumericalError
from mpigd.model.penalties import L2
from mpigd.optim.accelerated import Accelerated
from mpigd.optim.base import State
from mpigd.optim.first_order import FIRST_ORDER, Momentum, Nesterov
from mpigd.optim.schedules import SCHEDULES, Rate, cos_pi
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
STEPS = 5
LR = 0.1


@dataclass
class Quadratic:
    """(w - target)' H (w - target) / 2: an oracle that counts how often it is asked."""

    H: Array
    target: Array
    asked: int = 0

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        self.asked += 1
        e = w - self.target
        return 0.5 * float(e @ self.H @ e), self.H @ e


def quadratic(p: int = 6, seed: int = 0, condition: float = 30.0) -> Quadratic:
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(p, p)))[0]
    return Quadratic(Q @ np.diag(np.geomspace(1 / condition, 1, p)) @ Q.T, rng.normal(size=p) * 3)


def walk(
    optimizer: Any, oracle: Any, penalty: L2, w: Array, steps: int = STEPS
) -> tuple[list[Array], State]:
    state, path = optimizer.start(w), []
    for _ in range(steps):
        w, state = optimizer.step(w, state, oracle, penalty, vector.dot)
        path.append(w)
    return path, state


# References: each takes the gradient of objective and penalty and returns the path of the iterates.
# They are written from the papers, not from mpigd.

Gradient = Callable[[Array], Array]


def sgd(g: Gradient, w: Array) -> list[Array]:
    path = []
    for _ in range(STEPS):
        w = w - LR * g(w)
        path.append(w)
    return path


def momentum(g: Gradient, w: Array, mu: float = 0.9) -> list[Array]:
    path, v = [], np.zeros_like(w)
    for _ in range(STEPS):
        v = mu * v + g(w)
        w = w - LR * v
        path.append(w)
    return path


def nesterov(g: Gradient, w: Array, mu: float = 0.9) -> list[Array]:
    """Nesterov's momentum after Sutskever et al. (2013): velocity v = mu v - lr g(w + mu v).

    The path is that of the shifted variable w + mu v, where the gradient is evaluated.
    """
    path, v, center = [], np.zeros_like(w), w.copy()
    for _ in range(STEPS):
        v = mu * v - LR * g(center + mu * v)
        center = center + v
        path.append(center + mu * v)
    return path


def adagrad(g: Gradient, w: Array) -> list[Array]:
    path, total = [], np.zeros_like(w)
    for _ in range(STEPS):
        total = total + g(w) ** 2
        w = w - LR * g(w) / (np.sqrt(total) + 1e-8)
        path.append(w)
    return path


def rmsprop(g: Gradient, w: Array) -> list[Array]:
    path, mean = [], np.zeros_like(w)
    for _ in range(STEPS):
        mean = 0.9 * mean + 0.1 * g(w) ** 2
        w = w - LR * g(w) / (np.sqrt(mean) + 1e-8)
        path.append(w)
    return path


def adam(g: Gradient, w: Array, decay: float = 0.0) -> list[Array]:
    path, m, v = [], np.zeros_like(w), np.zeros_like(w)
    for t in range(1, STEPS + 1):
        slope = g(w)
        w = w * (1 - LR * decay)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        w = w - LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        path.append(w)
    return path


REFERENCES = dict(
    sgd=sgd, momentum=momentum, nesterov=nesterov, adagrad=adagrad, rmsprop=rmsprop, adam=adam
)


def test_every_optimizer_has_a_reference() -> None:
    assert set(FIRST_ORDER) == {*REFERENCES, "adamw"}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_five_steps(name: str, l2: float) -> None:
    """The ridge penalty is part of the gradient; a weight of zero exempts the intercept."""
    oracle, weights, w = quadratic(), np.array([1.0, 1, 2, 0.5, 1, 0]), np.linspace(-1, 2, 6)
    path, state = walk(FIRST_ORDER[name](Rate(LR)), oracle, L2(l2, weights), w)
    expected = REFERENCES[name](lambda w: oracle.H @ (w - oracle.target) + l2 * weights * w, w)
    np.testing.assert_allclose(path, expected, rtol=1e-12)
    assert state["step"][0] == STEPS


def test_adamw_shrinks_apart_from_the_gradient() -> None:
    oracle, weights, w = quadratic(), np.array([1.0, 1, 1, 1, 1, 0]), np.linspace(-1, 2, 6)
    path, _ = walk(FIRST_ORDER["adamw"](Rate(LR)), oracle, L2(0.5, weights), w)
    expected = adam(lambda w: oracle.H @ (w - oracle.target), w, decay=0.5 * weights)  # type: ignore[arg-type]
    np.testing.assert_allclose(path, expected, rtol=1e-12)
    with_penalty = walk(FIRST_ORDER["adam"](Rate(LR)), oracle, L2(0.5, weights), w)[0]
    assert np.abs(np.array(path) - with_penalty).max() > 1e-2, (
        "which is not Adam with the penalty in its gradient"
    )


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.99])
def test_the_momentum_is_what_was_asked_for(mu: float) -> None:
    oracle, w, none = quadratic(), np.zeros(6), L2(0.0, np.ones(6))
    gradient = lambda w: oracle.H @ (w - oracle.target)  # noqa: E731
    for kind, reference in ((Momentum, momentum), (Nesterov, nesterov)):
        path = walk(kind(Rate(LR), None, mu), oracle, none, w)[0]
        np.testing.assert_allclose(path, reference(gradient, w, mu), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_step_can_be_repeated(name: str) -> None:
    """Neither parameters nor state are changed in place."""
    optimizer, oracle, penalty, w = (
        FIRST_ORDER[name](Rate(LR)),
        quadratic(),
        L2(0.1, np.ones(6)),
        np.ones(6),
    )
    state = walk(optimizer, oracle, penalty, w, 3)[1]
    before = {key: array.copy() for key, array in state.items()}
    first, again = (optimizer.step(w, state, oracle, penalty, vector.dot) for _ in range(2))
    np.testing.assert_array_equal(w, 1.0)
    np.testing.assert_array_equal(first[0], again[0])
    for key, array in before.items():
        np.testing.assert_array_equal(state[key], array)
        np.testing.assert_array_equal(first[1][key], again[1][key])
        assert first[1][key] is not state[key]


@pytest.mark.parametrize("longest", [1e-3, 0.7, 1e9])
def test_clipping_by_norm(longest: float) -> None:
    oracle, w = quadratic(), np.zeros(6)
    g = oracle.value_and_gradient(w)[1]
    path, state = walk(FIRST_ORDER["sgd"](Rate(1.0), longest), oracle, L2(0.0, np.ones(6)), w, 1)
    np.testing.assert_allclose(-path[0], g * min(1.0, longest / np.linalg.norm(g)), rtol=1e-13)
    assert state["gradient_norm"][0] == pytest.approx(np.linalg.norm(g)), (
        "what is reported is the norm before"
    )


def test_the_clipped_gradient_has_the_penalty_in_it() -> None:
    w = np.full(6, 100.0)
    path, _ = walk(FIRST_ORDER["sgd"](Rate(1.0), 0.5), quadratic(), L2(10.0, np.ones(6)), w, 1)
    assert np.linalg.norm(path[0] - w) == pytest.approx(0.5)


# Learning rates.


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("constant", lambda t: 1.0),
        ("inverse", lambda t: 1 / (1 + t / 10)),
        ("cosine", lambda t: (1 + math.cos(math.pi * min(1, t / 40))) / 2),
        ("root", lambda t: (1 + t) ** -0.5),
    ],
)
def test_schedules(schedule: str, formula: Callable[[int], float]) -> None:
    rate = Rate(0.3, schedule, 0, 40, 10)
    for t in (0, 1, 7, 20, 39, 40, 1000):
        assert rate(t) == pytest.approx(0.3 * formula(t), rel=1e-12, abs=1e-16)
    warm = Rate(0.3, schedule, 4, 40, 10)
    assert [warm(t) / rate(t) for t in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_every_schedule_is_tested() -> None:
    assert set(SCHEDULES) == {"constant", "inverse", "cosine", "root"}


def test_cosine_without_libm() -> None:
    for x in np.linspace(0, 1, 1001):
        assert cos_pi(float(x)) == pytest.approx(math.cos(math.pi * x), abs=2e-15)
    assert (cos_pi(0.0), cos_pi(0.5)) == (pytest.approx(1.0, abs=1e-15), 0.0)


# Accelerated gradients.


def fista(H: Array, target: Array, w: Array, L: float, steps: int) -> list[Array]:
    """FISTA (Beck and Teboulle 2009) with restarts (O'Donoghue and Candes 2015).

    It restarts when the gradient points against the step.
    """
    previous, theta, path = w, 1.0, []
    for _ in range(steps):
        following = (1 + math.sqrt(1 + 4 * theta**2)) / 2
        y = w + (theta - 1) / following * (w - previous)
        g = H @ (y - target)
        moved = y - g / L
        restart = g @ (moved - w) > 0
        previous, w, theta = (moved, moved, 1.0) if restart else (w, moved, following)
        path.append(w)
    return path


def test_accelerated_steps() -> None:
    oracle, w = quadratic(), np.zeros(6)
    path = walk(Accelerated(1.0), oracle, L2(0.0, np.ones(6)), w, 40)[0]
    np.testing.assert_allclose(
        path, fista(oracle.H, oracle.target, w, 1.0, 40), rtol=1e-9, atol=1e-12
    )
    assert oracle.asked == 40, "one evaluation a step"


def test_acceleration_pays() -> None:
    """Acceleration takes about sqrt(condition) log(1 / accuracy) steps.

    Plain descent takes condition log(1 / accuracy).
    """
    oracle = quadratic(condition=1e4)
    path = walk(Accelerated(1.0), oracle, L2(0.0, np.ones(6)), np.zeros(6), 1500)[0]
    plain = walk(FIRST_ORDER["sgd"](Rate(1.0)), oracle, L2(0.0, np.ones(6)), np.zeros(6), 1500)[0]
    first = oracle.value_and_gradient(np.zeros(6))[0]
    assert oracle.value_and_gradient(path[-1])[0] < 1e-12 * first
    assert oracle.value_and_gradient(plain[-1])[0] > 1e-4 * first


@dataclass
class Exponential:
    """The objective sum exp(w) - 2 w, whose optimum is log 2.

    It has no curvature bound, and is not finite if w is large.
    """

    trouble: list[float] = field(default_factory=list)

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        if w.max() > 50:
            self.trouble.append(float(w.max()))
            raise NumericalError("a loss or gradient is not finite")
        return float(np.sum(np.exp(w) - 2 * w)), np.exp(w) - 2


@pytest.mark.parametrize("curvature", [1e-6, 1.0, 1e6])
def test_backtracking_finds_the_curvature(curvature: float) -> None:
    """Backtracking works from any first guess of the curvature.

    If the guess is far too small, steps meet numbers that are not finite, and shrink.
    """
    oracle = Exponential()
    path, state = walk(
        Accelerated(curvature, backtrack=True),
        oracle,
        L2(0.0, np.ones(3)),
        np.array([-3.0, 0.0, 4.0]),
        250,
    )
    np.testing.assert_allclose(path[-1], math.log(2), atol=1e-6)
    assert bool(oracle.trouble) == (curvature < 1e-3)
    assert 0.1 < state["curvature"][0] < 100


def test_backtracking_descends() -> None:
    oracle, penalty = Exponential(), L2(0.3, np.ones(3))
    path = walk(Accelerated(1e-3, backtrack=True), oracle, penalty, np.array([-3.0, 0.0, 4.0]), 60)[
        0
    ]
    values = [oracle.value_and_gradient(w)[0] + penalty.value(w) for w in path]
    assert min(values) == pytest.approx(values[-1], rel=1e-9)
    slope = np.exp(path[-1]) - 2 + 0.3 * path[-1]
    assert np.abs(slope).max() < 1e-5


def test_at_the_optimum_nothing_moves() -> None:
    oracle = quadratic()
    for optimizer in (
        Accelerated(1.0),
        Accelerated(1.0, backtrack=True),
        *(kind(Rate(LR)) for kind in FIRST_ORDER.values()),
    ):
        path, state = walk(optimizer, oracle, L2(0.0, np.ones(6)), oracle.target.copy())
        np.testing.assert_array_equal(path[-1], oracle.target)
        assert state["gradient_norm"][0] == 0.0
