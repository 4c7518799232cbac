"""The distance of a run from its optimum, at most or about, and whether that is near enough.

The measure has no unit: what is left of the objective, over what there is to gain, the null model's
objective minus the current one. What is left is bounded by a duality gap where the penalty allows one; an
optimiser may know a bound of its own; else it is the Newton decrement.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mpigd.config.schema import FIELDS, Config
from mpigd.data.batches import Batch
from mpigd.errors import NumericalError, WorseError
from mpigd.model.duality_gap import duality_gap, least_gap
from mpigd.model.hessian import is_whole
from mpigd.model.inference import FAMILIES, why_not
from mpigd.model.likelihoods import weighting
from mpigd.optim import newton
from mpigd.optim.base import State, evaluate, norm
from mpigd.optim.lbfgs_memory import stored
from mpigd.optim.newton_decrement import newton_decrement
from mpigd.parallel.comm import Comm
from mpigd.training.callbacks.base import Step
from mpigd.training.problem import Problem
from mpigd.training.requirements import LARGEST_FACTOR, SELF_PACED
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
CHECK = 10  # steps between certificates that cost a read each and that no gradient announces
LEAST_GAIN = (
    1e-8  # of the null objective: where less than that can be gained, nothing is to be learned
)
ROUNDING = 1e-13  # of the objective: a smaller distance cannot be seen
STANDARD_ERRORS = (
    1e-6  # of a log-likelihood: half the square of the coefficients' distance in standard errors
)
NOISE = 0.5  # the same of batches: what they draw may leave a run somewhat above the start, which is warned of
USUAL = float(FIELDS["tol"].default)  # type: ignore[arg-type]  # a looser tolerance is somebody's wish
HARMLESS = (
    1e-9  # relative to the objective: an end that lies higher than the start by less is rounding
)


@dataclass
class Optimality:
    """Of one run, in full mode or another.

    checked: the squared gradient norm, and the step, from which on the Newton decrement is worth its reads again; and
    what it was the last time.
    """

    problem: Problem
    config: Config
    comm: Comm
    checked: tuple[float, float, float] = (math.inf, 0.0, math.inf)
    _counted: float = 0.0

    def goal(self, value: float) -> float:
        """The most that may be left of the objective at this value: where standard errors come, a thousandth of them."""
        tolerance = self._tolerance(value)
        if (
            not self.with_statistics
            or not self.problem.objective.statistics.weight
            or self.config.tol > USUAL
        ):
            return tolerance
        dispersion = 2.0 * abs(value) if FAMILIES[self.config.loss].dispersed else 1.0
        return min(tolerance, STANDARD_ERRORS * dispersion / self._rows())

    def _rows(self) -> float:
        """By how many rows standard errors are made smaller (inference.py). Collective the first time."""
        if (
            self._counted == 0.0
        ):  # no cached_property: its lock would keep the ranks of threads from meeting
            objective = self.problem.objective
            repeated, count = weighting(objective, self.comm)
            relative = FAMILIES[self.config.loss].dispersed and not repeated
            self._counted = float(count) if relative else objective.statistics.weight
        return self._counted

    def _tolerance(self, value: float) -> float:
        null = self.problem.null.value
        gain = null - value if math.isfinite(null) else abs(value)
        return self.config.tol * max(gain, LEAST_GAIN * abs(null if math.isfinite(null) else value))

    @cached_property
    def with_statistics(self) -> bool:
        objective, penalty = self.problem.objective, self.problem.penalty
        return why_not(self.config, penalty, objective.n, objective.size, "tolerance") is None

    def reached(self, step: Step) -> bool:
        """Whether no more than the tolerance is left after a step of full mode. Collective."""
        if 0.0 <= step.value <= self.goal(step.value):  # no loss, and no penalty, is below zero
            return True
        left = self._left(step)
        return left is not None and left <= self.goal(step.value)

    def _left(self, step: Step) -> float | None:
        """The distance left, at most or about; infinite, and cheap, while it is clearly too much; None if nothing is known."""
        penalty, state, goal = self.problem.penalty, step.state, self.goal(step.value)
        if "left" in state:
            return float(state["left"][0])
        g = state.get("gradient")
        if g is None and not penalty.smooth and step.batch.step % CHECK:
            return math.inf
        least = least_gap(step.gradient_norm, penalty)
        if least is None:
            return self._without_bound(step, goal)
        if least > goal:
            return math.inf
        if g is None:  # what the optimiser saw is not the gradient of where it went
            g = self.evaluate(step.w)[1]
        return duality_gap(step.w, g, self.problem.objective, penalty, self.comm)

    def _without_bound(self, step: Step, goal: float) -> float | None:
        """The distance left where no penalty bounds it: the Newton decrement, which optimisers with a Hessian know."""
        if "decrement" in step.state:
            return float(step.state["decrement"][0])
        square = step.gradient_norm * step.gradient_norm
        about = 0.5 * square / self.problem.null.curvature
        if not self.problem.penalty.smooth:
            return about / self.config.tol if self.config.tol else None
        if self.problem.loss.second is None:
            return None
        if about > goal or (square > self.checked[0] and step.batch.step < self.checked[1]):
            return math.inf
        w, g = step.w, step.state.get("gradient")
        left = self.decrement(w, self.evaluate(w)[1] if g is None else g, step.state)
        least = square * min(0.5, max(1e-4, goal / left)) if left > 0.0 else square
        self.checked = least, 1.5 * step.batch.step + CHECK, left
        return left

    @cached_property
    def _dense(self) -> bool:
        """Whether the whole Hessian has room."""
        k, p = self.problem.k, self.problem.objective.scaling.p
        return is_whole(k, p) and k * p * k * p <= LARGEST_FACTOR

    def decrement(self, w: Array, g: Array, state: State) -> float:
        """About what is left at w (k * p,), where loss and penalty are smooth. Collective."""
        objective = self.problem.objective
        oracle = objective.on(Batch(slice(None), objective.n, 0, 0, True), self._reducer())
        try:
            return newton_decrement(
                w,
                g,
                oracle,
                self.problem.penalty,
                vector.dot,
                objective.n,
                stored(state),
                self._dense,
            )
        except NumericalError:  # raised on all ranks together
            return math.inf

    def evaluate(self, w: Array) -> tuple[float, Array]:
        """Objective and gradient at w: a read that is not counted as one of training. Collective."""
        objective = self.problem.objective
        reads = objective.reads
        oracle = objective.on(Batch(slice(None), objective.n, 0, 0, True), self._reducer())
        value, g = evaluate(w, oracle, self.problem.penalty)
        objective.reads = reads
        return value, g

    def _reducer(self) -> Any:
        return self.problem.objective.reducer(self.config.reduce, self.comm)

    def finish(self, w: Array, state: State) -> tuple[Array, float, Array]:
        """The last parameters, their objective and gradient: one read, which is not one of training. Collective.

        Where the last step has left a factorised Hessian, its Newton step is taken if the gradient is smaller there: it costs
        nothing.
        """
        polished = newton.polished(w, state)
        if polished is not None:
            before, length = float(state["value"][0]), float(state["gradient_norm"][0])
            with contextlib.suppress(NumericalError):  # raised on all ranks together
                value, g = self.evaluate(polished)
                if value <= before + HARMLESS * abs(before) and norm(g, vector.dot) <= length:
                    return polished, value, g
        return w, *self.evaluate(w)

    def gap(self, w: Array, g: Array) -> float | None:
        """A proven bound on what is left at w, where the gradient is g (k * p,), or None. Collective."""
        return duality_gap(w, g, self.problem.objective, self.problem.penalty, self.comm)

    def verdict(
        self, w: Array, value: float, g: Array, gap: float | None, reason: str, state: State
    ) -> tuple[bool, float | None]:
        """Whether a run that ended for `reason` is at its optimum, to its tolerance or to rounding, and about how much of the
        objective is left, where that is known. Collective."""
        left = gap if gap is not None else self._known(w, g, state, reason)
        if "left" in state and left is not None:
            left = min(left, float(state["left"][0]))
        left = value if 0.0 <= value <= self._tolerance(value) else left
        near = max(self._tolerance(value), ROUNDING * abs(value))
        return reason == "tolerance" or (left is not None and left <= near), left

    def _known(self, w: Array, g: Array, state: State, reason: str) -> float | None:
        if "left" in state:
            return float(state["left"][0])
        if "decrement" in state and math.isfinite(state["decrement"][0]):
            return float(state["decrement"][0])
        if (
            self.config.optimizer not in SELF_PACED
            or not self.problem.penalty.smooth
            or self.problem.loss.second is None
        ):
            return None
        if reason == "epochs" and not self._dense:
            return None  # it was not near when it was cut off, and vectors of so many columns are large
        left = self.checked[2] if reason == "tolerance" else self.decrement(w, g, state)
        return left if math.isfinite(left) else None

    def refuse_worse(self, first: Array, value: float) -> None:
        """WorseError on all ranks if a run ends above where it began, `first` (k * p,); in other modes than full, far above it.
        Collective."""
        null, full = self.problem.null.value, self.config.mode == "full"
        began = null
        if self.config.start is not None:
            began = self.evaluate(first)[0]
            began = began if full else max(began, null)
        if not value <= began + (HARMLESS if full else NOISE) * abs(began):
            error = WorseError(
                f"the run ended at an objective of {value:.9g}, above the {began:.9g} it began with: there is no "
                f"model. {_advice(self.config)}"
            )
            error.agreed = True
            raise error


def _advice(config: Config) -> str:
    if config.learning_rate is not None:
        return f"Try a --lr smaller than {config.learning_rate:g}, or leave it out"
    if config.mode != "full":
        return "Try --mode full, a larger --batch-size or a smaller --lr"
    return "Try --l2 1e-6, or another --optimizer"
