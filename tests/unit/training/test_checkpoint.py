"""Checkpoints: a run that was interrupted anywhere ends with the bits of an uninterrupted one.

A checkpoint that does not fit is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mpigd.errors import DataError
from mpigd.model.losses import LOSSES
from mpigd.parallel.comm import SelfComm
from mpigd.training import checkpoint
from mpigd.training.callbacks.preemption import Interruption
from tests.scenarios import OPTIMIZERS, STEPS, fit, kill, same, shard, write
from tests.truths import ALL_LOSSES, generate

TABLE = generate("softmax", n=40, weights=True)
OPTIONS: dict[str, Any] = dict(loss="softmax", mode="minibatch", batch_size=9, epochs=2, l2=1e-2)


def files(folder: str | Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {"claim"})  # the lock of the job that saves there


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", STEPS)
def test_cut_off_after_any_step(mode: str, optimizer: str, tmp_path: Path) -> None:
    steps = {
        "full": dict(epochs=5),
        "minibatch": dict(epochs=2, batch_size=17),
        "stochastic": dict(epochs=2, batch_size=15),
    }
    options = (
        OPTIONS | dict(mode=mode, optimizer=optimizer, warmup=3, batch_size=None) | steps[mode]
    )
    truth = fit(TABLE, **options)
    last = truth.summary["steps"]
    assert last >= 5
    for step in range(last):
        here = options | dict(checkpoint=str(tmp_path / str(step)), checkpoint_every=1)
        kill(step, shard(TABLE, SelfComm()), SelfComm(), **here)
        assert files(tmp_path / str(step))[-1] == f"step-{step + 1:012d}.h5"
        same(fit(TABLE, **here), truth)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_cut_off_twice(loss: str, tmp_path: Path) -> None:
    """A run that is interrupted twice ends with the same bits.

    This includes losses without a bound on residuals, whose reducer learns its limits during the
    run.
    """
    table, options = generate(loss, n=40, weights=True), dict(loss=loss, epochs=9, tol=0)
    options |= (
        dict(optimizer="lbfgs") if LOSSES[loss].smooth else {}
    )  # Newton's method is there in less than six steps
    truth = fit(table, **options)
    options |= dict(checkpoint=str(tmp_path), checkpoint_every=1)
    for step in (2, 5):
        kill(step, shard(table, SelfComm()), SelfComm(), **options)
    same(fit(table, **options), truth)


def test_steps_since_the_last_checkpoint_are_taken_again(tmp_path: Path) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=4)
    kill(6, shard(TABLE, SelfComm()), SelfComm(), **options)
    assert files(tmp_path) == ["step-000000000004.h5"]
    with pytest.raises(AssertionError, match="ended before step 3"):  # the ones before that are not
        kill(3, shard(TABLE, SelfComm()), SelfComm(), **(options | dict(checkpoint_every=99)))
    (tmp_path / "step-000000000010.h5").unlink()
    kill(4, shard(TABLE, SelfComm()), SelfComm(), **options)
    same(fit(TABLE, **options), fit(TABLE, **OPTIONS))


def test_the_same_command_after_the_end(tmp_path: Path) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path))
    first = fit(TABLE, **options)
    before = files(tmp_path)
    for _ in range(2):
        same(fit(TABLE, **options), first)
    assert files(tmp_path) == before == ["step-000000000010.h5"]


@pytest.mark.parametrize("reason", ["tolerance", "patience"])
def test_a_run_that_stopped_early_stays_stopped(reason: str, tmp_path: Path) -> None:
    if reason == "tolerance":
        options: dict[str, Any] = dict(loss="logistic", tol=1e-4)
    else:
        held_out = write(generate("logistic", n=30, seed=7), tmp_path)
        options = dict(
            loss="logistic", mode="minibatch", batch_size=8, lr=2.0, lr_schedule="constant",
            optimizer="sgd", validation=held_out, patience=1, epochs=50,
        )  # fmt: skip
    table, options = generate("logistic"), options | dict(checkpoint=str(tmp_path / "saved"))
    first = fit(table, **options)
    assert first.summary["stop_reason"] == reason
    same(fit(table, **options), first)


def test_early_stopping_remembers_its_scores(tmp_path: Path) -> None:
    """The best parameters and the count of disappointments are part of a checkpoint."""
    held_out, table = write(generate("logistic", n=30, seed=7), tmp_path), generate("logistic")
    options = dict(
        loss="logistic", mode="minibatch", batch_size=8, lr=2.0, lr_schedule="constant",
        optimizer="sgd", validation=held_out, validate_every=2, patience=3, epochs=9,
    )  # fmt: skip
    truth = fit(table, **options)
    for step in range(0, truth.summary["steps"] - 1, 3):
        here = options | dict(checkpoint=str(tmp_path / str(step)), checkpoint_every=1)
        kill(step, shard(table, SelfComm()), SelfComm(), **here)
        same(fit(table, **here), truth)


def test_more_epochs_go_on_from_the_end(tmp_path: Path) -> None:
    options = dict(loss="softmax", tol=0, checkpoint=str(tmp_path))
    fit(TABLE, epochs=3, **options)
    same(fit(TABLE, epochs=8, **options), fit(TABLE, epochs=8, loss="softmax", tol=0))


def test_never_begins_anew(tmp_path: Path) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    fit(TABLE, **(options | dict(seed=9, resume="never")))
    assert checkpoint.read(tmp_path / files(tmp_path)[-1]).config.seed == 9


def test_a_checkpoint_by_its_name(tmp_path: Path) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    older = tmp_path / files(tmp_path)[0]
    same(fit(TABLE, **OPTIONS, resume=str(older)), fit(TABLE, **OPTIONS))
    with pytest.raises(DataError, match=r"nowhere\.h5: no such file"):
        fit(TABLE, **OPTIONS, resume=str(tmp_path / "nowhere.h5"))


def test_two_are_kept_and_nothing_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "step-1.h5").write_text("somebody else's")
    fit(TABLE, **OPTIONS, checkpoint=str(tmp_path), checkpoint_every=1)
    assert files(tmp_path) == ["step-000000000009.h5", "step-000000000010.h5", "step-1.h5"]


def test_a_signal_in_the_last_step_does_not_prolong_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that reached its tolerance in the step of the signal ends there.

    If it were continued later, it would have other bits.
    """
    options = dict(loss="softmax", l2=1e-2, tol=1e-3)
    truth = fit(TABLE, **options)
    steps = iter(range(1000))

    def before(self: Interruption, words: Any) -> None:
        words[0] = float(next(steps) == truth.summary["steps"] - 1)

    monkeypatch.setattr(Interruption, "before", before)
    model = fit(TABLE, **options, checkpoint=str(tmp_path / "saved"))
    assert model.summary["stop_reason"] == truth.summary["stop_reason"] == "tolerance"
    same(model, truth)
