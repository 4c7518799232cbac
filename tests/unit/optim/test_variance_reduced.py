"""SVRG and the hybrid start: their optima, their costs, and the same bits when continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from tests.scenarios import continued_after_any_step, fit
from tests.truths import SMOOTH, generate, optimum


@pytest.mark.parametrize("loss", SMOOTH)
def test_a_constant_rate_converges(loss: str) -> None:
    """SVRG converges with a constant rate.

    Without variance reduction, the noise of stochastic gradients keeps a distance from the optimum.
    """
    table = generate(loss, n=600, d=3, weights=True)
    options = dict(loss=loss, l2=0.1, mode="minibatch", batch_size=20, epochs=30)
    best = optimum(table, from_mapping(dict(loss=loss, l2=0.1)))[0]
    reduced = fit(table, optimizer="svrg", **options)
    plain = fit(table, optimizer="sgd", lr_schedule="constant", **options)
    assert reduced.summary["objective"] / best - 1 < 1e-8
    assert reduced.summary["objective"] - best < 1e-3 * (plain.summary["objective"] - best)
    assert reduced.summary["reads"] == pytest.approx(90, abs=3)


def test_it_has_a_prox() -> None:
    table = generate("logistic", n=600, d=6)
    truth = fit(table, loss="logistic", l1=0.05, tol=1e-10)
    model = fit(table, loss="logistic", l1=0.05, mode="minibatch", batch_size=20, epochs=60)
    assert model.config.optimizer == "svrg"
    assert model.summary["objective"] == pytest.approx(truth.summary["objective"], rel=1e-7)
    np.testing.assert_array_equal(model.coef != 0, truth.coef != 0)


def test_an_epoch_of_batches_saves_reads() -> None:
    rng = np.random.default_rng(0)
    table = generate("logistic", n=30_000, d=20)
    table.X[:] = table.X @ (np.eye(20) + 0.15 * rng.normal(size=(20, 20)))
    best = optimum(table, from_mapping(dict(loss="logistic", l2=1e-4)))[0]

    def reads(name: str) -> float:
        for steps in range(1, 40):
            summary = fit(
                table, loss="logistic", l2=1e-4, optimizer=name, epochs=steps, tol=0
            ).summary
            if summary["objective"] / best - 1 < 1e-3:
                return float(summary["reads"])
        raise AssertionError

    assert reads("hybrid") < reads("lbfgs")


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
@pytest.mark.parametrize("name", ["svrg", "hybrid"])
def test_continued_after_any_step(name: str, loss: str, tmp_path: Path) -> None:
    table = generate(loss, n=100, d=2, weights=True)
    steps = (
        dict(mode="minibatch", batch_size=30, epochs=2) if name == "svrg" else dict(epochs=5, tol=0)
    )
    options = dict(loss=loss, optimizer=name, l2=1e-3) | steps
    continued_after_any_step(table, tmp_path, **options)
