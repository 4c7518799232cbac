"""Problems of mpigd as the subjects measure them: the one place that builds and runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from mpigd.config.schema import FIELDS, Config
from mpigd.data.batches import Batch
from mpigd.data.in_memory import shard_of
from mpigd.parallel.comm import Comm
from mpigd.training import problem as build
from mpigd.training.callbacks.progress import Progress
from mpigd.training.callbacks.report import Report
from mpigd.training.trainer import Run
from scripts.bench.data import target
from scripts.bench.harness import seconds

Array = np.ndarray[Any, Any]


def offers(option: str, choice: str | None = None) -> bool:
    """Return whether `mpigd train` has the option, with that choice."""
    return option in FIELDS and (choice is None or choice in FIELDS[option].metadata["choices"])


def problem(X: Any, comm: Comm, y: Array | None = None, **options: Any) -> build.Problem:
    """X: this rank's rows, numpy or scipy.sparse; one thread a rank. Collective."""
    config = Config(**{"loss": "logistic", "threads": 1, **options})
    labels = target(config.loss, X.shape[0], comm.rank) if y is None else y
    return build.problem(shard_of((X, labels), config.dtype, comm), config, comm)


def gradient(made: build.Problem, kind: str = "exact") -> Callable[[], Any]:
    """A call that makes one full loss and gradient, sums over ranks included."""
    goal = made.objective
    reducer = goal.reducer(kind, made.reducer.comm)
    w = np.random.default_rng(1).standard_normal(goal.size) / np.sqrt(goal.size)
    everything = Batch.whole(goal.n)
    return lambda: goal.on(everything, reducer).value_and_gradient(w)


class Trainer:
    """Whole training loops on one problem: what a user's steps cost, callbacks included."""

    def __init__(self, X: Any, comm: Comm, **options: Any) -> None:
        defaults = dict(
            loss="logistic",
            threads=1,
            optimizer="sgd",
            learning_rate=0.01,
            lr_schedule="constant",
            tol=0.0,
        )
        made = Config(**{**defaults, **options, "quiet": True})
        shard = shard_of((X, target(made.loss, X.shape[0], comm.rank)), made.dtype, comm)
        self.comm, self.config = comm, build.complete(made, shard.n)
        self.problem = build.problem(shard, self.config, comm)

    def rates(self) -> tuple[float, float]:
        """(steps, rows) a second of one run from its first step to its last. Collective.

        The numbers are those of the slowest rank.
        """
        progress = Progress(sys.stderr, quiet=True)
        run = Run(self.problem, self.config, self.comm, Report(progress, self.config, self.comm))
        before = self.problem.objective.reads
        spent = seconds(self.comm, run.train)
        rows = (self.problem.objective.reads - before) * self.problem.objective.n
        return run.first / spent, rows / spent
