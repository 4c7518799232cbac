"""Report a run to people: progress lines, the log and the closing summary. Rank 0 only."""

from __future__ import annotations

import json
import time
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mpigd.config.schema import Config, to_dict
from mpigd.errors import StorageError
from mpigd.parallel.comm import Comm, together
from mpigd.parallel.working_directory import located
from mpigd.scoring.fitted_model import Model
from mpigd.training.callbacks.base import Callback, Step
from mpigd.training.callbacks.progress import Progress, left_to_gain

if TYPE_CHECKING:
    from mpigd.optim.base import Optimizer
    from mpigd.training.problem import Problem

Array = np.ndarray[Any, Any]
# Reasons to stop full mode that prove nothing.
UNPROVEN = {"epochs": "--epochs {} ended", "flat": "rounding left no way down"}
# Advice for each of these reasons.
ADVICE = {
    "epochs": "Raise --epochs, or leave --optimizer to auto",
    "flat": "Add a ridge penalty (--l2 1e-6), use --dtype float64, or accept it with a larger "
    "--tol",
}


class Clock:
    """Measure this rank's time: loading, waiting, computing, and other work between the steps."""

    def __init__(self, comm: Comm) -> None:
        self._comm, self._begin, self._waited = comm, time.perf_counter(), comm.waited
        self._load = 0.0

    def loaded(self) -> None:
        """Take the time so far for loading; the training begins."""
        self._load = time.perf_counter() - self._begin
        self._waited = self._comm.waited

    def summary(self, rows: float, other: float = 0.0) -> dict[str, Any]:
        """Return the seconds of training and their parts. Collective.

        Parameters
        ----------
        rows : float
            Rows that were processed, for the rows per second.
        other : float
            This rank's seconds between the steps (validation, checkpoints, lines and the log),
            without waiting.

        Returns
        -------
        dict
            `seconds`, `rows_per_second`, `time` (parts averaged over ranks) and `ranks` (each
            rank's seconds of computing and waiting).
        """
        training = time.perf_counter() - self._begin - self._load
        waited = self._comm.waited - self._waited
        mine = np.array([self._load, training - waited - other, waited, other])
        ranks = self._comm.allgather(mine)
        parts = dict(
            zip(("load", "compute", "wait", "other"), ranks.mean(axis=0).tolist(), strict=True)
        )
        return {
            "seconds": training,
            "rows_per_second": rows / training if training > 0 else 0.0,
            "time": parts,
            "ranks": [{"compute": float(row[1]), "wait": float(row[2])} for row in ranks],
        }


def _open_log(path: str) -> IO[str]:
    try:
        return open(located(path), "a", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--log {path}: {error.strerror}") from error


class Report(Callback):
    """Show progress lines and write the log of a run.

    Parameters
    ----------
    progress : Progress
        Shows lines and warnings.
    config : Config
        Options of the run.
    comm : Comm
        Communicator of all ranks of the run.
    """

    def __init__(self, progress: Progress, config: Config, comm: Comm) -> None:
        self._progress, self._config, self._first = progress, config, comm.rank == 0
        self._log: IO[str] | None = None
        with together(comm):
            if self._first and config.log:
                self._log = _open_log(config.log)

    def say(self, text: str) -> None:
        """Show a message on rank 0."""
        if self._first:
            self._progress.note(text)

    def warn(self, text: str) -> None:
        """Show a warning on rank 0."""
        if self._first:
            self._progress.warn(text)

    def begin(
        self, problem: Problem, optimizer: Optimizer, steps: int, records: list[dict[str, Any]]
    ) -> None:
        """Say what is about to run.

        Parameters
        ----------
        problem, optimizer : Problem, Optimizer
            Those of the run.
        steps : int
            Steps of all epochs.
        records : list of dict
            Records of the run, to which other callbacks append; they are logged.
        """
        self._rows, self._steps = problem.objective.n, steps
        self._records, self._logged = records, 0
        self._begin, self._seen = time.perf_counter(), 0.0
        d, config = problem.objective.rows.X.d, self._config
        penalty = (f"l1 {config.l1:g}, " if config.l1 else "") + f"l2 {config.l2:g}"
        self.say(
            f"{problem.loss.name} loss on {self._rows:,} rows x {d:,} columns, {penalty}, "
            f"{config.mode} mode, optimizer {optimizer.name}, seed {config.seed}"
        )
        self._write("start", rows=self._rows, columns=d, config=to_dict(config))

    def skip(self) -> None:
        """Mark the records so far as logged: the run is being continued."""
        self._logged = len(self._records)

    def after(self, step: Step, words: Array) -> str | None:
        if not self._first:
            return None
        batch = step.batch
        self._seen += batch.size
        if not self._progress.quiet:
            elapsed = time.perf_counter() - self._begin
            self._progress.update(
                epoch=batch.epoch + 1,
                epochs=self._config.epochs or 1,
                step=batch.step + 1,
                steps=self._steps,
                loss=step.value,
                gradient_norm=step.gradient_norm,
                rows_per_second=self._seen / max(elapsed, 1e-9),
                force=batch.ends_epoch and self._config.mode != "full",
            )
        if len(self._records) > self._logged:
            self._record()
        return None

    def _record(self) -> None:
        """Log the records that other callbacks have appended."""
        elapsed = time.perf_counter() - self._begin
        for record in self._records[self._logged :]:
            self._write(
                "validation" if "validation" in record else "epoch", **record, seconds=elapsed
            )
            if "validation" in record:
                shown = {
                    name: value
                    for name, value in record["validation"].items()
                    if isinstance(value, float)
                }
                self.say(
                    "validation: "
                    + "  ".join(f"{name} {value:.5g}" for name, value in shown.items())
                )
        self._logged = len(self._records)

    def end(self, model: Model) -> None:
        """Show and log the summary of a finished run on rank 0, with its warnings."""
        if not self._first:
            return
        self._progress.close(model.summary)
        if "separation" in model.summary:
            self.warn(model.summary["separation"]["text"])
        if early := self._unproven(model.summary):
            self.warn(early)
        self._write("end", digest=model.digest, **model.summary)
        if self._log:
            self._log.close()

    def _unproven(self, summary: dict[str, Any]) -> str | None:
        """Return a warning if a run is worse than the null model or ended before its tolerance."""
        config, reason = self._config, summary["stop_reason"]
        if config.mode != "full" and summary["objective"] > summary["null_objective"]:
            return (
                f"the model is worse than none: its objective {summary['objective']:.6g} is "
                f"above that of the best constant, {summary['null_objective']:.6g}. "
                "Try --mode full, more --epochs or a larger --batch-size"
            )
        if (
            config.mode != "full"
            or not config.tol
            or summary["converged"]
            or reason not in UNPROVEN
        ):
            return None
        left = (
            left_to_gain(summary)
            or f"gradient {summary['gradient_norm']:.2e}, no bound on the distance is known"
        )
        early = f"{UNPROVEN[reason].format(config.epochs)} before --tol {config.tol:g} was reached"
        return f"not converged: {early}: {left}. {ADVICE[reason]}"

    def _write(self, event: str, **values: Any) -> None:
        if self._log:
            try:
                self._log.write(json.dumps({"event": event, **values}) + "\n")
                self._log.flush()
            except OSError as error:
                raise StorageError(
                    f"{self._config.log}: cannot be written: {error.strerror}"
                ) from error
