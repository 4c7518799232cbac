"""Every loss against independent truths: scikit-learn, statsmodels, scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import linprog
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import (
    GammaRegressor,
    LogisticRegression,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
)
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from mpigd.config.schema import from_mapping
from mpigd.scoring.fitted_model import Model
from tests.scenarios import fit
from tests.truths import SMOOTH, Table, generate, objective, optimum


def value(table: Table, model: Model, **options: Any) -> float:
    return objective(table, from_mapping(options), model.coef, model.intercept)[0]


def with_offset(table: Table, seed: int = 1) -> Table:
    return Table(
        table.X, table.y, table.c, np.random.default_rng(seed).normal(size=len(table.y)) * 0.5
    )


def breast_cancer() -> Table:
    data = load_breast_cancer()
    return Table(data.data, data.target.astype(float))


def diabetes() -> Table:
    data = load_diabetes(scaled=False)
    return Table(data.data, data.target)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("loss", SMOOTH)
def test_the_optimum_is_that_of_scipy(
    loss: str, l2: float, intercept: bool, standardize: bool
) -> None:
    options = dict(loss=loss, l2=l2, intercept=intercept, standardize=standardize, tol=1e-12)
    table = generate(loss, n=150, weights=True)
    table = table if loss == "softmax" else with_offset(table)
    model = fit(table, **options)
    best, coef, b = optimum(table, from_mapping(options))
    reached, gradient, slope = objective(table, from_mapping(options), model.coef, model.intercept)
    assert reached <= best * (1 + 1e-9)
    assert model.summary["objective"] == pytest.approx(reached, rel=1e-11)
    assert np.abs(gradient).max() < 1e-6
    assert model.summary["stop_reason"] == "tolerance"
    if intercept:
        assert np.abs(slope).max() < 1e-7
    else:
        np.testing.assert_array_equal(model.intercept, 0.0)
    if loss == "softmax" and intercept:
        assert model.intercept.sum() == pytest.approx(0, abs=1e-12)
        b = b - b.mean()
    if (
        loss != "softmax" or l2
    ):  # without a penalty only differences of a softmax's coefficients are determined
        np.testing.assert_allclose(model.coef, coef, atol=1e-5)
        np.testing.assert_allclose(model.intercept, b, atol=1e-5)


@pytest.mark.parametrize("loss", ["hinge", "quantile"])
@pytest.mark.parametrize("intercept", [True, False])
def test_losses_with_kinks_approach_the_linear_programme(loss: str, intercept: bool) -> None:
    table = generate(loss, n=150, weights=True)
    options = dict(loss=loss, intercept=intercept, quantile=0.3)
    best = _programme(table, loss, 0.3, intercept)
    reached = value(table, fit(table, **options), **options)
    assert best <= reached * (1 + 1e-9)
    assert reached <= best * (1 + 5e-3)


def _programme(table: Table, loss: str, quantile: float, intercept: bool) -> float:
    """The smallest weighted mean hinge or pinball loss.

    It is the optimum of a linear programme in coefficients and slacks.
    """
    assert table.c is not None
    n, d = table.X.shape
    A = np.column_stack([table.X, np.full(n, float(intercept))])
    c, free = table.c / table.c.sum(), [(None, None)] * (d + 1)
    if loss == "hinge":  # slack >= 1 - s z
        held = -np.hstack([(2 * table.y - 1)[:, None] * A, np.eye(n)])
        done = linprog(np.r_[np.zeros(d + 1), c], held, -np.ones(n), bounds=free + [(0, None)] * n)
    else:  # y - z = up - down
        costs = np.r_[np.zeros(d + 1), quantile * c, (1 - quantile) * c]
        done = linprog(
            costs,
            A_eq=np.hstack([A, np.eye(n), -np.eye(n)]),
            b_eq=table.y,
            bounds=free + [(0, None)] * (2 * n),
        )
    return float(done.fun)


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge(intercept: bool) -> None:
    table, l2 = diabetes(), 1e-2
    scale = table.X.std(axis=0)
    model = fit(table, l2=l2, intercept=intercept, tol=1e-9, epochs=5000)
    truth = Ridge(alpha=l2 * len(table.y), fit_intercept=intercept, solver="cholesky").fit(
        table.X / scale, table.y
    )
    np.testing.assert_allclose(model.coef[0], truth.coef_ / scale, rtol=1e-6, atol=1e-8)
    assert model.intercept[0] == pytest.approx(truth.intercept_, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("weight", [None, "balanced", "0=0.3,1=2"])
def test_logistic_regression(weight: str | None) -> None:
    table, l2 = breast_cancer(), 1e-2
    Z = StandardScaler().fit_transform(table.X)
    table = Table(Z, table.y)
    given = {"0=0.3,1=2": {0: 0.3, 1: 2.0}}.get(weight or "", weight)
    total = 569.0 if given in (None, "balanced") else float(np.where(table.y == 1, 2.0, 0.3).sum())
    truth = LogisticRegression(
        C=1 / (l2 * total), class_weight=given, tol=1e-10, solver="newton-cholesky"
    ).fit(Z, table.y)
    # Standardised by hand: class weights would change the deviations that the penalty acts on.
    options = dict(loss="logistic", l2=l2, standardize=False, class_weight=weight, tol=1e-9)
    model = fit(table, **options)
    np.testing.assert_allclose(model.coef, truth.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept, truth.intercept_, atol=1e-6)


def test_softmax_on_digits() -> None:
    data = load_digits()  # three of its columns are constant
    table, l2 = Table(data.data, data.target.astype(float)), 1e-3
    scaler = StandardScaler().fit(table.X)
    truth = LogisticRegression(C=1 / (l2 * len(table.y)), tol=1e-8, solver="newton-cholesky")
    truth.fit(scaler.transform(table.X), table.y)
    coef = truth.coef_ / scaler.scale_
    options = dict(loss="softmax", l2=l2)
    best = objective(table, from_mapping(options), coef, truth.intercept_ - coef @ scaler.mean_)[0]
    model = fit(table, **options)
    assert value(table, model, **options) == pytest.approx(best, rel=1e-4)
    np.testing.assert_array_equal(model.coef[:, table.X.std(axis=0) == 0], 0.0)


def test_squared_hinge_is_linear_svc() -> None:
    table, l2 = breast_cancer(), 1e-2
    Z = StandardScaler().fit_transform(table.X)
    options = dict(loss="squared_hinge", l2=l2, intercept=False, standardize=False)
    truth = LinearSVC(
        C=1 / (l2 * len(table.y)), fit_intercept=False, dual=False, tol=1e-10, max_iter=10000
    ).fit(Z, table.y)
    model = fit(Table(Z, table.y), tol=1e-9, epochs=3000, **options)
    np.testing.assert_allclose(model.coef, truth.coef_, atol=1e-5)


def test_hinge_is_a_linear_svm() -> None:
    """libsvm's intercept is not penalised, as ours; liblinear's would be."""
    table, l2 = breast_cancer(), 1e-1
    Z = Table(StandardScaler().fit_transform(table.X), table.y)
    options = dict(loss="hinge", l2=l2)
    truth = SVC(kernel="linear", C=1 / (l2 * len(table.y)), tol=1e-6).fit(Z.X, Z.y)
    best = objective(Z, from_mapping(options), truth.coef_, truth.intercept_)[0]
    reached = value(Z, fit(Z, **options), **options)
    assert best * (1 - 1e-6) <= reached <= best * (1 + 2e-2)


def test_quantile_regressor() -> None:
    table = generate("quantile", n=300)
    options = dict(loss="quantile", quantile=0.8)
    truth = QuantileRegressor(quantile=0.8, alpha=0.0, solver="highs").fit(table.X, table.y)
    best = objective(table, from_mapping(options), truth.coef_[None], np.array([truth.intercept_]))[
        0
    ]
    model = fit(table, **options)
    assert value(table, model, **options) == pytest.approx(best, rel=2e-3)
    below = np.mean(table.y < table.X @ model.coef[0] + model.intercept)
    assert below == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("loss", "kind"), [("poisson", PoissonRegressor), ("gamma", GammaRegressor)]
)
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_log_links_against_scikit_learn(
    loss: str, kind: Any, intercept: bool, weights: bool
) -> None:
    table, l2 = generate(loss, n=400, weights=weights), 1e-2
    center = np.average(table.X, 0, table.c)
    scale = np.sqrt(np.average((table.X - center) ** 2, 0, table.c))
    Z = (table.X - center * intercept) / scale
    truth = kind(alpha=l2, fit_intercept=intercept, tol=1e-10, max_iter=1000).fit(
        Z, table.y, table.c
    )
    coef = truth.coef_[None] / scale
    options = dict(loss=loss, l2=l2, intercept=intercept)
    best = objective(
        table, from_mapping(options), coef, truth.intercept_ - coef @ center * intercept
    )[0]
    model = fit(table, **options)
    assert value(table, model, **options) == pytest.approx(best, rel=1e-8)
    np.testing.assert_allclose(model.coef, coef, atol=1e-4)


FAMILIES = [
    ("poisson", sm.families.Poisson()),
    ("gamma", sm.families.Gamma(sm.families.links.Log())),
]


@pytest.mark.parametrize(("loss", "family"), FAMILIES)
def test_generalised_linear_models_with_exposure(loss: str, family: Any) -> None:
    """An offset of log(exposure): rates instead of counts."""
    rng = np.random.default_rng(3)
    exposure = rng.uniform(0.2, 5.0, 400)
    table = generate(loss, n=400, weights=True)
    table = Table(
        table.X,
        np.round(table.y * exposure) if loss == "poisson" else table.y * exposure,
        table.c,
        np.log(exposure),
    )
    truth = sm.GLM(
        table.y, sm.add_constant(table.X), family=family, offset=table.offset, var_weights=table.c
    ).fit(tol=1e-12)
    model = fit(table, loss=loss, tol=1e-8)
    np.testing.assert_allclose(model.coef[0], truth.params[1:], atol=1e-6)
    assert model.intercept[0] == pytest.approx(truth.params[0], abs=1e-6)
    assert 2 * model.summary["objective"] * table.c.sum() == pytest.approx(truth.deviance, rel=1e-9)  # type: ignore[union-attr]
