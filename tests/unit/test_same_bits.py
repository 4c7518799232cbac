"""The first promise as a property: all ways to run give the same digest.

This holds for any data and any configuration.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st

from mpigd.config.schema import from_mapping
from mpigd.data.shard import Shard
from mpigd.errors import NumericalError, ReplicaError, WorseError
from mpigd.matrix import base
from mpigd.matrix.base import Matrix
from mpigd.matrix.half import Half, Narrowing
from mpigd.model.losses import LOSSES
from mpigd.optim.accelerated import Accelerated
from mpigd.optim.base import advance
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.reduction.base import joined
from mpigd.training import problem as build
from mpigd.training.callbacks.progress import Progress
from mpigd.training.callbacks.report import Report
from mpigd.training.trainer import Run
from tests import scenarios
from tests.scenarios import ALL_LOSSES, OPTIMIZERS, Table, fit, generate, kill
from tests.threadcomm import run

FULL = "TEST_FULL" in os.environ
LOG_LINK = ("poisson", "gamma")
SECOND_ORDER = ("newton", "newton-cholesky", "lbfgs")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Way:
    """One way to run.

    It has a number of ranks and threads, an assignment of rows to ranks (by seed), and a size of
    blocks.
    """

    ranks: int
    threads: int
    seed: int
    block: int

    def shard(self, whole: Shard, table: Table, comm: Comm) -> Shard:
        """Rows dealt to the ranks at random; a rank may get none."""
        rows = np.flatnonzero(
            np.random.default_rng(self.seed).integers(0, self.ranks, whole.n) == comm.rank
        )
        mine = table.take(rows)
        return replace(
            whole,
            rows=rows.astype(np.int64),
            X=whole.X.rows(rows),
            y=mine.y,
            c=mine.c,
            offset=mine.offset,
        )


ways = st.builds(
    Way,
    ranks=st.integers(1, 5),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
    block=st.sampled_from((1, 3, 16, 64)),
)


@st.composite
def problems(draw: Any) -> tuple[Table, dict[str, Any], str]:
    """Draw (rows, options, how X is held).

    Numbers are rich in ties or wide, weights extend over many decades, and all losses, modes and
    optimisers occur.
    """
    loss = draw(st.sampled_from(ALL_LOSSES))
    table = generate(
        loss, n=draw(st.integers(12, 90)), d=draw(st.integers(1, 20)), seed=draw(st.integers(0, 50))
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    n = len(table.y)
    if draw(st.booleans()):  # numbers on a coarse grid: every rounding tie that there is
        table = replace(table, X=np.rint(table.X))
    if draw(st.booleans()) and loss not in LOG_LINK:  # outliers
        table.X[rng.integers(0, n), 0] *= 1e4
    table = replace(
        table,
        c=10 ** rng.uniform(-10, 0, n) if draw(st.booleans()) else None,
        offset=rng.normal(size=n) if draw(st.booleans()) else None,
    )
    mode = draw(st.sampled_from(("full", "minibatch", "stochastic")))
    second_order = SECOND_ORDER if mode == "full" and LOSSES[loss].smooth else ()
    options: dict[str, Any] = dict(
        loss=loss, mode=mode, epochs=draw(st.integers(2, 4)),
        optimizer=draw(st.sampled_from(("auto", *OPTIMIZERS, *second_order))),
        l2=draw(st.sampled_from((0.0, 1e-3))), intercept=draw(st.booleans()),
        standardize=draw(st.booleans()), seed=draw(st.integers(0, 3)), tol=0.0,
    )  # fmt: skip
    if mode != "full":
        options["batch_size"] = draw(st.integers(1, 40))
    if mode == "minibatch":
        options["shuffle"] = draw(st.sampled_from(("rows", "blocks")))
    if LOSSES[loss].classifies:
        options["class_weight"] = draw(st.sampled_from((None, "balanced")))
    return (
        table,
        options,
        draw(st.sampled_from(("float64", "float32", "csr float64", "csr float32", "float16"))),
    )


def matrix_of(X: Array, kind: str) -> Matrix:
    """X as it is held in memory: dense, compressed rows, or halves."""
    if kind != "float16":
        return scenarios.matrix(X.astype(kind.removeprefix("csr ")), kind.startswith("csr"))
    narrowing, bits = (
        Narrowing(X.min(axis=0), X.max(axis=0), SelfComm()),
        np.empty(X.shape, np.uint16),
    )
    narrowing.narrow(X, bits)
    return Half(bits, narrowing.unit)


def trained(way: Way, whole: Shard, table: Table, options: dict[str, Any]) -> tuple[str, str]:
    """(digest, state_digest) of a run this way; all virtual ranks must agree on it."""

    def on_rank(comm: Comm) -> tuple[str, str]:
        model = fit(way.shard(whole, table, comm), comm, threads=way.threads, **options)
        return model.digest, model.summary["state_digest"]

    results = run(way.ranks, on_rank)
    assert len(set(results)) == 1
    return results[0]


def with_blocks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(base, "SMALLEST_BLOCK", rows)
    monkeypatch.setattr(base, "SMALLEST_SWEEP", rows)
    monkeypatch.setattr(base, "SWEEP_BYTES", 1)
    monkeypatch.setattr(base, "BLOCK_BYTES", 1)
    monkeypatch.setattr(base, "SPARSE_BLOCK", 1)


@settings(
    max_examples=400 if FULL else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(problem=problems(), one=ways, other=ways, stop=st.integers(0, 6))
def test_no_two_digests_differ(
    problem: tuple[Table, dict[str, Any], str],
    one: Way,
    other: Way,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, options, kind = problem
    event(f"{options['loss']} {options['mode']}")
    X = matrix_of(table.X, kind)
    whole = Shard(
        len(table.y), np.arange(len(table.y), dtype=np.int64), X, table.y, table.c, table.offset
    )
    try:
        truth = fit(whole, **options)
    except WorseError:  # a few steps of single rows, drawn at random, may lead anywhere
        reject()
    digests = (truth.digest, truth.summary["state_digest"])
    with_blocks(monkeypatch, one.block)
    assert trained(one, whole, table, options) == digests
    if stop >= truth.summary["steps"] - 1:
        return
    folder = tempfile.mkdtemp()
    try:
        saving = options | dict(checkpoint=folder, checkpoint_every=1)
        run(
            one.ranks,
            lambda comm: kill(
                stop, one.shard(whole, table, comm), comm, threads=one.threads, **saving
            ),
        )
        with_blocks(monkeypatch, other.block)
        assert trained(other, whole, table, saving) == digests
    finally:
        shutil.rmtree(folder)


def test_native_sums_do_differ() -> None:
    """Without exact sums the same property fails: the test above can."""
    table = generate("logistic", n=90, d=20, weights=True)
    digests = {
        model.digest
        for ranks in (1, 2, 3, 5)
        for model in run(
            ranks,
            lambda comm: fit(
                scenarios.shard(table, comm, "hash"), comm, loss="logistic", reduce="native"
            ),
        )
    }
    assert len(digests) > 1


def flip(rank: int, what: str, folder: str | None, **options: Any) -> None:
    """Train on three ranks, with a flipped bit on one of them.

    The bit belongs to the parameters or to the optimiser's state, and flips in step 12.
    """
    honest = Accelerated.step

    def on_rank(comm: Comm) -> str:
        def flipping(self: Any, w: Any, state: Any, *rest: Any) -> Any:
            w, state = honest(self, w, state, *rest)
            if comm.rank == rank and state["step"][0] == 12:
                damaged = w if what == "parameters" else state["previous"]
                damaged[0] = np.nextafter(damaged[0], np.inf)
            return w, state

        return build_and_train(comm, flipping, folder, **options)

    run(3, on_rank)


@pytest.mark.parametrize(
    ("rank", "what"), [(1, "parameters"), (2, "parameters"), (0, "state"), (2, "state")]
)
def test_a_rank_that_differs_is_named_and_nothing_is_saved(
    rank: int, what: str, tmp_path: Path
) -> None:
    """All ranks find a flipped bit at the next comparison.

    A checkpoint of a step with the damage is refused.
    """
    with pytest.raises(ReplicaError, match=rf"rank\(s\) {rank} differ .* the same before step 10:"):
        flip(rank, what, str(tmp_path), checkpoint_every=3, check_replicas=100)
    assert sorted(int(name[5:17]) for name in os.listdir(tmp_path)) == [6, 9]


def test_a_comparison_on_the_way_names_the_rank() -> None:
    with pytest.raises(ReplicaError, match=r"rank\(s\) 1 differ .* the same before step 11:"):
        flip(1, "parameters", None, check_replicas=5)


def test_a_model_of_ranks_that_differ_is_refused() -> None:
    """Also by a run without checkpoints, and after the last comparison on the way."""
    with pytest.raises(ReplicaError, match=r"rank\(s\) 1 differ .* the same before step 1:"):
        flip(1, "parameters", None, check_replicas=100)


def build_and_train(comm: Comm, step: Any, folder: str | None, **options: Any) -> str:
    """Train with a step of the test's own."""
    options |= dict(
        loss="logistic", optimizer="nesterov", l2=1e-3, epochs=40, tol=0.0, checkpoint=folder
    )
    table = generate("logistic")
    shard = scenarios.shard(table, comm)
    config = build.complete(from_mapping(options), shard.n)
    report = Report(Progress(io.StringIO(), quiet=True), config, comm)
    going = Run(build.problem(shard, config, comm), config, comm, report)
    kind = type(going.optimizer)
    going.optimizer = type("Flipping", (kind,), {"step": step})(going.optimizer.curvature)  # type: ignore[attr-defined]
    going.train()
    return "no difference was seen"


