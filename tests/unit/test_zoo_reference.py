"""The zoo's reference optima against statsmodels, scikit-learn and linear programming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from scripts.zoo import fitting, reference, table

Array = np.ndarray[Any, Any]
N = 400
ROOT = Path(__file__).resolve().parents[2]
Table = tuple[reference.Design, Array, Array]


@pytest.fixture(scope="module")
def columns() -> Table:
    """A design with an aliased and a constant column, its independent part, and a predictor."""
    random = np.random.default_rng(0)
    X = random.normal(size=(N, 4)) * [1.0, 10.0, 0.1, 3.0] + [0.0, 100.0, 0.0, 5.0]
    eta = (X - X.mean(axis=0)) @ [0.5, 0.03, 1.0, 0.1]
    aliased = np.hstack([X, X[:, :1] + X[:, 1:2], np.ones((N, 1))])
    return reference.Design(aliased), X, eta


def targets(loss: str, eta: Array) -> Array:
    random = np.random.default_rng(1)
    if loss == "poisson":
        return random.poisson(np.exp(eta)).astype(np.float64)
    if loss == "gamma":
        return np.asarray(np.exp(eta) * random.gamma(2.0, size=N))
    if loss == "squared":
        return np.asarray(eta + random.normal(size=N))
    y = (random.random(N) < 1.0 / (1.0 + np.exp(-eta))).astype(np.float64)
    return y + (random.random(N) < 0.3) if loss == "softmax" else y


@pytest.mark.parametrize("loss", ["squared", "poisson", "gamma", "logistic"])
def test_without_penalty_as_statsmodels(loss: str, columns: Table) -> None:
    import statsmodels.api as sm

    design, X, eta = columns
    families = {
        "squared": sm.families.Gaussian(), "poisson": sm.families.Poisson(),
        "gamma": sm.families.Gamma(sm.families.links.Log()), "logistic": sm.families.Binomial(),
    }  # fmt: skip
    y = targets(loss, eta)
    best = reference.optimum(design, y, loss, 0.0)
    fit = sm.GLM(y, sm.add_constant(X), family=families[loss]).fit(tol=1e-14)
    assert best.value == pytest.approx(fit.deviance / 2 / N, rel=1e-12)
    assert best.null == pytest.approx(fit.null_deviance / 2 / N, rel=1e-12)
    assert best.exists and best.left < 1e-10
    assert design.rank == 4 and design.near == 0


@pytest.mark.parametrize("loss", ["squared", "poisson", "gamma", "logistic", "softmax"])
@pytest.mark.parametrize("l2", [1e-4, 0.1])
def test_with_penalty_as_scikit_learn(loss: str, l2: float, columns: Table) -> None:
    from sklearn import linear_model as sk

    design, _, eta = columns
    y = targets(loss, eta)
    scale = np.where(design.constant, 1.0, design.deviation)
    S = (design.X - design.mean) / scale
    strict = {"tol": 1e-12, "solver": "newton-cholesky", "max_iter": 1000}
    if loss in ("logistic", "softmax"):
        fit = sk.LogisticRegression(C=1.0 / (N * l2), **strict).fit(S, y)
    elif loss == "squared":
        fit = sk.Ridge(alpha=N * l2).fit(S, y)
    else:
        kind = sk.PoissonRegressor if loss == "poisson" else sk.GammaRegressor
        fit = kind(alpha=l2, **strict).fit(S, y)
    coef = np.atleast_2d(fit.coef_) / scale
    intercept = np.atleast_1d(fit.intercept_) - coef @ design.mean
    theirs = reference.objective(design, y, loss, l2, coef, intercept)
    best = reference.optimum(design, y, loss, l2, 3)
    assert best.value == pytest.approx(theirs, rel=1e-11)
    assert best.exists and best.left < 1e-10


def separated(A: Array, y: Array, loss: str) -> bool:
    """Whether a direction exists along which no term rises and one falls (Albert and Anderson)."""
    if loss == "logistic":
        signed, bound = A * np.where(y > 0.5, 1.0, -1.0)[:, None], 1.0
        found = linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=(-1, 1))
    else:
        zero, bound = A[y == 0], 1.0
        found = linprog(
            zero.sum(axis=0), A_ub=zero, b_ub=np.zeros(len(zero)), A_eq=A[y > 0],
            b_eq=np.zeros(int(np.sum(y > 0))), bounds=(-bound, bound),
        )  # fmt: skip
    return bool(-found.fun > 1e-6)


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
@pytest.mark.parametrize("seed", range(12))
def test_no_optimum_where_linear_programming_finds_a_separation(loss: str, seed: int) -> None:
    """Small tables with rare levels: about half of them are separated."""
    random = np.random.default_rng(seed)
    levels = random.integers(0, 6, 60)
    X = np.hstack([(levels[:, None] == np.arange(6)).astype(float), random.normal(size=(60, 2))])
    y = random.poisson(0.3, 60).astype(float)
    y = np.minimum(y, 1.0) if loss == "logistic" else y
    design = reference.Design(X)
    best = reference.optimum(design, y, loss, 0.0)
    assert best.exists is not separated(design.basis(False)[0], y, loss)
    assert reference.optimum(design, y, loss, 1e-4).exists


def test_perfectly_separated_data_have_an_infimum_of_zero() -> None:
    x = np.linspace(-1.0, 1.0, 50)[:, None]
    best = reference.optimum(reference.Design(x), (x[:, 0] > 0).astype(float), "logistic", 0.0)
    assert best.value < 1e-8 and not best.exists
    three = np.digitize(x[:, 0], [-0.3, 0.4]).astype(float)
    best = reference.optimum(reference.Design(x), three, "softmax", 0.0, 3)
    assert best.value < 1e-8 and not best.exists


RIGHT = {
    "said": [], "excess": 1e-9, "exists": True, "converged": True, "peers": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "right"),
        ({"excess": 2e-5}, "wrong"),
        ({"excess": -1e-3}, "wrong"),
        ({"converged": False}, "silent"),
        ({"converged": False, "said": ["warning: not converged"]}, "said"),
        ({"exists": False}, "silent"),
        ({"exists": False, "said": ["warning: separation by x"]}, "said"),
        ({"exists": False, "converged": False, "said": ["--epochs 1000 ended"]}, "said"),
        ({"said": ["warning: separation by x"]}, "wrong"),
        ({"said": ["note"], "excess": 1.0}, "wrong"),
        ({"hang": True}, "hang"),
        ({"error": "DataError: y", "code": 65}, "refused"),
        ({"error": "NumericalError: y", "code": 70}, "said"),
        ({"error": "ValueError: y", "code": None}, "wrong"),
    ],
)
def test_a_fit_is_judged(changes: dict[str, Any], status: str) -> None:
    assert fitting.judge(RIGHT | changes)[0] == status


def test_only_optimisers_that_arrive_set_the_bar_of_reads() -> None:
    peers = {"lbfgs": {"excess": 1e-2, "reads": 4.0}, "newton": {"excess": 1e-6, "reads": 10.0}}
    peers["newton-cholesky"] = {"hang": True}
    assert fitting.reads_bar({"peers": peers, "reads": 20.0})["within"]
    assert not fitting.reads_bar({"peers": peers, "reads": 20.5})["within"]
    assert fitting.reads_bar({"peers": {}, "reads": 20.5})["within"] is None


def test_a_fit_that_takes_too_long_is_ended() -> None:
    with pytest.raises(fitting.OutOfTime), fitting.time_limit(0.05):
        while True:
            pass


def test_the_page_takes_the_table(tmp_path: Path) -> None:
    row = RIGHT | {
        "package": "a", "item": "b", "target": "c", "loss": "gamma", "l2": 0.0, "status": "right",
        "reads": 12.0, "best_reads": 4.0, "within": False, "seconds": 0.25,
    }  # fmt: skip
    page = tmp_path / "zoo.md"
    page.write_text("before\n" + table.MARKS[0] + "old\n" + table.MARKS[1] + "after\n")
    table.update(page, [row, row | {"status": "wrong", "within": None}])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| gamma | 0 | 2 | 1 | 0 | 1 | 0 | 0 | 0 | 3.00 | 3.00 | 0 | 1 | 0.25 | 0.25 |" in text
    table.update(page, [row])
    assert page.read_text().count(table.MARKS[0]) == 1
    assert all(mark in (ROOT / "docs" / "zoo.md").read_text() for mark in table.MARKS)
