"""Interfaces of optimisers, and what all of them share.

`Optimizer` is the interface to the trainer, `OracleLike` the one to the data. Optimisers never
call MPI: they call an oracle, which sums over the rows of all ranks, so all ranks take the same
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mpigd.model.penalties import Penalty

Array = np.ndarray[Any, Any]
State = dict[str, Array]
Dot = Callable[[Array, Array], float]
# The optimum of a sample of m rows has an objective about p / 2m (relative) above that of all rows.
# A minimisation on the sample ends once it has less than this share of p / m to gain, which is 4 %
# of that distance.
SAMPLE_RTOL = 0.02


class OracleLike(Protocol):
    """The objective without its penalty, on some rows.

    Collective: every rank must call it equally often.
    """

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        """Return the value and the gradient (p,) at w (p,)."""


class Optimizer(Protocol):
    """An optimisation method, which takes one step at a time. It never calls MPI.

    `name` is that of the option --optimizer; mpigd/training/requirements.py lists what each
    optimiser requires. The state is a dictionary of named arrays. A step returns new arrays, so
    that it can be repeated. The state always holds `step` (1,), `value` (1,) and `gradient_norm`
    (1,).
    """

    @property
    def name(self) -> str: ...

    def start(self, w: Array) -> State:
        """Return the state before the first step from w (p,)."""

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        """Take one step. Collective.

        Parameters
        ----------
        w : array (p,) of float64
            Parameters.
        state : State
            State after the step before.
        oracle : OracleLike
            Objective without its penalty, on the rows of this step.
        penalty : Penalty
            Penalty on the parameters.
        dot : Dot
            Inner product of two vectors (p,), in a fixed order of summation.

        Returns
        -------
        tuple (array, State)
            The parameters (p,) and the state after the step.
        """


def evaluate(w: Array, oracle: OracleLike, penalty: Penalty) -> tuple[float, Array]:
    """Return the objective with its penalty, and the gradient of the smooth part.

    Parameters
    ----------
    w : array (p,) of float64
        Parameters.
    oracle : OracleLike
        Objective without its penalty.
    penalty : Penalty
        Penalty on the parameters.

    Returns
    -------
    tuple (float, array)
        The value, with the rough part of the penalty, and the gradient (p,), without it.
    """
    value, g = oracle.value_and_gradient(w)
    penalty.add_gradient(w, g)
    return value + penalty.value(w), g


def fresh(*names: str, like: Array) -> State:
    """Return a state of zeros: the three numbers of every optimiser, and the named arrays.

    Parameters
    ----------
    *names : str
        Names of further arrays.
    like : array
        Array whose shape and dtype these have.
    """
    scalars = {name: np.zeros(1) for name in ("step", "value", "gradient_norm")}
    return scalars | {name: np.zeros_like(like) for name in names}


def advance(state: State, value: float, norm: float) -> State:
    """Return a copy of the state, one step further.

    Parameters
    ----------
    state : State
        State before the step.
    value : float
        Objective at the step.
    norm : float
        Norm of the gradient there.
    """
    numbers = np.array((state["step"].item() + 1.0, value, norm))
    after = {"step": numbers[:1], "value": numbers[1:2], "gradient_norm": numbers[2:]}
    for name, array in state.items():
        if name not in after:
            after[name] = array.copy()
    return after


def norm(g: Array, dot: Dot) -> float:
    return math.sqrt(dot(g, g))


def clip(g: Array, length: float, longest: float | None) -> None:
    """Shorten g in place if it is too long.

    Parameters
    ----------
    g : array (p,) of float64
        Gradient.
    length : float
        Its norm.
    longest : float or None
        The largest norm to keep; None keeps any.
    """
    if longest is not None and length > longest:
        g *= longest / length
