"""Training scenarios that hold on any communicator.

Any number of ranks must compute what one process computes, bit for bit.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from mpigd.config.schema import from_mapping
from mpigd.data.shard import Shard
from mpigd.errors import DataError
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.parallel.comm import Comm, SelfComm, bcast_bytes, together
from mpigd.scoring.fitted_model import Model
from mpigd.training import problem
from mpigd.training.callbacks.base import Callback, Step
from mpigd.training.callbacks.progress import Progress
from mpigd.training.callbacks.report import Report
from mpigd.training.trainer import Run, train
from tests.threadcomm import run
from tests.truths import ALL_LOSSES, Table, generate

Array = np.ndarray[Any, Any]
PLACES = ("range", "hash", "file")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")


def matrix(X: Array, as_csr: bool) -> Matrix:
    if not as_csr:
        return Dense(np.ascontiguousarray(X))
    S = sparse.csr_matrix(X)
    return CSR(
        S.indptr.astype(np.int64), S.indices.astype(np.int32), S.data.astype(X.dtype), X.shape[1]
    )


def places(n: int, place: str, rank: int, size: int) -> Array:
    """Global rows of a rank.

    The ranges are equal, scattered, or very unequal with some empty ones.
    """
    if place == "hash":
        return np.flatnonzero(np.random.default_rng(99).integers(0, size, n) == rank)
    cuts = np.linspace(0, 1, size + 1)
    if place == "file":
        cuts = np.where(cuts < 0.4, 0.0, cuts**2)
    return np.arange(int(n * cuts[rank]), int(n * cuts[rank + 1]))


def shard(table: Table, comm: Comm, place: str = "range", as_csr: bool = False) -> Shard:
    rows = places(len(table.y), place, comm.rank, comm.size)
    mine = table.take(rows)
    return Shard(
        len(table.y), rows.astype(np.int64), matrix(mine.X, as_csr), mine.y, mine.c, mine.offset
    )


def fit(data: Table | Shard | Sequence[str], comm: Comm | None = None, **options: Any) -> Model:
    comm = comm or SelfComm()
    config = from_mapping(options)
    source: Any = shard(data, comm) if isinstance(data, Table) else data
    return train(source, config, comm, Progress(io.StringIO(), quiet=True))


def write(table: Table, folder: Path, files: int = 1, as_csr: bool = False) -> list[str]:
    """The rows in so many HDF5 files of unequal length, by plain h5py as a user would."""
    cuts = np.linspace(0, 1, files + 1) ** 1.5 * len(table.y)
    paths = []
    for number, (first, last) in enumerate(
        zip(cuts.astype(int), cuts.astype(int)[1:], strict=False)
    ):
        part = table.take(slice(first, last))
        paths.append(str(folder / f"part{number}.h5"))
        with h5py.File(paths[-1], "w") as file:
            if as_csr:
                S = sparse.csr_matrix(part.X)
                group = file.create_group("X")
                group.attrs.update({"encoding-type": "csr_matrix", "shape": np.array(S.shape)})
                for name in ("data", "indices", "indptr"):
                    group[name] = getattr(S, name)
            else:
                file.create_dataset(
                    "X",
                    data=part.X,
                    chunks=(min(16, len(part.y)), part.X.shape[1]) if len(part.y) else None,
                )
            for name, vector in (("y", part.y), ("sample_weight", part.c), ("offset", part.offset)):
                if vector is not None:
                    file[name] = vector
    return paths


# The scenarios: each takes the ranks and a folder of its own, and compares with one process.

Scenario = Callable[[Comm, Path], None]
SCENARIOS: dict[str, Scenario] = {}
STEPS = {
    "full": dict(epochs=4),
    "minibatch": dict(epochs=2, batch_size=17),
    "stochastic": dict(epochs=1, batch_size=9),
}


def scenarios(**cases: Sequence[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter the function once for each combination of its cases."""

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        for values in product(*cases.values()):
            name = "-".join([function.__name__, *map(str, values)])
            SCENARIOS[name] = partial(function, **dict(zip(cases, values, strict=True)))
        return function

    return enter


