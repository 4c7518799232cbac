"""The promise of the demo, on real flights.

A first run finds scikit-learn's optimum, and its AUC on held-out months.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import mpigd
from mpigd.data.loading import Layout, load
from mpigd.matrix.base import CSR
from mpigd.parallel.comm import SelfComm
from scripts import flights

L2 = 1e-4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("flights")
    paths = []
    for name, table in zip(("train", "test"), flights.split(), strict=True):
        table.to_csv(folder / f"{name}.csv", index=False)
        paths.append(str(folder / f"{name}.h5"))
    mpigd.import_data(str(folder / "train.csv"), paths[0], target=flights.TARGET, missing="mean")
    mpigd.import_data(str(folder / "test.csv"), paths[1], like=paths[0])
    return paths[0], paths[1]


def dense(path: str) -> tuple[Any, Any]:
    shard = load([path], Layout(), SelfComm())
    assert isinstance(shard.X, CSR) and shard.y is not None
    X = sparse.csr_matrix((shard.X.data, shard.X.indices, shard.X.indptr), (shard.X.n, shard.X.d))
    return X.toarray().astype(np.float64), shard.y


def test_against_scikit_learn(files: tuple[str, str], tmp_path: Path) -> None:
    (X, y), (held_out, labels) = (dense(path) for path in files)
    mean, scale = X.mean(axis=0), X.std(axis=0)
    scale[scale == 0] = 1.0
    truth = LogisticRegression(C=1 / (L2 * len(y)), solver="newton-cholesky", tol=1e-9).fit(
        (X - mean) / scale, y
    )
    z = truth.decision_function((X - mean) / scale)
    optimum = np.mean(np.logaddexp(0, z) - y * z) + L2 / 2 * np.sum(truth.coef_**2)
    auc = roc_auc_score(labels, truth.decision_function((held_out - mean) / scale))

    full = mpigd.train(files[0], loss="logistic", l2=L2)
    assert full.summary["objective"] == pytest.approx(optimum, rel=1e-6)
    assert full.summary["gap"] <= 1e-6 * full.summary["objective"]
    assert roc_auc_score(labels, full.predict_proba(held_out)[:, 1]) == pytest.approx(auc, abs=1e-4)

    accelerated = mpigd.train(files[0], loss="logistic", l2=L2, optimizer="nesterov")
    assert accelerated.summary["objective"] == pytest.approx(optimum, rel=1e-4)

    batches = mpigd.train(files[0], loss="logistic", l2=L2, mode="minibatch", epochs=5)
    assert roc_auc_score(labels, batches.predict_proba(held_out)[:, 1]) == pytest.approx(
        auc, abs=0.005
    )
