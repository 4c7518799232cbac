"""An error on one rank ends the job with an exit code and no process left behind.

The message names the rank and the place. MPICH's mpiexec ends all ranks at once when one dies, and
prints its own message; then the flight recorder must have the information.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass

import pytest

from mpigd.errors import DataError
from mpigd.parallel.flight_recorder import flights
from tests.faults.jobs import FULL, HANG, LIMIT, RANKS, Place
from tests.launch import FLAVOURS, Job, mpiexec, needs_openmpi

FAILED = r"mpigd: rank 1 on \S+ at step 5: "


@dataclass(frozen=True)
class Case:
    """A fault of rank 1 and its place, the expected exit codes, and the expected message.

    The message is expected only if the launcher leaves the ranks time to print it.
    """

    action: str
    at: str
    codes: tuple[int, ...]
    says: str = ""
    hangs: bool = False
    # Seconds beside --hang-timeout: an upper limit, a third of the default waiting time of a job.
    within: float = 100.0


CASES = [
    Case("exception", "5", (70,), FAILED + "RuntimeError: injected"),
    Case("sys.exit", "5", (3,), FAILED + r"sys\.exit\(3\)"),
    Case("sys.exit(0)", "5", (70,), FAILED + r"sys\.exit\(0\)"),
    Case("thread", "5", (70,), FAILED + "RuntimeError: injected"),
    Case("os._exit", "5", (3,), FAILED + r"os\._exit"),
    Case("os._exit(0)", "5", (70,), FAILED + r"os\._exit"),
    # The rank prints no last message. The exit code is the launcher's, or 75 if another rank
    # noticed the failure first, because there is a checkpoint.
    Case(
        "_exit(0)", "5", (0, 1, 9, 75)
    ),  # MPICH's mpiexec ends the others, and may yet report success: no model is there then
    Case("segv", "5", (11, 75, 139)),
    Case("kill", "5", (9, 75, 137)),
    Case("stop", "5", (75,), r"rank 1 \(process \d+\) is stopped", hangs=True),
    Case(
        "loop",
        "5",
        (75,),
        r"rank 1 on \S+ did not enter allreduce number \d+ \(step 5\)",
        hangs=True,
    ),
    Case(
        "loop", "load", (70,), r"rank 1 on \S+ did not enter \w+ number \d+ \(step 0\)", hangs=True
    ),
    Case("exception", "load", (70,), "RuntimeError: injected"),
    Case("kill", "load", (9, 70, 137)),
    Case("exception", "leave", (70,), r"mpigd: rank 1 on \S+ at step 40: RuntimeError: injected"),
    Case("loop", "leave", (75,), r"rank 1 on \S+ did not enter allreduce", hangs=True),
    Case("kill", "leave", (9, 75, 137)),
    Case("exception", "exit", (70,), "RuntimeError: injected"),
    Case("loop", "exit", (1, 9, 70), r"Timeout", hangs=True),
]
# A reduced matrix: what differs between the libraries, and the ways of hanging.
REDUCED = {
    "mpich": {
        ("exception", "5"),
        ("thread", "5"),
        ("os._exit(0)", "5"),
        ("kill", "5"),
        ("stop", "5"),
        ("loop", "load"),
        ("exception", "leave"),
    },
    "openmpi": {("sys.exit", "5"), ("_exit(0)", "5"), ("segv", "5"), ("loop", "5")},
}
MATRIX = [
    pytest.param(
        case,
        flavour,
        marks=[needs_openmpi] if flavour == "openmpi" else [],
        id=f"{flavour}-{case.action}-{case.at}",
    )
    for flavour, chosen in REDUCED.items()
    for case in CASES
    if FULL or (case.action, case.at) in chosen
]


@pytest.mark.parametrize(("case", "flavour"), MATRIX)
def test_trouble_on_one_rank_ends_the_job(case: Case, flavour: str, place: Place) -> None:
    name = f"{flavour}-{case.action}-{case.at}"
    ended = place.run(name, {case.at: [(1, case.action)]}, flavour=flavour)
    assert ended.code in case.codes, ended.said
    assert re.search(case.says, ended.said), ended.said
    assert ended.left == []
    assert (place.folder / f"{name}.h5").exists() == (
        case.at in ("leave", "exit")
    )  # code 0 with none is no success
    known = {flight.rank: flight for flight in flights(place.folder / name)}
    assert len(known) == RANKS
    if case.at == "5" and case.action != "stop":  # Open MPI wakes a stopped rank before it kills it
        assert known[1].step == 5
        last, other = known[1].last, known[0].last
        assert last is not None
        assert other is not None
        # Rank 0 waits for it, or MPICH's mpiexec saw a killed rank before rank 0 came to wait.
        assert other.number == last.number + 1 or (
            flavour == "mpich" and 9 in case.codes and other.number == last.number
        )
    # The time counts from the last sign of life of the failing rank, so that the start of three
    # processes on a busy machine is not included.
    since = ended.until - max(entry.left for entry in known[1].entries)
    print(f"{name}: exit code {ended.code}, {since:.1f} s after the fault")
    assert since < case.within + HANG * case.hangs


def ranks_of(job: Job, place: Place, name: str) -> dict[int, int]:
    """Process ids by rank, once the job has made a step."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and job.process.poll() is None:
        try:
            known = flights(place.folder / name)
        except DataError:  # not there yet, or not whole
            known = []
        if len(known) == RANKS and all(flight.step > 0 for flight in known):
            return {flight.rank: flight.pid for flight in known}
        time.sleep(0.05)
    raise AssertionError(f"no step: {job.process.poll()}")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_orphan_where_the_launcher_is_killed(flavour: str, place: Place) -> None:
    """Ranks outside MPI would live on: here one that never comes back to it."""
    name = f"{flavour}-launcher"
    with place.start(name, {"7": [(1, "loop")]}, flavour=flavour) as job:
        ranks_of(job, place, name)
        os.kill(job.process.pid, signal.SIGKILL)
        assert job.survivors(60) == []


def test_a_slow_rank_is_not_a_dead_one(place: Place) -> None:
    """It is named at the end, and it may be as slow as it likes within --hang-timeout."""
    words = place.train("slow", {"always": [(1, "slow")]}, "--epochs", "1")
    words.remove("--quiet")
    done = mpiexec(RANKS, *words, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"rank 1 computes \d\.\d times as long as the mean", done.stderr), done.stderr


def test_the_flight_recorder_tells_who_died(place: Place) -> None:
    """MPICH's mpiexec leaves nobody the time to say it."""
    ended = place.run("told", {"7": [(2, "kill")]})
    assert ended.code != 0
    said = place.postmortem("told")
    assert said.startswith("3 of 3 ranks left a record\n")
    assert re.search(
        r"rank 2 on \S+ did not enter allreduce number [\d,]+ \(step 7\): it left number", said
    ), said
    assert "rank 0 on" in said
