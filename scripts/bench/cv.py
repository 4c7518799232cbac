"""Cross-validation over a path of penalties against one cold fit after another.

The cold fits are made by `train`, one for each fold and penalty.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.in_memory import shard_of
from mpigd.model.cv_objective import fold_numbers
from mpigd.model.objective import Rows
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import total
from mpigd.scoring.response import margins
from mpigd.training import cross_validation
from mpigd.training import problem as build
from mpigd.training.callbacks.progress import Progress
from mpigd.training.callbacks.report import Report
from mpigd.training.trainer import Run
from scripts.bench import data
from scripts.bench.harness import Row, Size, seconds

FOLDS = 5
L2 = cross_validation.penalties_of("1e-6:1e2:20")
SHARE = 0.1  # of the size: a hundred fits take long


def measure(comm: Comm, size: Size) -> list[Row]:
    n = int(size.rows(4 * 128) * SHARE)
    rng = np.random.default_rng(comm.rank)
    X = data.dense(n, 128, comm.rank) @ (
        np.random.default_rng(7).standard_normal((128, 128), dtype=np.float32) / 8 + np.eye(128)
    )
    X = np.ascontiguousarray(X, dtype=np.float32)
    rows = case("dense, d = 128", X, labels(X, rng), comm, "<= 0.5")
    from scipy.sparse import csr_matrix

    indptr, indices, stored = data.zipf(int(size.rows(8 * 75) * SHARE), 47_000, 75, comm.rank)
    S = csr_matrix((stored, indices, indptr), shape=(indptr.size - 1, 47_000))
    return rows + case("CSR, 75 of 47,000 columns", S, labels(S, rng), comm, "<= 0.25")


def labels(X: Any, rng: np.random.Generator) -> Any:
    """Return labels that a logistic model of the columns draws."""
    z = X @ np.random.default_rng(5).standard_normal(X.shape[1])
    return (rng.random(X.shape[0]) < 1 / (1 + np.exp(-2 * z / z.std()))).astype(float)


def case(name: str, X: Any, y: Any, comm: Comm, target: str) -> list[Row]:
    config = Config(loss="logistic", threads=1, quiet=True, statistics="no")
    problem = build.problem(shard_of((X, y), None, comm), config, comm)
    parts = [Fold(problem, q, comm) for q in range(FOLDS)]
    cross_validation.path(problem, config, L2[:1], FOLDS, comm)  # compiles
    parts[0].fit(config, L2[0], comm)
    problem.objective.reads = 0.0
    scores: list[Any] = []
    ours = seconds(
        comm, lambda: scores.extend(cross_validation.path(problem, config, L2, FOLDS, comm))
    )
    reads, cold, cold_reads, apart = problem.objective.reads, 0.0, 0.0, 0.0
    for place, l2 in enumerate(
        L2
    ):  # one fold of each penalty, by turns, stands for all: a hundred fits would take minutes
        q = place % FOLDS
        spent, used, loss = parts[q].fit(config, l2, comm)
        cold, cold_reads = cold + FOLDS * spent, cold_reads + FOLDS * used
        apart = max(apart, abs(float(scores[place][q]) / loss - 1.0))
    return [
        Row(
            f"cv, {name}: {len(L2)} penalties x {FOLDS} folds / one cold fit after another, time",
            ours / cold,
            target,
        ),
        Row(f"cv, {name}: seconds", ours),
        Row(f"cv, {name}: reads by all columns at once", reads),
        Row(f"cv, {name}: reads of the cold fits", cold_reads),
        Row(f"cv, {name}: largest relative difference of a held-out loss", apart, "<= 0.001"),
    ]


class Fold:
    """A fold's training rows as a problem of their own, on the same coordinates.

    The rows are copied before the time is taken.
    """

    def __init__(self, whole: build.Problem, q: int, comm: Comm) -> None:
        goal, rows = whole.objective, whole.objective.rows
        out = fold_numbers(whole.shard.rows, goal.n, FOLDS, 0) == q
        inside, self.held = (
            np.flatnonzero(~out),
            Rows(rows.X.rows(np.flatnonzero(out)), rows.y[out], rows.c[out], None),
        )
        counts = comm.allgather(np.array([inside.size], dtype=np.int64))[:, 0]
        part = copy.copy(goal)
        part.n, part.counter = int(counts.sum()), part
        part.rows = Rows(rows.X.rows(inside), rows.y[inside], rows.c[inside], None)
        part.statistics = dataclasses.replace(goal.statistics, weight=float(part.n))
        part.numbers = np.arange(inside.size) + int(counts[: comm.rank].sum())
        self.objective, self.whole = part, whole

    def fit(self, config: Config, l2: float, comm: Comm) -> tuple[float, float, float]:
        """Time a cold fit as `train` makes it, without loading. Collective.

        Returns its seconds, its data passes, and the mean loss of the held-out rows.
        """
        goal = copy.copy(self.objective)
        goal.counter, goal._samples, goal._points, goal.reads = goal, {}, [], 0.0
        penalty = dataclasses.replace(self.whole.penalty, strength=l2)
        made = dataclasses.replace(
            self.whole, objective=goal, penalty=penalty, reducer=goal.reducer("exact", comm)
        )
        complete = build.complete(config.replace(l2=l2), goal.n, goal.rows.X.d, made.shape)
        run = Run(made, complete, comm, Report(Progress(sys.stderr, quiet=True), complete, comm))
        spent = seconds(comm, run.train)
        z = margins(self.held.X, *goal.scaling.to_raw(run.w, 1), None)
        r, l = np.empty_like(z), np.empty(z.shape[1])
        goal.loss.kernel(z, self.held.y, np.ascontiguousarray(self.held.c), 0.0, r, l)
        loss, weight = total(np.column_stack([l, self.held.c]), comm)
        return spent, goal.reads, float(loss / weight)
