"""l1, elastic net and bounds.

Objective and support are those of scikit-learn's optima, zeros are exact, and the bits are the same
on all ranks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize, nnls
from sklearn import linear_model

from mpigd.config.schema import Config, from_mapping
from mpigd.data.shard import Shard
from mpigd.errors import UsageError
from mpigd.matrix.half import Half
from mpigd.model.duality_gap import duality_gap
from mpigd.model.penalties import ElasticNet, bounds
from mpigd.optim.base import evaluate
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.training import problem as build
from mpigd.training import requirements
from tests.scenarios import continued_after_any_step, fit, same, shard
from tests.threadcomm import run
from tests.truths import ALL_LOSSES, SMOOTH, Table, generate, objective

Array = np.ndarray[Any, Any]
PROXIMAL = ("proximal-newton", "fista")


def scales(table: Table, config: Config) -> Array:
    if not config.standardize:
        return np.ones(table.X.shape[1])
    return np.sqrt(np.average((table.X - np.average(table.X, 0, table.c)) ** 2, 0, table.c))


def whole(table: Table, config: Config, coef: Array, intercept: Array) -> float:
    """The objective with its l1, from the original columns."""
    return objective(table, config, coef, intercept)[0] + config.l1 * float(
        np.abs(coef * scales(table, config)).sum()
    )


def optimum(table: Table, config: Config) -> tuple[float, Array]:
    """The smallest objective and its coefficients: L-BFGS-B on the positive and negative parts."""
    k, d = len(np.unique(table.y)) if config.loss == "softmax" else 1, table.X.shape[1]
    scale, (low, high) = scales(table, config), requirements.limits(config)
    center = np.average(table.X, 0, table.c) if config.intercept else np.zeros(d)

    def raw(u: Array) -> tuple[Array, Array]:
        coef = (u[: k * d] - u[k * d : 2 * k * d]).reshape(k, d) / scale
        return coef, u[2 * k * d :] * config.intercept - coef @ center

    def both(u: Array) -> tuple[float, Array]:
        value, g, g0 = objective(table, config, *raw(u))
        slope = ((g - np.outer(g0, center)) / scale).ravel()
        l1 = config.l1
        return value + l1 * u[: 2 * k * d].sum(), np.concatenate(
            [slope + l1, l1 - slope, g0 * config.intercept]
        )

    limits = (
        [(0, high * s) for s in np.tile(scale, k)]
        + [(0, -low * s) for s in np.tile(scale, k)]
        + [(None, None)] * k
    )
    u = np.zeros(2 * k * d + k)
    for _ in range(4):
        u = minimize(
            both,
            u,
            jac=True,
            method="L-BFGS-B",
            bounds=limits,
            options=dict(maxiter=20000, maxfun=50000, ftol=0, gtol=1e-13, maxcor=40),
        ).x
    return both(u)[0], raw(u)[0]


# The penalty.


def test_prox_and_subgradient_are_what_a_search_finds() -> None:
    rng = np.random.default_rng(0)
    p = 12
    low, high = (
        np.where(rng.random(p) < 0.5, -np.inf, -0.4),
        np.where(rng.random(p) < 0.5, np.inf, 0.3),
    )
    penalty = ElasticNet(0.7, rng.random(p), np.where(rng.random(p) < 0.8, 0.5, 0.0), low, high)
    v, step = rng.normal(size=p), 0.6
    found = v.copy()
    penalty.prox(found, step)
    grid = np.append(np.linspace(-3, 3, 60001), 0.0)
    for j in range(p):
        cost = 0.5 * (grid - v[j]) ** 2 + step * penalty.l1[j] * np.abs(grid)
        cost[(grid < low[j]) | (grid > high[j])] = np.inf
        assert found[j] == pytest.approx(grid[np.argmin(cost)], abs=2e-4)
    assert (found == 0).any() and (found == high).any()
    # The prox of a gradient step stays where it is exactly where the shortest subgradient is zero.
    g = rng.normal(size=p)
    at = np.clip(np.where(rng.random(p) < 0.4, 0.0, v), low, high)
    stayed = at - step * g
    penalty.prox(stayed, step)
    np.testing.assert_array_equal(
        np.isclose(stayed, at, atol=1e-14), np.isclose(penalty.subgradient(at, g), 0.0, atol=1e-14)
    )


def test_bounds_hold_on_the_original_coefficients_to_the_last_bit() -> None:
    inverse = np.append(np.random.default_rng(1).random(5000) * 7, 0.0)
    low, high = bounds(-0.3, 0.7, inverse)
    assert (low * inverse >= -0.3).all() and (high * inverse <= 0.7).all()
    np.testing.assert_allclose((low * inverse)[:-1], -0.3, rtol=1e-15)
    assert (low[-1], high[-1]) == (0.0, 0.0)
    assert (
        np.isinf(bounds(0.0, np.inf, inverse[:-1])[1]).all()
        and not bounds(0.0, np.inf, inverse)[0].any()
    )


@pytest.mark.parametrize("text", ["1", "1:2", "-3:-1", "0:0", "a:b", "1:0", "nan:1", ":-1"])
def test_bounds_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"--bounds .*: expected LOW:HIGH"):
        from_mapping(dict(bounds=text))


# Where it leads.

CASES: list[dict[str, Any]] = [
    dict(l1=0.05),
    dict(l1=0.03, l2=0.1),
    dict(nonnegative=True),
    dict(bounds="-0.1:0.2", l1=0.01, l2=1e-3),
]


def close(model: Model, table: Table, tol: float = 1e-8) -> None:
    """Objective within tol of the truth's, relative; zeros where the truth has them."""
    config = model.config
    best, coef = optimum(table, config)
    assert whole(table, config, model.coef, model.intercept) == pytest.approx(
        model.summary["objective"], rel=1e-12
    )
    assert -1e-10 < model.summary["objective"] / best - 1.0 < tol
    if (
        config.loss != "softmax" or config.l1 or config.l2
    ):  # of others only the differences between classes are determined
        np.testing.assert_allclose(model.coef, coef, atol=1e-4)
    low, high = requirements.limits(config)
    assert (model.coef >= low).all() and (model.coef <= high).all()


