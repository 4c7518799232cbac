"""Real MPI jobs: tests/mpi on 2 and 3 ranks (--full: 1 to 4).

An error on one rank ends a job, and the message gives the reason.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.faults.jobs import FULL
from tests.launch import (
    CEILING,
    FLAVOURS,
    OPENMPI_PYTHON,
    ROOT,
    Job,
    environment,
    mpiexec,
    needs_openmpi,
    start,
)

PYTEST = ("-m", "pytest", "--color=no", "-p", "no:cacheprovider")
RUNS = [
    *([(1, "mpich"), (2, "mpich"), (4, "mpich")] if FULL else []),
    (3, "mpich"),
    pytest.param(2, "openmpi", marks=needs_openmpi),
]


@pytest.mark.parametrize(("ranks", "flavour"), RUNS)
def test_mpi_suite(ranks: int, flavour: str) -> None:
    done = mpiexec(ranks, *PYTEST, "-q", "tests/mpi", flavour=flavour, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stdout.count(" passed") == 1, (
        "rank 0 alone reports"
    )  # and may have a warning to tell, before the seconds


def suite(
    folder: Path, body: str, n: int = 2, flavour: str = "mpich", **limits: str
) -> tuple[int, str]:
    """Run a test file under tests/mpi/conftest.py on n ranks: (exit code, output)."""
    shutil.copy(ROOT / "tests/mpi/conftest.py", folder)
    (folder / "test_generated.py").write_text(
        f"import numpy as np, pytest, time, os, signal\n{body}"
    )
    done = mpiexec(n, *PYTEST, "-q", ".", cwd=folder, env=limits, flavour=flavour)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_failure_after_the_collectives(tmp_path: Path, culprit: int, flavour: str) -> None:
    body = f"""
def test_before(comm):
    comm.allreduce(np.ones(1))

def test_bad(comm):
    comm.allreduce(np.ones(1))
    assert comm.rank != {culprit}, "only here"

def test_after(comm):
    total = np.ones(1)
    comm.allreduce(total)
    assert total[0] == comm.size
"""
    code, output = suite(tmp_path, body, flavour=flavour)
    assert code == 1, output
    assert "1 failed, 2 passed" in output
    assert output.count("E       AssertionError: only here\n") == 1, output
    assert (f"rank {culprit} of 2: AssertionError: only here" in output) == (culprit == 1), (
        "rank 0 reports its own as its own"
    )
    assert "test_generated.py:8: AssertionError" in output


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_failure_while_the_others_wait(tmp_path: Path, culprit: int, flavour: str) -> None:
    body = f"""
def test_bad(comm):
    assert comm.rank != {culprit}, "only here"
    comm.allreduce(np.ones(1))
"""
    code, output = suite(tmp_path, body, flavour=flavour, TEST_MPI_GRACE="2")
    assert code != 0
    assert (
        f"rank {culprit} failed, the others did not come along: test_generated.py::test_bad"
        in output
    )
    assert output.count("E       AssertionError: only here\n") == 1, output


def test_a_test_that_never_ends(tmp_path: Path) -> None:
    body = """
def test_waits(comm):
    if comm.rank == 1:
        comm.recv(np.zeros(1), 0)  # which rank 0 never sends
"""
    code, output = suite(tmp_path, body, TEST_MPI_LIMIT="2")
    assert code != 0
    assert "test_waits takes longer than 2 s" in output
    assert "in recv" in output, "the stacks show where"


def test_a_fixture_that_fails_on_one_rank(tmp_path: Path) -> None:
    body = """
@pytest.fixture
def table(comm):
    if comm.rank == 1:
        raise OSError("no such table")
    yield 1
    if comm.rank == 0:
        raise OSError("cannot be removed")

def test_never(table, comm):
    comm.allreduce(np.ones(1))

def test_after(comm):
    comm.allreduce(np.ones(1))
"""
    code, output = suite(tmp_path, body)
    assert code == 1
    assert "1 passed, 2 errors" in output, output
    assert "no such table" in output
    assert "cannot be removed" in output


def test_skips_must_agree(tmp_path: Path) -> None:
    body = """
def test_all(comm):
    pytest.skip("nobody wants this")

@pytest.mark.skip(reason="marked")
def test_marked(comm):
    pass

def test_some(comm):
    if comm.rank == 1:
        pytest.skip("not I")
