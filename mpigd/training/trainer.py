"""Run a training: load the data, build the problem, take steps, certify the result.

`train` is the entry point. `Run` holds the state of one run: the problem, the optimiser, the
callbacks and the current parameters. Every method that is marked as collective must be called by
all ranks in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mpigd.config.schema import FIELDS, Config
from mpigd.data.loading import kept_as, read, survey
from mpigd.data.shard import Shard
from mpigd.errors import NumericalError, UsageError, WorseError
from mpigd.model import inference
from mpigd.model.grid_accuracy import gradient_error
from mpigd.model.targets import check_target
from mpigd.optim.base import Optimizer, norm
from mpigd.parallel.affinity import crowded
from mpigd.parallel.comm import Comm
from mpigd.parallel.session import adopt
from mpigd.parallel.working_directory import settled
from mpigd.scoring import fitted_model
from mpigd.scoring.fitted_model import Model
from mpigd.training import checkpoint, requirements, separation
from mpigd.training import problem as build
from mpigd.training.callbacks.base import Callback, EarlyStop, History, Step, Tolerance
from mpigd.training.callbacks.preemption import REASONS, Interruption
from mpigd.training.callbacks.progress import Progress
from mpigd.training.callbacks.replica_check import Replicas
from mpigd.training.callbacks.report import Clock, Report
from mpigd.training.optimality import Optimality
from mpigd.training.recovery import Memory, survive
from mpigd.training.recovery import check as survivors
from mpigd.training.run_guard import supervise
from mpigd.training.warmup import rehearse
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]


def train(
    data: str | Sequence[str] | Shard, config: Config, comm: Comm, progress: Progress
) -> Model:
    """Train a model on files, or on the rows that this rank holds. Collective.

    Parameters
    ----------
    data : str or sequence of str or Shard
        Path or paths of the HDF5 files, or this rank's rows as a `Shard`.
    config : Config
        Options of the run; they must be equal on all ranks, but for those of `run_guard.OF_A_RANK`.
    comm : Comm
        Communicator of all ranks of the run.
    progress : Progress
        Shows messages and progress lines.

    Returns
    -------
    Model
        The same model on every rank.

    Raises
    ------
    MpigdError
        On all ranks, if the data, the options or the numbers cannot be used.
    """
    comm = adopt(comm)
    clock, interruption = Clock(comm), Interruption(comm, config)

    def once(memory: Memory | None) -> Model:
        with supervise(config, comm, progress.warn):
            # `supervise` has checked that all ranks have the same options: all refuse them, or
            # none.
            requirements.check(config)
            survivors(config, data, comm)
            if config.statistics == "yes" and (why := inference.why_never(config)):
                raise UsageError(f"--statistics yes: {why}")
            shard = (
                data
                if isinstance(data, Shard)
                else load_rows([data] if isinstance(data, str) else data, config, comm)
            )
            problem = build.problem(shard, config, comm)
            chosen = build.choice(config, problem.shape)
            whole = build.complete(config, shard.n, shard.X.d, problem.shape)
            run = Run(problem, whole, comm, Report(progress, whole, comm), interruption, memory)
            if chosen:
                run.report.say(chosen)
            clock.loaded()
            try:
                run.train()
                return run.model(clock)
            except NumericalError as error:
                if not error.agreed or isinstance(error, WorseError):
                    raise
                from mpigd.training.nonfinite import explained

                raise explained(
                    error, run.first, run.w, run.schedule, run.problem, whole, comm, run.saver
                ) from error

    with settled(), interruption.listening():
        return survive(once, config, comm, progress)


def load_rows(data: Sequence[str], config: Config, comm: Comm) -> Shard:
    """Read the files into a shard. Collective.

    If the kernels that the run needs are not yet in the cache, one rank of each host compiles them
    first.

    Parameters
    ----------
    data : sequence of str
        Paths of the HDF5 files.
    config : Config
        Options of the run.
    comm : Comm
        Communicator of all ranks of the run.
    """
    layout = build.layout(config)
    infos = survey(data, layout, comm)
    check_target(infos[0], config.loss, comm)
    if comm.size > 1 and not comm.epoch:
        rehearse(
            train,
            config,
            infos[0].layout,
            kept_as(infos, config.dtype).name,
            "offset" in infos[0].extras,
            comm,
        )
    return read(infos, layout, comm)


@dataclass
class Run:
    """The state of one run, from its first step or a saved step to its end.

    Parameters
    ----------
    problem : Problem
        Objective, penalty and data of this rank.
    config : Config
        Complete configuration (`requirements.complete`).
    comm : Comm
        Communicator of all ranks of the run.
    report : Report
        Receives messages, records and the summary.
    interruption : Interruption or None
        Stops the run at a signal or a time limit; made here if None.
    memory : Memory or None
        Latest positions in memory, from which the survivors of a rank failure continue.
    """

    problem: build.Problem
    config: Config
    comm: Comm
    report: Report
    interruption: Interruption | None = None
    memory: Memory | None = None

    def __post_init__(self) -> None:
        self.schedule = build.schedule(self.problem, self.config)
        self.optimizer: Optimizer = build.optimizer(
            self.problem, self.config, self.schedule.steps_per_epoch
        )
        self.steps = (self.config.epochs or 1) * self.schedule.steps_per_epoch
        # `held_out` is the fingerprint of the validation data.
        self.history, self.held_out = History(), ""
        self.early: EarlyStop | None = None
        if self.config.validation:
            from mpigd.training.callbacks.validation import early_stop

            epoch = self.schedule.steps_per_epoch
            self.early, self.held_out = early_stop(
                self.problem, self.config, self.comm, epoch, self.history
            )
        self.saver: Any = None
        if self.config.checkpoint:
            from mpigd.training.callbacks.checkpoint_saver import Saver

            self.saver = Saver(self._checkpoint, self.config, self.comm, self.report.warn)
        self.optimality = Optimality(self.problem, self.config, self.comm)
        tolerance = (
            [Tolerance(self.config.tol, self.optimality)] if self.config.mode == "full" else []
        )
        if warning := crowded(self.comm, self.problem.objective.threads):
            self.report.warn(warning)
        if self.problem.warning:
            self.report.warn(self.problem.warning)
        self.report.begin(self.problem, self.optimizer, self.steps, self.history.records)
        # The saver comes last: a checkpoint must hold what the other callbacks recorded for the
        # same step.
        self.replicas = Replicas(self.comm, self.config.check_replicas)
        self.callbacks: list[Callback] = [
            self.replicas,
            self.history,
            *([self.early] if self.early else []),
            self.report,
        ]
        interruption = self.interruption or Interruption(self.comm, self.config)
        self.callbacks += [*tolerance, interruption, *([self.saver] if self.saver else [])]
        if self.memory:
            self.callbacks.append(self.memory.of(self._now))
        self.first, self.reason, self.other, self.w = (
            0,
            "",
            0.0,
            build.first(self.problem, self.config, self.comm),
        )
        self.state = self.optimizer.start(self.w)
        self._resume()

    def train(self) -> None:
        """Take steps until the last epoch, or until a callback gives a reason to stop. Collective.

        Raises
        ------
        Unfinished
            On all ranks, if a signal or a time limit stopped the run and a checkpoint is saved;
            StorageError if nothing could be saved.
        """
        # Whatever ends the run, the checkpoint that is being written is completed.
        try:
            self._steps()
        finally:
            if self.saver:
                self.saver.writer.wait()
        self.reason = self.reason or "epochs"
        if self.saver:
            self._between(self.saver.finish)
        else:
            # The model is about to be made from these parameters, and rank 0 alone writes it.
            self._check()
        if self.saver and self.reason in REASONS:
            raise self.saver.unfinished(
                {"signal": "a signal", "time": "the end of its time"}[self.reason], self.first
            )

    def _steps(self) -> None:
        objective, reducer, penalty = (
            self.problem.objective,
            self.problem.reducer,
            self.problem.penalty,
        )
        words = self._words()
        self.replicas.watch(self.w, self.first)
        speaking = [(callback, mine) for callback, mine, _ in words if mine.size]
        steps = 0 if self.reason else max(0, self.steps - self.first)
        # Ask for no further batch: it could begin an epoch.
        for batch in islice(self.schedule.batches(self.first), steps):
            for callback, mine in speaking:
                callback.before(mine)
            oracle = objective.on(batch, reducer)
            self.w, self.state = self.optimizer.step(
                self.w, self.state, oracle, penalty, vector.dot
            )
            self.first = batch.step + 1
            self._between(self._after, Step(batch, self.w, self.state), words)
            if self.reason:
                break

    def _between(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call `work` and book its time, except waiting, under `other` in the closing summary."""
        begin, waited = time.perf_counter(), self.comm.waited
        work(*arguments)
        self.other += time.perf_counter() - begin - (self.comm.waited - waited)

    def _words(self) -> list[tuple[Callback, Array, Array]]:
        """Split the callbacks' part of the step's buffer: (callback, this rank's values, sums)."""
        ends = np.cumsum([callback.words for callback in self.callbacks])
        mine, summed = self.problem.reducer.reserve(int(ends[-1]))
        return list(
            zip(self.callbacks, np.split(mine, ends[:-1]), np.split(summed, ends[:-1]), strict=True)
        )

    def _after(self, step: Step, words: Sequence[tuple[Callback, Array, Array]]) -> None:
        for callback, _, summed in words:
            if (found := callback.after(step, summed)) and not self.reason:
                # Keep the first reason: if a run reaches its end, a later signal must not count
                # as the reason.
                self.reason = found

    def _parts(self) -> dict[str, checkpoint.Arrays]:
        callbacks = {
            callback.state_name: callback.state()
            for callback in self.callbacks
            if callback.state_name
        }
        parts = {"optimizer": self.state, "reducer": self.problem.reducer.state(), **callbacks}
        return {name: arrays for name, arrays in parts.items() if arrays}

    def _check(self) -> None:
        """Raise ReplicaError on all ranks unless all ranks hold the same bits. Collective.

        The states are compared too: a damaged state of rank 0 in a checkpoint would give the same
        wrong parameters to all ranks of the continued run.
        """
        self.replicas.check(
            self.w, *(array for arrays in self._parts().values() for array in arrays.values())
        )

    def _checkpoint(self) -> checkpoint.Checkpoint:
        """Return the run as it is now, checked to be the same on all ranks. Collective."""
        self._check()
        return self._now()

    def _now(self) -> checkpoint.Checkpoint:
        notes = {
            "fingerprint": self.problem.fingerprint,
            "validation": self.held_out,
            "history": self.history.records,
            "reason": "" if self.reason in REASONS else self.reason,
            "reads": self.problem.objective.reads,
        }
        return checkpoint.Checkpoint(self.first, self.w, self._parts(), self.config, notes)

    def _resume(self) -> None:
        if self.memory and self.memory.kept:
            return self._restore(self.memory.kept[-1].copy())
        saved = checkpoint.resume(
            self.config, self.problem.fingerprint, self.comm, self.report.warn, self.held_out
        )
        if saved is None:
            return
        if self.saver and self.config.resume == "auto":
            self.saver.writer.step = saved.step
        self._restore(saved)

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        self.first, self.w, self.state = saved.step, saved.w, saved.parts["optimizer"]
        self.problem.reducer.restore(saved.parts.get("reducer", {}))
        for callback in self.callbacks:
            if (state := saved.parts.get(callback.state_name)) is not None:
                callback.restore(state)
        self.history.records[:] = saved.notes["history"]
        self.report.skip()
        self.problem.objective.reads = saved.notes["reads"]
        reason = saved.notes["reason"]
        # If the option that ended the run has another value now, the run goes on.
        ended_by = {"epochs": "epochs", "tolerance": "tol"}.get(reason)
        self.reason = (
            ""
            if ended_by and getattr(saved.config, ended_by) != getattr(self.config, ended_by)
            else reason
        )
        for name, field in FIELDS.items():
            before, now = getattr(saved.config, name), getattr(self.config, name)
            if field.metadata["model"] and before != now:
                self.report.say(
                    f"note: --{name.replace('_', '-')} was {before} until here, from now on it "
                    f"is {now}"
                )
        self.report.say(
            f"continuing after step {saved.step}"
            if not self.reason
            else "this run was complete already"
        )

    def _last(self) -> tuple[Array, float, Array]:
        """Return the parameters of the model, their objective and gradient. Collective."""
        best = self.early.best(self.w) if self.early else self.w
        if best is not self.w or self.config.mode != "full":
            return best, *self.optimality.evaluate(best)
        return self.optimality.finish(best, self.state)

    def _statistics(self, w: Array, separated: dict[str, Any] | None) -> dict[str, Any]:
        """Return standard errors and related statistics, or why there are none. Collective.

        This costs one pass over the data, which is not counted as one of training.
        """
        if separated:
            return {"refused": separated["text"]}
        objective, penalty = self.problem.objective, self.problem.penalty
        refused = inference.why_not(self.config, penalty, objective.n, objective.size, self.reason)
        if refused is not None:
            return {"refused": refused}
        reads = objective.reads
        try:
            return inference.infer(
                w, objective, penalty, objective.reducer(self.config.reduce, self.comm)
            )
        except NumericalError as error:  # all ranks raise it together; the model stays valid
            return {"refused": f"{error}"}
        finally:
            objective.reads = reads

    def model(self, clock: Clock) -> Model:
        """Return the model with its certificate. Collective.

        The certificate holds the objective and the gradient at the last parameters. They cost one
        more pass over the data.

        Parameters
        ----------
        clock : Clock
            Measures the parts of the run's time for the summary.

        Returns
        -------
        Model
            The model, the same on all ranks but for the times in its summary.

        Raises
        ------
        WorseError
            On all ranks, if the run ended above the objective with which it began.
        """
        objective = self.problem.objective
        # Release the accumulators of this reducer: another one sums the last gradient.
        self.problem.reducer.reserve(0)
        reads = objective.reads
        w, value, g = self._last()
        self.optimality.refuse_worse(build.first(self.problem, self.config, self.comm), value)
        gap = self.optimality.gap(w, g)
        converged, left = self.optimality.verdict(
            w, value, g, gap, self.reason, {} if self.config.patience else self.state
        )
        separated = separation.explain(w, g, self.problem, self.config)
        summary = {
            "objective": value,
            "null_objective": self.problem.null.value,
            "gradient_norm": norm(self.problem.penalty.subgradient(w, g), vector.dot),
            "gap": gap,
            "left": left,
            "converged": converged and not separated,
            "gradient_error": gradient_error(objective, self.problem.reducer)
            if self.config.mode == "full"
            else None,
            "penalty": self.problem.penalty.value(w),
            "reads": reads,
            "steps": self.first,
            "epochs": self.first / self.schedule.steps_per_epoch,
            "stop_reason": self.reason,
            "rows": objective.n,
            "features": objective.rows.X.d,
            "fingerprint": self.problem.fingerprint,
            "state_digest": fitted_model.digest(
                {
                    f"{part}/{name}": array
                    for part in ("optimizer", "reducer")
                    for name, array in self._parts().get(part, {}).items()
                }
            ),
            **({"separation": separated} if separated else {}),
            **clock.summary(reads * objective.n, self.other),
        }
        coef, intercept = objective.scaling.coefficients(w, self.problem.k)
        if self.problem.k > 1:
            intercept = intercept - vector.dot(intercept, np.ones(self.problem.k)) / self.problem.k
        classes = self.problem.classes.values if self.problem.classes else None
        encoding, history = self.problem.shard.encoding, self.history.records
        model = Model(
            coef,
            intercept,
            classes,
            self.config,
            encoding,
            summary,
            history,
            self._statistics(w, separated),
        )
        self.report.end(model)
        return model
