"""Hessians of compressed rows, summed over pairs of entries.

They are compared with numpy, with any column means and on any number of ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from mpigd.model import sparse_gram
from mpigd.model.hessian import Alongside
from mpigd.model.objective import Oracle
from mpigd.model.sparse_gram import Split
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.training import problem as build
from tests.scenarios import fit, same, shard
from tests.threadcomm import run
from tests.truths import Table, pointwise

Array = np.ndarray[Any, Any]


def one_hot(
    loss: str = "logistic", n: int = 900, far: float = 0.0, weights: bool = True, seed: int = 0
) -> Table:
    """Two factors with very unequal levels, a rare number, and three dense columns.

    The means of the dense columns are `far` standard deviations from zero.
    """
    rng = np.random.default_rng(seed)
    levels = [np.eye(L)[np.minimum(rng.exponential(L / 4, n).astype(int), L - 1)] for L in (12, 30)]
    rare = np.where(rng.random(n) < 0.02, rng.normal(size=n), 0.0)
    X = np.column_stack([*levels, rare, rng.normal(size=(n, 3)) + far])
    z = 0.5 * (X[:, -3:] - far).sum(axis=1) + X[:, 3]
    if loss == "softmax":
        y = np.digitize(z + rng.normal(size=n), [-0.5, 0.7]).astype(float)
    elif loss == "poisson":
        y = rng.poisson(np.exp(0.5 * z)).astype(float)
    else:
        y = (z + rng.logistic(size=n) > 0).astype(float)
    return Table(X, y, rng.exponential(size=n) if weights else None)


def oracle_of(
    table: Table, comm: Comm | None = None, place: str = "range", **options: Any
) -> Oracle:
    comm, config = comm or SelfComm(), from_mapping(options)
    problem = build.problem(shard(table, comm, place, as_csr=True), config, comm)
    problem.objective.keeps_margins = True
    batch = next(build.schedule(problem, config).batches(0))
    return problem.objective.on(batch, problem.reducer)


def truth(oracle: Oracle, table: Table, w: Array) -> Array:
    """The Hessian (k, p, k, p) by numpy.

    It is made of dense columns in the oracle's order, centred in extended precision.
    """
    objective, scaling, k = oracle.objective, oracle.objective.scaling, oracle.objective.k
    X, c = (
        table.X[:, scaling.number].astype(np.longdouble),
        np.ones(len(table.y)) if table.c is None else table.c,
    )
    shift = (
        0.0 if scaling.shift is None else scaling.shift
    )  # what training subtracts from columns far from zero
    Z = (X - shift - scaling.center) * scaling.inverse
    Z = np.column_stack([Z, np.ones((len(c), int(scaling.intercept)))]).astype(float)
    z, step = Z @ w.reshape(k, -1).T, 1e-6
    if k > 1:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        h = p[:, :, np.newaxis] * (np.eye(k) - p[:, np.newaxis])
    elif objective.loss.name == "logistic":
        h = (1.0 / (1.0 + np.exp(-z)) / (1.0 + np.exp(z)))[:, np.newaxis]
    else:
        ahead, behind = (
            pointwise(objective.loss.name, z + s * step, table.y, from_mapping({}))[1]
            for s in (1, -1)
        )
        h = ((ahead - behind) / (2 * step))[:, np.newaxis]
        h = np.exp(z)[:, np.newaxis] if objective.loss.name == "poisson" else h
    found = np.einsum("iqs,ia,ib->qasb", h * c[:, np.newaxis, np.newaxis], Z, Z, optimize=True)
    return np.asarray(found / c.sum())


def error(H: Array, expected: Array) -> float:
    """Largest difference, relative to the roots of both diagonal elements."""
    root = np.sqrt(np.diag(expected))
    return float((np.abs(H - expected) / root / root[:, np.newaxis]).max())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("loss", ["logistic", "softmax", "poisson"])
def test_the_hessian_is_that_of_numpy(loss: str, intercept: bool) -> None:
    table = one_hot(loss)
    oracle = oracle_of(table, loss=loss, intercept=intercept)
    size = oracle.objective.size
    w = np.random.default_rng(1).normal(size=size) * 0.2
    split = Split.of(oracle.objective)
    assert split is not None and 3 <= split.dense <= 8
    along = oracle.derivatives(w)[2]
    oracle.look_at(w)
    expected = truth(oracle, table, w).reshape(size, size)
    for H in (oracle.hessian()[0], along[0]):
        np.testing.assert_array_equal(H, H.T)
        assert error(H, expected) < 1e-10
    assert Alongside.fits(oracle.objective) == (loss != "poisson")


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_means_far_from_zero_cost_no_digits(far: float) -> None:
    table = one_hot(far=far)
    oracle = oracle_of(table, loss="logistic")
    w = np.zeros(oracle.objective.size)
    split = Split.of(oracle.objective)
    assert split is not None
    oracle.look_at(w)
    # The centre itself is a float64: 1e8 deviations away it has eight digits of a deviation.
    assert error(oracle.hessian()[0], truth(oracle, table, w).reshape(w.size, w.size)) < 1e-10


def test_rare_columns_of_great_weight() -> None:
    """Weights bring the mean of a column near its only value, although few rows have it."""
    table = one_hot()
    assert table.c is not None
    heavy = Table(table.X, table.y, np.where(table.X[:, 20] > 0.0, 1e4, 1.0) * table.c)
    oracle = oracle_of(heavy, loss="logistic")
    statistics = oracle.objective.statistics
    assert (statistics.mean > 20.0 * statistics.deviation)[statistics.count < 100].any()
    w = np.zeros(oracle.objective.size)
    oracle.look_at(w)
    assert (
        error(oracle.hessian()[0], truth(oracle, heavy, w).reshape(w.size, w.size)) < 1e-8
    )  # dense columns: 1e-7


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_hessians_have_the_same_bits_on_all_ranks(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = one_hot(loss)

    def numbers(comm: Comm, threads: int, place: str = "hash") -> list[Array]:
        oracle = oracle_of(table, comm, place, loss=loss, threads=threads)
        w = np.linspace(-0.5, 0.5, oracle.objective.size)
        found = [oracle.derivatives(w)[2], oracle.sample(300).derivatives(w)[2]]
        oracle.look_at(w)
        part = oracle.columns(np.arange(1, 40, 2))
        assert part is not None
        part.look_at(np.zeros(part.objective.size))
        return [*found, oracle.hessian(), part.hessian()]

    expected = numbers(SelfComm(), 1)
    for size, threads, chunk in ((1, 3, 16), (2, 1, 257), (3, 2, 1000), (5, 1, 8)):
        monkeypatch.setattr(sparse_gram, "ROWS", chunk)
        for found in run(size, numbers, threads):
            for mine, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(mine, other)


def test_models_have_the_same_bits() -> None:
    table, options = (
        one_hot(),
        dict(loss="logistic", optimizer="newton-cholesky", l2=1e-3, epochs=3, tol=0),
    )
    model = fit(shard(table, SelfComm(), as_csr=True), **options)
    for place, threads in (("hash", 1), ("file", 2)):
        for other in run(
            3, lambda c, p=place, t=threads: fit(shard(table, c, p, True), c, threads=t, **options)
        ):
            same(other, model)


def test_what_is_cheaper() -> None:
    """Pairs of entries are used for rows with few entries.

    Rows with many entries, and those with few columns, are summed as dense rows.
    """
    rng = np.random.default_rng(0)
    full = Table(rng.normal(size=(300, 30)), np.tile([0.0, 1.0], 150))
    assert Split.of(oracle_of(full, loss="logistic").objective) is None
    holes = Table(full.X * (rng.random(full.X.shape) < 0.5), full.y)
    assert Split.of(oracle_of(holes, loss="logistic").objective) is None
    wide = np.where(rng.random((300, 200)) < 0.01, 1.0, 0.0)
    split = Split.of(oracle_of(Table(wide, full.y), loss="logistic").objective)
    assert split is not None and split.dense <= 7  # beside the intercept in a vector
