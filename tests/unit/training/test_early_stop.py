"""Early stopping: the best score, and the steps that count towards the patience.

A continued run keeps both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpigd.data.batches import Batch
from mpigd.scoring.metrics import METRICS, PRIMARY
from mpigd.training.callbacks.base import EarlyStop, Step
from tests.scenarios import fit, write
from tests.truths import Table, generate

NAN = math.nan


def feed(
    scores: Sequence[float], patience: int, higher: bool = False, cut: int | None = None
) -> tuple[int, int]:
    """The step (from 1) that is kept, and the step at which the run stops (0: never).

    cut: the step at which the state is saved and restored.
    """
    left = iter(scores)

    def stopper() -> EarlyStop:
        return EarlyStop(lambda w: {"score": next(left)}, "score", higher, 1, patience, [])

    early, w = stopper(), np.zeros(1)
    for step in range(len(scores)):
        if step == cut:
            saved = {name: array.copy() for name, array in early.state().items()}
            early = stopper()
            early.restore(saved)
        w = np.array([step + 1.0])
        if early.after(Step(Batch(slice(None), 1, 0, step, True), w, {}), np.zeros(0)):
            return int(early.best(w)[0]), step + 1
    return int(early.best(w)[0]), 0


CASES = {
    "ties are no improvement": ([0.5, 0.5, 0.5, 0.4], 2, False, (1, 3)),
    "the first of equals is kept": ([0.5, 0.4, 0.4, 0.6, 0.4], 9, False, (2, 0)),
    "an improvement by one bit": (
        [0.5, math.nextafter(0.5, 0), math.nextafter(0.5, 0)],
        9,
        False,
        (2, 0),
    ),
    "ties of what is to be high": ([0.9, 0.9, 0.9], 2, True, (1, 3)),
    "higher is better": ([0.1, 0.3, 0.2, 0.2], 2, True, (2, 4)),
    "a perfect score again and again": ([1.0] * 5, 3, True, (1, 4)),
    "undefined is no improvement": ([NAN, 0.5, NAN, NAN], 2, False, (2, 4)),
    "never defined: the last": ([NAN, NAN], 2, False, (2, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_best_and_patience(case: str) -> None:
    scores, patience, higher, expected = CASES[case]
    assert feed(scores, patience, higher) == expected
    for cut in range(1, len(scores)):
        assert feed(scores, patience, higher, cut) == expected, f"continued after step {cut}"


@pytest.mark.parametrize("loss", ["hinge", "logistic", "squared"])
def test_the_best_is_the_best_of_its_metric(loss: str, tmp_path: Path) -> None:
    """Accuracy, which the hinge loss watches, is to be high; ties are frequent there."""
    test = generate(loss, n=60, seed=7)
    held_out = tuple(write(test, tmp_path))
    options: dict[str, Any] = dict(
        loss=loss, mode="minibatch", batch_size=8, lr=2.0 if loss != "squared" else 0.3,
        lr_schedule="constant", optimizer="sgd", validation=held_out,
    )  # fmt: skip
    metric = PRIMARY[{"hinge": "margin", "logistic": "binary", "squared": "regression"}[loss]]
    longest = fit(generate(loss), epochs=12, **options)
    scores = [record["validation"][metric] for record in longest.history if "validation" in record]
    assert len(scores) == 12
    best = scores.index(
        max(scores) if METRICS[metric] == "higher" else min(scores)
    )  # the first of equals
    assert 0 < best < 11, "the best must be neither first nor last, or the test says nothing"
    kept = fit(generate(loss), epochs=12, patience=12, **options)
    assert kept.digest == fit(generate(loss), epochs=best + 1, **options).digest


def test_ties_across_a_stop_and_a_resume(tmp_path: Path) -> None:
    """Patience counts across a stop and a resume.

    One column determines the labels, so that every accuracy is 1 and the first epoch is kept.
    """
    rng = np.random.default_rng(0)
    y = np.repeat([0.0, 1.0], 50)
    table = Table(np.column_stack([20.0 * y - 10.0, rng.standard_normal(100)]), y)
    held_out = tuple(write(table, tmp_path))
    options: dict[str, Any] = dict(
        loss="hinge", mode="minibatch", batch_size=10, validation=held_out, optimizer="sgd", lr=0.1
    )
    options |= dict(lr_schedule="constant")
    longest = fit(table, epochs=9, **options)
    scores = [
        record["validation"]["accuracy"] for record in longest.history if "validation" in record
    ]
    best = scores.index(1.0)
    assert best < 2 and set(scores[best:]) == {1.0}, "nothing but ties from the best on"
    straight = fit(table, epochs=9, patience=4, **options)
    assert straight.summary["stop_reason"] == "patience" and straight.summary["epochs"] == best + 5
    assert straight.digest == fit(table, epochs=best + 1, **options).digest
    folder = str(tmp_path / "checkpoint")
    fit(table, epochs=best + 3, patience=4, checkpoint=folder, **options)
    continued = fit(table, epochs=9, patience=4, checkpoint=folder, **options)
    assert continued.summary["epochs"] == best + 5
    assert continued.digest == straight.digest
