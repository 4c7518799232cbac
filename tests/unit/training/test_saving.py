"""Saving beside the training: what it waits for, what becomes of a failure, and what is kept."""

from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from mpigd.config.schema import from_mapping
from mpigd.errors import StorageError, Unfinished
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.storage import hdf5
from mpigd.training import checkpoint, problem
from mpigd.training.callbacks.base import Callback, Step
from mpigd.training.callbacks.checkpoint_saver import Writer
from mpigd.training.callbacks.preemption import Interruption
from mpigd.training.callbacks.progress import Progress
from mpigd.training.callbacks.report import Report
from mpigd.training.trainer import Run, train
from tests.scenarios import fit, kill, same, shard
from tests.threadcomm import run
from tests.truths import generate

TABLE = generate("softmax", n=40, weights=True)
OPTIONS: dict[str, Any] = dict(loss="softmax", mode="minibatch", batch_size=9, epochs=2, l2=1e-2)
FREE = Writer.free  # what the program does; tests/conftest.py has every save made
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in checkpoint.found(str(folder)))


class Opener(Callback):
    """Opens a gate after a step."""

    def __init__(self, step: int, gate: threading.Event) -> None:
        self._step, self._gate = step, gate

    def after(self, step: Step, words: Any) -> None:
        if step.batch.step == self._step:
            self._gate.set()


def test_steps_go_on_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps go on while a file is written.

    The first file cannot be finished before step 6. Checkpoints that are due meanwhile are left
    out.
    """
    monkeypatch.setattr(Writer, "free", FREE)
    gate, passed, usual = threading.Event(), list[bool](), hdf5.fsync

    def fsync(path: str) -> None:
        passed.append(gate.wait(20))
        usual(path)

    monkeypatch.setattr(hdf5, "fsync", fsync)
    config = problem.complete(
        from_mapping(OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)), 40
    )
    report = Report(Progress(io.StringIO(), quiet=True), config, SelfComm())
    going = Run(
        problem.problem(shard(TABLE, SelfComm()), config, SelfComm()), config, SelfComm(), report
    )
    going.callbacks.append(Opener(6, gate))
    going.train()
    assert passed
    assert all(passed), "the steps waited for the file"
    assert steps(tmp_path)[-1] == 10
    assert not {2, 3, 4, 5, 6} & set(steps(tmp_path))
    assert checkpoint.read(checkpoint.found(str(tmp_path))[-1]).step == steps(tmp_path)[0]


def test_what_is_saved_is_what_was_there_when_it_was_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, states and the history go on changing while a thread writes them."""
    gate, usual = threading.Event(), checkpoint.Checkpoint._fill

    def fill(self: checkpoint.Checkpoint, file: Any) -> None:
        gate.wait(20)
        usual(self, file)

    monkeypatch.setattr(checkpoint.Checkpoint, "_fill", fill)
    monkeypatch.setattr(Writer, "free", FREE)
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=3)
    config = problem.complete(from_mapping(options), 40)
    report = Report(Progress(io.StringIO(), quiet=True), config, SelfComm())
    going = Run(
        problem.problem(shard(TABLE, SelfComm()), config, SelfComm()), config, SelfComm(), report
    )
    going.callbacks.append(Opener(8, gate))
    going.train()
    assert steps(tmp_path) == [3, 10]
    checkpoint.found(str(tmp_path))[0].unlink()
    same(fit(TABLE, **options), fit(TABLE, **OPTIONS))


class Unwritable:
    """In place of a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def save(self, folder: str, epoch: int | None = None) -> None:
        raise StorageError(f"step {self.step}")


def refuse(monkeypatch: pytest.MonkeyPatch, code: int, times: int = 1 << 30) -> None:
    """The next files do not reach the disk."""
    left, usual = [times], hdf5.fsync

    def fsync(path: str) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(code, os.strerror(code))
        usual(path)

    monkeypatch.setattr(hdf5, "fsync", fsync)


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_a_file_that_cannot_be_written_is_a_warning(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last good one stays, and the next one is tried; --quiet hides no loss."""
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=2)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    refuse(monkeypatch, code, times=2)
    said = io.StringIO()
    model = train(
        shard(TABLE, SelfComm()), from_mapping(options), SelfComm(), Progress(said, quiet=True)
    )
    same(model, fit(TABLE, **OPTIONS))
    warnings = said.getvalue().splitlines()
    assert len(warnings) == 2
    for step, line in zip((6, 8), warnings, strict=True):
        assert line.startswith(f"mpigd: warning: {tmp_path}/")
        assert (
            f"step-{step:012d}.h5: cannot be written: {os.strerror(code)}; "
            "going on without this checkpoint" in line
        )
    assert steps(tmp_path) == [4, 10]
    assert sorted(os.listdir(tmp_path)) == ["claim", "step-000000000004.h5", "step-000000000010.h5"]


def test_two_failures_before_the_run_hears_of_one_are_both_told(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path / "missing"))
    for step in (2, 4):
        writer.start(cast(checkpoint.Checkpoint, Unwritable(step)))
    writer.wait()
    assert [str(error) for error in writer.failures()] == ["step 2", "step 4"]
    assert not writer.failed


class Listener(Callback):
    """Has every save finished, and notes after which steps something had been said."""

    def __init__(self, writer: Writer, said: io.StringIO) -> None:
        self._writer, self._said, self.after_steps = writer, said, list[int]()

    def after(self, step: Step, words: Any) -> None:
        self._writer.wait()
        if self._said.getvalue():
            self.after_steps.append(step.batch.step)


