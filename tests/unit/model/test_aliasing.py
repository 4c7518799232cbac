"""Columns that depend on others: the first in the data are kept, as in R, and the rest is
statsmodels' on the reduced design."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from mpigd.commands import info
from mpigd.config.schema import from_mapping
from mpigd.model import aliasing, inference
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring import coefficient_table
from mpigd.scoring.fitted_model import Model
from mpigd.training import problem as build
from tests.scenarios import fit, shard
from tests.threadcomm import run
from tests.truths import Table

Array = np.ndarray[Any, Any]
FAMILIES = {
    "squared": sm.families.Gaussian(),
    "logistic": sm.families.Binomial(),
    "poisson": sm.families.Poisson(),
    "gamma": sm.families.Gamma(sm.families.links.Log()),
}
LOSSES = pytest.mark.parametrize("loss", FAMILIES)
N = 400


def response(loss: str, z: Array, seed: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return {
        "squared": lambda: z + rng.normal(size=z.size),
        "logistic": lambda: (rng.random(z.size) < 1 / (1 + np.exp(-z))).astype(float),
        "poisson": lambda: rng.poisson(np.exp(z)).astype(float),
        "gamma": lambda: rng.gamma(2.0, np.exp(z) / 2) + 1e-3,
    }[loss]()


def factors(loss: str) -> Table:
    """Two full one-hot factors, a duplicate, zeros, a combination; weights and an offset."""
    rng = np.random.default_rng(2)
    g, f, x, t = (
        rng.integers(0, 4, N),
        rng.integers(0, 3, N),
        rng.normal(size=N),
        rng.normal(size=N),
    )
    one, two = np.eye(4)[g], np.eye(3)[f]
    combination = 2 * x - 3 * t + 5 * two[:, 1]
    X = np.column_stack([x, one, np.zeros(N), two, x, t, combination, np.full(N, 3.0)])
    offset = 0.1 * rng.normal(size=N)
    return Table(
        X,
        response(loss, 0.3 * x + 0.2 * g - 0.1 * f + offset),
        rng.integers(1, 4, N).astype(float),
        offset,
    )


def first_independent(X: Array) -> list[int]:
    """By ranks of plain numpy."""
    kept: list[int] = []
    for j in range(X.shape[1]):
        if np.linalg.matrix_rank(X[:, [*kept, j]]) > len(kept):
            kept.append(j)
    return kept


def agree(
    model: Model,
    table: Table,
    loss: str,
    intercept: bool = True,
    kept: list[int] | None = None,
) -> None:
    design = sm.add_constant(table.X, has_constant="add") if intercept else table.X
    kept = first_independent(design) if kept is None else kept
    weights = dict(offset=table.offset, freq_weights=table.c)
    truth = sm.GLM(table.y, design[:, kept], FAMILIES[loss], **weights)
    truth = truth.fit(tol=1e-13, maxiter=200, use_t=loss == "squared")
    found = coefficient_table.table(model)
    missing = [j for j in range(design.shape[1]) if j not in kept]
    close = dict(rtol=1e-6, atol=1e-9)
    for ours, theirs in (
        ("coef", "params"),
        ("std_err", "bse"),
        ("statistic", "tvalues"),
        ("p_value", "pvalues"),
    ):
        assert [j for j, value in enumerate(found[ours]) if value is None] == missing, ours
        values = np.array([value for value in found[ours] if value is not None])
        np.testing.assert_allclose(values, getattr(truth, theirs), err_msg=ours, **close)
    pairs = zip(found["low"], found["high"], strict=True)
    values = np.array([pair for pair in pairs if pair[0] is not None])
    np.testing.assert_allclose(values, truth.conf_int(), **close)
    for ours, theirs in (
        ("log_likelihood", "llf"),
        ("aic", "aic"),
        ("residual_degrees", "df_resid"),
        ("deviance", "deviance"),
    ):
        np.testing.assert_allclose(found[ours], getattr(truth, theirs), rtol=1e-8, err_msg=ours)
    np.testing.assert_allclose(found["dispersion"], truth.scale, rtol=1e-7)


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
@LOSSES
def test_full_factors_duplicates_and_zeros(loss: str, intercept: bool, as_csr: bool) -> None:
    table = factors(loss)
    for standardize in (True, False):
        data = shard(table, SelfComm(), as_csr=as_csr)
        model = fit(data, loss=loss, tol=1e-13, intercept=intercept, standardize=standardize)
        agree(model, table, loss, intercept)
        # what is shown predicts what the model predicts
        z = table.X @ model.coef[0] + model.intercept[0]
        shown = [0.0 if value is None else value for value in model.statistics["coef"]]
        found = table.X @ shown + model.statistics["intercept"]
        np.testing.assert_allclose(z, found, rtol=1e-9, atol=1e-9)


def test_the_order_is_that_of_the_data() -> None:
    """The rare column of compressed rows is last as they are arranged, and first in the data."""
    rng = np.random.default_rng(0)
    rare = (np.arange(N) % 40 == 0).astype(float)
    X = np.column_stack([rare, 1.0 - rare, rng.normal(size=N), rare])
    table = Table(X, response("poisson", 0.5 * rare))
    for as_csr in (False, True):
        model = fit(shard(table, SelfComm(), as_csr=as_csr), loss="poisson", tol=1e-10)
        assert model.statistics["dropped"] == [1, 3]
        agree(model, table, "poisson")
        back = Table(np.ascontiguousarray(X[:, ::-1]), table.y)
        model = fit(shard(back, SelfComm(), as_csr=as_csr), loss="poisson", tol=1e-10)
        assert model.statistics["dropped"] == [2, 3]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-5, 1e-6])
def test_columns_that_are_nearly_alike_are_kept(apart: float, scale: float) -> None:
    """The information matrix alone could not tell 1e-6, whose square drowns in its rounding."""
    rng = np.random.default_rng(5)
    x, e, other = rng.normal(size=(3, N))
    X = np.column_stack([x, other, (x + apart * e) * scale])
    y = 0.5 * x + 2 * e + rng.normal(size=N)
    model = fit(Table(X, y), tol=1e-12, optimizer="lbfgs")
    assert "dropped" not in model.statistics
    # In the orthogonal parts x, other, e: what statsmodels would lose digits with
    third = (X[:, 2] / scale - x) / apart
    near = sm.OLS(y, sm.add_constant(np.column_stack([x, other, third]))).fit()
    turn = np.diag([1.0, 1.0, 1.0, 1 / (apart * scale)])
    turn[1, 3] = -1 / apart
    errors = np.sqrt(np.diag(turn @ near.cov_params() @ turn.T))
    np.testing.assert_allclose(model.statistics["standard_errors"], errors[1:], rtol=1e-6)


@pytest.mark.parametrize("apart", [1e-8, 1e-9, 0.0])
def test_columns_that_differ_by_less_than_r_sees_are_not(apart: float) -> None:
    rng = np.random.default_rng(5)
    x, e, other = rng.normal(size=(3, N))
    X = np.column_stack([x, other, 1e3 * (x + apart * e) + 7])
    table = Table(X, 0.5 * x + rng.normal(size=N))
    model = fit(table, tol=1e-10, optimizer="lbfgs")
    assert model.statistics["dropped"] == [2]
    agree(model, table, "squared", kept=[0, 1, 2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@LOSSES
def test_sums_of_columns_that_storage_has_rounded(loss: str, dtype: Any) -> None:
    """total = first + second + third, of a mean of ten deviations: as float32 they differ by more
    than 1e-7 of a deviation."""
    rng = np.random.default_rng(8)
    parts = rng.normal(size=(N, 3)) + 10
    X = np.column_stack([parts, parts.sum(axis=1), rng.normal(size=N)]).astype(dtype)
    table = Table(X, response(loss, 0.3 * (parts[:, 0] - 10) + 0.2 * X[:, 4]))
    model = fit(table, loss=loss, tol=1e-13, optimizer="lbfgs")
    assert model.statistics["dropped"] == [3]
    agree(model, Table(X.astype(float), table.y), loss, kept=[0, 1, 2, 3, 5])


def test_powers_of_a_year() -> None:
    """R's lm drops the fourth power too, which the kept ones leave 6e-8 of; beside an intercept
    columns are centred here."""
    year = np.repeat(np.arange(1970.0, 2010.0), 10)
    X = np.column_stack([year, year**2, year**3])
    y = np.sin(year / 5) + np.random.default_rng(0).normal(size=400) * 0.1
    model = fit(Table(X, y), tol=1e-12, optimizer="lbfgs")
    assert "dropped" not in model.statistics and model.statistics["degrees_of_freedom"] == 4


@LOSSES
def test_with_a_ridge_nothing_depends_on_others(loss: str) -> None:
    table = factors(loss)
    for l2 in (1e-3, 1e-9):
        model = fit(table, loss=loss, l2=l2, tol=1e-10)
        assert "dropped" not in model.statistics
        used = [j for j in range(table.X.shape[1]) if np.ptp(table.X[:, j]) > 0]
        X, c = table.X[:, used], table.c
        assert c is not None
        sd = np.sqrt(np.average((X - np.average(X, 0, c)) ** 2, 0, c))
        Z = np.column_stack([np.ones(N), (X - np.average(X, 0, c)) / sd])
        family, z = FAMILIES[loss], table.X @ model.coef[0] + model.intercept[0] + table.offset
        h = c * family.weights(family.link.inverse(z))
        ridge = l2 * c.sum() * np.append(0.0, np.ones(len(used)))
        # The information squares the condition of this augmented design, and so would its inverse
        R = np.linalg.qr(np.vstack([Z * np.sqrt(h)[:, None], np.diag(np.sqrt(ridge))]), mode="r")
        inverse = np.linalg.inv(R)
        truth = np.sqrt(model.statistics["dispersion"] * (inverse**2).sum(axis=1))[1:] / sd
        found = [model.statistics["standard_errors"][j] for j in used]
        np.testing.assert_allclose(found, truth, rtol=1e-6 if l2 > 1e-6 else 1e-4)


def test_any_of_the_equivalent_optima_will_do() -> None:
    """What is shown is a function of the margins at the optimum, not of how an optimiser shared
    them out."""
    table = factors("poisson")
    truth = coefficient_table.table(fit(table, loss="poisson", tol=1e-11))
    for optimizer in ("lbfgs", "nesterov", "newton"):
        found = coefficient_table.table(fit(table, loss="poisson", tol=1e-9, optimizer=optimizer))
        assert found["dropped"] == truth["dropped"]
        for key in ("coef", "std_err"):
            ours, theirs = (np.array(of[key], dtype=float) for of in (found, truth))  # None: NaN
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@LOSSES
def test_an_optimum_far_along_what_the_data_do_not_tell(loss: str) -> None:
    """Fifty of each level of a factor and minus that in the other, and much of a combination."""
    table = factors(loss)
    config = build.complete(from_mapping(dict(loss=loss, tol=1e-11)), N, table.X.shape[1])
    problem = build.problem(shard(table, SelfComm()), config, SelfComm())
    model = fit(table, loss=loss, tol=1e-11)
    coef = model.coef.copy()
    coef[0, 1:5] += 50.0
    coef[0, 6:9] -= 50.0
    coef[0, [0, 10, 7, 11]] += [200.0, -300.0, 500.0, -100.0]
    w = problem.objective.scaling.from_raw(coef, model.intercept)
    reducer = problem.objective.reducer("exact", SelfComm())
    found = inference.infer(w, problem.objective, problem.penalty, reducer)
    for key in ("coef", "standard_errors"):
        ours, theirs = (np.array(of[key], dtype=float) for of in (found, model.statistics))
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)
    assert found["dropped"] == model.statistics["dropped"]
    assert found["deviance"] == pytest.approx(model.statistics["deviance"], rel=1e-11)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("as_csr", [False, True])
def test_the_same_bits_on_all_ranks(as_csr: bool, near: bool) -> None:
    table = factors("logistic")
    if near:  # what the information cannot tell: another pass over the rows
        table = Table(
            table.X + 1e-6 * np.random.default_rng(0).normal(size=table.X.shape) * (table.X != 0),
            table.y,
            table.c,
        )
    truth = fit(shard(table, SelfComm(), as_csr=as_csr), loss="logistic").statistics

    def statistics(comm: Comm) -> Any:
        return fit(shard(table, comm, "hash", as_csr), comm, loss="logistic", threads=2).statistics

    for size in (2, 3, 5):
        assert all(found == truth for found in run(size, statistics))


@pytest.mark.parametrize("as_csr", [False, True])
def test_without_a_doubt_rows_are_not_made_orthogonal(
    as_csr: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one-hot columns a few margins tell: the other way costs a dense product for each row."""
    monkeypatch.setattr(aliasing._Rows, "information", lambda *_: pytest.fail("not needed"))
    agree(
        fit(shard(factors("poisson"), SelfComm(), as_csr=as_csr), loss="poisson", tol=1e-10),
        factors("poisson"),
        "poisson",
    )


