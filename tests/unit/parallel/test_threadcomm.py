"""The virtual ranks of the tests.

A failure on one of them ends all of them at once, with its reason.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from mpigd.parallel.comm import Comm
from tests.launch import CEILING
from tests.threadcomm import Aborted, run

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def ends_in(
    expected: type[BaseException], text: str, size: int, function: Callable[[Comm], object]
) -> None:
    begin = time.monotonic()
    with pytest.raises(expected, match=text):
        run(size, function)
    assert time.monotonic() - begin < CEILING
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank ")], (
        "threads left behind"
    )


def test_results_come_in_rank_order() -> None:
    def work(comm: Comm, base: int) -> int:
        time.sleep(0.01 * (comm.size - comm.rank))
        return base + comm.rank

    assert run(4, work, 10) == [10, 11, 12, 13]


def test_reductions_go_in_rank_order() -> None:
    """Reductions sum in ascending order of ranks, whichever rank comes first.

    The value of this sum depends on the order.
    """
    values = [1e16, 1.0, -1e16, 1.0]

    def work(comm: Comm) -> float:
        total = np.array([values[comm.rank]])
        time.sleep(0.002 * ((comm.rank * 3) % 4))
        comm.allreduce(total)
        return float(total[0])

    expected = ((values[0] + values[1]) + values[2]) + values[3]
    assert [run(4, work) for _ in range(10)] == [[expected] * 4] * 10


def test_a_buffer_may_change_right_after_a_collective() -> None:
    def work(comm: Comm) -> None:
        for step in range(200):
            buffer = np.full(3, float(step + comm.rank))
            gathered = comm.allgather(buffer)
            buffer[:] = np.nan
            np.testing.assert_array_equal(gathered[:, 0], step + np.arange(comm.size))

    run(5, work)


def test_the_failing_rank_is_raised_while_the_others_wait() -> None:
    def work(comm: Comm) -> None:
        if comm.rank == 2:
            raise ValueError("row 7")
        comm.allreduce(np.ones(1))

    ends_in(ValueError, "row 7", 4, work)
    with pytest.raises(ValueError) as caught:
        run(4, work)
    assert caught.value.__notes__ == ["on virtual rank 2 of 4"]


def test_the_lowest_of_several_failing_ranks_is_raised() -> None:
    def work(comm: Comm) -> None:
        comm.allreduce(np.ones(1))
        if comm.rank > 0:
            time.sleep(0.02 * (comm.size - comm.rank))  # the highest fails first
            raise ValueError(f"rank {comm.rank}")

    ends_in(ValueError, "rank 1", 4, work)


def test_a_failure_reaches_ranks_in_a_part_of_the_world() -> None:
    def work(comm: Comm) -> None:
        half = comm.split(comm.rank % 2)
        if comm.rank == 3:
            raise ValueError("row 7")
        for _ in range(3):
            half.allreduce(np.ones(1))
        comm.allreduce(np.ones(1))

    ends_in(ValueError, "row 7", 4, work)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            lambda comm: comm.allreduce(np.ones(3)),
            r"rank 0, 2 calls allreduce sum float64 \(2,\); rank 1 .* \(3,\)",
        ),
        (
            lambda comm: comm.allreduce(np.ones(2, "int64")),
            r"rank 1 calls allreduce sum int64 \(2,\)",
        ),
        (lambda comm: comm.allreduce(np.ones(2), "max"), "rank 1 calls allreduce max"),
        (lambda comm: comm.bcast(np.ones(2)), "rank 1 calls bcast root 0"),
        (lambda comm: comm.allgather(np.ones(2)), "rank 1 calls allgather"),
        (lambda comm: comm.alltoallv(np.ones(3), np.ones(3, "int64")), "rank 1 calls alltoallv"),
        (lambda comm: comm.split(0), "rank 1 calls split"),
    ],
)
def test_ranks_that_call_different_collectives(other: Callable[[Comm], object], text: str) -> None:
    ends_in(
        AssertionError,
        text,
        3,
        lambda comm: other(comm) if comm.rank == 1 else comm.allreduce(np.ones(2)),
    )


def test_broadcasts_from_different_roots() -> None:
    ends_in(
        AssertionError,
        "bcast root 0.*bcast root 1",
        2,
        lambda comm: comm.bcast(np.ones(1), comm.rank),
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda comm: comm.allreduce(np.ones(2, "float32")), "allreduce of float32"),
        (
            lambda comm: comm.allreduce(np.ones((2, 2))[:, 1]),
            "allreduce into a buffer it cannot fill",
        ),
        (lambda comm: comm.bcast(np.ones((2, 2))[:, 1]), "bcast into a buffer it cannot fill"),
        (lambda comm: comm.bcast(np.ones(2), 2), "bcast from rank 2 of 2"),
        (
            lambda comm: comm.alltoallv(np.ones(3), np.array([1, 1])),
            r"alltoallv of 3 rows .* counts \[1, 1\]",
        ),
        (lambda comm: comm.alltoallv(np.ones(3), np.array([4, -1])), "alltoallv of 3 rows"),
        (lambda comm: comm.send(np.ones(3), comm.rank), "send to rank"),
    ],
)
def test_what_the_contract_does_not_allow(call: Callable[[Comm], object], text: str) -> None:
    ends_in(AssertionError, text, 2, call)


def test_a_mistake_counts_even_if_the_program_catches_it() -> None:
    def work(comm: Comm) -> None:
        with contextlib.suppress(Exception):
            comm.allreduce(np.ones(1 + comm.rank))

    ends_in(AssertionError, "ranks differ", 2, work)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            lambda comm: comm.rank or comm.allreduce(np.ones(1)),
            "rank 0 waits in allreduce.*; rank 1 has returned",
        ),
        (
            lambda comm: comm.recv(np.ones(1), 1 - comm.rank),
            "rank 0 waits in recv from 1; rank 1 waits in recv from 0",
        ),
        (lambda comm: comm.send(np.ones(1), 1 - comm.rank), "rank 0 waits in send to 1"),
        (
            lambda comm: comm.split(comm.rank).rank or comm.rank or comm.split(0),
            "rank 0 waits in split",
        ),
    ],
)
def test_a_deadlock_is_seen_at_once(function: Callable[[Comm], object], text: str) -> None:
    ends_in(AssertionError, f"deadlock: .*{text}", 2, function)


def test_a_message_of_another_shape() -> None:
    def work(comm: Comm) -> None:
        if comm.rank == 0:
            comm.send(np.ones(3), 1)
        else:
            comm.recv(np.ones(4), 0)

    ends_in(AssertionError, r"recv of float64 \(4,\) from 0, which sent float64 \(3,\)", 2, work)


def test_abort_ends_all_with_its_code() -> None:
    def work(comm: Comm) -> None:
        if comm.rank == 1:
            comm.abort(75)
        comm.allreduce(np.ones(1))

    with pytest.raises(Aborted) as caught:
        run(3, work)
    assert caught.value.code == 75


def test_a_rank_that_computes_for_ever() -> None:
    done = threading.Event()

    def stuck(comm: Comm) -> None:
        if comm.rank == 1:
            done.wait(20)
        comm.allreduce(np.ones(1))

    with pytest.raises(AssertionError, match=r"no end after 0.2 s(.|\n)*in stuck"):
        run(2, stuck, limit=0.2)
    done.set()