@pytest.mark.full(
    why="CSR rows reach a loss through the same margins and columns as dense rows",
    when=lambda loss, as_csr: as_csr and loss not in ("poisson", "softmax"),
)
@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("name", PROXIMAL)
@pytest.mark.parametrize("loss", SMOOTH)
def test_the_optimum_is_that_of_scipy(loss: str, name: str, case: int, as_csr: bool) -> None:
    table = generate(loss, n=300, d=6, weights=True)
    table = Table(table.X, table.y, table.c, np.random.default_rng(1).normal(size=300) * 0.3)
    options: dict[str, Any] = (
        dict(loss=loss, optimizer=name, standardize=case != 1, tol=1e-9, epochs=3000) | CASES[case]
    )
    model = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
    assert model.summary["stop_reason"] == "tolerance"
    close(model, table)


def sparse_table(n: int = 400, d: int = 60, seed: int = 0, loss: str = "squared") -> Table:
    """Correlated columns, eight of which matter."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ (
        np.eye(d) + 0.3 * rng.normal(size=(d, d)) / np.sqrt(d)
    ) + rng.normal(size=d)
    w = np.zeros(d)
    w[rng.permutation(d)[:8]] = rng.normal(size=8) + 1
    z = (X - X.mean(axis=0)) @ w
    return Table(
        X,
        z + rng.normal(size=n)
        if loss == "squared"
        else (z + 2 * rng.logistic(size=n) > 0).astype(float),
    )


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("name", PROXIMAL)
def test_lasso_and_elastic_net_are_those_of_scikit_learn(name: str, l2: float) -> None:
    table = sparse_table()
    l1 = 0.15
    X = (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)
    truth = linear_model.ElasticNet(
        alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-14, max_iter=100000
    ).fit(X, table.y)
    model = fit(table, l1=l1, l2=l2, optimizer=name, tol=1e-10, epochs=20000)
    coef = truth.coef_ / table.X.std(axis=0)
    best = whole(
        table, model.config, coef[None], np.array([truth.intercept_ - coef @ table.X.mean(axis=0)])
    )
    assert model.summary["objective"] == pytest.approx(best, rel=1e-8)
    np.testing.assert_array_equal(model.coef[0] != 0, truth.coef_ != 0)
    assert 5 < np.count_nonzero(model.coef) < 40


@pytest.mark.parametrize("name", PROXIMAL)
def test_sparse_logistic_regression_is_that_of_scikit_learn(name: str) -> None:
    table, l1 = sparse_table(loss="logistic"), 0.03
    X = (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)
    truth = linear_model.LogisticRegression(
        l1_ratio=1.0, C=1 / (l1 * 400), solver="saga", tol=1e-12, max_iter=100000
    ).fit(X, table.y)
    model = fit(table, loss="logistic", l1=l1, optimizer=name, tol=1e-10, epochs=20000)
    coef = truth.coef_ / table.X.std(axis=0)
    best = whole(table, model.config, coef, truth.intercept_ - coef @ table.X.mean(axis=0))
    assert model.summary["objective"] == pytest.approx(best, rel=1e-8)
    np.testing.assert_array_equal(model.coef != 0, truth.coef_ != 0)


def test_nonnegative_least_squares_are_those_of_scipy() -> None:
    table = sparse_table(n=200, d=20)
    for name in PROXIMAL:
        model = fit(
            table,
            nonnegative=True,
            intercept=False,
            standardize=False,
            optimizer=name,
            tol=1e-11,
            epochs=20000,
        )
        truth, residual = nnls(table.X, table.y)
        assert model.summary["objective"] == pytest.approx(residual**2 / 400, rel=1e-10)
        np.testing.assert_array_equal(model.coef[0] != 0, truth != 0)


def test_above_the_largest_useful_l1_nothing_is_left() -> None:
    table = sparse_table()
    X = (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)
    most = np.abs(X.T @ (table.y - table.y.mean())).max() / 400
    for name in PROXIMAL:
        assert not fit(table, l1=most * 1.0001, optimizer=name).coef.any()
        assert np.count_nonzero(fit(table, l1=most * 0.99, optimizer=name).coef) == 1


def wide_table(loss: str = "squared") -> Table:
    """More columns than a working set takes at first."""
    return sparse_table(n=300, d=400, seed=3, loss=loss)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_working_sets_lead_where_all_columns_do(loss: str) -> None:
    """The reference is FISTA, which has no working sets.

    Reading some of the columns counts as that share of a read.
    """
    table, l1 = (
        wide_table("logistic" if loss == "softmax" else loss),
        0.02 if loss == "softmax" else 0.05,
    )
    models = [fit(table, loss=loss, l1=l1, l2=l2, tol=1e-9) for l2 in (0.0, 0.03)]
    for model, l2 in zip(models, (0.0, 0.03), strict=True):
        assert model.config.optimizer == "proximal-newton"
        assert model.summary["stop_reason"] == "tolerance"
        truth = fit(table, loss=loss, l1=l1, l2=l2, optimizer="fista", tol=1e-9, epochs=20000)
        assert model.summary["objective"] == pytest.approx(truth.summary["objective"], rel=1e-8)
        if loss != "softmax":
            np.testing.assert_array_equal(model.coef != 0, truth.coef != 0)
        assert 10 < np.count_nonzero(model.coef[0]) < 200
        assert model.summary["reads"] < truth.summary["reads"] / 3


def test_more_coefficients_than_a_hessian_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then steps of FISTA do it."""
    table = wide_table()
    truth = fit(table, l1=0.05, tol=1e-9)
    monkeypatch.setattr("mpigd.training.problem.LARGEST_FACTOR", 30 * 30)
    model = fit(table, l1=0.05, tol=1e-9)
    assert model.summary["objective"] == pytest.approx(truth.summary["objective"], rel=1e-8)
    np.testing.assert_array_equal(model.coef != 0, truth.coef != 0)