def test_what_is_shown(tmp_path: Any) -> None:
    model, path = fit(factors("squared")), str(tmp_path / "m.h5")
    model.save(path)
    text = info.summary(path)
    line = next(line for line in text.splitlines() if line.startswith("column 4"))
    assert line.split()[2:] == ["-"] * 6
    assert "depends on those before it (NA in R)" in text and "8 parameters" in text
    about = info.describe(path)
    assert about["statistics"]["dropped"] == [f"column {j}" for j in (4, 8, 9, 11)]
    assert about["statistics"]["coef"][5] is None
    assert "not determined   column 4, column 8" in info.text(path, about)


# Data sets of R, and what R prints of them.
BREAKS = """26 30 54 25 70 52 51 26 67 18 21 29 17 12 18 35 30 36 36 21 24 18 10 43 28 15 26
27 14 29 19 29 31 41 20 44 42 26 19 16 39 28 21 39 29 20 21 24 17 13 15 15 16 28"""
NPK = """0 1 1 49.5 1 1 0 62.8 0 0 0 46.8 1 0 1 57.0 1 0 0 59.8 1 1 1 58.5 0 0 1 55.5 0 1 0
56.0 0 1 0 62.8 1 1 1 55.8 1 0 0 69.5 0 0 1 55.0 1 0 0 62.0 1 1 1 48.8 0 0 1 45.5 0 1 0 44.2
1 1 0 52.0 0 0 0 51.5 1 0 1 49.8 0 1 1 48.8 1 0 1 57.2 1 1 0 59.0 0 1 1 53.2 0 0 0 56.0"""


