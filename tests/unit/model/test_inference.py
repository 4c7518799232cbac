"""Standard errors and related statistics.

They are compared with statsmodels and over ranks; if there are none, a message says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import gammaln

from mpigd.commands import info
from mpigd.config.schema import from_mapping
from mpigd.errors import UsageError
from mpigd.model.null_model import null_deviance
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring import coefficient_table, fitted_model
from mpigd.scoring.fitted_model import Model
from mpigd.training import problem as build
from mpigd_kernels import likelihood
from tests.scenarios import fit, shard
from tests.threadcomm import run
from tests.truths import Table, generate, objective

FAMILIES = {
    "squared": sm.families.Gaussian(),
    "logistic": sm.families.Binomial(),
    "poisson": sm.families.Poisson(),
    "gamma": sm.families.Gamma(sm.families.links.Log()),
}
LOSSES = pytest.mark.parametrize("loss", FAMILIES)
CLOSE = dict(rtol=1e-6, atol=1e-9)


def table_of(loss: str, weights: bool = False, offset: bool = False) -> Table:
    table = generate(loss, n=300, weights=weights, holes=0.1)
    c = None if table.c is None else np.ceil(3 * table.c)
    return Table(
        table.X, table.y, c, np.random.default_rng(3).normal(size=300) * 0.3 if offset else None
    )


def agree(model: Model, truth: Any, intercept: bool = True) -> None:
    found = coefficient_table.table(model)
    for ours, theirs in (
        ("coef", "params"),
        ("std_err", "bse"),
        ("statistic", "tvalues"),
        ("p_value", "pvalues"),
    ):
        np.testing.assert_allclose(found[ours], getattr(truth, theirs), **CLOSE)
    np.testing.assert_allclose(
        np.column_stack([found["low"], found["high"]]), truth.conf_int(), **CLOSE
    )
    for ours, theirs in (
        ("log_likelihood", "llf"),
        ("aic", "aic"),
        ("residual_degrees", "df_resid"),
    ):
        np.testing.assert_allclose(found[ours], getattr(truth, theirs), rtol=1e-8, err_msg=ours)
    if hasattr(truth, "deviance"):
        np.testing.assert_allclose(found["deviance"], truth.deviance, rtol=1e-8)
        np.testing.assert_allclose(found["pearson"], truth.pearson_chi2, rtol=1e-7)
        np.testing.assert_allclose(found["dispersion"], truth.scale, rtol=1e-7)
        if intercept:
            np.testing.assert_allclose(found["null_deviance"], truth.null_deviance, rtol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(
    ("weights", "offset"), [(False, False), (True, False), (False, True), (True, True)]
)
@LOSSES
def test_generalised_linear_models(
    loss: str, weights: bool, offset: bool, standardize: bool, intercept: bool
) -> None:
    table = table_of(loss, weights, offset)
    X = sm.add_constant(table.X) if intercept else table.X
    truth = sm.GLM(table.y, X, FAMILIES[loss], offset=table.offset, freq_weights=table.c)
    fitted_truth = truth.fit(tol=1e-12, maxiter=100, use_t=loss == "squared")
    for as_csr in (False, True):
        data = shard(table, SelfComm(), as_csr=as_csr)
        model = fit(data, loss=loss, tol=1e-10, standardize=standardize, intercept=intercept)
        agree(model, fitted_truth, intercept)


def test_least_squares_and_logit() -> None:
    table = table_of("squared")
    agree(fit(table, tol=1e-10), sm.OLS(table.y, sm.add_constant(table.X)).fit())
    table = table_of("logistic")
    agree(
        fit(table, loss="logistic", tol=1e-10),
        sm.Logit(table.y, sm.add_constant(table.X)).fit(disp=0, tol=1e-12),
    )


def test_the_default_tolerance_will_do() -> None:
    table = table_of("poisson", weights=True)
    truth = sm.GLM(
        table.y, sm.add_constant(table.X), FAMILIES["poisson"], freq_weights=table.c
    ).fit(tol=1e-12)
    np.testing.assert_allclose(
        coefficient_table.table(fit(table, loss="poisson"))["std_err"], truth.bse, rtol=1e-6
    )


@LOSSES
def test_ridge_is_the_inverse_of_the_penalised_information(loss: str) -> None:
    """The reference is the information matrix from differences of numpy's gradient.

    It is taken at the same coefficients.
    """
    table, l2 = table_of(loss, weights=True), 0.1
    model = fit(table, loss=loss, l2=l2, tol=1e-12)
    found = coefficient_table.table(model)
    assert table.c is not None
    W, at = table.c.sum(), np.append(model.coef[0], model.intercept)

    def hessian(config: Any) -> Any:
        def gradient(u: Any) -> Any:
            return np.append(*objective(table, config, u[None, :-1], u[-1:])[1:])

        return (
            np.array([(gradient(at + e) - gradient(at - e)) / 2e-5 for e in 1e-5 * np.eye(at.size)])
            * W
        )

    if loss == "gamma":  # expected, not observed
        D = sm.add_constant(table.X, prepend=False)
        plain = D.T @ (D * table.c[:, None])
        penalised = plain + hessian(model.config) - hessian(model.config.replace(l2=0.0))
    else:
        plain, penalised = hessian(model.config.replace(l2=0.0)), hessian(model.config)
    degrees = np.trace(np.linalg.solve(penalised, plain))
    assert found["degrees_of_freedom"] == pytest.approx(degrees, rel=1e-6)
    assert degrees < 4.9
    variance = np.diag(np.linalg.inv(penalised)) * found["dispersion"]
    np.testing.assert_allclose(found["std_err"], np.sqrt(np.roll(variance, 1)), rtol=1e-6)
    assert found["aic"] == pytest.approx(2 * (degrees - found["log_likelihood"]))
    assert any(
        "conditional on the penalty" in note for note in coefficient_table.notes(model, found)
    )


@LOSSES
def test_the_same_bits_on_all_ranks(loss: str) -> None:
    table = table_of(loss, weights=True, offset=True)
    truth = fit(table, loss=loss, l2=1e-3).statistics

    def statistics(comm: Comm, threads: int) -> Any:
        return fit(shard(table, comm, "hash"), comm, loss=loss, l2=1e-3, threads=threads).statistics

    assert "standard_errors" in truth
    for size, threads in ((1, 3), (2, 1), (5, 2)):
        assert all(found == truth for found in run(size, statistics, threads))


def test_where_there_are_none() -> None:
    table, counts = table_of("logistic"), table_of("poisson")
    for loss, words in (
        ("hinge", "the hinge loss has no"),
        ("softmax", "the softmax loss has no"),
        ("huber", "the huber loss"),
    ):
        assert words in fit(table, loss=loss, epochs=3).statistics["refused"]
    assert (
        "minibatch mode does not reach it"
        in fit(table, loss="logistic", mode="minibatch").statistics["refused"]
    )
    assert "ended before it (epochs)" in fit(table, loss="logistic", epochs=1).statistics["refused"]
    twice = Table(np.column_stack([counts.X, counts.X[:, 0]]), counts.y)
    assert "standard_errors" in fit(twice, loss="poisson", l2=1e-3).statistics
    few = Table(counts.X[:5], counts.y[:5])
    assert "too few for 5 parameters" in fit(few, tol=1e-3).statistics["refused"]
    assert "--statistics no" in fit(counts, loss="poisson", statistics="no").statistics["refused"]
    with pytest.raises(
        UsageError, match="--statistics yes: the quantile loss has no standard errors"
    ):
        fit(table, loss="quantile", statistics="yes")


def test_asked_for_where_they_take_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpigd.model.inference.MOST_PRODUCTS", 1000)
    table = table_of("logistic")
    assert "--statistics yes" in fit(table, loss="logistic").statistics["refused"]
    assert "aic" in fit(table, loss="logistic", statistics="yes").statistics


def test_a_constant_column_is_left_out() -> None:
    table = table_of("logistic")
    wide = Table(np.column_stack([np.ones(300), table.X]), table.y)
    model, truth = fit(wide, loss="logistic", tol=1e-10), fit(table, loss="logistic", tol=1e-10)
    assert model.statistics["standard_errors"][0] is None
    assert model.statistics["standard_errors"][1:] == pytest.approx(
        truth.statistics["standard_errors"]
    )
    assert "a constant column" in coefficient_table.text("m", model)


def test_the_table_and_the_file(tmp_path: Path) -> None:
    model, path = fit(table_of("gamma"), loss="gamma"), str(tmp_path / "m.h5")
    model.save(path)
    assert fitted_model.load(path).statistics == model.statistics
    assert info.describe(path)["statistics"]["std_err"] == coefficient_table.table(model)["std_err"]
    text = info.summary(path)
    assert (
        "intercept" in text and "P>|z|" in text and "column 3" in text and "null deviance" in text
    )
    assert "info --summary shows them" in info.text(path, info.describe(path))
    fit(table_of("logistic"), loss="hinge", epochs=2).save(path)
    with pytest.raises(UsageError, match=r"no standard errors: the hinge loss"):
        info.summary(path)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.special", None)
    model = fit(table_of("squared"))
    assert "need scipy" in coefficient_table.text(
        "m", model
    ) and "p_value" not in coefficient_table.table(model)
    assert "p_value" in coefficient_table.table(fit(table_of("poisson"), loss="poisson"))


def test_saturated_likelihoods() -> None:
    y = np.array([0.0, 0.3, 1, 2, 5, 9.5, 10, 37, 1e5, 1e12])
    out = np.empty_like(y)
    likelihood.poisson(y, out)
    np.testing.assert_allclose(
        out[:-2],
        (y * np.log(np.maximum(y, 1e-300)) - y - gammaln(y + 1))[:-2],
        rtol=1e-12,
        atol=1e-13,
    )
    np.testing.assert_allclose(
        out[-2:], -0.5 * np.log(2 * np.pi * y[-2:]) - 1 / (12 * y[-2:]), rtol=1e-14
    )


@LOSSES
@pytest.mark.parametrize("unit", ["one", "mean", "as they are"])
def test_weights_that_are_not_whole(loss: str, unit: str) -> None:
    """Degrees of freedom count rows, not weights, as var_weights of statsmodels do.

    If a dispersion is estimated, the unit of the weights does not matter.
    """
    table = table_of(loss)
    c = np.random.default_rng(8).uniform(0.2, 3.0, 300)
    given = {"one": c / c.sum(), "mean": c / c.mean(), "as they are": c}[unit]
    model = fit(Table(table.X, table.y, given), loss=loss, tol=1e-12)
    found = coefficient_table.table(model)
    if loss in ("logistic", "poisson") and unit == "one":
        assert "the weights sum to 1, which would be the number of rows" in found["refused"]
        mean = float(found["refused"].partition("by their mean, ")[2].split()[0])
        model = fit(Table(table.X, table.y, given / mean), loss=loss, tol=1e-12)
        found, given = coefficient_table.table(model), given / mean
    X = sm.add_constant(table.X)
    truth = sm.GLM(table.y, X, family=FAMILIES[loss], var_weights=given).fit(tol=1e-12)
    for ours, theirs in (
        ("coef", "params"),
        ("std_err", "bse"),
        ("residual_degrees", "df_resid"),
        ("dispersion", "scale"),
    ):
        np.testing.assert_allclose(found[ours], getattr(truth, theirs), rtol=2e-6, err_msg=ours)
    np.testing.assert_allclose(found["deviance"], truth.deviance, rtol=1e-8)
    if loss == "squared":
        exact = sm.WLS(table.y, X, weights=given).fit()
        np.testing.assert_allclose(found["log_likelihood"], exact.llf, rtol=1e-9)
        np.testing.assert_allclose(found["aic"], exact.aic, rtol=1e-9)
        np.testing.assert_allclose(found["p_value"], exact.pvalues, rtol=1e-5)
    elif loss == "gamma":
        assert found["log_likelihood"] is None and found["aic"] is None
    else:
        np.testing.assert_allclose(found["log_likelihood"], truth.llf, rtol=1e-8)
    text = coefficient_table.text("m", model)
    words = "in any unit" if loss in ("squared", "gamma") else "depend on the unit of such weights"
    assert "Weights are not whole numbers: " in text and words in text and "300 rows" in text


def test_few_rows_are_counted_whatever_they_weigh() -> None:
    table = generate("squared", n=300)
    few = Table(table.X[:4], table.y[:4], np.full(4, 0.25))
    assert fit(few, tol=1e-3).statistics["refused"].startswith("4 rows are too few for ")
    ghosts = Table(table.X, table.y, np.where(np.arange(300) < 150, 0.0, 0.01))
    found = fit(ghosts, tol=1e-12).statistics
    truth = sm.OLS(table.y[150:], sm.add_constant(table.X[150:])).fit()
    np.testing.assert_allclose(
        [found["intercept_error"], *found["standard_errors"]], truth.bse, rtol=1e-6
    )
    assert (found["rows"], found["repeated"], found["residual_degrees"]) == (150, False, 145)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_weights_that_are_not_whole_on_all_ranks(loss: str) -> None:
    table = table_of(loss)
    weighted = Table(
        table.X, table.y, np.where(np.arange(300) < 200, 1.0, 0.5)
    )  # some ranks see whole ones alone
    truth = fit(weighted, loss=loss).statistics
    assert truth["repeated"] is False
    for size in (2, 3):
        assert all(
            found == truth
            for found in run(
                size, lambda comm: fit(shard(weighted, comm), comm, loss=loss).statistics
            )
        )


def test_degrees_of_freedom_are_written_as_counts() -> None:
    model = fit(table_of("squared"))
    model.statistics["residual_degrees"] = 123456789.0
    model.statistics["degrees_of_freedom"] = 4.75
    lines = coefficient_table.text("m", model)
    assert "residual degrees         123,456,789" in lines and "4.75" in lines


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_null_deviance_of_very_rare_events(loss: str) -> None:
    """Training starts from a share of at least 1e-9; the deviance is that of the optimum."""
    y, c = np.array([0.0, 0.0, 1.0]), np.array([1e9, 4e12, 3.0])
    config = build.complete(from_mapping(dict(loss=loss)), 3)
    data = shard(Table(np.arange(3.0)[:, np.newaxis], y, c), SelfComm())
    found = null_deviance(build.problem(data, config, SelfComm()).objective, SelfComm())
    mean = 3.0 / c.sum()
    rest = c[:2].sum() * np.log1p(-mean) if loss == "logistic" else 0.0
    truth = -2.0 * (3.0 * np.log(mean) + rest)  # of poisson, the means sum to that of y
    np.testing.assert_allclose(found, truth, rtol=1e-9)
