"""The projection that proves separation agrees with numpy's pseudo-inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from mpigd.model.recession import margins, moves, projected
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.training import problem as build
from tests.scenarios import shard
from tests.threadcomm import run
from tests.truths import Table

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("loss", ["logistic", "softmax", "poisson"])
def test_fixed_pairs_no_longer_move(loss: str, as_csr: bool) -> None:
    """Only the part of the direction within the row space of the fixed moves is taken away."""
    rng = np.random.default_rng(0)
    n, d, k = 40, 5, 3 if loss == "softmax" else 1
    y = np.concatenate([np.arange(3), rng.integers(0, 3, n - 3)]).astype(float)
    y = np.minimum(y, 1.0) if loss == "logistic" else y
    X, flat = rng.normal(size=(n, d)), np.arange(n) % 3 > 0
    X[flat, 0] = 0.0  # so that the first column moves none of the rows to fix
    table, v = Table(X, y), rng.normal(size=k * (d + 1))
    fixed = flat & (np.arange(k)[:, np.newaxis] != y) if k > 1 else flat[np.newaxis]
    config = build.complete(from_mapping(dict(loss=loss)), n)

    def on_rank(comm: Comm) -> Array:
        data = shard(table, comm, "hash", as_csr)
        objective = build.problem(data, config, comm).objective
        return projected(v, fixed[:, data.rows], objective, comm)

    objective = build.problem(shard(table, SelfComm(), as_csr=as_csr), config, SelfComm()).objective
    found = projected(v, fixed, objective, SelfComm())
    before, after = np.abs(moves(v, objective)), np.abs(moves(found, objective))
    assert before[fixed].min() > 1e-3
    assert after[fixed].max() < 1e-10  # the Gram matrix keeps 12 digits
    assert after[~fixed].max() > 0.1

    A = np.empty((np.count_nonzero(fixed), v.size))
    for j, unit in enumerate(np.eye(v.size)):
        t = margins(*objective.scaling.to_raw(unit, k), objective)
        A[:, j] = (t[y.astype(int), np.arange(n)] - t if k > 1 else t)[fixed]
    assert np.linalg.matrix_rank(A) < v.size
    D = np.sqrt((A * A).sum(axis=0))
    np.testing.assert_allclose(found, v - np.linalg.pinv(A / D) @ (A @ v) / D, atol=1e-10)
    for other in run(3, on_rank):
        np.testing.assert_array_equal(other, found)