def test_warpbreaks() -> None:
    """glm(breaks ~ wool + tension, poisson): with dummies of all levels, L first, and an A that
    follows B."""
    y = np.array(BREAKS.split(), dtype=float)
    wool, tension = np.repeat([0, 1], 27), np.tile(np.repeat([0, 1, 2], 9), 2)
    columns = [wool == 1, wool == 0, tension == 1, tension == 2, tension == 0]
    X = np.column_stack(columns).astype(float)
    model = fit(Table(X, y), loss="poisson", tol=1e-12)
    found = coefficient_table.table(model)
    assert found["dropped"] == ["column 1", "column 4"]
    kept = [0, 1, 3, 4]
    coef, errors = (np.array(found[key], dtype=float)[kept] for key in ("coef", "std_err"))
    np.testing.assert_allclose(coef, [3.69196, -0.20599, -0.32132, -0.51849], atol=5.1e-6)
    np.testing.assert_allclose(errors, [0.04541, 0.05157, 0.06027, 0.06396], atol=5.1e-6)
    assert found["null_deviance"] == pytest.approx(297.37, abs=0.006)
    assert found["deviance"] == pytest.approx(210.39, abs=0.006)
    assert found["aic"] == pytest.approx(493.06, abs=0.006) and found["residual_degrees"] == 50


