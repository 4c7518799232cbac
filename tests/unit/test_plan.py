"""The plan's arithmetic, and that it measures what a run does: not its speed, which depends on the day."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mpigd import plan as planning
from mpigd.config import Config
from mpigd.data.source import Info
from mpigd.errors import UsageError
from mpigd.plan import plan, row_seconds
from tests.launch import python
from tests.scenarios import generate, write

INFO = Info("data.h5", 1_000_000, 50, "dense", "float32", 1000, None, True, (), "")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SAMPLE", 2e6)


def test_memory_and_words_follow_the_metadata() -> None:
    one, four = (plan([INFO], Config(loss="logistic"), ranks) for ranks in (1, 4))
    assert one.rows == 1_000_000 and one.columns == 50 and one.steps_per_epoch == 1
    assert (one.memory_bytes - planning.PROGRAM) / (four.memory_bytes - planning.PROGRAM) == pytest.approx(4, rel=0.01)
    assert one.memory_bytes - planning.PROGRAM == pytest.approx(1_000_000 * (200 + planning.PER_ROW), rel=0.01)
    assert one.communication_share == 0 < four.communication_share
    assert four.allreduce_bytes >= 16 * 51


def test_a_slow_network_dominates_small_steps() -> None:
    config = Config(loss="logistic", mode="minibatch", batch_size=64)
    slow = plan([INFO], config, 1024, network=(1e-3, 1e-9))
    assert slow.steps_per_epoch == 15_625
    assert slow.communication_share > 0.9
    assert slow.step_seconds > 10e-3  # ten rounds of a millisecond


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"would need .* GB, and it has .* GB: use more hosts"):
        plan([replace(INFO, n=10**12)], Config(), 1)


@pytest.mark.parametrize(("layout", "row_bytes"), [("dense", 200.0), ("csr", 88.0)])
def test_wider_rows_take_longer(layout: str, row_bytes: float) -> None:
    narrow, wide = (row_seconds(layout, 50 * factor, row_bytes * factor, Config(loss="logistic"), 1) for factor in (1, 16))
    assert 2 * narrow < wide


def test_the_command(tmp_path: Path) -> None:
    paths = write(generate("logistic", n=300), tmp_path, files=2)
    done = python("-m", "mpigd", "plan", *paths, "--ranks", "2", "--loss", "logistic", "--json", timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 300 and told["step_seconds"] > 0 and told["memory_bytes"] > 50e6
    assert "mpi4py" not in done.stderr
    wrong = python("-m", "mpigd", "plan", *paths, "--network", "fast")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
