"""Defaults of `mpigd train` on data for which they once gave silently wrong models.

They now find the optimum in few reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.special import expit
from sklearn.linear_model import PoissonRegressor

import mpigd
from mpigd.config.schema import from_mapping
from mpigd.errors import WorseError
from tests.scenarios import fit, same, shard
from tests.threadcomm import run
from tests.truths import Table, objective, optimum

Array = np.ndarray[Any, Any]
NAMED = ("lbfgs", "newton-cholesky", "newton")


def excess(summary: dict[str, Any], best: float) -> float:
    """Above the optimum, over what there is to gain."""
    return float((summary["objective"] - best) / (summary["null_objective"] - best))


def few_reads(table: Table, best: float, **options: Any) -> dict[str, Any]:
    """The summary of a fit with defaults, which must reach the optimum.

    It takes at most 1.5 times the reads of the best named optimiser, and 5 more.
    """
    rows = (table.X, table.y, table.c, table.offset)
    found = mpigd.train(rows, **options).summary
    assert found["converged"] and excess(found, best) <= 1e-6
    reads = [mpigd.train(rows, optimizer=name, **options).summary["reads"] for name in NAMED]
    assert found["reads"] <= 1.5 * min(reads) + 5
    return found


# Starts from samples that say nothing of the rows.


def test_rare_events_of_many_levels() -> None:
    """In a sample, a level without events has no optimum.

    The default once ended at objectives of 1e12 to 1e47.
    """
    rng = np.random.default_rng(0)
    share = np.arange(1, 31) ** -1.2
    X = np.eye(30)[rng.choice(30, 20_000, p=share / share.sum())]
    y = rng.poisson(0.05, 20_000).astype(float)
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    truth = PoissonRegressor(alpha=1e-12, solver="newton-cholesky", tol=1e-10).fit(scaled, y)
    best = objective(Table(X, y), from_mapping(dict(loss="poisson")), *raw(truth, X))[0]
    assert few_reads(Table(X, y), best, loss="poisson")["reads"] <= 12


def raw(truth: Any, X: Array) -> tuple[Array, Array]:
    """Coefficients of the columns as they are, for a model of standardised ones."""
    coef = truth.coef_ / X.std(axis=0)
    return coef[np.newaxis], np.atleast_1d(truth.intercept_ - coef @ X.mean(axis=0))


def test_claims_of_an_insurer() -> None:
    """Four factors, and the logarithm of the exposure as offset: 2.5e26 in place of 0.09."""
    rng = np.random.default_rng(1)
    n, columns, first = 20_000, [], 0
    for levels in (80, 20, 12, 5):
        share = np.arange(1, levels + 1) ** -1.3
        columns.append(first + rng.choice(levels, n, p=share / share.sum()))
        first += levels
    X = sparse.csr_matrix(
        (np.ones(4 * n), np.column_stack(columns).ravel(), np.arange(0, 4 * n + 1, 4)),
        shape=(n, first),
    )
    exposure = rng.uniform(0.02, 1.0, n)
    y = rng.poisson(exposure * np.exp(-2.5 + (X @ rng.normal(size=first)) * 0.2)).astype(float)
    found = mpigd.train((X, y, None, np.log(exposure)), loss="poisson", l2=1e-4).summary
    other = mpigd.train(
        (X, y, None, np.log(exposure)), loss="poisson", l2=1e-4, optimizer="lbfgs", tol=1e-10
    ).summary
    assert found["converged"] and excess(found, other["objective"]) <= 1e-6
    assert found["objective"] < found["null_objective"] < 1.0


def test_weights_and_outliers_over_decades() -> None:
    """An unweighted sample says nothing about weights over many decades.

    The default once took 972 steps and 4,231 reads, and newton-cholesky took 37 reads.
    """
    rng = np.random.default_rng(2)
    n, d = 10_000, 20
    X = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-3, 3, d)
    y = (rng.random(n) < expit((X / X.std(axis=0)) @ rng.normal(size=d) * 0.5)).astype(float)
    X[rng.integers(0, n, 30), rng.integers(0, d, 30)] *= 1e4
    table = Table(X, y, 10.0 ** rng.uniform(-3, 3, n) * rng.exponential(size=n))
    reference = fit(table, loss="logistic", l2=1e-4, optimizer="newton-cholesky", tol=1e-12)
    assert few_reads(table, reference.summary["objective"], loss="logistic", l2=1e-4)["reads"] <= 40


def test_few_positives() -> None:
    """2,874 reads and 4.4 times the whole gain away from the optimum."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(30_000, 15))
    y = (rng.random(30_000) < expit(X @ rng.normal(size=15) * 0.4 - 7.0)).astype(float)
    best = optimum(Table(X, y), from_mapping(dict(loss="logistic")))[0]
    few_reads(Table(X, y), best, loss="logistic")


