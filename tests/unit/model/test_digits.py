"""Columns whose mean is huge against their deviation: right while the storage has digits of their
differences, else said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from mpigd.config.schema import from_mapping
from mpigd.data.in_memory import matrix_of
from mpigd.model.column_digits import columns_without_digits, digits
from mpigd.model.scaling import measure
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.training.callbacks.progress import Progress
from mpigd.training.trainer import train
from tests.scenarios import fit, shard, write
from tests.threadcomm import run
from tests.truths import Table

Array = np.ndarray[Any, Any]
FAMILIES = {
    "squared": sm.families.Gaussian(),
    "logistic": sm.families.Binomial(),
    "poisson": sm.families.Poisson(),
}


def times(loss: str, far: float, n: int = 500) -> Table:
    """A column `far` from zero, one of zeros and ones, one that is like others."""
    rng = np.random.default_rng(1)
    X = np.column_stack([far + rng.normal(size=n), rng.random(n) < 0.2, rng.normal(size=n)])
    z = 0.6 * (X[:, 0] - far) - 0.5 * X[:, 1] + 0.3 * X[:, 2] + 0.2
    y = {
        "squared": lambda: z + rng.normal(size=n),
        "logistic": lambda: (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float),
        "poisson": lambda: rng.poisson(np.exp(z)).astype(float),
    }[loss]()
    return Table(X, y, rng.integers(1, 4, n).astype(float))


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("far", [1e3, 1e7, 1e9, 1e12, -1e13])
@pytest.mark.parametrize("loss", FAMILIES)
def test_the_answer_is_that_of_centred_data(loss: str, far: float, as_csr: bool) -> None:
    table = times(loss, far)
    near = table.X - [far, 0.0, 0.0]  # exact
    truth = sm.GLM(table.y, sm.add_constant(near), FAMILIES[loss], freq_weights=table.c)
    truth = truth.fit(tol=1e-13, use_t=loss == "squared")
    model = fit(shard(table, SelfComm(), as_csr=as_csr), loss=loss, tol=1e-9)
    assert model.summary["stop_reason"] == "tolerance"
    np.testing.assert_allclose(model.coef[0], truth.params[1:], rtol=2e-6)
    np.testing.assert_allclose(model.statistics["standard_errors"], truth.bse[1:], rtol=1e-6)
    assert model.statistics["deviance"] == pytest.approx(truth.deviance, rel=1e-10)
    shift = np.array([1.0, -far, 0.0, 0.0])
    error = np.sqrt(shift @ truth.cov_params() @ shift)
    assert model.statistics["intercept_error"] == pytest.approx(error, rel=1e-6)
    assert model.intercept[0] == pytest.approx(truth.params @ shift, rel=2e-6)
    bits = 52 - np.log2(abs(far))
    expected = near @ truth.params[1:] + truth.params[0]
    effect = table.X @ model.coef[0] + model.intercept[0] - expected
    assert np.abs(effect).max() < 1e-5 + 4 * 2.0**-bits  # what the stored coefficients can say


def test_without_rounding_of_the_data_the_offset_changes_nothing() -> None:
    """Whole numbers far from zero are exact: the model is that of the same numbers near it,
    standardisation on or off."""
    table = times("squared", 0.0)
    near = np.round(64 * table.X)
    far = near + np.array([1e12, 0.0, 0.0])
    for standardize in (True, False):
        options: dict[str, Any] = dict(l2=0.01, standardize=standardize, tol=1e-11)
        truth = fit(Table(near, table.y, table.c), **options)
        for l1 in (0.0, 1e-3):
            plain = fit(Table(near, table.y, table.c), l1=l1, **options)
            model = fit(Table(far, table.y, table.c), l1=l1, **options)
            np.testing.assert_allclose(model.coef, plain.coef, rtol=1e-5)
            assert model.summary["objective"] == pytest.approx(plain.summary["objective"], rel=1e-9)
        warm = fit(Table(near, table.y, table.c), **options)
        assert warm.digest == truth.digest


def test_streamed_rows_are_shifted_as_they_are_read(tmp_path: Path) -> None:
    table = times("logistic", 1e11, n=4000)
    paths = write(table, tmp_path, files=2)
    options: dict[str, Any] = dict(loss="logistic", l2=1e-3)
    whole = fit(paths, **options)
    assert fit(paths, max_memory="20KB", **options).digest == whole.digest
    assert fit(paths, max_memory="20KB", mode="minibatch", shuffle="blocks", **options).digest


@pytest.mark.parametrize("as_csr", [False, True])
def test_the_same_bits_on_all_ranks(as_csr: bool) -> None:
    table = times("poisson", 1e10)
    truth = fit(shard(table, SelfComm(), as_csr=as_csr), loss="poisson")

    def both(comm: Comm) -> Any:
        model = fit(shard(table, comm, "hash", as_csr), comm, loss="poisson")
        return model.digest, model.statistics["intercept_error"]

    for size in (2, 3):
        assert set(run(size, both)) == {(truth.digest, truth.statistics["intercept_error"])}


def test_a_run_that_begins_with_a_model(tmp_path: Path) -> None:
    table = times("logistic", 1e8)
    first = fit(table, loss="logistic", tol=1e-10)
    first.save(str(tmp_path / "m.h5"))
    again = fit(table, loss="logistic", tol=1e-6, optimizer="lbfgs", start=str(tmp_path / "m.h5"))
    assert again.summary["steps"] <= 2
    np.testing.assert_allclose(again.coef, first.coef, rtol=1e-5)


def told(X: Array, dtype: Any = np.float64, **options: Any) -> tuple[str, Model]:
    y = np.random.default_rng(0).normal(size=len(X))
    data = shard(Table(X.astype(dtype), y), SelfComm(), as_csr=options.pop("as_csr", False))
    stream = io.StringIO()
    model = train(data, from_mapping(options), SelfComm(), Progress(stream, quiet=False))
    return next((line for line in stream.getvalue().splitlines() if "bits" in line), ""), model


def test_columns_without_digits_are_named() -> None:
    rng = np.random.default_rng(0)
    t, o = rng.normal(size=800), rng.normal(size=800)
    text, _ = told(np.column_stack([o, 1.7e9 + 3600 * t]), np.float32)
    assert "float32" in text and "column 1 (mean 1.7e+09, 4 bits)" in text
    assert "subtract a constant" in text and "float64" in text
    text, _ = told(np.column_stack([1.7e18 + 1e5 * t, o]))
    assert "column 0 (mean 1.7e+18, 8 bits)" in text and "subtract a constant" in text
    # arranged: the second comes first
    text, _ = told(np.column_stack([o * (o > 0.5), 1.7e18 + 1e5 * t]), as_csr=True)
    assert "column 1" in text and "column 0" not in text
    # Rounded until nothing is left of it
    text, model = told(np.column_stack([1.7e18 + 1e5 * t, o]), np.float32)
    assert "column 0 (mean 1.7e+18, 0 bits)" in text and model.coef[0, 0] == 0.0


def test_columns_with_enough_are_not() -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(size=800)
    rare = np.zeros(800)
    rare[3] = 1.0
    years = np.round(2010 + 3 * t)
    few = np.column_stack([years, rare, 1e-30 * t, 1e30 * t, np.full(800, 7.0), 1e5 + t * 20])
    assert told(few, np.float32)[0] == ""
    assert told(np.column_stack([1.7e9 + 60 * t, 1e12 + t]))[0] == ""
    # nothing is centred
    assert told(np.column_stack([1.7e18 + 1e5 * t, t]), intercept=False)[0] == ""


def test_bits() -> None:
    x = 2.0**40 * (1 + 2.0**-30 * np.tile([-1.0, 1.0], 50))
    statistics = measure(matrix_of(x[:, np.newaxis]), np.ones(100), 100, SelfComm())
    assert digits(statistics, np.dtype(np.float64))[0] == pytest.approx(52 - 30, abs=0.01)
    assert columns_without_digits(statistics, np.dtype(np.float64)).tolist() == []
    assert columns_without_digits(statistics, np.dtype(np.float32)).tolist() == [0]
    assert columns_without_digits(statistics, np.dtype(np.float16)).tolist() == []
