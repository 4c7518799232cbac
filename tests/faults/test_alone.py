"""Functions that all ranks must call, called by one rank alone or by other processes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mpigd.scoring import fitted_model
from tests.faults.jobs import HANG, Place
from tests.launch import FLAVOURS, mpiexec, python, start

ROWS = """
import os, sys, time, numpy as np, mpigd
from mpigd.parallel.launcher import launched
rank = launched()[0]
X = np.random.default_rng(0).normal(size=(60, 3))
y = X[:, 0] + np.random.default_rng(1).normal(size=60)
"""
# What the others do instead: their own barrier, or nothing that has to do with MPI.
OTHERWISE = {
    "barrier": "from mpi4py import MPI\n{train}\nMPI.COMM_WORLD.Barrier()",
    "sleep": "if rank != 0: time.sleep(600)\n{train}",
    "second": "mpigd.train((X, y), hang_timeout={limit})\nif rank != 0: time.sleep(600)\n{train}",
    "theirs": "from mpi4py import MPI\n{train}\nMPI.COMM_WORLD.Barrier()",
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("what", OTHERWISE)
def test_one_rank_alone_trains(what: str, flavour: str) -> None:
    """It ends long before the others have slept, and says what it has waited for."""
    given = ", comm=MPI.COMM_WORLD" if what == "theirs" else ""
    train = f"if rank == 0: mpigd.train((X, y), hang_timeout={HANG}{given})"
    script = ROWS + OTHERWISE[what].format(train=train, limit=HANG)
    with start(2, "-c", script, flavour=flavour) as job:
        done = job.finish()
        assert job.survivors() == []
    assert done.returncode == 70, done.stderr
    said = (
        rf"mpigd: mpigd\.train has waited {HANG} s \(--hang-timeout\) for the other ranks "
        r"to call it too: "
        r"all 2 ranks must call"
    )
    assert re.search(said, done.stderr), done.stderr


def test_another_command_alone(place: Place) -> None:
    """The other process never starts MPI: the wait is within its start."""
    words = [*place.train("another", None)]
    done = mpiexec(1, *words, ":", "-n", "1", sys.executable, "-c", "import time; time.sleep(600)")
    assert done.returncode == 70, done.stderr
    assert (
        "mpigd train has waited 30 s (--hang-timeout) for the other ranks to call it too"
        in done.stderr
    )


WAITS = """
import time, numpy as np
from mpigd.parallel import session
comm = session.connect({limit})
if comm.rank == 0:
    comm.recv(np.zeros(3), 1)
time.sleep(600)
"""


def test_a_message_that_never_comes() -> None:
    """As where predictions go to the rank that writes them."""
    done = mpiexec(2, "-c", WAITS.format(limit=HANG))
    assert done.returncode == 70, done.stderr
    assert f"a collective has not ended after {HANG} s (--hang-timeout)" in done.stderr
    assert "in comm.py:" in done.stderr


def test_ranks_with_different_commands(place: Place) -> None:
    words = place.train("different")
    done = mpiexec(1, *words, ":", "-n", "1", sys.executable, "-m", "mpigd", "doctor")
    assert done.returncode == 69, done.stderr
    assert (
        done.stderr.count(
            "mpigd: rank 0 calls mpigd train, rank 1 calls mpigd doctor: "
            "all ranks must call the same"
        )
        == 1
    )


POOL = """
import multiprocessing, sys, mpigd
{imported}

def work(path):
    try:
        return mpigd.train(path, loss="logistic", threads=1{given}).digest
    except mpigd.errors.MpigdError as error:
        return f"{{error.code}} {{error}}"

if __name__ == "__main__":
    path = sys.argv[2]
    if "first" in sys.argv:
        mpigd.train(path, loss="logistic", threads=1)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print("\\n".join(pool.map(work, [path, path])), flush=True)
"""
NO_RANK = (
    r"69 this process was made by rank \d \(a fork, or a pool of multiprocessing\) "
    r"and is no rank of MPI: "
    r"pass (comm=.*) \((.*)\)"
)


@pytest.mark.parametrize(("method", "first"), [("fork", True), ("fork", False), ("spawn", False)])
def test_a_pool_of_processes(method: str, first: bool, place: Place, tmp_path: Path) -> None:
    """Its members are no ranks. Both ways out that the message names are tried, word for word."""
    words = (tmp_path / "pool.py", method, place.data[0], *(["first"] if first else []))
    words[0].write_text(POOL.format(imported="", given=""))  # type: ignore[union-attr]
    done = mpiexec(2, *words)
    assert done.returncode == 0, done.stderr
    told = [re.match(NO_RANK, line) for line in done.stdout.splitlines()]
    assert len(told) == 4
    assert all(told), done.stdout
    alone = python(
        "-m",
        "mpigd",
        "train",
        place.data[0],
        "--loss",
        "logistic",
        "-o",
        tmp_path / "model.h5",
        "--threads",
        "1",
    )
    assert alone.returncode == 0, alone.stderr
    expected = [fitted_model.load(str(tmp_path / "model.h5")).digest] * 2
    assert told[0] is not None
    words[0].write_text(POOL.format(imported=told[0][2], given=f", {told[0][1]}"))  # type: ignore[union-attr]
    done = mpiexec(2, *words)
    assert done.stdout.split() == 2 * expected, done.stderr
    words[0].write_text(POOL.format(imported="", given=""))  # type: ignore[union-attr]
    assert python(*words).stdout.split() == expected
    assert mpiexec(1, *words).stdout.split() == expected, (
        "one rank: nobody could be meant but the process itself"
    )
