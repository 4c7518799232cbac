"""Parts of second-order steps: strong-Wolfe line search, long steps, conjugate gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mpigd.errors import NumericalError
from mpigd.model.penalties import L2
from mpigd.optim.conjugate_gradients import conjugate_gradients
from mpigd.optim.lbfgs import LBFGS, Trial, search
from mpigd.optim.lbfgs_memory import Pairs
from mpigd.optim.preconditioner import Preconditioner
from mpigd_kernels import linalg, vector

Array = np.ndarray[Any, Any]


class Wall:
    """-log(1 - |w|^2) + w_0: finite inside the unit ball, refused outside."""

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        room = 1.0 - float(w @ w)
        if room <= 0.0:
            raise NumericalError("outside")
        return -math.log(room) + float(w[0]), 2 * w / room + np.eye(w.size)[0]


def test_a_trial_that_is_not_finite_is_a_step_too_long() -> None:
    w, optimizer, oracle = np.array([0.6, 0.6, 0.1]), LBFGS(), Wall()
    state = optimizer.start(w)
    for _ in range(20):
        w, state = optimizer.step(w, state, oracle, L2(0.0, np.ones(3)), vector.dot)
    np.testing.assert_allclose(w, [1 - math.sqrt(2), 0, 0], atol=1e-7)


def test_states_share_their_pairs() -> None:
    """States share their pairs instead of copying them, and a step can still be repeated.

    With a million parameters a copy of ten pairs in every step would take 160 MB.
    """
    rng = np.random.default_rng(0)
    oracle, optimizer = Quadratic(np.diag(np.geomspace(1.0, 1e4, 30))), LBFGS(memory=3)
    w = rng.standard_normal(30)
    state = optimizer.start(w)
    assert sum(array.nbytes for array in state.values()) < 2 * w.nbytes
    for step in range(6):
        held, before = {name: array.copy() for name, array in state.items()}, state
        moved, state = optimizer.step(w, before, oracle, L2(0.0, np.ones(30)), vector.dot)
        again, _ = optimizer.step(w, before, oracle, L2(0.0, np.ones(30)), vector.dot)
        np.testing.assert_array_equal(moved, again)
        assert all(np.array_equal(before[name], array) for name, array in held.items())
        kept, shift = min(step, 3), int(step >= 3)
        assert sum(name.startswith("move") for name in state) == min(step + 1, 3)
        for i in range(kept - shift):
            assert (
                state[f"move{i}"] is before[f"move{i + shift}"]
                and state[f"change{i}"] is before[f"change{i + shift}"]
            )
        w = moved


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("number", range(4))
def test_strong_wolfe(number: int, first: float) -> None:
    """Functions like the first four of More and Thuente's table (ACM TOMS 1994).

    They are flat, steep, noisy, and with a kink.
    """
    value, slope = [
        (lambda a: -a / (a * a + 2), lambda a: (a * a - 2) / (a * a + 2) ** 2),
        (
            lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4,
            lambda a: 5 * (a + 0.004) ** 4 - 8 * (a + 0.004) ** 3,
        ),
        (lambda a: (a - 3) ** 2 + math.sin(8 * a) / 8, lambda a: 2 * (a - 3) + math.cos(8 * a)),
        (
            lambda a: math.sqrt(1 + (a - 5) ** 2) * 10,
            lambda a: 10 * (a - 5) / math.sqrt(1 + (a - 5) ** 2),
        ),
    ][number]

    def along(a: float) -> Trial:
        return Trial(a, value(a), slope(a), np.zeros(1))

    found = search(along, along(0.0), first)
    assert found is not None
    assert found.value <= value(0.0) + 1e-4 * found.a * slope(0.0)
    assert abs(found.slope) <= 0.9 * abs(slope(0.0))


class Quadratic:
    def __init__(self, H: Array) -> None:
        self.H, self.products = H, 0

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        return 0.5 * float(w @ self.H @ w), self.H @ w

    def hessian_vector(self, v: Array) -> Array:
        self.products += 1
        return np.asarray(self.H @ v)


def test_conjugate_gradients_in_a_trust_region() -> None:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    H, g = Q * np.geomspace(1, 50, 12) @ Q.T, rng.normal(size=12)
    U = (H + np.diag(rng.uniform(0, 0.3, 12)))[np.newaxis].copy()
    M = U[0].copy()
    linalg.cholesky(U[0])
    penalty, solution = L2(0.0, np.ones(12)), -np.linalg.solve(H, g)
    for factor, most in ((U, 8), (np.ones(12), 14)):
        oracle: Any = Quadratic(H)
        s, least, products = conjugate_gradients(
            g, Preconditioner(factor), oracle, penalty, vector.dot, 1e-10
        )
        np.testing.assert_allclose(s, solution, rtol=1e-7, atol=1e-9)
        assert products == oracle.products <= most
        metric = M if factor.ndim == 3 else np.eye(12)
        spectrum = np.linalg.eigvals(np.linalg.solve(metric, H)).real
        assert least == pytest.approx(spectrum.min(), rel=1e-2)
        rough, _, _ = conjugate_gradients(
            g, Preconditioner(factor), oracle, penalty, vector.dot, 0.1
        )
        left, first = H @ rough + g, g @ np.linalg.solve(metric, g)
        assert left @ np.linalg.solve(metric, left) <= 0.01 * first
        gain = -(g @ rough + 0.5 * rough @ H @ rough)
        assert gain == pytest.approx(
            -0.5 * g @ rough, rel=1e-9
        )  # what Newton's method takes for the model's decrease


def test_conjugate_gradients_learn_from_those_before() -> None:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    H, penalty = Q * np.geomspace(1, 50, 30) @ Q.T, L2(0.0, np.ones(30))
    products, pairs = [], Pairs()
    for _ in range(2):
        oracle: Any = Quadratic(H)
        M = Preconditioner(np.sqrt(np.diag(H)), pairs)
        conjugate_gradients(rng.normal(size=30), M, oracle, penalty, vector.dot, 1e-3)
        products.append(oracle.products)
        assert M.learned is not None
        pairs = M.learned
    assert products[1] < products[0]
