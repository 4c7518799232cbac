"""--on-failure shrink: ranks of four die or stop, and the other ranks go on.

They end with the bits of an undisturbed run, or with exit code 75.
"""

from __future__ import annotations

import pytest

from tests.faults.jobs import FULL, HANG, LIMIT, RANKS, SOON, Place, Schedule
from tests.launch import mpiexec, needs_openmpi, python

TURNS = 20 if FULL else 1
KILLED: dict[str, Schedule] = {
    "the lowest, then another": {"7": [(0, "kill")], "20": [(2, "kill")]},
    "another during the shrink": {"7": [(1, "kill")], "mend": [(3, "kill")]},
}
MORE: dict[str, Schedule] = {
    "two at once, the lowest is left": {"7": [(1, "kill"), (2, "kill")]},
    "while a checkpoint is written": {"save": [(0, "kill")]},
    "one": {"7": [(3, "kill")]},
    "the lowest": {"7": [(0, "kill")]},
    "another before all agree": {"7": [(1, "kill")], "agree": [(2, "kill")]},
    "while reading": {"load": [(2, "kill")]},
    "after the last step": {"model": [(0, "kill")]},
    "one after the other": {"3": [(3, "kill")], "9": [(0, "kill")], "15": [(2, "kill")]},
}

FULL_STEPS = ("--mode", "full", "--optimizer")
RUNS = {
    "proximal-newton": (*FULL_STEPS, "proximal-newton", "--l1", "1e-3"),
    "streamed": (
        "--mode",
        "minibatch",
        "--batch-size",
        "60",
        "--epochs",
        "2",
        "--shuffle",
        "blocks",
        "--max-memory",
        "4KB",
    ),
}
MORE_RUNS = {
    "newton": (*FULL_STEPS, "newton"),
    "lbfgs": (*FULL_STEPS, "lbfgs"),
    "nesterov": (*FULL_STEPS, "nesterov", "--epochs", "20"),
    "fista": (*FULL_STEPS, "fista", "--l1", "1e-3", "--epochs", "20"),
    "hybrid": (*FULL_STEPS, "hybrid"),
    "svrg": (
        "--mode",
        "minibatch",
        "--batch-size",
        "60",
        "--epochs",
        "4",
        "--optimizer",
        "svrg",
        "--l1",
        "1e-3",
    ),
    "stochastic": ("--mode", "stochastic", "--batch-size", "7", "--epochs", "1"),
}


