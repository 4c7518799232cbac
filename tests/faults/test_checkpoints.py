"""Checkpoints of jobs that are killed again and again, and of jobs whose folder is full.

A job of which rank 0, another rank or the launcher is killed at random moments ends with the bits
of an undisturbed one. A job whose folder is full continues, or stops if --on-save-error says so.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpigd.errors import DataError
from mpigd.parallel.flight_recorder import flights
from mpigd.training import checkpoint
from tests.faults.jobs import FULL, LIMIT, RANKS, SEED, Place
from tests.launch import FLAVOURS


@pytest.mark.parametrize("flavour", FLAVOURS if FULL else ["mpich"])
def test_killed_at_random_moments(flavour: str, place: Place) -> None:
    """A save after every step, of 5 ms and more; victims in turn."""
    chance, name, folder = (
        random.Random(SEED),
        f"random-{flavour}",
        place.folder / f"random-{flavour}",
    )
    for turn in range(24 if FULL else 3):
        for old in folder.glob("flight-*.bin"):  # of the processes killed before
            old.unlink()
        with place.start(
            name, {"always": [(1, "slow")]}, "--checkpoint-every", "1", flavour=flavour
        ) as job:
            deadline, victims = time.monotonic() + LIMIT, dict[int, int]()
            while (
                len(victims) < RANKS and time.monotonic() < deadline and job.process.poll() is None
            ):
                try:
                    victims = {
                        flight.rank: flight.pid for flight in flights(folder) if flight.step > 0
                    }
                except DataError:
                    time.sleep(0.05)
            time.sleep(chance.uniform(0.0, 1.0))
            victim = (0, 1, -1)[turn % 3]
            if job.process.poll() is None:  # else the work is done
                os.kill(job.process.pid if victim < 0 else victims[victim], signal.SIGKILL)
            assert job.survivors(60) == []
        for path in checkpoint.found(str(folder)):
            checkpoint.read(path)
    ended = place.run(name, flavour=flavour)
    assert ended.code == 0, ended.said
    assert place.digest(name) == place.digest("alone")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the recorder's files and not for two checkpoints."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k,mode=700", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here; unit tests have every error injected")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_folder(small: Path, place: Place) -> None:
    (small / "others").write_bytes(bytes(80_000))
    words = ("--checkpoint", str(small / "saved"))
    ended = place.run("full", None, *words)
    assert ended.code == 0, ended.said
    assert (
        "cannot be written: No space left on device; going on without this checkpoint" in ended.said
    )
    assert place.digest("full") == place.digest("alone")
    ended = place.run("stopped", None, *words, "--on-save-error", "stop")
    assert ended.code == 74, ended.said
    assert ended.said.count("No space left on device") == 1
    assert not [name for name in os.listdir(small / "saved") if name.startswith(".")]


def test_a_folder_that_becomes_read_only(small: Path, place: Place) -> None:
    """The folder becomes read-only between two runs, as file servers do after a fault.

    The second run finds the checkpoints of the first one there.
    """
    folder = small / "saved"
    words = ("--checkpoint", str(folder), "--checkpoint-every", "5")
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    assert place.run("read-only", {"12": [(1, "kill")]}, *words).code != 0
    kept = checkpoint.found(str(folder))
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    ended = place.run("read-only", None, *words, "--on-save-error", "stop")
    assert ended.code == 74, ended.said
    assert "Read-only file system" in ended.said
    ended = place.run("read-only", None, *words)
    assert ended.code == 0, ended.said
    assert "Read-only file system; going on without" in ended.said
    assert checkpoint.found(str(folder)) == kept
    assert place.digest("read-only") == place.digest("alone")
