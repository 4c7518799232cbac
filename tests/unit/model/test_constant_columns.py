"""A column of ones without an intercept is a column like others; standardisation changes nothing
where nothing is penalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import Model
from tests.scenarios import fit, shard
from tests.threadcomm import run
from tests.truths import SMOOTH, Table, generate, objective, optimum

Array = np.ndarray[Any, Any]
LOSSES = pytest.mark.parametrize("loss", SMOOTH)


def with_ones(loss: str, value: float = 1.0, weights: bool = False, d: int = 3) -> Table:
    table = generate(loss, n=300, d=d, weights=weights, seed=5)
    X = np.column_stack([table.X[:, :1], np.full(300, value), table.X[:, 1:]])
    return Table(X, table.y, table.c)


def margins(model: Model, X: Array) -> Array:
    z = X @ model.coef.T + model.intercept
    return z - z.mean(axis=1, keepdims=True) if z.shape[1] > 1 else z


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@LOSSES
def test_standardisation_changes_no_prediction(loss: str, intercept: bool, as_csr: bool) -> None:
    table = with_ones(loss, value=-2.5)
    config = from_mapping(dict(loss=loss, intercept=intercept, standardize=False))
    value, coef, b = optimum(table, config)
    truth = table.X @ coef.T + b
    truth = truth - truth.mean(axis=1, keepdims=True) if truth.shape[1] > 1 else truth
    for standardize in (True, False):
        options = dict(loss=loss, intercept=intercept, standardize=standardize, tol=1e-10)
        model = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
        np.testing.assert_allclose(margins(model, table.X), truth, rtol=1e-5, atol=2e-6)
        assert model.summary["objective"] == pytest.approx(value, rel=1e-10)
        assert bool(model.coef[:, 1].any()) is not intercept


@pytest.mark.parametrize("l1", [0.0, 0.02])
@LOSSES
def test_ones_without_an_intercept_are_an_intercept(loss: str, l1: float) -> None:
    """Of standardised columns: the ones' deviation is 0, and so is their penalty, as the gap's
    proof must know."""
    table = with_ones(loss, weights=True)
    options: dict[str, Any] = dict(loss=loss, l2=0.01, l1=l1, tol=1e-9)
    plain = fit(Table(np.delete(table.X, 1, axis=1), table.y, table.c), **options)
    for as_csr in (False, True):
        model = fit(shard(table, SelfComm(), as_csr=as_csr), intercept=False, **options)
        assert model.summary["stop_reason"] == "tolerance"
        assert model.summary["gap"] <= 1e-9 * model.summary["objective"]
        assert model.summary["objective"] == pytest.approx(plain.summary["objective"], rel=2e-9)
        expected = margins(plain, np.delete(table.X, 1, axis=1))
        np.testing.assert_allclose(margins(model, table.X), expected, atol=1e-3)


@pytest.mark.parametrize("early", [0, 1, 2])
def test_the_gap_holds_on_the_way(early: int) -> None:
    """A bound that forgot the unpenalised ones would be below what is left."""
    table = with_ones("logistic")
    table = Table(table.X, (np.arange(300) % 10 == 0).astype(float))
    for l1 in (0.0, 0.01):
        options: dict[str, Any] = dict(loss="logistic", l2=0.1, l1=l1, intercept=False)
        best = fit(table, **options, tol=1e-12).summary["objective"]
        optimizer = "fista" if l1 else "lbfgs"
        model = fit(table, **options, optimizer=optimizer, epochs=1 + early)
        assert model.summary["objective"] - best <= model.summary["gap"] * (1 + 1e-9)


@LOSSES
def test_the_penalty_of_columns_as_they_are_includes_the_ones(loss: str) -> None:
    table, config = (
        with_ones(loss, value=3.0),
        from_mapping(dict(loss=loss, l2=0.1, intercept=False, standardize=False)),
    )
    value, coef, _ = optimum(table, config)
    model = fit(table, loss=loss, l2=0.1, intercept=False, standardize=False, tol=1e-9)
    assert model.summary["objective"] == pytest.approx(value, rel=1e-8)
    np.testing.assert_allclose(margins(model, table.X), margins_of(table, coef), atol=1e-3)


def margins_of(table: Table, coef: Array) -> Array:
    z = table.X @ coef.T
    return z - z.mean(axis=1, keepdims=True) if z.shape[1] > 1 else z


@pytest.mark.parametrize("limits", ["0:", ":0.05", "0:0.1", "-5:5"])
@pytest.mark.parametrize("loss", ["logistic", "squared", "poisson"])
def test_bounds_hold_for_ones_too(loss: str, limits: str) -> None:
    """Against scipy's L-BFGS-B on the same box."""
    from scipy.optimize import minimize

    table = with_ones(loss)
    config = from_mapping(dict(loss=loss, l2=0.01, intercept=False))
    low, high = (float(side) if side else None for side in limits.split(":"))

    def both(w: Array) -> tuple[float, Array]:
        value, g, _ = objective(table, config, w[np.newaxis], np.zeros(1))
        return value, g[0]

    box = dict(ftol=1e-15, gtol=1e-11, maxiter=5000)
    how = dict(jac=True, method="L-BFGS-B", bounds=[(low, high)] * 4, options=box)
    truth = minimize(both, np.zeros(4), **how)
    model = fit(table, loss=loss, l2=0.01, intercept=False, bounds=limits, tol=1e-9)
    assert model.summary["objective"] == pytest.approx(truth.fun, rel=1e-8)
    np.testing.assert_allclose(model.coef[0], truth.x, atol=1e-3)
    assert model.summary["stop_reason"] == "tolerance"


@pytest.mark.parametrize("l1", [0.0, 0.01])
def test_the_same_bits_on_all_ranks(l1: float) -> None:
    table = with_ones("logistic", weights=True)
    options: dict[str, Any] = dict(loss="logistic", l2=1e-3, l1=l1, intercept=False)
    truth = fit(table, **options)

    def digest(comm: Comm) -> str:
        return fit(shard(table, comm, "hash"), comm, **options).digest

    for size in (2, 3):
        assert set(run(size, digest)) == {truth.digest}
