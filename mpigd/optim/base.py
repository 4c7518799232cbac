"""What every optimiser shares: the seam to the trainer, and the evaluation of objective plus penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mpigd.model.penalties import Penalty

Array = np.ndarray[Any, Any]
State = dict[str, Array]
Dot = Callable[[Array, Array], float]


class OracleLike(Protocol):
    """The objective without its penalty, on some rows; collective, so every rank must ask it equally often."""

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        """Value and gradient (p,) at w (p,)."""


class Optimizer(Protocol):
    """One kind of parameter step. Never sees MPI.

    `name`; what it needs is in mpigd/training/requirements.py. `state` is named arrays, and a step
    returns new ones, so that it can be repeated; it always holds `step` (1,), `value` (1,) and `gradient_norm` (1,).
    """

    @property
    def name(self) -> str: ...

    def start(self, w: Array) -> State:
        """The state before the first step from w (p,)."""

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        """The parameters and state after one step. Collective."""


def evaluate(w: Array, oracle: OracleLike, penalty: Penalty) -> tuple[float, Array]:
    """Value of objective plus penalty, gradient of their smooth part."""
    value, g = oracle.value_and_gradient(w)
    penalty.add_gradient(w, g)
    return value + penalty.value(w), g


def fresh(*names: str, like: Array) -> State:
    """A state of zeros: the three numbers every optimiser keeps, and the named arrays shaped like `like`."""
    scalars = {name: np.zeros(1) for name in ("step", "value", "gradient_norm")}
    return scalars | {name: np.zeros_like(like) for name in names}


def advance(state: State, value: float, norm: float) -> State:
    """A copy of the state, one step further."""
    numbers = np.array((state["step"].item() + 1.0, value, norm))
    after = {"step": numbers[:1], "value": numbers[1:2], "gradient_norm": numbers[2:]}
    for name, array in state.items():
        if name not in after:
            after[name] = array.copy()
    return after


def norm(g: Array, dot: Dot) -> float:
    return math.sqrt(dot(g, g))


def clip(g: Array, length: float, longest: float | None) -> None:
    """Shorten g, whose norm is `length`, to `longest`."""
    if longest is not None and length > longest:
        g *= longest / length
