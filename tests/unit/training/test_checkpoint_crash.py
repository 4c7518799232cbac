"""The same command continues a run whose process was killed at any moment, to the same bits.

The killed process is a fork of this one. It dies without any clean-up, before, within or after a
system call, or after a random time.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpigd.parallel.comm import SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.storage import hdf5
from mpigd.training import checkpoint
from tests.scenarios import fit, kill, same, shard
from tests.truths import generate

FULL = bool(os.environ.get("TEST_FULL"))
SEED = int(os.environ.get("TEST_SEED", "7"))  # scripts/faults.sh takes another each time
TABLE = generate("softmax", n=40, weights=True)
OPTIONS: dict[str, Any] = dict(loss="softmax", mode="minibatch", batch_size=9, epochs=3, l2=1e-2)
MOMENTS = 400 if FULL else 30
CALLS = (
    "open",
    "fchmod",
    "fsync",
    "replace",
    "unlink",
    "mkdir",
    "listdir",
)  # of os, as the program calls them


@pytest.fixture(scope="module")
def truth() -> Model:
    return fit(TABLE, **OPTIONS)


def in_a_fork(work: Callable[[], None]) -> int:
    """The process id of a copy of this process that does `work` and nothing else."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


class Fatal:
    """A counter of system calls that ends the process at one of them.

    It ends before the call, after half of it, or after it.
    """

    def __init__(self, at: int, when: str) -> None:
        self.count, self._at, self._when = 0, at, when
        self.calls: list[str] = []

    def __call__(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        self.count += 1
        self.calls.append(call.__name__)
        here = self.count == self._at
        if here and self._when == "before":
            os._exit(9)
        if here and self._when == "within" and call.__name__ == "write":
            sink, data = given
            call(sink, bytes(memoryview(data).cast("B"))[: memoryview(data).nbytes // 2])
            os._exit(9)
        try:
            return call(*given, **named)
        finally:
            if here:
                os._exit(9)

    def arm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def around(owner: Any, name: str) -> None:
            call = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *given, **named: self(call, *given, **named))

        for name in CALLS:
            around(os, name)
        around(hdf5._Sink, "write")
        around(hdf5._Sink, "truncate")


def save_once_more(
    folder: Path, last: checkpoint.Checkpoint, fatal: Fatal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Do what the thread of a run does."""
    fatal.arm(monkeypatch)
    last.save(str(folder))
    checkpoint.prune(str(folder), last.step - 1)


def whole(folder: Path, least: int) -> list[int]:
    """The steps of the files in a folder: all can be read, and no name but theirs appears."""
    found = checkpoint.found(str(folder))
    assert len(found) >= least
    return [checkpoint.read(path).step for path in found]


def test_at_every_call_to_the_system(
    truth: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | dict(checkpoint_every=1)
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, step in ((before, 6), (after, 7)):
        kill(step, shard(TABLE, SelfComm()), SelfComm(), **options, checkpoint=str(folder))
    last = checkpoint.read(checkpoint.found(str(after))[0])
    assert whole(before, 2) == [7, 6]
    assert last.step == 8
    counting = Fatal(0, "before")
    with monkeypatch.context() as now:
        save_once_more(Path(shutil.copytree(before, tmp_path / "count")), last, counting, now)
    assert counting.count >= 20
    outcomes = set()
    for at in range(1, counting.count + 1):
        # After one call is before the next one, and only a write has something within.
        written, last_one = counting.calls[at - 1] == "write", at == counting.count
        moments = ["before", *["within"] * (FULL or written), *["after"] * (FULL or last_one)]
        for when in moments:
            folder = Path(shutil.copytree(before, tmp_path / f"{at}{when}"))
            child = in_a_fork(
                lambda folder=folder, at=at, when=when: save_once_more(
                    folder, last, Fatal(at, when), monkeypatch
                )
            )
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
            left = whole(folder, 2)
            outcomes.add(tuple(left))
            same(fit(TABLE, **OPTIONS, checkpoint=str(folder)), truth)
            assert not [name for name in os.listdir(folder) if name.startswith(".")]
            shutil.rmtree(folder)
    assert outcomes == {(7, 6), (8, 7, 6), (8, 7)}


def test_at_random_moments(truth: Model, tmp_path: Path) -> None:
    """A run that saves after every step is killed again and again.

    When it reaches its end, a new run begins.
    """
    chance, options, runs, killed, reached = (
        random.Random(SEED),
        OPTIONS | dict(checkpoint_every=1),
        0,
        0,
        set[int](),
    )
    begin = time.monotonic()
    fit(TABLE, **options, checkpoint=str(tmp_path / "timed"))
    longest = time.monotonic() - begin
    while killed < MOMENTS:
        folder = tmp_path / str(runs)
        child = in_a_fork(
            lambda folder=folder: fit(TABLE, **options, checkpoint=str(folder)) and None
        )
        time.sleep(chance.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        left = whole(folder, 0) if folder.exists() else []
        assert len(left) != 1 or left == [1], "two are kept, once two are there"
        killed += code != 0
        if code == 0 or left[:1] == [15]:
            same(fit(TABLE, **options, checkpoint=str(folder)), truth)
            runs += 1
        reached |= set(left)
    same(fit(TABLE, **options, checkpoint=str(tmp_path / str(runs))), truth)
    assert len(reached) > 5, "the moments lie within the run"


@pytest.mark.parametrize("rounds", [5 if FULL else 1])
def test_within_the_writing(rounds: int, tmp_path: Path) -> None:
    """Nothing but saving, of a file that takes long enough to be met within."""
    kill(
        3,
        shard(TABLE, SelfComm()),
        SelfComm(),
        **OPTIONS,
        checkpoint=str(tmp_path / "one"),
        checkpoint_every=1,
    )
    saved = checkpoint.read(checkpoint.found(str(tmp_path / "one"))[0])
    large = {"large": {"state": hdf5.np.arange(400_000.0)}}

    def forever(folder: Path) -> None:
        step = 0
        while True:
            step += 1
            checkpoint.Checkpoint(
                step, saved.w + step, saved.parts | large, saved.config, saved.notes
            ).save(str(folder))
            checkpoint.prune(str(folder), step - 1)

    chance, halves = random.Random(SEED), 0
    for number in range(rounds * 25):
        folder = tmp_path / f"loop{number}"
        child = in_a_fork(lambda folder=folder: forever(folder))
        time.sleep(0.1 + chance.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = whole(folder, 0) if folder.exists() else []
        assert left == [] or len(left) in (1, 2, 3)
        assert len(left) > 1 or left in ([], [1])
        for step, path in zip(left, checkpoint.found(str(folder)), strict=True):
            assert (checkpoint.read(path).w == saved.w + step).all()
        halves += any(checkpoint.LEFT.fullmatch(name) for name in os.listdir(folder))
        shutil.rmtree(folder)
    assert halves > 0, "some were met within the writing"
