"""Losses with kinks in full mode.

Tests compare the optimum with a linear programme, and check the bound, the number of reads and the
bits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog
from sklearn.svm import SVC

from mpigd.config.schema import from_mapping
from mpigd.errors import UsageError
from mpigd.model.constant_model import weighted_quantile
from mpigd.model.losses import LOSSES
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.training import problem
from tests.scenarios import fit, kill, shard, write
from tests.threadcomm import run
from tests.truths import Table, generate, objective, pointwise

Array = np.ndarray[Any, Any]
CLOSE = 1e-6  # of what there is to gain: --tol's default
PRECISE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def programme(table: Table, loss: str, quantile: float = 0.5, intercept: bool = True) -> float:
    """The smallest weighted mean hinge or pinball loss.

    It is the optimum of a linear programme in coefficients and slacks.
    """
    n = len(table.y)
    A = np.column_stack([table.X, np.full(n, float(intercept))])
    A = A / np.maximum(np.abs(A).max(axis=0), 1e-300)
    c = np.ones(n) if table.c is None else table.c / table.c.mean()
    offset = np.zeros(n) if table.offset is None else table.offset
    free, eye = [(None, None)] * A.shape[1], sparse.eye(n)
    if loss == "hinge":
        s = 2 * table.y - 1
        held, limits = -sparse.hstack([sparse.csr_matrix(s[:, None] * A), eye]), s * offset - 1
        costs, parts = np.r_[np.zeros(A.shape[1]), c], dict(A_ub=held, b_ub=limits)
        return (
            float(
                linprog(
                    costs, bounds=free + [(0, None)] * n, method="highs", options=PRECISE, **parts
                ).fun
            )
            / n
        )
    y = table.y - offset
    unit = float(np.abs(y).max())
    costs = np.r_[np.zeros(A.shape[1]), quantile * c, (1 - quantile) * c]
    parts = dict(A_eq=sparse.hstack([sparse.csr_matrix(A), eye, -eye]), b_eq=y / unit)
    return (
        float(
            linprog(
                costs, bounds=free + [(0, None)] * (2 * n), method="highs", options=PRECISE, **parts
            ).fun
        )
        / n
        * unit
    )


def regression(seed: int = 1, n: int = 400, d: int = 5, heavy: bool = False) -> Table:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    noise = rng.standard_cauchy(n) if heavy else rng.normal(size=n) * (1 + 0.5 * np.abs(X[:, 0]))
    return Table(X, X @ rng.normal(size=d) + noise)


def classes(seed: int = 1, n: int = 400, d: int = 5, shift: float = 0.0) -> Table:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return Table(X, (X @ rng.normal(size=d) + rng.normal(size=n) > shift).astype(float))


def changed(table: Table, **parts: Any) -> Table:
    return dataclasses.replace(table, **parts)


def _quantiles() -> dict[str, tuple[Table, dict[str, Any]]]:
    plain, rng = regression(), np.random.default_rng(7)
    X, y, n = plain.X, plain.y, len(plain.y)
    ones = rng.integers(0, 6, n)
    return {
        "median": (plain, {}),
        "0.99": (regression(n=1500), dict(quantile=0.99)),
        "0.01": (plain, dict(quantile=0.01)),
        "Cauchy errors": (regression(heavy=True), dict(quantile=0.9)),
        "y in 1e-9": (changed(plain, y=y * 1e-9), dict(quantile=0.3)),
        "y in 1e9": (changed(plain, y=y * 1e9), dict(quantile=0.3)),
        "y far from zero": (changed(plain, y=y + 1e6), dict(quantile=0.3)),
        "integers": (Table(np.rint(X), np.rint(y)), dict(quantile=0.7)),
        "tied y": (changed(plain, y=np.clip(np.rint(y), -1, 1)), dict(quantile=0.4)),
        "duplicated rows": (
            Table(np.repeat(X[:100], 4, axis=0), np.repeat(y[:100], 4)),
            dict(quantile=0.4),
        ),
        "duplicated and constant columns": (
            changed(plain, X=np.column_stack([X, X[:, 0], np.full(n, 3.0)])),
            {},
        ),
        "columns over six decades": (
            changed(plain, X=X * 10.0 ** np.arange(-3, 2)),
            dict(standardize=False),
        ),
        "weights over ten decades": (
            changed(plain, c=10 ** rng.uniform(-10, 0, n)),
            dict(quantile=0.6),
        ),
        "weights of zero": (
            changed(plain, c=(rng.random(n) < 0.3).astype(float)),
            dict(quantile=0.6),
        ),
        "offset": (changed(plain, offset=5 * rng.normal(size=n)), dict(quantile=0.6)),
        "no intercept": (changed(plain, X=X + 1), dict(intercept=False)),
        "one-hot": (Table(np.eye(6)[ones], y + ones), {}),
        "an outlier of 1e6": (Table(np.r_[X, [[1e3] * 5]], np.r_[y, 1e6]), {}),
        "few rows": (plain.take(slice(0, 12)), {}),
        "large": (regression(n=20000, d=10), dict(quantile=0.5)),
    }


def _hinges() -> dict[str, tuple[Table, dict[str, Any]]]:
    plain, rng = classes(), np.random.default_rng(7)
    X, y, n = plain.X, plain.y, len(plain.y)
    return {
        "plain": (plain, {}),
        "imbalanced": (classes(n=2000, shift=2.5), {}),
        "noise": (changed(plain, y=(rng.random(n) < 0.5).astype(float)), {}),
        "integers": (changed(plain, X=np.rint(X)), {}),
        "duplicated rows": (Table(np.repeat(X[:100], 4, axis=0), np.repeat(y[:100], 4)), {}),
        "columns over ten decades": (changed(plain, X=X * 10.0 ** np.arange(-5, 5, 2) + 3), {}),
        "weights over six decades": (changed(plain, c=10 ** rng.uniform(-6, 0, n)), {}),
        "a column that decides some rows": (
            changed(plain, X=np.column_stack([X, y * (rng.random(n) < 0.3)])),
            {},
        ),
        "offset": (changed(plain, offset=rng.normal(size=n)), {}),
        "no intercept": (plain, dict(intercept=False)),
        "large": (classes(n=20000, d=10), {}),
    }


CASES = [("quantile", name, *case) for name, case in _quantiles().items()]
CASES += [("hinge", name, *case) for name, case in _hinges().items()]


def null(table: Table, loss: str, options: dict[str, Any]) -> float:
    """The objective without columns, from every candidate for the intercept."""
    config, c = (
        from_mapping(dict(loss=loss, **options)),
        np.ones(len(table.y)) if table.c is None else table.c,
    )
    offset = np.zeros(len(table.y)) if table.offset is None else table.offset
    kinks = (2 * table.y - 1 if loss == "hinge" else table.y) - offset
    candidates = np.unique(kinks)[:: max(1, len(kinks) // 300)] if config.intercept else np.zeros(1)
    return min(
        float(c @ pointwise(loss, offset + b, table.y, config)[0]) for b in candidates
    ) / float(c.sum())


@pytest.mark.parametrize(
    ("loss", "name", "table", "options"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES]
)
def test_the_linear_programme_s_optimum(
    loss: str, name: str, table: Table, options: dict[str, Any]
) -> None:
    best = programme(table, loss, options.get("quantile", 0.5), options.get("intercept", True))
    gain = null(table, loss, options) - best
    model = fit(table, loss=loss, **options)
    summary = model.summary
    reached = objective(
        table, from_mapping(dict(loss=loss, **options)), model.coef, model.intercept
    )[0]
    rounding = 1e-9 * best
    assert gain > 1e-3 * best
    assert best - rounding <= reached <= best + CLOSE * gain + rounding
    assert summary["objective"] - summary["left"] <= best + rounding  # the bound is one
    assert summary["stop_reason"] == "tolerance"
    assert summary["left"] <= CLOSE * 1.01 * gain
    assert summary["reads"] <= 60


@pytest.mark.parametrize("seed", range(4))
def test_separable_classes_have_no_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(400, 6))
    summary = fit(Table(X, (X[:, 0] + 0.3 * X[:, 1] > 0.1).astype(float)), loss="hinge").summary
    assert summary["objective"] == 0.0
    assert summary["left"] == 0.0
    assert summary["stop_reason"] == "tolerance"


@pytest.mark.parametrize("loss", ["hinge", "quantile"])
def test_more_columns_than_rows(loss: str) -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 30).astype(float) if loss == "hinge" else rng.normal(size=30)
    summary = fit(Table(rng.normal(size=(30, 40)), y), loss=loss).summary
    assert summary["objective"] <= 1e-6


@pytest.mark.parametrize("case", ["constant y", "mostly zero", "rare class"])
def test_where_the_constant_is_the_optimum(case: str) -> None:
    """Nothing to gain: the null model stays, and is known to be the best."""
    rng, X = np.random.default_rng(3), np.random.default_rng(4).normal(size=(400, 4))
    y = {
        "constant y": np.full(400, 2.0),
        "mostly zero": np.where(rng.random(400) < 0.9, 0.0, rng.normal(size=400)),
        "rare class": (rng.random(400) < 0.05).astype(float),
    }[case]
    loss = "hinge" if case == "rare class" else "quantile"
    table, options = Table(X, y), dict(loss=loss)
    summary = fit(table, **options).summary
    best = programme(table, loss)
    assert summary["objective"] == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert summary["left"] <= 1e-9 * null(table, loss, {})


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("intercept", [True, False])
def test_a_ridge_makes_it_a_support_vector_machine(l2: float, intercept: bool) -> None:
    """The optimum is that of a support vector machine.

    The reference is libsvm, whose intercept is not penalised either. Without an intercept it is the
    dual, a box-constrained quadratic that this file solves.
    """
    table = classes(n=300)
    options = dict(loss="hinge", l2=l2, intercept=intercept, standardize=False)
    if intercept:
        machine = SVC(kernel="linear", C=1 / (l2 * 300), tol=1e-10).fit(table.X, table.y)
        low, high = (
            0.0,
            objective(table, from_mapping(options), machine.coef_, machine.intercept_)[0],
        )
    else:
        low, high = _optimum_between(table, l2)
    model = fit(table, **options)
    reached = objective(table, from_mapping(options), model.coef, model.intercept)[0]
    assert reached == pytest.approx(model.summary["objective"], rel=1e-12)
    assert low <= reached <= high + CLOSE * (null(table, "hinge", dict(intercept=intercept)) - high)
    assert reached - model.summary["left"] <= high


def _optimum_between(table: Table, l2: float) -> tuple[float, float]:
    """Dual and primal objective from coordinate ascent.

    The dual is sum a / n - |sum a_i s_i x_i / n|^2 / (2 l2) with 0 <= a <= 1.
    """
    n = len(table.y)
    Z = (2 * table.y - 1)[:, None] * table.X
    squares, a, v = np.sum(Z * Z, axis=1) / (n * l2), np.zeros(n), np.zeros(Z.shape[1])
    for _ in range(1000):
        for i in range(n):
            new = min(1.0, max(0.0, a[i] + (1.0 - Z[i] @ v) / squares[i]))
            v += (new - a[i]) * Z[i] / (n * l2)
            a[i] = new
        low = float(np.mean(a) - 0.5 * l2 * v @ v)
        high = float(np.mean(np.maximum(0.0, 1.0 - Z @ v)) + 0.5 * l2 * v @ v)
        if high - low <= 1e-9:
            break
    return low, high


@pytest.mark.parametrize("loss", ["hinge", "quantile"])
def test_conjugate_gradients_in_place_of_a_hessian(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = classes() if loss == "hinge" else regression()
    monkeypatch.setattr(problem, "LARGEST_FACTOR", 10)
    best = programme(table, loss)
    summary = fit(table, loss=loss).summary
    assert summary["objective"] - best <= CLOSE * (null(table, loss, {}) - best) + 1e-9
    assert summary["objective"] - summary["left"] <= best + 1e-9


BITS = [
    (regression(), dict(loss="quantile", quantile=0.9)),
    (
        changed(regression(n=1500), c=np.random.default_rng(1).exponential(size=1500)),
        dict(loss="quantile", l2=1e-3),
    ),
    (classes(n=1500), dict(loss="hinge")),
    (classes(), dict(loss="hinge", l2=1e-2, intercept=False)),
]


def _same(model: Model, truth: Model) -> None:
    assert model.digest == truth.digest
    for key in ("state_digest", "objective", "left", "reads", "steps", "stop_reason"):
        assert model.summary[key] == truth.summary[key], key


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize(("table", "options"), BITS)
def test_same_bits(table: Table, options: dict[str, Any], as_csr: bool, tmp_path: Path) -> None:
    """On 1, 2 and 3 ranks, and continued by 2 where 3 have stopped."""
    truth = fit(shard(table, SelfComm(), as_csr=as_csr), threads=1, **options)
    for size in (2, 3):
        for model in run(
            size, lambda comm: fit(shard(table, comm, "hash", as_csr), comm, threads=2, **options)
        ):
            _same(model, truth)
    saving = options | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    stop = truth.summary["steps"] - 3
    assert stop >= 0
    run(3, lambda comm: kill(stop, shard(table, comm, "file", as_csr), comm, threads=1, **saving))
    for model in run(
        2, lambda comm: fit(shard(table, comm, "hash", as_csr), comm, threads=1, **saving)
    ):
        _same(model, truth)


@pytest.mark.parametrize("loss", ["hinge", "quantile"])
def test_rows_that_are_not_in_memory(loss: str, tmp_path: Path) -> None:
    """Those near their kinks are read again, not kept: the same bits."""
    table = classes(n=1500) if loss == "hinge" else regression(n=1500)
    paths = write(table, tmp_path, files=2)
    _same(fit(paths, loss=loss, max_memory="1kB", threads=2), fit(paths, loss=loss, threads=1))


def test_few_reads_of_many_rows() -> None:
    """The fit reads a sample first, and then rows near their kinks.

    Many such partial reads cost as much as one read of all rows.
    """
    for loss, table in (("quantile", regression(n=40000, d=10)), ("hinge", classes(n=40000, d=10))):
        assert fit(table, loss=loss).summary["reads"] <= 16


def test_a_sample_that_says_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a sample whose weights are a thousandth of those that matter."""
    table = regression(n=4000)
    c = np.where(np.arange(4000) % 100 == 0, 1e3, 1e-3)
    y = np.where(np.arange(4000) % 100 == 0, -table.y, table.y)
    monkeypatch.setattr("mpigd.model.sample_sizes.information", lambda *_: 1.0)
    table = Table(table.X, y, c)
    best = programme(table, "quantile")
    assert fit(table, loss="quantile").summary["objective"] - best <= CLOSE * (
        null(table, "quantile", {}) - best
    )


