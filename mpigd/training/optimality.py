"""Estimate how far a run is from its optimum, and whether that is near enough.

The measure has no unit: what is left of the objective, over what there is to gain (the null
model's objective minus the current one). What is left is bounded by a duality gap if the penalty
allows one. Otherwise an optimiser may have a bound of its own; else the Newton decrement estimates
it.
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
# Steps between certificates that cost a pass over the data each and that no gradient announces.
CHECK = 10
# Relative to the null objective: if less than that can be gained, there is nothing to learn.
LEAST_GAIN = 1e-8
ROUNDING = 1e-13  # relative to the objective: a smaller distance cannot be seen
# In units of the log-likelihood: half the square of the coefficients' distance in standard
# errors.
STANDARD_ERRORS = 1e-6
# Like HARMLESS, for mini-batches: their random draws may leave a run somewhat above its start,
# about which the run warns.
NOISE = 0.5
USUAL = float(FIELDS["tol"].default)  # type: ignore[arg-type]  # looser: the user's choice
# Relative to the objective: an end that is above the start by less than this is rounding.
HARMLESS = 1e-9


@dataclass
class Optimality:
    """Measure the optimality of one run, in full or another mode.

    Parameters
    ----------
    problem, config, comm : Problem, Config, Comm
        Those of the run.
    checked : tuple of 3 float
        The squared gradient norm below which, and the step from which, another Newton decrement is
        worth its passes over the data; and the last decrement.
    """

    problem: Problem
    config: Config
    comm: Comm
    checked: tuple[float, float, float] = (math.inf, 0.0, math.inf)
    _counted: float = 0.0

    def goal(self, value: float) -> float:
        """Return the most that may be left of the objective at this value.

        If standard errors are computed, the coefficients' distance must be a thousandth of them.
        """
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
        """Return the number of rows by which standard errors are made smaller (inference.py).

        Collective the first time.
        """
        # Not a cached_property: its lock would keep ranks that are threads from meeting.
        if self._counted == 0.0:
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
        """Return whether at most the tolerance is left after a step of full mode. Collective."""
        if 0.0 <= step.value <= self.goal(step.value):  # losses and penalties are never negative
            return True
        left = self._left(step)
        return left is not None and left <= self.goal(step.value)

    def _left(self, step: Step) -> float | None:
        """Return a bound or an estimate of the distance left, or None if nothing is known.

        While the distance is clearly too large, the result is infinite and costs nothing.
        """
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
        # The optimiser evaluated the gradient at another point than the one it moved to.
        if g is None:
            g = self.evaluate(step.w)[1]
        return duality_gap(step.w, g, self.problem.objective, penalty, self.comm)

    def _without_bound(self, step: Step, goal: float) -> float | None:
        """Return an estimate of the distance left if no penalty bounds it.

        It is the Newton decrement, which optimisers with a Hessian keep in their state.
        """
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
        """Whether there is room for the whole Hessian."""
        k, p = self.problem.k, self.problem.objective.scaling.p
        return is_whole(k, p) and k * p * k * p <= LARGEST_FACTOR

    def decrement(self, w: Array, g: Array, state: State) -> float:
        """Estimate what is left of the objective, for a smooth loss and penalty. Collective.

        Parameters
        ----------
        w : array (k * p,) of float64
            Parameters.
        g : array (k * p,) of float64
            Gradient of the whole objective there.
        state : State
            State of the optimiser; L-BFGS pairs in it precondition.

        Returns
        -------
        float
            The Newton decrement, infinite if it cannot be computed.
        """
        objective = self.problem.objective
        oracle = objective.on(Batch.whole(objective.n), self._reducer())
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
        except NumericalError:  # all ranks raise it together
            return math.inf

    def evaluate(self, w: Array) -> tuple[float, Array]:
        """Return objective and gradient at w (k * p,). Collective.

        This costs one pass over the data, which is not counted as one of training.
        """
        objective = self.problem.objective
        reads = objective.reads
        oracle = objective.on(Batch.whole(objective.n), self._reducer())
        value, g = evaluate(w, oracle, self.problem.penalty)
        objective.reads = reads
        return value, g

    def _reducer(self) -> Any:
        return self.problem.objective.reducer(self.config.reduce, self.comm)

    def finish(self, w: Array, state: State) -> tuple[Array, float, Array]:
        """Return the last parameters (k * p,), their objective and gradient. Collective.

        This costs one pass over the data, which is not counted as one of training. If the last step
        has left a factorised Hessian, its Newton step is tried, which costs nothing, and taken if
        the gradient is smaller there.

        Parameters
        ----------
        w : array (k * p,) of float64
            Parameters after the last step.
        state : State
            State of the optimiser after it.
        """
        polished = newton.polished(w, state)
        if polished is not None:
            before, length = float(state["value"][0]), float(state["gradient_norm"][0])
            with contextlib.suppress(NumericalError):  # all ranks raise it together
                value, g = self.evaluate(polished)
                if value <= before + HARMLESS * abs(before) and norm(g, vector.dot) <= length:
                    return polished, value, g
        return w, *self.evaluate(w)

    def gap(self, w: Array, g: Array) -> float | None:
        """Return a proven bound on what is left at w, or None. Collective.

        Parameters
        ----------
        w : array (k * p,) of float64
            Parameters.
        g : array (k * p,) of float64
            Gradient there.
        """
        return duality_gap(w, g, self.problem.objective, self.problem.penalty, self.comm)

    def verdict(
        self, w: Array, value: float, g: Array, gap: float | None, reason: str, state: State
    ) -> tuple[bool, float | None]:
        """Decide whether a run has ended at its optimum, and estimate what is left. Collective.

        Parameters
        ----------
        w : array (k * p,) of float64
            Last parameters.
        value : float
            Objective there.
        g : array (k * p,) of float64
            Gradient there.
        gap : float or None
            Duality gap there, or None.
        reason : str
            Why the run ended.
        state : State
            State of the optimiser; empty if w are not its parameters.

        Returns
        -------
        tuple (bool, float or None)
            Whether the run is at its optimum, to its tolerance or to rounding; and about how much
            of the objective is left, None if that is not known.
        """
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
            # The run was not near its optimum when it was cut off, and vectors of so many columns
            # are large.
            return None
        left = self.checked[2] if reason == "tolerance" else self.decrement(w, g, state)
        return left if math.isfinite(left) else None

    def refuse_worse(self, first: Array, value: float) -> None:
        """Raise WorseError on all ranks if a run ends above where it began. Collective.

        In modes other than full, only an end far above the start raises it: batches are random.

        Parameters
        ----------
        first : array (k * p,) of float64
            Parameters at which the run began.
        value : float
            Objective at which it ended.
        """
        null, full = self.problem.null.value, self.config.mode == "full"
        began = null
        if self.config.start is not None:
            began = self.evaluate(first)[0]
            began = began if full else max(began, null)
        if not value <= began + (HARMLESS if full else NOISE) * abs(began):
            error = WorseError(
                f"the run ended at an objective of {value:.9g}, above the {began:.9g} it began "
                f"with: there is no model. {_advice(self.config)}"
            )
            error.agreed = True
            raise error


def _advice(config: Config) -> str:
    if config.learning_rate is not None:
        return f"Try a --lr smaller than {config.learning_rate:g}, or leave it out"
    if config.mode != "full":
        return "Try --mode full, a larger --batch-size or a smaller --lr"
    return "Try --l2 1e-6, or another --optimizer"
