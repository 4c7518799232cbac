"""Separated data are found and named; scipy's linear programme decides what is separated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from mpigd.commands import info
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.training import separation
from tests.scenarios import fit, shard
from tests.threadcomm import run
from tests.truths import Table, generate

Array = np.ndarray[Any, Any]
LOSSES = ("logistic", "softmax", "poisson")


def is_separated(table: Table, loss: str, intercept: bool = True) -> bool:
    """Albert and Anderson (1984), decided as Konis (2007) does: the largest sum of moves of a
    direction without wrong moves."""
    X = np.column_stack([table.X, np.ones(len(table.y))]) if intercept else table.X
    largest = np.abs(X).max(axis=0)
    keep = slice(None) if table.c is None else table.c > 0
    X, y = (X / np.where(largest > 0, largest, 1))[keep], table.y[keep]
    fixed = np.zeros((0, X.shape[1]))
    if loss == "logistic":
        moves = (2 * y - 1)[:, None] * X
    elif loss == "poisson":
        moves, fixed = -X[y == 0], X[y > 0]
    else:
        unit = np.eye(int(table.y.max()) + 1)
        moves = np.array(
            [
                np.kron(unit[int(a)] - e, x)
                for a, x in zip(y, X, strict=True)
                for e in unit
                if e[int(a)] == 0
            ]
        )
    if not len(moves):
        return False
    found = linprog(
        -moves.sum(axis=0), -moves, np.zeros(len(moves)), fixed if len(fixed) else None,
        np.zeros(len(fixed)) if len(fixed) else None, (-1, 1),
    )  # fmt: skip
    assert found.status == 0
    return bool(-found.fun > 1e-6)


def small(rng: np.random.Generator, loss: str) -> Table:
    """A few rows of numbers, ties, factors (one-hot, all levels) or rare indicators; weights of
    zero or over six decades."""
    n, d, style = int(rng.choice([8, 12, 20, 40, 80])), int(rng.integers(1, 6)), rng.integers(0, 4)
    X = (
        rng.normal(size=(n, d)),
        rng.integers(-1, 2, size=(n, d)).astype(float),
        np.column_stack([np.eye(d + 1)[rng.integers(0, d + 1, n)], rng.normal(size=n)]),
        (rng.random((n, d)) < 0.15).astype(float),
    )[style]
    z = X @ rng.normal(size=X.shape[1]) * rng.choice([0, 1, 3])
    if loss == "logistic":
        y = (z + rng.logistic(size=n) > 0).astype(float)
    elif loss == "softmax":
        y = np.argmax(
            2 * X @ rng.normal(size=(X.shape[1], 3)) + rng.gumbel(size=(n, 3)), axis=1
        ).astype(float)
    else:
        y = rng.poisson(np.exp(np.clip(z, -3, 3) - rng.choice([0, 2]))).astype(float)
    y[:3] = (0, 1, 2) if loss == "softmax" else (0, 1, 0)
    c = None
    if rng.random() < 0.3:
        c = (
            10 ** rng.uniform(-3, 3, n)
            if rng.random() < 0.5
            else rng.integers(0, 3, n).astype(float)
        )
        c[:3] = 1
    return Table(X, y, c, rng.normal(size=n) if rng.random() < 0.3 else None)


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("loss", LOSSES)
def test_linear_programmes_agree(loss: str, tol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """No false alarm and none missed, wherever the run ended and whatever columns are redundant."""
    if tol == 1e-6:  # as for large data, where a Hessian costs more than to look at single columns
        monkeypatch.setattr(separation, "FEW_PRODUCTS", 0.0)
    answers = set()
    for seed in range(40):
        rng = np.random.default_rng([seed, LOSSES.index(loss)])
        table, intercept = small(rng, loss), bool(seed % 5)
        data = shard(table, SelfComm(), as_csr=bool(seed % 2))
        optimizer = str(rng.choice(["lbfgs", "newton-cholesky"]))
        model = fit(data, loss=loss, intercept=intercept, optimizer=optimizer, tol=tol, epochs=300)
        truth = is_separated(table, loss, intercept)
        assert ("separation" in model.summary) == truth, (seed, model.summary.get("separation"))
        answers.add(truth)
    assert answers == {True, False}


def found(table: Table, loss: str, as_csr: bool = False, **options: Any) -> dict[str, Any] | None:
    options = (dict(optimizer="lbfgs") if loss == "poisson" else {}) | options
    return fit(shard(table, SelfComm(), as_csr=as_csr), loss=loss, **options).summary.get(
        "separation"
    )


def ordinary(loss: str, n: int, d: int = 3) -> Table:
    table = generate(loss, n=n, d=d, holes=0.0)
    assert not is_separated(table.take(slice(0, 300)), loss)
    return table


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_rare_level_is_found_and_named(loss: str, as_csr: bool) -> None:
    """Two rows of 20,000: the run ends long before their probabilities are near 0 or 1."""
    table = ordinary(loss, 20_000)
    rare = np.zeros((20_000, 2))
    rare[[77, 15_003], 0], rare[[5, 6, 7, 8], 1] = 1.0, 1.0
    y = table.y.copy()
    y[[77, 15_003]], y[[5, 6, 7, 8]] = (
        0.0,
        (0.0, 1.0, 2.0, 0.0) if loss != "logistic" else (0.0, 1.0, 1.0, 0.0),
    )
    values = found(Table(np.column_stack([table.X[:, :1], rare, table.X[:, 1:]]), y), loss, as_csr)
    assert values is not None
    assert (values["columns"], values["rows"], values["complete"], values["alone"]) == (
        ["column 1"],
        2,
        False,
        True,
    )
    both = y.copy()
    both[15_003] = 1.0 if loss != "softmax" else 2.0
    table = Table(np.column_stack([table.X[:, :1], rare, table.X[:, 1:]]), both)
    assert (found(table, loss, as_csr) is None) == (
        loss != "softmax"
    )  # class 1 is not among them: softmax separates that


def test_levels_are_listed_each() -> None:
    """A whole one-hot and an intercept: of what depends on one another, only the levels without
    events are named."""
    rng = np.random.default_rng(0)
    level = rng.integers(0, 12, 3000)
    y = rng.poisson(0.4, 3000).astype(float)
    y[np.isin(level, (0, 4, 11))] = 0.0
    data = replace(
        shard(Table(np.eye(12)[level], y), SelfComm(), as_csr=True),
        encoding={"feature_names": [f"region={j}" for j in range(12)]},
    )
    model = fit(data, loss="poisson", optimizer="lbfgs")
    values = model.summary["separation"]
    assert values["columns"] == ["region=0", "region=4", "region=11"]
    assert values["rows"] == np.isin(level, (0, 4, 11)).sum()
    assert "region=0, region=4, region=11 separate" in values["text"] and "--l2" in values["text"]
    assert model.statistics["refused"] == values["text"]


def test_no_events_at_all() -> None:
    values = found(
        Table(np.random.default_rng(0).normal(size=(50, 2)), np.zeros(50)),
        "poisson",
        optimizer="lbfgs",
    )
    assert values is not None
    assert (
        values["complete"]
        and values["columns"] == []
        and values["text"].startswith("y is 0 in all rows")
    )


def test_complete_separation_by_a_combination() -> None:
    X = np.random.default_rng(0).normal(size=(300, 4))
    values = found(Table(X, (X[:, 1] + X[:, 3] > 0.0).astype(float)), "logistic")
    assert values is not None
    assert set(values["columns"]) == {"column 1", "column 3"} and not values["alone"]
    assert values["complete"] and values["rows"] == 300


@pytest.mark.parametrize("loss", LOSSES)
def test_quasi_separation_by_a_combination(loss: str) -> None:
    """Rows with x_0 + x_1 = 0 have all outcomes, those to the right and left do not; no single
    column tells."""
    rng = np.random.default_rng(0)
    X = rng.integers(-1, 2, size=(300, 4)).astype(float)
    z = X[:, 0] + X[:, 1]
    y = {
        "logistic": lambda: np.where(z == 0, rng.integers(0, 2, 300), z > 0),
        "softmax": lambda: np.where(
            z == 0, rng.integers(0, 3, 300), np.where(z > 0, rng.integers(1, 3, 300), 0)
        ),
        "poisson": lambda: np.where(z == 0, rng.poisson(1.0, 300), 0),
    }[loss]().astype(float)
    if loss == "poisson":
        X, y = X[z >= 0], y[z >= 0]
    values = found(Table(X, y), loss, optimizer="lbfgs")
    assert values is not None
    assert (
        set(values["columns"]) == {"column 0", "column 1"}
        and not values["alone"]
        and not values["complete"]
    )
    assert "a combination of" in values["text"]
    if loss == "logistic":
        assert values["rows"] == np.count_nonzero(z)


def test_real_data() -> None:
    """Fisher's irises: setosa against the others is separated, by each of two columns; Spector's
    grades are not."""
    from sklearn.datasets import load_iris
    from statsmodels.datasets import spector

    iris = load_iris()
    values = found(Table(iris.data, (iris.target == 0).astype(float)), "logistic")
    assert values is not None
    assert values["columns"] == ["column 2", "column 3"] and values["complete"] and values["alone"]
    values = found(Table(iris.data, iris.target.astype(float)), "softmax")
    assert values is not None
    assert values["columns"] == ["column 2", "column 3"] and values["alone"]
    assert "class 0 from the others" in values["text"]
    assert found(Table(iris.data[50:], iris.target[50:] - 1.0), "logistic") is None
    grades = spector.load()
    assert found(Table(grades.exog.to_numpy(), grades.endog.to_numpy()), "logistic") is None


@pytest.mark.parametrize(
    "options", [dict(l2=1e-6), dict(l1=1e-3), dict(bounds="-3:3"), dict(mode="minibatch")]
)
def test_only_an_optimum_without_penalty_is_asked(options: dict[str, Any]) -> None:
    X = np.random.default_rng(0).normal(size=(60, 2))
    assert found(Table(X, (X[:, 1] > 0.0).astype(float)), "logistic", **options) is None


@pytest.mark.parametrize("loss", LOSSES)
def test_ranks_agree_and_the_model_is_untouched(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [ordinary(loss, 300), small(np.random.default_rng(3), loss)]
    rng = np.random.default_rng(0)
    X = rng.integers(-1, 2, size=(120, 3)).astype(float)
    y = np.where(
        X[:, 0] == X[:, 1], rng.integers(0, 2, 120), 0 if loss == "poisson" else X[:, 0] > X[:, 1]
    )
    keep = X[:, 0] >= X[:, 1] if loss == "poisson" else np.full(120, True)
    tables.append(
        Table(X[keep], y[keep].astype(float), rng.integers(0, 4, 120)[keep].astype(float))
    )
    options: dict[str, Any] = dict(loss=loss, optimizer="lbfgs")

    def answer(model: Model) -> tuple[Any, ...]:
        return (
            model.digest,
            model.summary["state_digest"],
            model.summary["reads"],
            str(model.summary.get("separation")),
        )

    for table in tables:
        for as_csr in (False, True):
            truth = fit(shard(table, SelfComm(), as_csr=as_csr), **options)

            def on_rank(comm: Comm, table: Table = table, as_csr: bool = as_csr) -> tuple[Any, ...]:
                return answer(fit(shard(table, comm, "hash", as_csr), comm, **options))

            for ranks in (1, 2, 3):
                assert set(run(ranks, on_rank)) == {answer(truth)}
            with monkeypatch.context() as without:
                without.setattr(separation, "explain", lambda *rest: None)
                assert (
                    answer(fit(shard(table, SelfComm(), as_csr=as_csr), **options))[:3]
                    == answer(truth)[:3]
                )
    assert "separation" in truth.summary


def test_people_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mpigd

    X = np.random.default_rng(0).normal(size=(60, 2))
    model = mpigd.train((X, (X[:, 1] > 0.0).astype(float)), loss="logistic")
    assert "warning: column 1 separates the classes (all rows)" in " ".join(
        capsys.readouterr().err.split()
    )
    model.save(str(tmp_path / "model.h5"))
    shown = info.text("model.h5", info.describe(str(tmp_path / "model.h5")))
    assert "separation       column 1 separates the classes (all rows)" in shown
    assert "standard errors  none: column 1 separates" in shown
