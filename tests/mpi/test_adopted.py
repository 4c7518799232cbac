"""Communicators of mpi4py that a program passes to mpigd.

Any part of the ranks computes the same bits, and the program's own messages are not disturbed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpigd
from mpigd.config.schema import Config
from mpigd.errors import LaunchError, UsageError
from mpigd.parallel import adopted_comm, session
from mpigd.parallel.comm import Comm, MPIComm, SelfComm
from mpigd.scoring.predict import evaluate, predict
from mpigd.scoring.prediction_files import Targets
from tests.scenarios import generate, write

TABLE = generate("logistic", n=120, d=4)
RIDGE = {"loss": "logistic", "l2": 1e-3, "threads": 1}


@pytest.fixture
def mpi(comm: Comm) -> Any:
    """The module mpi4py.MPI."""
    if not isinstance(comm, MPIComm):
        pytest.skip("one process")
    from mpi4py import MPI

    return MPI


def rows_of(comm: Any) -> tuple[Any, Any]:
    part = slice(
        120 * comm.Get_rank() // comm.Get_size(), 120 * (comm.Get_rank() + 1) // comm.Get_size()
    )
    return TABLE.X[part], TABLE.y[part]


def expected() -> str:
    return mpigd.train((TABLE.X, TABLE.y), comm=SelfComm(), **RIDGE).digest


def test_all_ranks(mpi: Any) -> None:
    digests = {
        mpigd.train(rows_of(mpi.COMM_WORLD), comm=mpi.COMM_WORLD, **RIDGE).digest for _ in range(3)
    }
    assert digests == {expected()}


def test_parts_of_the_ranks_at_the_same_time(mpi: Any) -> None:
    """Each part trains on all rows, and one part more often than the other.

    Neither waits for the other.
    """
    part = mpi.COMM_WORLD.Split(mpi.COMM_WORLD.Get_rank() % 2, -mpi.COMM_WORLD.Get_rank())
    for _ in range(1 + mpi.COMM_WORLD.Get_rank() % 2):
        assert mpigd.train(rows_of(part), comm=part, **RIDGE).digest == expected()
    part.Free()


def test_a_rank_that_is_none_of_it(mpi: Any) -> None:
    first = mpi.COMM_WORLD.Get_rank() == 0
    alone = mpi.COMM_WORLD.Split(0 if first else mpi.UNDEFINED, 0)
    if first:
        assert mpigd.train(rows_of(alone), comm=alone, **RIDGE).digest == expected()
        alone.Free()
    else:
        with pytest.raises(
            UsageError,
            match="this process is no rank of that communicator, and is not to make the call",
        ):
            mpigd.train(rows_of(mpi.COMM_SELF), comm=alone)


def test_other_functions(mpi: Any, comm: Comm, tmp_path: Path) -> None:
    files = mpi.COMM_WORLD.bcast(write(TABLE, tmp_path, 2))
    model = mpigd.train(files, comm=mpi.COMM_WORLD, **RIDGE)
    own = Config(threads=1)
    assert evaluate(model, files, own, mpi.COMM_WORLD) == evaluate(model, files, own, SelfComm())
    assert (
        predict(model, files, Targets(str(tmp_path / "predictions.h5")), own, mpi.COMM_WORLD) == 120
    )
    found = mpigd.cv(rows_of(mpi.COMM_WORLD), "1e-3,1e-1", 3, loss="logistic", comm=mpi.COMM_WORLD)
    assert (
        found.plain()
        == mpigd.cv((TABLE.X, TABLE.y), "1e-3,1e-1", 3, loss="logistic", comm=SelfComm()).plain()
    )


def test_messages_of_the_program_are_its_own(mpi: Any) -> None:
    """Some are under way, of every tag that ours may have, while a model is trained."""
    theirs, size = mpi.COMM_WORLD, mpi.COMM_WORLD.Get_size()
    after, before = (theirs.Get_rank() + 1) % size, (theirs.Get_rank() - 1) % size
    sent = [theirs.Isend(np.full(3, float(theirs.Get_rank())), after, tag) for tag in range(3)]
    assert mpigd.train(rows_of(theirs), comm=theirs, **RIDGE).digest == expected()
    assert mpigd.train(rows_of(theirs), **RIDGE).digest == expected()
    for tag in range(3):
        got = np.zeros(3)
        theirs.Recv(got, before, tag)
        assert got.tolist() == [before] * 3
    mpi.Request.Waitall(sent)


def test_ours_is_made_once_and_freed_with_theirs(mpi: Any) -> None:
    """Libraries have room for some 2,000 communicators."""
    for _ in range(3):
        theirs = mpi.COMM_WORLD.Dup()
        ours = session.adopt(theirs)
        if not isinstance(ours, MPIComm):
            pytest.skip("one rank")
        assert all(session.adopt(theirs) is ours for _ in range(5))
        (watch,) = (
            watch for recorder, watch in session._watches.items() if recorder is ours.recorder
        )
        assert watch.is_alive()
        theirs.Free()
        assert ours.recorder.closed
        assert ours._raw == mpi.COMM_NULL
        watch.join(5)
        assert not watch.is_alive()


def test_its_owner_may_use_and_free_it_afterwards(mpi: Any) -> None:
    theirs = mpi.COMM_WORLD.Dup()
    mpigd.train(rows_of(theirs), comm=theirs, **RIDGE)
    total = np.ones(1)
    theirs.Allreduce(mpi.IN_PLACE, total)
    assert total[0] == theirs.Get_size()
    theirs.Free()
    with pytest.raises(UsageError, match=r"comm is MPI\.COMM_NULL"):
        mpigd.train(rows_of(mpi.COMM_WORLD), comm=theirs)


def test_an_error_is_the_same_on_all_ranks_and_ends_nothing(mpi: Any) -> None:
    X, y = rows_of(mpi.COMM_WORLD)
    if mpi.COMM_WORLD.Get_rank() == mpi.COMM_WORLD.Get_size() - 1:
        y = np.full(y.size, np.nan)
    with pytest.raises(mpigd.errors.DataError, match=r"y\[0\] is nan"):
        mpigd.train((X, y), comm=mpi.COMM_WORLD, **RIDGE)
    assert mpigd.train(rows_of(mpi.COMM_WORLD), comm=mpi.COMM_WORLD, **RIDGE).digest == expected()


def test_ranks_that_call_other_functions(mpi: Any) -> None:
    rank, size = mpi.COMM_WORLD.Get_rank(), mpi.COMM_WORLD.Get_size()
    if size == 1:
        pytest.skip("one rank")
    with pytest.raises(
        LaunchError,
        match=r"rank 0 calls mpigd\.train, rank 1 calls mpigd\.cv: all ranks must call the same",
    ):
        if rank == 1:
            mpigd.cv(rows_of(mpi.COMM_WORLD), comm=mpi.COMM_WORLD, loss="logistic")
        else:
            mpigd.train(rows_of(mpi.COMM_WORLD), comm=mpi.COMM_WORLD, **RIDGE)


def test_an_intercommunicator(mpi: Any) -> None:
    """The advice is followed too."""
    rank, size = mpi.COMM_WORLD.Get_rank(), mpi.COMM_WORLD.Get_size()
    if size == 1:
        pytest.skip("one rank")
    half = mpi.COMM_WORLD.Split(rank % 2, rank)
    both = half.Create_intercomm(0, mpi.COMM_WORLD, 1 - rank % 2)
    with pytest.raises(
        UsageError, match=r"comm is an intercommunicator, of two groups: pass comm\.Merge\(\)"
    ):
        mpigd.train(rows_of(mpi.COMM_WORLD), comm=both)
    merged = both.Merge()
    assert mpigd.train(rows_of(merged), comm=merged, **RIDGE).digest == expected()
    for made in (merged, both, half):
        made.Free()


@pytest.mark.parametrize("wrong", [3, "world", object()])
def test_what_is_no_communicator(wrong: Any, comm: Comm) -> None:
    with pytest.raises(
        UsageError, match=f"comm is of type {type(wrong).__name__}: pass a communicator of mpi4py"
    ):
        mpigd.train((TABLE.X, TABLE.y), comm=wrong)
    assert adopted_comm.known(comm) is comm