def undisturbed(place: Place, name: str) -> bool:
    return place.digest(name) == place.digest("alone")


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("what", [*KILLED, *(MORE if FULL else [])])
def test_killed(what: str, turn: int, place: Place) -> None:
    ended = place.elastic(f"elastic {what} {turn}", {**KILLED, **MORE}[what])
    assert ended.code == 0, ended.said
    assert ended.left == []
    assert undisturbed(place, f"elastic {what} {turn}")


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
def test_some_have_done_a_step_more(turn: int, place: Place) -> None:
    """They go back to the last one that all have done, and no further."""
    name = f"more {turn}"
    ended = place.elastic(name, {"6 done": [(3, "kill"), (0, "told"), (0, "miss")]})
    assert ended.code == 0, ended.said
    assert "1 of 4 ranks are gone; 3 go on after step 6" in ended.said
    assert undisturbed(place, name)


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
def test_one_alone_is_told_of_a_loss(turn: int, place: Place) -> None:
    """One rank alone is told of a loss and calls the others out of their waits.

    All ranks are present, so they do not retry for ever.
    """
    name = f"told {turn}"
    ended = place.elastic(name, {"6": [(0, "saved")], "6 done": [(1, "miss")]})
    assert ended.code == 75, ended.said
    assert (
        ended.said.count(
            "MPI says that ranks are gone, and all are here; run the same command again"
        )
        == 1
    )
    continued = place.run(name)
    assert continued.code == 0, continued.said
    assert undisturbed(place, name)


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("what", ["save", *(["7"] if FULL else [])])
def test_a_rank_that_stands_still_and_wakes_up(what: str, turn: int, place: Place) -> None:
    """The lowest rank stops for a while.

    Its claim of the folder, and a checkpoint that it was writing, are then in the way of the
    others.
    """
    name = f"nap {what} {turn}"
    ended = place.elastic(
        name, {what: [(0, "nap")]}, env=SOON | {"TEST_NAP": "14", "TEST_ELSEWHERE": "0"}
    )
    assert ended.code == 0, ended.said
    assert ended.left == []
    assert ", world 1" in (place.folder / name / "claim").read_text()
    assert undisturbed(place, name)


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
def test_a_rank_that_stands_still_for_ever(turn: int, place: Place) -> None:
    """It is ended by the others of its host: the launcher would wait for it."""
    name = f"stop {turn}"
    ended = place.elastic(name, {"7": [(1, "stop")]}, env=SOON)
    assert ended.code == 0, ended.said
    assert ended.left == []
    assert undisturbed(place, name)


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
def test_a_rank_that_is_busy_for_longer_is_waited_for(turn: int, place: Place) -> None:
    """A busy rank is waited for, even if it misses heartbeats.

    It makes no MPI call for nine seconds, and a stopped rank is given up after four.
    """
    name = f"busy {turn}"
    ended = place.elastic(name, {"7": [(1, "busy")]}, env=SOON)
    assert ended.code == 0, ended.said
    assert "are gone" not in ended.said
    assert undisturbed(place, name)


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize(
    ("what", "ranks", "options"),
    [("no more than half", [0, 1], []), ("fewer than --min-ranks 4", [2], ["--min-ranks", "4"])],
)
def test_too_few_are_left(
    what: str, ranks: list[int], options: list[str], turn: int, place: Place
) -> None:
    """They stop, and the same command continues."""
    name = f"few {len(ranks)} {turn}"
    schedule = {"save": [(0, "slow")], "6": [(0, "saved")], "7": [(rank, "kill") for rank in ranks]}
    ended = place.elastic(name, schedule, *options)
    assert ended.code == 75, ended.said
    assert "of 4 ranks are left" in ended.said
    assert what in ended.said
    assert "run the same command again" in ended.said
    assert ended.left == []
    continued = place.run(name)
    assert continued.code == 0, continued.said
    assert undisturbed(place, name)


@needs_openmpi
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("when", ["mend", "20"])
def test_another_rank_is_late(when: str, turn: int, place: Place) -> None:
    """Another rank is late while the others meet, or after they have gone on.

    They do not wait for ever, and name the rank for which they have waited.
    """
    name = f"late {when} {turn}"
    ended = place.elastic(
        name, {"7": [(1, "kill")], when: [(2, "loop")]}, "--hang-timeout", str(HANG)
    )
    assert ended.code == 75, ended.said
    assert "has not ended after" in ended.said
    assert "rank 2 on" in ended.said
    assert when == "mend" or "rank 1 on" not in ended.said.split("has not ended after")[1]
    assert ended.left == []
    continued = place.run(name)
    assert continued.code == 0, continued.said
    assert undisturbed(place, name)


@needs_openmpi
@pytest.mark.parametrize("what", [*RUNS, *(MORE_RUNS if FULL else [])])
def test_any_run(what: str, place: Place) -> None:
    """The state of an optimiser and its position in the data survive as well."""
    steps = {**RUNS, **MORE_RUNS}[what]
    alone = python(*place.train(f"alone {what}", steps=steps), timeout=LIMIT)
    assert alone.returncode == 0, alone.stderr
    ended = place.elastic(what, {"2": [(0, "kill")], "4": [(3, "kill")]}, steps=steps)
    assert ended.code == 0, ended.said
    assert ended.said.count("ranks are gone") == 2
    assert ended.left == []
    assert place.digest(what) == place.digest(f"alone {what}")


def test_another_mpi_is_refused(place: Place) -> None:
    done = mpiexec(RANKS, *place.train("refused", None, "--on-failure", "shrink"), timeout=LIMIT)
    assert done.returncode == 69, done.stderr
    assert (
        done.stderr.count(
            "mpigd: --on-failure shrink needs Open MPI, started as: mpirun --with-ft ulfm"
        )
        == 1
    )
    assert not (place.folder / "refused.h5").exists()
