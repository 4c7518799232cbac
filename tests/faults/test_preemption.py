"""Preemption: a job that is told to stop, or that runs out of time, saves and exits with 75.

It continues to the bits of an undisturbed one. A job that is started wrongly is refused with 69.
"""

from __future__ import annotations

import os
import sys

import pytest

from mpigd.training.run_guard import claim
from tests.faults.jobs import FULL, LIMIT, RANKS, Place
from tests.launch import mpiexec, needs_openmpi

SIGNALS = [
    ("usr1", "7", [1], "mpich"),
    pytest.param("usr1", "7", [0], "openmpi", marks=needs_openmpi),
    *(
        [
            ("usr1", "load", [2], "mpich"),
            ("usr1", "7", [0, 1, 2], "mpich"),
            ("term", "7", [2], "mpich"),
        ]
        if FULL
        else []
    ),
]


def continues(place: Place, name: str, flavour: str = "mpich") -> None:
    ended = place.run(name, flavour=flavour)
    assert ended.code == 0, ended.said
    assert place.digest(name) == place.digest("alone")


@pytest.mark.parametrize(("action", "at", "ranks", "flavour"), SIGNALS)
def test_a_signal(action: str, at: str, ranks: list[int], flavour: str, place: Place) -> None:
    name = f"{action}-{at}-{len(ranks)}-{flavour}"
    ended = place.run(name, {at: [(rank, action) for rank in ranks]}, flavour=flavour)
    assert ended.code == 75, ended.said
    assert f"mpigd: stopped by a signal after step {8 if at == '7' else 1}, saved in " in ended.said
    assert "run the same command again" in ended.said
    assert ended.left == []
    assert not (place.folder / f"{name}.h5").exists()
    continues(place, name, flavour)


def test_a_budget_of_time(place: Place) -> None:
    """Forty steps of 0.3 s do not fit into it."""
    ended = place.run("budget", {"always": [(1, "slow")]}, "--max-time", "9")
    assert ended.code == 75, ended.said
    assert "stopped by the end of its time after step" in ended.said
    continues(place, "budget")


def test_two_jobs_in_one_folder(place: Place) -> None:
    (held,) = claim(str(place.folder / "taken"), print)
    done = mpiexec(
        RANKS, *place.train("taken", {"99": []}), env={"TEST_PATIENCE": "0.5"}, timeout=LIMIT
    )
    os.close(held)
    assert done.returncode == 69, done.stderr
    assert done.stderr.count(f"another job saves there (process {os.getpid()} on") == 1, done.stderr


def test_an_option_that_one_rank_alone_has(place: Place) -> None:
    words = place.train("differs")
    done = mpiexec(
        1, *words, ":", "-n", "1", "env", "MPIGD_L2=0.5", sys.executable, *words, timeout=LIMIT
    )
    assert done.returncode == 69, done.stderr
    assert done.stderr.count("mpigd: rank 1 was given other options than rank 0") == 1, done.stderr
