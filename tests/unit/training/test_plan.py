"""The arithmetic of the plan, and what it measures.

It measures the parts of a run; the tests do not depend on the speed of the machine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpigd.config.schema import Config
from mpigd.data.metadata import Info, inspect
from mpigd.errors import DataError, MpigdError, UsageError
from mpigd.parallel.comm import SelfComm
from mpigd.training import plan as planning
from mpigd.training import throughput
from mpigd.training.plan import plan
from mpigd.training.throughput import read_profile, row_seconds
from mpigd.training.trainer import load_rows
from tests.launch import python
from tests.scenarios import generate, write
from tests.threadcomm import run

INFO = Info("data.h5", 1_000_000, 50, "dense", "float32", 1000, None, True, (), "")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SAMPLE", 2e6)


def test_memory_and_words_follow_the_metadata() -> None:
    one, four = (plan([INFO], Config(loss="logistic"), ranks) for ranks in (1, 4))
    assert one.rows == 1_000_000 and one.columns == 50 and one.steps_per_epoch == 1
    assert (one.memory_bytes - planning.PROGRAM) / (
        four.memory_bytes - planning.PROGRAM
    ) == pytest.approx(4, rel=0.01)
    assert one.memory_bytes - planning.PROGRAM == pytest.approx(
        1_000_000 * (200 + planning.PER_ROW), rel=0.01
    )
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
    narrow, wide = (
        row_seconds(layout, 50 * factor, row_bytes * factor, Config(loss="logistic"), 1)
        for factor in (1, 16)
    )
    assert 2 * narrow < wide


def test_the_runs_own_options_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run to the last digit sums on two grids, which takes compressed rows twice as long."""
    made, problem = [], throughput.build.problem
    monkeypatch.setattr(
        throughput.build, "problem", lambda *words: made.append(problem(*words)) or made[-1]
    )
    for tol in (1e-6, 1e-14):
        plan(
            [replace(INFO, layout="csr", nonzeros=10_000_000)],
            Config(loss="logistic", tol=tol, threads=1),
            2,
        )
    assert [one.objective.fine for one in made] == [False, True]
    assert [one.objective.threads for one in made] == [2, 2]
    with pytest.raises(UsageError, match="newton"):
        plan([INFO], Config(loss="logistic", mode="minibatch", optimizer="newton"), 1)


PROFILE = {
    "read_1": 1e10,
    "read_2": 1.6e10,
    "fraction_32": 0.5,
    "fraction_512": 1.0,
    "alpha": 1e-3,
    "beta": 0.0,
    "memory": 1e9,
}


def test_a_given_profile_is_measured_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes over the speed that so many ranks share, between the two widths that are known."""
    monkeypatch.setattr(planning, "row_seconds", None)
    info, config = replace(INFO, d=128), Config(loss="logistic")
    for ranks, speed in ((1, 1e10), (2, 0.8e10), (64, 0.8e10)):
        told = plan([info], config, ranks, profile=PROFILE)
        rows = 512 * 1_000_000 / ranks / (0.75 * speed)
        talk = {1: 0, 2: 1e-3, 64: 6e-3}[ranks]
        assert told.step_seconds == pytest.approx(rows + talk + planning.OVERHEAD, rel=1e-4)
    with pytest.raises(UsageError, match=r"would need 1\.\d GB, and it has 1\.0 GB"):
        plan([replace(info, n=2_000_000)], config, 1, profile=PROFILE)


def test_what_a_profile_does_not_know_is_measured() -> None:
    for info in (INFO, replace(INFO, layout="csr", nonzeros=10_000_000)):
        assert plan([info], Config(loss="logistic"), 2, profile={"alpha": 1.0}).step_seconds > 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [("[1]", "not a JSON object"), ("{", "not a JSON object"), (None, "cannot be read")],
)
def test_a_profile_that_is_none(text: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=why):
        read_profile(str(path))


def test_classes_of_a_softmax_are_found(tmp_path: Path) -> None:
    path = write(generate("softmax", n=300), tmp_path)[0]
    (info,) = inspect([path], "X", "y", SelfComm())
    told = plan([info], Config(loss="softmax"), 2)
    classes = np.unique(generate("softmax", n=300).y).size
    assert classes > 2 and told.allreduce_bytes == 8 * (
        2 * classes * info.d + 2 * (classes + 1) + 16
    )


def test_the_widest_type_of_the_files_is_planned() -> None:
    """A rank holds all rows in one type, so that one file of float64 doubles the memory."""
    narrow, wide = (
        plan([replace(INFO, n=500_000), replace(INFO, n=500_000, dtype=dtype)], Config(), 1)
        for dtype in ("float32", "float64")
    )
    assert wide.memory_bytes - narrow.memory_bytes == 1_000_000 * 50 * 4


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("options", "kind", "why"),
    [
        ({"y": "label"}, DataError, "no target 'label'"),
        ({"dtype": "float16"}, UsageError, "these are sparse"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    size: int, options: dict[str, str], kind: type[MpigdError], why: str, tmp_path: Path
) -> None:
    paths = write(generate("logistic", n=60), tmp_path, as_csr=True)
    config = Config(loss="logistic", **options)
    for refuses in (planning.plan_only, load_rows):
        with pytest.raises(kind, match=why):
            run(size, lambda comm, refuses=refuses: refuses(paths, config, comm))


def test_streamed_rows_are_not_held() -> None:
    held, streamed = (
        plan([INFO], Config(loss="logistic", max_memory=limit), 1).memory_bytes
        for limit in (None, "50MB")
    )
    assert held - streamed == pytest.approx(1_000_000 * 200 - 50e6)


@pytest.mark.parametrize("mode", ["minibatch", "stochastic"])
def test_steps_of_batches(mode: str) -> None:
    told = plan([INFO], Config(loss="logistic", mode=mode, batch_size=1000), 1)
    assert told.steps_per_epoch == 1000 and told.epoch_seconds == pytest.approx(
        1000 * told.step_seconds
    )


def test_the_command(tmp_path: Path) -> None:
    paths = write(generate("logistic", n=300), tmp_path, files=2)
    done = python(
        "-m", "mpigd", "plan", *paths, "--ranks", "2", "--loss", "logistic", "--json", timeout=60
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 300 and told["step_seconds"] > 0 and told["memory_bytes"] > 50e6
    assert "mpi4py" not in done.stderr
    (tmp_path / "run.toml").write_text('loss = "logistic"\ntol = 0.0\nmomentum = 0.5\n')
    words = ("--config", tmp_path / "run.toml", "--optimizer", "momentum", "--l2", "1e-3", "--json")
    assert json.loads(python("-m", "mpigd", "plan", *paths, *words).stdout)["rows"] == 300, (
        "the words of `train`"
    )
    wrong = python("-m", "mpigd", "plan", *paths, "--network", "fast")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
