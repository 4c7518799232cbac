"""Callbacks run after every optimiser step; they can observe it, stop the run or save a checkpoint.

A decision must be the same on all ranks. If it starts from something local (a clock, a signal),
the callback puts numbers into the step's buffer, which is summed over the ranks, and decides on
their sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpigd.data.batches import Batch
from mpigd.optim.base import State

Array = np.ndarray[Any, Any]


class Step(NamedTuple):
    """The result of a step.

    Parameters
    ----------
    batch : Batch
        Rows of the step, its number and its epoch.
    w : array (k * p,) of float64
        Parameters after it.
    state : State
        State of the optimiser after it.
    """

    batch: Batch
    w: Array
    state: State

    @property
    def value(self) -> float:
        """The objective that the optimiser noted in this step."""
        return self.state["value"].item()  # type: ignore[no-any-return]

    @property
    def gradient_norm(self) -> float:
        """The norm of the gradient that the optimiser noted in this step."""
        return self.state["gradient_norm"].item()  # type: ignore[no-any-return]


class Measure(Protocol):
    """An object that measures how far a run is from its optimum."""

    checked: tuple[float, float, float]

    def reached(self, step: Step) -> bool: ...


class Callback:
    """Base class: each method does nothing, and subclasses override what they need."""

    words = 0  # numbers that this callback adds to the step's buffer
    # The group of `state` in a checkpoint. It is part of the file format, so it stays the same if
    # the class is renamed or moved. If it is empty, this callback has no state, and `state` is
    # not called.
    state_name = ""

    def before(self, words: Array) -> None:
        """Fill in this rank's numbers before a step; not called if `words` is 0."""

    def after(self, step: Step, words: Array) -> str | None:
        """Handle the end of a step; called on all ranks.

        Parameters
        ----------
        step : Step
            Result of the step.
        words : array (words,) of float64
            Sums over ranks of the callback's numbers.

        Returns
        -------
        str or None
            None, or a text that stops the run: the reason.
        """
        return None

    def state(self) -> dict[str, Array]:
        """Return named arrays for `restore`; called only if `state_name` is set."""
        return {}

    def restore(self, state: dict[str, Array]) -> None:
        """Continue from the arrays that `state` returned."""


class Tolerance(Callback):
    """Stop full mode once at most the tolerance is left, relative to what there is to gain.

    The reason "flat" means that the optimiser found no way down that rounding leaves visible.

    Parameters
    ----------
    tol : float
        Tolerance; 0 never stops.
    optimality : Measure
        Measures what is left of the objective (mpigd/training/optimality.py).
    """

    state_name = "tolerance"

    def __init__(self, tol: float, optimality: Measure) -> None:
        self._tol, self._optimality = tol, optimality

    def after(self, step: Step, words: Array) -> str | None:
        if self._tol > 0 and self._optimality.reached(step):
            return "tolerance"
        return "flat" if "flat" in step.state and step.state["flat"][0] else None

    def state(self) -> dict[str, Array]:
        return {"checked": np.array(self._optimality.checked)}

    def restore(self, state: dict[str, Array]) -> None:
        square, step, left = state["checked"].tolist()
        self._optimality.checked = square, step, left


@dataclass
class History(Callback):
    """Record every epoch: the mean of its steps' objectives and the last gradient's norm."""

    state_name = "history"

    records: list[dict[str, Any]] = field(default_factory=list)
    _sum: float = 0.0
    _steps: int = 0

    def after(self, step: Step, words: Array) -> str | None:
        self._sum += step.value
        self._steps += 1
        if step.batch.ends_epoch:
            self.records.append(
                {
                    "epoch": step.batch.epoch + 1,
                    "step": step.batch.step + 1,
                    "objective": self._sum / self._steps,
                    "gradient_norm": step.gradient_norm,
                }
            )
            self._sum, self._steps = 0.0, 0
        return None

    def state(self) -> dict[str, Array]:
        return {"sum": np.array([self._sum, self._steps])}

    def restore(self, state: dict[str, Array]) -> None:
        self._sum, self._steps = float(state["sum"][0]), int(state["sum"][1])


class EarlyStop(Callback):
    """Score the parameters every `every` steps; stop after `patience` scores without improvement.

    A tie is no improvement, as in Keras and scikit-learn: of equal scores the first is the best,
    and each later one counts towards `patience`. A score of NaN (undefined) is no improvement
    either.

    Parameters
    ----------
    score : callable
        Returns the scores of parameters w (k * p,). Collective.
    metric : str
        The score that decides.
    higher : bool
        Whether a higher score is better.
    every : int
        Steps between two scores.
    patience : int or None
        Scores without improvement that stop the run; None never stops.
    history : list of dict
        Records of the run, to which the scores are appended.
    """

    state_name = "earlystop"

    def __init__(
        self,
        score: Callable[[Array], dict[str, Any]],
        metric: str,
        higher: bool,
        every: int,
        patience: int | None,
        history: list[dict[str, Any]],
    ) -> None:
        self._score, self._metric, self._sign = score, metric, 1.0 if higher else -1.0
        self._every, self._patience, self._history = every, patience, history
        self._best: Array | None = None
        self._numbers = np.array([-math.inf, 0.0])  # best score (signed), scores since then

    def after(self, step: Step, words: Array) -> str | None:
        if (step.batch.step + 1) % self._every:
            return None
        scores = self._score(step.w)
        record = {"epoch": step.batch.epoch + 1, "step": step.batch.step + 1, "validation": scores}
        self._history.append(record)
        value = self._sign * scores[self._metric]
        if value > self._numbers[0]:
            self._numbers[:] = value, 0.0
            self._best = step.w.copy()
        else:
            self._numbers[1] += 1
        return (
            "patience"
            if self._patience is not None and self._numbers[1] >= self._patience
            else None
        )

    def best(self, w: Array) -> Array:
        """Return the parameters to keep: with --patience those of the best score, else the last."""
        return w if self._best is None or self._patience is None else self._best

    def state(self) -> dict[str, Array]:
        return {"numbers": self._numbers.copy()} | (
            {} if self._best is None else {"best": self._best.copy()}
        )

    def restore(self, state: dict[str, Array]) -> None:
        self._numbers, self._best = state["numbers"].copy(), state.get("best")
