"""Guards of a run: one job for each folder, ranks that agree, and a stop in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from mpigd.config.units import seconds_of
from mpigd.errors import LaunchError, StorageError, UsageError
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.training.callbacks.preemption import Interruption
from mpigd.training.run_guard import claim, code_of_a_hang, same_everywhere
from tests.launch import environment
from tests.threadcomm import run


def silent(text: str) -> None:
    raise AssertionError(text)


def test_a_second_job_in_a_folder_is_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "new" / "saved")
    (held,) = claim(folder, silent)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    begin = time.monotonic()
    with pytest.raises(
        LaunchError,
        match=(
            rf"another job saves there \(process {os.getpid()} on \S+, since .*end it, "
            r"or use another"
        ),
    ):
        claim(folder, silent, patience=0.3)
    assert time.monotonic() - begin > 0.3
    threading.Timer(0.3, os.close, [held]).start()
    os.close(claim(folder, silent, patience=10)[0])  # a dying one is waited for


def test_the_claim_of_a_dead_job_does_not_block(tmp_path: Path) -> None:
    script = (
        f"from mpigd.training.run_guard import claim; claim({str(tmp_path)!r}, print); "
        "print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdin=-1, stdout=-1
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"1\n"
        with pytest.raises(LaunchError, match=f"process {job.pid} on"):
            claim(str(tmp_path), silent, patience=0)
        job.kill()
    os.close(claim(str(tmp_path), silent, patience=0)[0])


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for strict in (True, False):
        with pytest.raises(StorageError, match="others may write to this folder"):
            claim(str(tmp_path), silent, strict=strict)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder, notes = str(tmp_path / "file" / "below"), list[str]()
    with pytest.raises(StorageError, match="Not a directory"):
        claim(folder, silent)
    assert claim(folder, notes.append, strict=False) == []
    assert notes == [f"--checkpoint {folder}: Not a directory; going on without checkpoints"]


def test_run_me_again_only_where_something_was_saved(tmp_path: Path) -> None:
    assert (
        code_of_a_hang(None)
        == code_of_a_hang(str(tmp_path))
        == code_of_a_hang(str(tmp_path / "missing"))
        == 70
    )
    (tmp_path / "step-000000000010.h5").touch()
    assert code_of_a_hang(str(tmp_path)) == 75


@pytest.mark.parametrize(
    "option",
    [
        dict(seed=1),
        dict(l2=0.5),
        dict(epochs=3),
        dict(checkpoint="elsewhere"),
        dict(max_time="9:00"),
    ],
)
def test_ranks_with_other_options_are_refused(option: dict[str, Any]) -> None:
    def body(comm: Comm) -> None:
        config = from_mapping(dict(checkpoint="here") | (option if comm.rank == 1 else {}))
        with pytest.raises(
            LaunchError, match="rank 1 was given other options than rank 0"
        ) as caught:
            same_everywhere(config, comm)
        assert caught.value.agreed

    run(3, body)


def test_what_concerns_one_rank_may_differ() -> None:
    run(
        3,
        lambda comm: same_everywhere(
            from_mapping(dict(threads=comm.rank + 1, quiet=comm.rank > 0)), comm
        ),
    )


def test_ranks_with_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {}
    monkeypatch.setattr(
        "mpigd.training.run_guard.metadata.version",
        lambda name: f"{name} {ranks.get(threading.get_ident(), 0)}",
    )

    def body(comm: Comm) -> None:
        ranks[threading.get_ident()] = comm.rank // 2
        with pytest.raises(LaunchError, match="rank 2 has other versions of mpigd, numpy or numba"):
            same_everywhere(from_mapping({}), comm)

    run(3, body)


def words(env: dict[str, str], folder: Path | None = None, **options: Any) -> tuple[float, float]:
    """Return the numbers of an Interruption before a step."""
    saving = {} if folder is None else dict(checkpoint=str(folder))
    told = np.zeros(2)
    Interruption(SelfComm(), from_mapping(saving | options), env).before(told)
    return float(told[0]), float(told[1])


def test_the_end_of_the_time(tmp_path: Path) -> None:
    soon, late = str(int(time.time()) + 2), str(int(time.time()) + 3600)
    assert words({}, tmp_path) == (0, 0)
    assert words({}, tmp_path, max_time="2") == (0, 1)
    assert words({}, tmp_path, max_time="1:00:00") == (0, 0)
    assert words({"SLURM_JOB_END_TIME": soon}, tmp_path) == (0, 1)
    assert words({"SLURM_JOB_END_TIME": soon}, tmp_path, max_time="1:00:00") == (0, 1), (
        "the earlier one"
    )
    assert words({"SLURM_JOB_END_TIME": late}, tmp_path) == (0, 0)
    assert words({"SLURM_JOB_END_TIME": soon}) == (0, 0), "nothing could be saved"
    assert words({"SLURM_JOB_END_TIME": "NONE"}, tmp_path) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_heard_within_the_run_alone(number: signal.Signals, tmp_path: Path) -> None:
    told, before = np.zeros(2), signal.getsignal(number)
    interruption = Interruption(SelfComm(), from_mapping(dict(checkpoint=str(tmp_path))), {})
    with interruption.listening():
        os.kill(os.getpid(), number)
        interruption.before(told)
    assert told.tolist() == [1, 0]
    assert signal.getsignal(number) == before


def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As nohup has it."""
    told, before = np.zeros(2), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interruption = Interruption(SelfComm(), from_mapping(dict(checkpoint=str(tmp_path))), {})
        with interruption.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.before(told)
        assert told.tolist() == [0, 0]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("2:30", 150),
        ("1:00:00", 3600),
        ("1-12:00:00", 129600),
        (" 5 ", 5),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "1-2", "1:2:3:4", "soon", "inf", "nan", "1h"])
def test_no_times(text: str) -> None:
    with pytest.raises(UsageError, match="--max-time"):
        seconds_of(text)


def test_a_link_in_place_of_the_claim_is_not_followed(tmp_path: Path) -> None:
    """It would have another file emptied."""
    folder, other = tmp_path / "saved", tmp_path / "other"
    folder.mkdir(mode=0o700)
    other.write_text("precious")
    (folder / "claim").symlink_to(other)
    with pytest.raises(StorageError, match="symbolic links"):
        claim(str(folder), silent)
    assert other.read_text() == "precious"