def test_npk() -> None:
    """lm(yield ~ block + N*P*K): N:P:K is not defined because of singularities; 185.29 on 12
    residual degrees."""
    table = np.array(NPK.split(), dtype=float).reshape(24, 4)
    n, p, k, y = table.T
    blocks = np.eye(6)[np.repeat(np.arange(6), 4)][:, 1:]
    X = np.column_stack([blocks, n, p, k, n * p, n * k, p * k, n * p * k])
    model = fit(Table(X, y), tol=1e-12)
    assert model.statistics["dropped"] == [11]
    assert model.statistics["residual_degrees"] == 12
    assert model.statistics["deviance"] == pytest.approx(185.29, abs=0.006)
    agree(model, Table(X, y), "squared")


def test_an_intercept_alone_and_nothing_at_all() -> None:
    y = np.random.default_rng(0).normal(size=30)
    model = fit(Table(np.full((30, 2), 2.0), y))
    assert model.statistics["standard_errors"] == [None, None] and "dropped" not in model.statistics
    assert model.statistics["intercept_error"] == pytest.approx(y.std(ddof=1) / np.sqrt(30))
    assert model.statistics["degrees_of_freedom"] == 1
    model = fit(Table(np.zeros((30, 2)), y), intercept=False)
    assert model.statistics["degrees_of_freedom"] == 0 and coefficient_table.table(model)[
        "coef"
    ] == [
        None,
        None,
    ]
    both = fit(Table(np.full((30, 2), 2.0), y), intercept=False)
    assert both.statistics["dropped"] == [1]
    assert both.statistics["coef"][0] == pytest.approx(y.mean() / 2)