def shared(comm: Comm, folder: Path) -> Path:
    """One folder for all ranks: that of rank 0."""
    return Path(os.fsdecode(bcast_bytes(comm, os.fsencode(folder))))


def same(model: Model, truth: Model) -> None:
    """Compare models bit for bit.

    This covers coefficients, the state of optimiser and reducer, and the numbers that people see.
    """
    np.testing.assert_array_equal(model.coef, truth.coef)
    assert model.digest == truth.digest
    for key in (
        "state_digest",
        "objective",
        "gradient_norm",
        "reads",
        "steps",
        "fingerprint",
        "stop_reason",
    ):
        assert model.summary[key] == truth.summary[key], key
    assert model.history == truth.history


@scenarios(loss=ALL_LOSSES, mode=STEPS)
def bits(comm: Comm, folder: Path, loss: str, mode: str) -> None:
    table, options = (
        generate(loss, n=60, weights=True),
        dict(loss=loss, mode=mode, l2=1e-3, **STEPS[mode]),
    )
    for place, as_csr in (("range", False), ("hash", True), ("file", False)):
        truth = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
        same(fit(shard(table, comm, place, as_csr), comm, **options), truth)


@scenarios(optimizer=OPTIMIZERS, mode=STEPS)
def bits_of_optimizers(comm: Comm, folder: Path, optimizer: str, mode: str) -> None:
    table = generate("softmax", n=60, weights=True)
    options = dict(
        loss="softmax", mode=mode, l2=1e-2, optimizer=optimizer, warmup=2, clip=0.3, **STEPS[mode]
    )
    same(fit(shard(table, comm, "hash"), comm, **options), fit(table, **options))


@scenarios(optimizer=("proximal-newton", "fista", "svrg", "hybrid"))
def bits_of_proximal(comm: Comm, folder: Path, optimizer: str) -> None:
    table = generate("logistic", n=80, d=6, weights=True)
    steps = STEPS["minibatch" if optimizer == "svrg" else "full"]
    mode, l1 = (
        "minibatch" if optimizer == "svrg" else "full",
        0.0 if optimizer == "hybrid" else 0.03,
    )
    options = dict(loss="logistic", mode=mode, l1=l1, l2=1e-2, optimizer=optimizer, **steps)
    same(fit(shard(table, comm, "hash"), comm, **options), fit(table, **options))


@scenarios(files=(1, 2, 5), partition=PLACES, as_csr=(False, True))
def bits_of_files(comm: Comm, folder: Path, files: int, partition: str, as_csr: bool) -> None:
    table, folder = generate("logistic", n=101, weights=True), shared(comm, folder)
    paths: list[str] = []
    with together(comm):
        paths = (
            write(table, folder, files, as_csr)
            if comm.rank == 0
            else [str(folder / f"part{i}.h5") for i in range(files)]
        )
    for mode, steps in STEPS.items():
        options = dict(loss="logistic", mode=mode, class_weight="balanced", threads=2, **steps)
        truth = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
        same(fit(paths, comm, partition=partition, **options), truth)


@scenarios(n=(1, 2, 4), mode=STEPS)
def more_ranks_than_rows(comm: Comm, folder: Path, n: int, mode: str) -> None:
    table, options = (
        generate("poisson", n=50).take(slice(0, n)),
        dict(loss="poisson", mode=mode, epochs=3, l2=0.1),
    )
    for place in PLACES:
        same(
            fit(shard(table, comm, place, as_csr=True), comm, **options),
            fit(shard(table, SelfComm(), as_csr=True), **options),
        )


@scenarios(mode=STEPS)
def native_sums(comm: Comm, folder: Path, mode: str) -> None:
    """Plain sums round differently with every number of ranks, and that is all they do."""
    table = generate("logistic", weights=True)
    options = dict(loss="logistic", mode=mode, l2=1e-3, **STEPS[mode])
    model, truth = (
        fit(shard(table, comm, "hash"), comm, reduce="native", **options),
        fit(table, **options),
    )
    np.testing.assert_allclose(model.coef, truth.coef, rtol=1e-9)
    np.testing.assert_allclose(model.intercept, truth.intercept, rtol=1e-9)
    for key in ("objective", "gradient_norm"):
        np.testing.assert_allclose(model.summary[key], truth.summary[key], rtol=1e-9)