# Columns that nearly depend on others.


@pytest.mark.parametrize("short", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("name", ["auto", "newton", "lbfgs"])
def test_what_is_left_of_a_nearly_dependent_column_counts(
    loss: str, short: float, name: str
) -> None:
    """The reference has the remainder itself as a column.

    Newton's method once ignored this remainder and stopped with "tolerance".
    """
    rng = np.random.default_rng(4)
    X = rng.normal(size=(3000, 4))
    remainder = X[:, 3].copy()
    X[:, 3] = X[:, 0] + X[:, 1] + short * remainder
    remainder = (X[:, 3] - X[:, 0] - X[:, 1]) / short
    z = X[:, 0] - X[:, 2] + remainder
    y = (
        z + rng.normal(size=3000)
        if loss == "squared"
        else (rng.random(3000) < expit(z)).astype(float)
    )
    plain = fit(Table(np.column_stack([X[:, :3], remainder]), y), loss=loss, tol=1e-12)
    found = fit(Table(X, y), loss=loss, optimizer=name)
    assert found.summary["converged"]
    assert abs(excess(found.summary, plain.summary["objective"])) <= 1e-6


def test_nearly_dependent_columns_have_the_same_bits() -> None:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(400, 5))
    X[:, 4] = X[:, 0] - X[:, 2] + 1e-6 * X[:, 4]
    table = Table(
        X, (rng.random(400) < expit(X[:, 1] + 1e6 * (X[:, 4] - X[:, 0] + X[:, 2]))).astype(float)
    )
    for name in ("newton-cholesky", "newton"):
        truth = fit(table, loss="logistic", optimizer=name)
        for model in run(
            3,
            lambda comm, name=name: fit(
                shard(table, comm, "hash"), comm, loss="logistic", optimizer=name
            ),
        ):
            same(model, truth)


# What a run says.


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_unit_of_the_target_does_not_count(unit: float) -> None:
    rng = np.random.default_rng(6)
    X = rng.normal(size=(500, 3))
    y = X @ [1.0, -2.0, 0.5] + rng.normal(size=500)
    model = mpigd.train((X, y * unit))
    A = np.column_stack([X, np.ones(500)])
    np.testing.assert_allclose(
        np.append(model.coef[0], model.intercept) / unit, np.linalg.lstsq(A, y)[0], rtol=1e-7
    )
    assert (
        model.summary["converged"]
        and model.summary["left"] <= 1e-6 * model.summary["null_objective"]
    )


def test_a_run_that_ends_above_its_start_is_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    table = Table(rng.normal(size=(200, 3)), rng.normal(size=200))
    for options in (
        dict(optimizer="nesterov", lr=10.0, epochs=5),
        dict(mode="minibatch", optimizer="sgd", lr=30.0),
    ):
        with pytest.raises(
            WorseError, match=r"there is no model\. Try a --lr smaller than"
        ) as caught:
            fit(table, **options)
        assert caught.value.code == 70


def test_a_run_that_is_cut_off_has_not_converged() -> None:
    table = Table(np.random.default_rng(8).normal(size=(300, 4)), np.arange(300) % 2.0)
    for options in (dict(), dict(l2=1e-3)):
        cut = fit(table, loss="logistic", optimizer="lbfgs", epochs=1, tol=1e-12, **options).summary
        assert not cut["converged"] and cut["stop_reason"] == "epochs"
        assert fit(table, loss="logistic", **options).summary["converged"]


def test_batches_that_learn_nothing_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(9)
    X, y = rng.normal(size=(100, 20)), rng.normal(size=100)
    model = mpigd.train((X, y), mode="stochastic", optimizer="sgd", lr=0.05, lr_schedule="constant")
    worse = model.summary["objective"] > model.summary["null_objective"]
    assert worse and "the model is worse than none" in capsys.readouterr().err


def test_what_a_line_search_takes_is_downhill() -> None:
    """A step that the line search accepts goes downhill.

    A few rows of a rare class make the slope steep at the start and small beyond the minimum, as in
    data of baseball leagues.
    """
    rng = np.random.default_rng(10)
    n = 4000
    y = np.where(np.arange(n) < 6, 2.0, (rng.random(n) < 0.5).astype(float))
    X = rng.normal(size=(n, 6)) * 0.1
    X[:6, 0] += 30.0
    X[y == 1, 1] += 3.0
    model = fit(Table(X, y), loss="softmax", l2=1e-4, optimizer="newton-cholesky")
    assert model.summary["converged"]
    assert model.summary["objective"] <= optimum(
        Table(X, y), from_mapping(dict(loss="softmax", l2=1e-4))
    )[0] * (1 + 1e-6)