def test_a_continued_step_may_end_without_a_finite_sum(tmp_path: Path) -> None:
    """A step may end without a finite sum, for example if all trial points are too far.

    The step is refused, and no sums of the callbacks' values exist.
    """

    def refused(self: Any, w: Any, state: Any, oracle: Any, *rest: Any) -> Any:
        with pytest.raises(NumericalError):
            oracle.value_and_gradient(np.full_like(w, np.inf))
        return w, advance(state, 1.0, 1.0)

    assert build_and_train(SelfComm(), refused, str(tmp_path))


def test_one_process_is_the_world() -> None:
    """The same Run without any communicator of the tests: SelfComm is no special case."""
    table = generate("squared", weights=True)
    alone = fit(table, SelfComm(), loss="squared")
    assert {
        model.digest
        for model in run(2, lambda comm: fit(scenarios.shard(table, comm), comm, loss="squared"))
    } == {alone.digest}


def test_outliers_and_weights_switch_all_ranks_to_the_second_grid() -> None:
    """The choice depends on data and tolerance alone.

    The error of the gradient is then at most 1e-9 of the sum of the absolute terms.
    """
    ordinary, wild = generate("squared", n=400), generate("squared", n=400)
    rng = np.random.default_rng(1)
    wild.X[rng.integers(0, 400, 4), np.arange(4)] *= 1e6
    wild = replace(wild, c=10.0 ** rng.uniform(-10, 0, 400))

    def built(comm: Comm, table: Table) -> tuple[bool, list[float]]:
        config = build.complete(from_mapping(dict(loss="squared", tol=1e-9)), 400)
        goal = build.problem(scenarios.shard(table, comm, "hash"), config, comm)
        everything = build.Batch.whole(400)
        sums = goal.objective.sums(joined, np.zeros(goal.objective.size), everything, goal.reducer)
        return goal.objective.fine, sums.gradient[0].tolist()

    assert not any(fine for fine, _ in run(3, lambda comm: built(comm, ordinary)))
    results = [
        result for ranks in (1, 2, 3) for result in run(ranks, lambda comm: built(comm, wild))
    ]
    assert all(fine for fine, _ in results)
    assert len({tuple(gradient) for _, gradient in results}) == 1
    assert wild.c is not None
    for j in range(4):
        terms = [
            -Fraction(c) * Fraction(y) * Fraction(x)
            for c, y, x in zip(wild.c, wild.y, wild.X[:, j], strict=True)
        ]
        assert abs(Fraction(results[0][1][j]) - sum(terms)) <= Fraction(1, 10**15) * sum(
            abs(term) for term in terms
        )