class Killed(Exception):
    """The end of a run that had no time to say goodbye."""


@dataclass
class Killer(Callback):
    """Ends a run before (`first` in line) or after (last in line) a step is saved."""

    step: int

    def after(self, step: Step, words: Array) -> str | None:
        if step.batch.step == self.step:
            raise Killed
        return None


def kill(step: int, data: Shard, comm: Comm, saved: bool = True, **options: Any) -> None:
    """Train until step number `step` is done and, if `saved`, its checkpoint written."""
    config = problem.complete(from_mapping(options), data.n)
    run = Run(
        problem.problem(data, config, comm),
        config,
        comm,
        Report(Progress(io.StringIO(), quiet=True), config, comm),
    )
    run.callbacks.insert(len(run.callbacks) if saved else 0, Killer(step))
    try:
        run.train()
    except Killed:
        return
    raise AssertionError(f"the run ended before step {step}")


def continued_after_any_step(table: Table, folder: Path, **options: Any) -> None:
    """End a run after each step on two ranks of threads, and continue it on three.

    The bits must be those of the undisturbed run.
    """
    truth = fit(table, **options)
    for step in range(truth.summary["steps"] - 1):
        options |= dict(checkpoint_every=1, checkpoint=str(folder / str(step)))
        run(
            2,
            lambda comm, at=step, now=dict(options): kill(
                at, shard(table, comm, "hash"), comm, **now
            ),
        )
        for model in run(
            3, lambda comm, now=dict(options): fit(shard(table, comm, "file"), comm, **now)
        ):
            same(model, truth)


@scenarios(mode=STEPS, optimizer=("nesterov", "adam"))
def continued_on_other_ranks(comm: Comm, folder: Path, mode: str, optimizer: str) -> None:
    table, folder = generate("gamma", n=50, weights=True), shared(comm, folder)
    options = dict(loss="gamma", mode=mode, optimizer=optimizer, l2=1e-2, **STEPS[mode])
    truth = fit(table, **options)
    for step, saved in ((0, True), (2, True), (2, False)):
        options |= dict(checkpoint_every=1, checkpoint=str(folder / f"{step}{saved}"))
        kill(step, shard(table, comm, "hash"), comm, saved, **options)
        with together(comm):
            if comm.rank == 0:
                same(fit(table, **options), truth)
        options |= dict(checkpoint=str(folder / f"{step}{saved} from one"))
        with together(comm):
            if comm.rank == 0:
                kill(step, shard(table, SelfComm()), SelfComm(), saved, **options)
        same(fit(shard(table, comm, "file"), comm, **options), truth)


@scenarios(loss=("logistic", "softmax", "squared"))
def early_stopping(comm: Comm, folder: Path, loss: str) -> None:
    table, folder = generate(loss, n=80), shared(comm, folder)
    held_out = str(folder / "part0.h5")
    with together(comm):
        if comm.rank == 0:
            write(generate(loss, n=30, seed=7), folder)
    options = dict(
        loss=loss,
        mode="minibatch",
        batch_size=16,
        lr=0.3,
        epochs=8,
        validation=(held_out,),
        patience=2,
    )
    same(fit(shard(table, comm, "hash"), comm, **options), fit(table, **options))


@scenarios(place=PLACES)
def a_fault_in_the_last_row(comm: Comm, folder: Path, place: str) -> None:
    """Only one rank can see it; all must raise the same error, and nobody may wait."""
    table = generate("poisson", n=20)
    table.y[19] = -1.0
    try:
        fit(shard(table, comm, place), comm, loss="poisson")
    except DataError as error:
        assert str(error) == "row 19: y is -1: the poisson loss needs numbers of at least 0"
        assert error.agreed
        return
    raise AssertionError("not refused")