"""
    code, output = suite(tmp_path, body)
    assert code == 1
    assert "1 failed, 2 skipped" in output, output
    assert "skipped on rank 1 only" in output


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "if launched()[0] == 1: raise ImportError('not on this rank')",
            "ImportError: not on this rank",
        ),
        (
            "if launched()[0] == 1: def_ = lambda: 0\nelse:\n    def test_more(): pass",
            "rank 1 collected 1 tests",
        ),
    ],
)
def test_ranks_that_collect_different_tests(tmp_path: Path, line: str, expected: str) -> None:
    body = (
        f"from mpigd.parallel.launcher import launched\n{line}\n\n"
        "def test_all(comm):\n    comm.allreduce(np.ones(1))\n"
    )
    code, output = suite(tmp_path, body)
    assert code != 0
    assert expected in output


def test_a_message_left_behind_does_not_reach_the_next_test(tmp_path: Path) -> None:
    body = """
def test_bad(comm):
    if comm.rank == 0:
        comm.send(np.array([13.0]), 1)
    assert comm.rank == 0, "before it received"

def test_after(comm):
    got = np.zeros(1)
    if comm.rank == 0:
        comm.send(np.array([7.0]), 1)
    else:
        comm.recv(got, 0)
        assert got[0] == 7
"""
    code, output = suite(tmp_path, body)
    assert code == 1
    assert "1 failed, 1 passed" in output, output


UNCAUGHT = """
import sys, numpy as np
from mpigd.parallel.session import connect
from mpigd.errors import DataError
comm = connect()
if comm.rank == comm.size - 1:
    raise {error}
comm.allreduce(np.zeros(1))
"""


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("error", "code"), [("DataError('row 7 is bad')", 65), ("ValueError('row 7 is bad')", 70)]
)
def test_an_uncaught_exception_ends_the_job(error: str, code: int, flavour: str) -> None:
    with start(2, "-c", UNCAUGHT.format(error=error), flavour=flavour) as job:
        done = job.finish()
        assert job.survivors() == []
    assert done.returncode == code, done.stderr
    assert "Error: row 7 is bad" in done.stderr
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_abort_gives_the_job_its_exit_code(flavour: str) -> None:
    script = (
        "import numpy as np; from mpigd.parallel.session import connect; comm = connect()\n"
        "if comm.rank == 0: print('last words'); comm.abort(75)\n"
        "comm.allreduce(np.zeros(1))"
    )
    done = mpiexec(2, "-c", script, flavour=flavour)
    assert done.returncode == 75, done.stderr
    assert "last words" in done.stdout


CONNECT = """
from mpigd.parallel.session import connect
from mpigd.errors import MpigdError
try:
    comm = connect()
except MpigdError as error:
    print(error, flush=True)
    raise SystemExit(error.code)
print(f"{comm.rank}/{comm.size}\\n", end="", flush=True)
"""


@needs_openmpi
def test_the_launcher_of_another_library_is_refused() -> None:
    """The launcher of another MPI library is refused.

    Otherwise two copies of "rank 0 of 1" would each train alone, and write the same model file.
    """
    command = [
        str(Path(sys.executable).parent / "mpiexec"),
        "-n",
        "2",
        OPENMPI_PYTHON,
        "-c",
        CONNECT,
    ]
    with Job(command, environment(flavour="openmpi")) as job:
        done = job.finish()
    assert done.returncode == 69, done.stderr
    assert done.stdout.count("the launcher started 2 processes, but MPI (Open MPI") == 2


@needs_openmpi
def test_a_launcher_that_tells_a_rank_alone() -> None:
    """PMIx itself, which Open MPI is at home with, and MPICH's wheel refuses."""
    launcher = str(Path(OPENMPI_PYTHON).parent / "prterun")
    root = {"PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with Job(
        [launcher, "-n", "2", OPENMPI_PYTHON, "-c", CONNECT], environment(root, flavour="openmpi")
    ) as job:
        done = job.finish()
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["0/2", "1/2"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_python_of_each_flavour_loads_its_library(flavour: str) -> None:
    script = (
        "import os, numpy; from mpi4py import MPI\n"
        "text = f'{MPI.COMM_WORLD.size} {MPI.Get_library_version().split()[0]}'\n"
        # One write: the launcher may mix what two ranks write in pieces.
        "os.write(1, f'{text}\\n'.encode())"
    )
    done = mpiexec(2, "-c", script, flavour=flavour)
    assert done.stdout.splitlines() == [f"2 {'Open' if flavour == 'openmpi' else 'MPICH'}"] * 2, (
        done.stderr
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_job_over_its_limit_is_killed_whole(flavour: str) -> None:
    script = "import time; print('started', flush=True); time.sleep(600)"
    with start(2, "-c", script, flavour=flavour) as job:
        deadline = time.monotonic() + CEILING
        while len(job.members()) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(job.members()) >= 3, "mpiexec and two ranks"
        with pytest.raises(AssertionError, match="killed after 1 s") as caught:
            job.finish(1)
        assert "started" in str(caught.value), "the output so far is in the message"
        assert job.survivors() == []
