"""The duality gap and --tol.

The gap bounds the distance from the optimum from above, falls with it, and has the same bits on all
ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

import mpigd
from mpigd.config.schema import from_mapping
from mpigd.model.duality_gap import _sums, duality_gap
from mpigd.optim.base import evaluate
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.training import problem as build
from tests.scenarios import fit, shard
from tests.threadcomm import run
from tests.truths import ALL_LOSSES, SMOOTH, Table, generate, objective, optimum

Array = np.ndarray[Any, Any]


def gap_at(
    table: Table, where: Any, comm: Comm | None = None, **options: Any
) -> tuple[float, float | None]:
    """(objective, gap) at w = where(size)."""
    comm, config = comm or SelfComm(), from_mapping(options)
    problem = build.problem(shard(table, comm, "hash"), config, comm)
    w = where(problem.objective.size)
    oracle = problem.objective.on(next(build.schedule(problem, config).batches(0)), problem.reducer)
    value, g = evaluate(w, oracle, problem.penalty)
    return value, duality_gap(w, g, problem.objective, problem.penalty, comm)


def scattered(seed: int, size: float) -> Any:
    return lambda p: np.random.default_rng(seed).normal(size=p) * size


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("loss", SMOOTH)
def test_a_bound_at_any_point(loss: str, intercept: bool, standardize: bool) -> None:
    table = generate(loss, n=120, weights=True)
    table = Table(table.X, table.y, table.c, np.random.default_rng(5).normal(size=120) * 0.3)
    options = dict(loss=loss, intercept=intercept, standardize=standardize, l2=0.1)
    best = optimum(table, from_mapping(options))[0]
    for seed in range(8):
        value, gap = gap_at(table, scattered(seed, 10.0 ** -(seed % 4)), **options)
        assert gap is not None
        assert value - best <= gap * (1 + 1e-12)


@pytest.mark.parametrize("loss", SMOOTH)
def test_it_falls_to_nothing(loss: str) -> None:
    """The gap falls with the tolerance, down to 1e-10.

    The objective is truly within the gap of the optimum.
    """
    table = generate(loss, n=300, weights=True)
    options = dict(loss=loss, l2=1e-2)
    best = optimum(table, from_mapping(options))[0]
    for tol in (1e-2, 1e-6, 1e-10):
        summary = fit(table, tol=tol, **options).summary
        assert summary["stop_reason"] == "tolerance"
        assert 0.0 <= summary["gap"] <= tol * (summary["null_objective"] - summary["objective"])
        assert (
            summary["objective"] - best <= summary["gap"] + 1e-13 * best
        )  # the last: rounding of the objective


@pytest.mark.parametrize("loss", ["hinge", "quantile"])
def test_losses_with_kinks(loss: str) -> None:
    """A subgradient is a dual point too.

    The hinge's optimum is that of a support vector machine.
    """
    table = generate(loss, n=150)
    summary = fit(table, loss=loss, l2=0.1, epochs=400).summary
    lower = summary["objective"] - summary["gap"]
    if loss == "hinge":
        X = (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)
        machine = SVC(kernel="linear", C=1 / (0.1 * 150), tol=1e-9).fit(X, table.y)
        sign = 2 * table.y - 1
        best = np.mean(np.maximum(0, 1 - sign * machine.decision_function(X))) + 0.05 * np.sum(
            machine.coef_**2
        )
        assert lower <= best <= summary["objective"] * (1 + 1e-6)
    assert lower <= summary["objective"]


@pytest.mark.parametrize("optimizer", ["newton", "newton-cholesky", "lbfgs", "nesterov"])
def test_every_optimizer_stops_on_it(optimizer: str) -> None:
    table = generate("logistic", n=300)
    options = dict(loss="logistic", l2=1e-3)
    summary = fit(table, optimizer=optimizer, tol=1e-7, **options).summary
    assert summary["stop_reason"] == "tolerance"
    assert summary["gap"] <= 1e-7 * summary["objective"]
    assert summary["objective"] - optimum(table, from_mapping(options))[0] <= summary["gap"]


def test_where_there_is_no_bound() -> None:
    """Without a ridge penalty there is no gap, and the norm of the gradient decides.

    There is none either for residuals of one sign, since these cannot be scaled so that they sum to
    zero.
    """
    summary = fit(generate("logistic"), loss="logistic", tol=1e-7).summary
    assert summary["gap"] is None
    assert summary["gradient_norm"] <= 1e-7
    table = generate("squared")
    assert (
        gap_at(table, lambda p: np.append(np.zeros(p - 1), 1e3), loss="squared", l2=1.0)[1] is None
    )


def test_the_certificate_is_not_one_of_the_reads() -> None:
    table, options = (
        generate("logistic", n=400),
        dict(loss="logistic", l2=1e-2, optimizer="nesterov"),
    )
    certified = fit(table, tol=1e-9, **options)
    steps = certified.summary["steps"]
    assert (
        certified.summary["reads"]
        == steps
        == fit(table, tol=0, epochs=steps, **options).summary["reads"]
    )


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_the_same_bits_on_all_ranks(loss: str) -> None:
    table = generate(loss, n=90, weights=True)
    options = dict(loss=loss, l2=0.05)
    truth = gap_at(table, scattered(1, 0.1), **options)
    for size in (2, 3, 5):
        for found in run(size, lambda comm: gap_at(table, scattered(1, 0.1), comm, **options)):
            assert found == truth


def test_a_rank_with_one_row_adds_its_classes_in_the_same_order() -> None:
    """A rank with one row adds its classes in the same order as a rank with many.

    numpy's own sum over twelve classes has other bits for one row than for many, so that a run
    would stop at another step.
    """
    rng = np.random.default_rng(3)
    table = Table(rng.standard_normal((13, 2)), np.arange(13.0) % 12)

    def gap(comm: Comm) -> list[bytes]:
        config = build.complete(from_mapping(dict(loss="softmax", l2=1e-2)), 13, 2)
        goal = build.problem(shard(table, comm), config, comm).objective
        points = np.random.default_rng(4).standard_normal((8, goal.size))
        return [part.tobytes() for w in points for part in _sums(w, goal, comm)]

    assert run(13, gap) == [gap(SelfComm())] * 13


def said(
    capsys: pytest.CaptureFixture[str], table: Table, **options: Any
) -> tuple[dict[str, Any], str]:
    """The summary of a run through the public door, and what stderr got."""
    summary = mpigd.train((table.X, table.y), **options).summary
    return summary, capsys.readouterr().err


def test_a_run_that_stops_for_another_reason_warns_even_the_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = generate("logistic", n=300)
    options = dict(loss="logistic", l2=1e-3, optimizer="lbfgs")
    summary, err = said(capsys, table, **options, epochs=2)
    left = summary["gap"] / (summary["null_objective"] - summary["objective"])
    early = "mpigd: warning: not converged: --epochs 2 ended before --tol 1e-06 was reached: "
    rest = (
        "of what there is to gain over the model without columns is left. Raise --epochs, "
        "or leave --optimizer to auto\n"
    )
    assert err == f"{early}proven: at most {left:.1e} {rest}"
    assert not summary["converged"]
    summary, err = said(capsys, table, **options | dict(l2=0.0), epochs=2)
    left = summary["left"] / (summary["null_objective"] - summary["objective"])
    assert err == f"{early}about {left:.1e} {rest}"
    summary, err = said(capsys, table, **options, tol=1e-300)
    assert (summary["stop_reason"], summary["converged"], err) == ("flat", True, "")  # to rounding
    for quiet in (
        dict(),
        dict(epochs=2, tol=0.0),
        dict(epochs=1, mode="minibatch", optimizer="adam"),
    ):
        assert said(capsys, table, **options | quiet)[1] == ""


def test_what_is_said_of_the_distance(capsys: pytest.CaptureFixture[str]) -> None:
    table = generate("logistic", n=300)
    summary, err = said(capsys, table, loss="logistic", l2=1e-3, quiet=False)
    left = summary["left"] / (summary["null_objective"] - summary["objective"])
    assert (
        f"proven: at most {left:.1e} of what there is to gain over the model "
        "without columns is left" in err
    )
    assert summary["gap"] == summary["left"]
    assert "optimizer auto: newton" in err
    summary, err = said(capsys, table, loss="logistic", quiet=False)
    assert summary["gap"] is None
    left = summary["left"] / (summary["null_objective"] - summary["objective"])
    assert f"about {left:.1e} of what there is to gain" in err


@pytest.mark.parametrize("loss", SMOOTH)
def test_the_rounding_of_the_sums_is_within_its_bound(loss: str) -> None:
    """The reference is numpy's gradient.

    It is taken in the optimiser's coordinates, at the model's own parameters.
    """
    table = generate(loss, n=300, weights=True)
    config = from_mapping(dict(loss=loss))
    model = fit(table, loss=loss, epochs=3, tol=0)
    _, G, g0 = objective(table, config, model.coef, model.intercept)
    assert table.c is not None
    center = np.average(table.X, 0, table.c)
    scale = np.sqrt(np.average((table.X - center) ** 2, 0, table.c))
    truth = np.column_stack([(G - np.outer(g0, center)) / scale, g0])
    lost = model.summary["gradient_error"]
    assert 0.0 < lost < 1e-6
    assert abs(model.summary["gradient_norm"] - np.linalg.norm(truth)) <= lost + 1e-12