@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_other_programs_find_the_same(l2: float) -> None:
    celer, skglm = pytest.importorskip("celer"), pytest.importorskip("skglm")
    table, l1 = wide_table(), 0.1
    X = (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)
    model = fit(table, l1=l1, l2=l2, tol=1e-10)
    peers = [skglm.ElasticNet if l2 else skglm.Lasso, celer.ElasticNet if l2 else celer.Lasso]
    for kind in peers:
        mixed = dict(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2)) if l2 else dict(alpha=l1)
        peer = kind(**mixed, tol=1e-12, max_iter=1000).fit(X, table.y)
        coef = np.asarray(peer.coef_) / table.X.std(axis=0)
        best = whole(table, model.config, coef[None], np.array([np.mean(table.y - table.X @ coef)]))
        assert model.summary["objective"] == pytest.approx(best, rel=1e-8)
        np.testing.assert_array_equal(model.coef[0] != 0, coef != 0)


# The certificate.


@pytest.mark.parametrize("case", [0, 1, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("loss", SMOOTH)
def test_a_bound_at_any_point(loss: str, intercept: bool, case: int) -> None:
    """Sound far from the optimum, at points within the bounds; wherever it is finite."""
    table = generate(loss, n=120, d=5, weights=True)
    table = Table(table.X, table.y, table.c, np.random.default_rng(5).normal(size=120) * 0.3)
    config = from_mapping(dict(loss=loss, intercept=intercept, **CASES[case]))
    best, _ = optimum(table, config)
    problem = build.problem(shard(table, SelfComm(), "hash"), config, SelfComm())
    oracle = problem.objective.on(next(build.schedule(problem, config).batches(0)), problem.reducer)
    finite = 0
    for seed in range(8):
        w = np.random.default_rng(seed).normal(size=problem.objective.size) * 10.0 ** -(seed % 4)
        problem.penalty.prox(w, 0.1)
        value, g = evaluate(w, oracle, problem.penalty)
        gap = duality_gap(w, g, problem.objective, problem.penalty, SelfComm())
        finite += gap is not None
        assert gap is None or value - best <= gap * (1 + 1e-12)
    assert finite >= 4


def test_where_there_is_no_bound() -> None:
    """Bounds on one side alone: the projected gradient rules."""
    summary = fit(
        generate("logistic"), loss="logistic", nonnegative=True, tol=1e-7, optimizer="fista"
    ).summary
    assert summary["gap"] is None
    assert summary["gradient_norm"] <= 1e-7


# The same bits.


@pytest.mark.parametrize("name", PROXIMAL)
@pytest.mark.parametrize("loss", ["logistic", "softmax", "gamma"])
def test_continued_after_any_step(loss: str, name: str, tmp_path: Path) -> None:
    table, options = (
        generate(loss, n=300, d=3, weights=True),
        dict(loss=loss, optimizer=name, l1=1e-2, epochs=5, tol=1e-13),
    )
    continued_after_any_step(table, tmp_path, **options)


@pytest.mark.full(why="three ranks show what two do", when=lambda size: size == 2)
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("form", ["dense", "csr", "half"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_bits_with_working_sets(loss: str, form: str, size: int) -> None:
    table, options = wide_table(loss), dict(loss=loss, l1=0.08, l2=1e-3, epochs=4, tol=0)
    table = Table(np.where(np.abs(table.X) < 0.5, 0.0, table.X), table.y)

    def rows(comm: Comm, place: str = "range") -> Shard:
        part = shard(table, comm, place, form == "csr")
        if form == "half":
            bits = part.X.values.astype(np.float16).view(np.uint16)  # type: ignore[attr-defined]
            part = dataclasses.replace(part, X=Half(bits, np.ones(400)))
        return part

    truth = fit(rows(SelfComm()), **options)
    for place, threads in (("hash", 1), ("file", 3)):
        for model in run(
            size, lambda c, p=place, t=threads: fit(rows(c, p), c, threads=t, **options)
        ):
            same(model, truth)


# What does not go together.


def test_one_sentence_before_any_work() -> None:
    """The data do not even exist."""
    pairs: list[tuple[dict[str, Any], str]] = [
        (
            dict(l1=0.1, optimizer="lbfgs"),
            "l1 needs an optimiser with prox: proximal-newton, fista, sgd; "
            "--optimizer lbfgs has none",
        ),
        (
            dict(l1=0.1, l2=0.1, optimizer="adam", mode="minibatch"),
            "elastic net needs an optimiser with prox: svrg, sgd",
        ),
        (dict(nonnegative=True, optimizer="newton"), "bounds need an optimiser with prox: "),
        (
            dict(loss="hinge", optimizer="fista"),
            "--optimizer fista goes with --mode full and a smooth loss: try smoothed-newton",
        ),
        (
            dict(mode="minibatch", optimizer="fista"),
            "--optimizer fista goes with --mode full and a smooth loss: try svrg",
        ),
        (dict(optimizer="fista", clip=1.0), "--clip does not go with --optimizer fista"),
    ]
    for options, sentence in pairs:
        with pytest.raises(UsageError) as caught:
            fit(["no such file.h5"], **options)
        assert str(caught.value).startswith(sentence)
        assert "\n" not in str(caught.value)


def test_what_auto_chooses() -> None:
    l1: dict[str, Any] = dict(l1=0.1)
    several = (
        l1,
        l1 | dict(lr=0.1),
        l1 | dict(mode="minibatch"),
        l1 | dict(loss="hinge"),
        l1 | dict(clip=1.0),
    )
    chosen = [build.complete(from_mapping(options), 1000, 10).optimizer for options in several]
    assert chosen == ["proximal-newton", "fista", "svrg", "sgd", "sgd"]
    for loss in ALL_LOSSES:
        for mode in requirements.MODES:
            for more in (dict(), dict(l1=0.1), dict(l1=0.1, l2=0.1), dict(nonnegative=True)):
                requirements.check(from_mapping(dict(loss=loss, mode=mode) | more))


def test_a_sample_that_leads_uphill_is_dropped() -> None:
    """A start from a sample is dropped if zero is the better start.

    Three rows with nearly all of the weight contradict the others, and no sample contains them.
    """
    rng = np.random.default_rng(0)
    n = 20_000
    X = rng.normal(size=(n, 3))
    y, c = (X[:, 0] + 0.3 * rng.logistic(size=n) > 0.0).astype(float), np.ones(n)
    X[:3, 0], y[:3], c[:3] = 3.0, 0.0, 1e6
    model = fit(
        Table(X, y, c),
        loss="logistic",
        l1=1e-6,
        optimizer="proximal-newton",
        epochs=1,
        tol=0,
        standardize=False,
    )
    assert model.summary["objective"] <= np.log(2.0) * (1.0 + 1e-9)
