"""Gradients on one grid or two.

Their error is at most 1e-9 of the sum of the absolute terms, whatever the tolerance is; ordinary
data need one grid only.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from mpigd.matrix.half import Half, Narrowing
from mpigd.model.scaling import absolute_sums, measure
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.reduction.base import joined
from mpigd.training import problem
from tests import scenarios
from tests.threadcomm import run
from tests.truths import Table

Array = np.ndarray[Any, Any]
N, D = 20_000, 3
FIRST_RESIDUAL = {
    "logistic": lambda y: 0.5 - y,
    "squared": lambda y: -y,
    "poisson": lambda y: 1.0 - y,
}


def rows(loss: str, outlier: float, decades: float, seed: int = 0) -> Table:
    """Columns of positive numbers with one `outlier` in each.

    All small terms then have the sign of the target.
    """
    rng = np.random.default_rng(seed)
    X = np.abs(rng.normal(size=(N, D))) + 0.1
    X[rng.integers(0, N, D), np.arange(D)] *= outlier
    y = np.ones(N) if loss == "logistic" else np.abs(rng.normal(size=N)) + 0.01
    y[:2] = 0.0
    return Table(X, y, 10.0 ** rng.uniform(-decades, 0.0, N))


def first_gradient(
    comm: Comm, table: Table, loss: str, as_csr: bool = False
) -> tuple[bool, tuple[float, ...]]:
    """(second grid?, sums of the gradient at zero), for a tolerance that asks for nothing."""
    config = problem.complete(from_mapping(dict(loss=loss, tol=0.5)), N)
    goal = problem.problem(scenarios.shard(table, comm, "hash", as_csr), config, comm)
    sums = goal.objective.sums(
        joined,
        np.zeros(goal.objective.size),
        problem.Batch.whole(N),
        goal.reducer,
    )
    return goal.objective.fine, tuple(sums.gradient[0])


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize(
    ("outlier", "decades"), [(1e6, 10.0), (1e5, 10.0), (1e4, 10.0), (1e6, 0.0), (1.0, 10.0)]
)
@pytest.mark.parametrize("loss", FIRST_RESIDUAL)
def test_gradients_keep_nine_digits_whatever_the_tolerance(
    loss: str, outlier: float, decades: float, as_csr: bool
) -> None:
    table = rows(loss, outlier, decades)
    (fine, gradient), *others = [
        result
        for ranks in (1, 3)
        for result in run(ranks, lambda comm: first_gradient(comm, table, loss, as_csr))
    ]
    assert all(other == (fine, gradient) for other in others)
    assert table.c is not None
    residual = table.c * FIRST_RESIDUAL[loss](table.y)
    for j in range(D):
        terms = residual * table.X[:, j]
        assert abs(gradient[j] - math.fsum(terms)) <= 1e-9 * math.fsum(np.abs(terms))
    assert fine or outlier < 1e6 or not decades  # such an outlier is most of the sum by itself


@pytest.mark.parametrize("loss", FIRST_RESIDUAL)
def test_ordinary_data_keep_one_grid(loss: str) -> None:
    """Weights over ten decades, or columns with long tails, need no second grid.

    A second grid costs a third of the speed.
    """
    table = rows(loss, 1e3, 3.0)
    tails = replace(table, X=np.exp(2.0 * np.random.default_rng(1).normal(size=(N, D))))
    apart = replace(table, X=table.X * np.where(np.arange(N) % 2, 1.0, -1.0)[:, np.newaxis])
    for ordinary in (table, tails, apart, replace(table, c=None), rows(loss, 1.0, 10.0)):
        assert not first_gradient(SelfComm(), ordinary, loss)[0]


@pytest.mark.parametrize("kind", ["dense", "csr", "half"])
def test_absolute_sums(kind: str) -> None:
    rng = np.random.default_rng(0)
    X, c = rng.normal(size=(300, 4)) * (rng.random((300, 4)) < 0.5), rng.random(300)
    if kind == "half":
        narrowing, bits = (
            Narrowing(X.min(axis=0), X.max(axis=0), SelfComm()),
            np.empty(X.shape, np.uint16),
        )
        narrowing.narrow(X, bits)
        matrix: Any = Half(bits, narrowing.unit)
        X = matrix.widened().values
    else:
        matrix = scenarios.matrix(X, kind == "csr")
    statistics = measure(matrix, c, 300, SelfComm())
    found = absolute_sums(matrix, c, 300, statistics, SelfComm())
    X = X if statistics.number is None else X[:, statistics.number]  # columns are arranged now
    np.testing.assert_allclose(found, c @ np.abs(X), rtol=1e-12)