def test_a_failure_is_told_after_the_next_step_and_not_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.EIO, times=1)
    config = problem.complete(
        from_mapping(OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=3)), 40
    )
    said = io.StringIO()
    report = Report(Progress(said, quiet=True), config, SelfComm())
    going = Run(
        problem.problem(shard(TABLE, SelfComm()), config, SelfComm()), config, SelfComm(), report
    )
    going.callbacks.append(listener := Listener(going.saver.writer, said))
    going.train()
    assert listener.after_steps == list(
        range(3, 10)
    )  # steps count from 0: the file is due after the third


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_a_run_that_is_to_stop_stops_everywhere(
    last: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file at the end is the only one."""
    refuse(monkeypatch, errno.ENOSPC)
    options = OPTIONS | dict(
        checkpoint=str(tmp_path), checkpoint_every=99 if last else 2, on_save_error="stop"
    )

    def one(comm: Comm) -> StorageError:
        with pytest.raises(
            StorageError,
            match=f"step-0000000000{'10' if last else '02'}.h5: cannot be written: No space",
        ) as caught:
            fit(shard(TABLE, comm), comm, **options)
        return caught.value

    for error in run(size, one):
        assert error.agreed
        assert error.code == 74


def test_a_mistake_in_the_thread_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no failure of the file system: no warning would do."""

    def wrong(*names: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(checkpoint, "_read_back", wrong)
    with pytest.raises(Exception, match="RuntimeError: a mistake"):
        fit(TABLE, **OPTIONS, checkpoint=str(tmp_path), checkpoint_every=1)


def test_nothing_is_removed_before_a_newer_one_was_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that keeps other bits than it was given."""
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    usual = hdf5.fsync

    def fsync(path: str) -> None:
        if os.path.isfile(path):
            with open(path, "r+b") as file:
                file.seek(5000)
                byte = file.read(1)[0]
                file.seek(5000)
                file.write(bytes([byte ^ 1]))
        usual(path)

    monkeypatch.setattr(hdf5, "fsync", fsync)
    said = io.StringIO()
    same(
        train(shard(TABLE, SelfComm()), from_mapping(options), SelfComm(), Progress(said)),
        fit(TABLE, **OPTIONS),
    )
    assert (
        "step-000000000010.h5: cannot be written: what is read back is not what was written"
        in said.getvalue()
    )
    assert sorted(os.listdir(tmp_path)) == ["claim", "step-000000000003.h5", "step-000000000004.h5"]


def test_an_old_one_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on, and says so: the disk would fill."""

    def unlink(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "unlink", unlink)
    said = io.StringIO()
    config = from_mapping(OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=3))
    same(train(shard(TABLE, SelfComm()), config, SelfComm(), Progress(said)), fit(TABLE, **OPTIONS))
    assert steps(tmp_path) == [3, 6, 9, 10]
    assert (
        "step-000000000003.h5: this old checkpoint cannot be removed: Operation not permitted"
        in said.getvalue()
    )


def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the seventh step."""
    count = iter(range(1000))

    def before(self: Interruption, words: Any) -> None:
        words[0] = float(next(count) == 6)

    monkeypatch.setattr(Interruption, "before", before)


def test_a_stop_with_nothing_saved_is_no_invitation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """75 would have the same command run for ever."""
    stopped(monkeypatch)
    refuse(monkeypatch, errno.ENOSPC)
    with pytest.raises(
        StorageError, match="stopped by a signal after step 7, and nothing could be saved in"
    ):
        fit(TABLE, **OPTIONS, checkpoint=str(tmp_path))


def test_a_stop_names_the_step_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=2)
    with monkeypatch.context() as now:
        stopped(now)
        usual = hdf5.fsync

        def fsync(path: str) -> None:
            if "step-000000000007" in path:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            usual(path)

        now.setattr(hdf5, "fsync", lambda path: fsync(str(path)))
        with pytest.raises(
            Unfinished, match="stopped by a signal after step 7, of which step 6 is the last in"
        ):
            fit(TABLE, **options)
    same(fit(TABLE, **options), fit(TABLE, **OPTIONS))


def test_two_of_the_same_run_are_kept_beside_later_ones_of_another(tmp_path: Path) -> None:
    """Later checkpoints of another run do not cause this run's checkpoints to be removed.

    The run starts with --resume never in a folder that has files of later steps.
    """
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=2)
    fit(TABLE, **(options | dict(epochs=6)))
    assert steps(tmp_path) == [28, 30]
    kill(5, shard(TABLE, SelfComm()), SelfComm(), **(options | dict(seed=3, resume="never")))
    assert steps(tmp_path) == [4, 6, 28, 30]
    same(fit(TABLE, **(options | dict(seed=3))), fit(TABLE, **(OPTIONS | dict(seed=3))))
    assert steps(tmp_path) == [8, 10, 28, 30]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".step-000000000004.h5.abc.tmp", ".step-4.h5.abc.tmp", "step-000000000004.h5.tmp"):
        (tmp_path / name).write_bytes(b"half")
    fit(TABLE, **OPTIONS, checkpoint=str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [
        ".step-4.h5.abc.tmp",
        "claim",
        "step-000000000004.h5.tmp",
        "step-000000000010.h5",
    ]