@pytest.mark.parametrize("loss", ["hinge", "quantile"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_best_constant(loss: str, weighted: bool) -> None:
    table = generate(loss, n=301, weights=weighted)
    config = from_mapping(dict(loss=loss, quantile=0.3))
    for offset in (None, np.random.default_rng(1).normal(size=301)):
        shifted = changed(table, offset=offset)

        def found(comm: Comm, shifted: Table = shifted) -> float:
            return float(
                problem.problem(shard(shifted, comm, "hash"), config, comm).null.intercept[0]
            )

        (b,) = set(run(3, found)) | {found(SelfComm())}
        c, o = np.ones(301) if table.c is None else table.c, 0.0 if offset is None else offset
        value = c @ pointwise(loss, np.full(301, b) + o, table.y, config)[0] / c.sum()
        assert value == pytest.approx(null(shifted, loss, dict(quantile=0.3)), rel=1e-12)


def test_the_quantile_of_every_kind_of_number() -> None:
    values = np.array([-np.inf, -1e300, -1.0, -1e-310, -0.0, 0.0, 5e-324, 1.0, 2.0, np.inf])
    for k in range(10):
        assert weighted_quantile(values, np.ones(10), (k + 0.5) / 10, 10, SelfComm()) == values[k]
    assert weighted_quantile(np.array([3.0]), np.ones(1), 1.0, 1, SelfComm()) == 3.0


def test_who_may_have_it() -> None:
    table = generate("logistic")
    with pytest.raises(
        UsageError, match="smoothed-newton goes with --mode full and a loss with kinks: try newton"
    ):
        fit(table, loss="logistic", optimizer="smoothed-newton")
    with pytest.raises(
        UsageError, match="smoothed-newton goes with --mode full and a loss with kinks"
    ):
        fit(table, loss="hinge", mode="minibatch", optimizer="smoothed-newton")
    for options, name in (
        (dict(), "smoothed-newton"),
        (dict(lr=0.1), "nesterov"),
        (dict(l1=0.1), "sgd"),
    ):
        config = problem.complete(from_mapping(dict(loss="hinge", **options)), 100, 4)
        assert config.optimizer == name
    assert "smoothed hinge" not in LOSSES


def test_from_a_model(tmp_path: Path) -> None:
    table, path = regression(), str(tmp_path / "model.h5")
    first = fit(table, loss="quantile")
    first.save(path)
    summary = fit(table, loss="quantile", start=path).summary
    assert summary["objective"] <= first.summary["objective"]
