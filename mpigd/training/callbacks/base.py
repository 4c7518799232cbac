"""What happens after a step besides the step: each callback may watch, stop the run, or save.

A decision must be the same on all ranks. Where it starts from something local (a clock, a signal), the callback puts words
into the step's one buffer and decides on their sum.
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
    """What a step left behind: its batch, the parameters and state after it, and the buffer words' sums over ranks."""

    batch: Batch
    w: Array
    state: State

    @property
    def value(self) -> float:
        return self.state["value"].item()  # type: ignore[no-any-return]

    @property
    def gradient_norm(self) -> float:
        return self.state["gradient_norm"].item()  # type: ignore[no-any-return]


class Measure(Protocol):
    """Tells how far a run is from its optimum."""

    checked: tuple[float, float, float]

    def reached(self, step: Step) -> bool: ...


class Callback:
    """Does nothing; the others override what they need."""

    words = 0  # how many this one adds to the step's buffer
    # The group of `state` in a checkpoint. It is part of the file format, so it stays the same if
    # the class is renamed or moved. Empty: this callback has no state, and `state` is not called.
    state_name = ""

    def before(self, words: Array) -> None:
        """Fill this rank's words before a step; not called where there are none."""

    def after(self, step: Step, words: Array) -> str | None:
        """Called on all ranks after a step with the words' sums. A text stops the run: the reason."""
        return None

    def state(self) -> dict[str, Array]:
        """Named arrays that `restore` continues from; only called if `state_name` is set."""
        return {}

    def restore(self, state: dict[str, Array]) -> None:
        """Continue from the arrays that `state` returned."""


class Tolerance(Callback):
    """Stops full mode once no more than the tolerance is left of the objective, relative to what there is to gain.

    optimality: what measures that (mpigd/training/optimality.py). "flat": the optimiser found no way down that rounding leaves
    visible.
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
    """A record per epoch: the mean of its steps' objectives and the last gradient's norm."""

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
    """Scores parameters every so many steps; keeps the best, and stops after `patience` scores without improvement.

    A tie is no improvement, as in Keras and scikit-learn: of equal scores the first is the best, and each later one counts
    towards `patience`. Neither is NaN one (a score that is not defined).
    """

    state_name = "earlystop"

    def __init__(
        self, score: Callable[[Array], dict[str, Any]], metric: str, higher: bool, every: int, patience: int | None,
        history: list[dict[str, Any]],
    ) -> None:  # fmt: skip
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
        """The parameters to keep: with --patience those of the best score, else the last."""
        return w if self._best is None or self._patience is None else self._best

    def state(self) -> dict[str, Array]:
        return {"numbers": self._numbers.copy()} | (
            {} if self._best is None else {"best": self._best.copy()}
        )

    def restore(self, state: dict[str, Array]) -> None:
        self._numbers, self._best = state["numbers"].copy(), state.get("best")
