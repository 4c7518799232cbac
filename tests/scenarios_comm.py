"""What every communicator must do.

The checks run on one process, on virtual ranks and under MPI.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from mpigd.errors import BY_CODE, DataError, MpigdError, ReplicaError, StorageError, UsageError
from mpigd.parallel.comm import Comm, agree, bcast_bytes, together

Array = np.ndarray[Any, Any]
SCENARIOS: dict[str, Callable[[Comm], None]] = {}


def scenario(function: Callable[[Comm], None]) -> Callable[[Comm], None]:
    SCENARIOS[function.__name__] = function
    return function


def numbers(rank: int, shape: tuple[int, ...], dtype: str) -> Array:
    """The contribution of `rank`.

    It has whole numbers, so that every order of additions gives the same sum.
    """
    return np.random.default_rng([rank, *shape]).integers(-1000, 1000, shape).astype(dtype)


@scenario
def allreduce(comm: Comm) -> None:
    for dtype, op, shape in product(
        ("float64", "int64"), ("sum", "max", "min"), ((), (1,), (7,), (4, 5), (0,), (3, 0))
    ):
        parts = [numbers(rank, shape, dtype) for rank in range(comm.size)]
        buffer = parts[comm.rank].copy()
        comm.allreduce(buffer, op)
        expected = getattr(np, op)(np.stack(parts), axis=0)
        np.testing.assert_array_equal(buffer, expected, f"{dtype} {op} {shape}")
        assert buffer.dtype == dtype


@scenario
def allreduce_leaves_the_rest_of_a_buffer_alone(comm: Comm) -> None:
    whole = np.full((6, 4), float(comm.rank + 1))
    comm.allreduce(whole[2:5])
    total = comm.size * (comm.size + 1) / 2
    np.testing.assert_array_equal(whole[2:5], total)
    np.testing.assert_array_equal(whole[[0, 1, 5]], comm.rank + 1)


@scenario
def allreduce_passes_on_what_is_not_finite(comm: Comm) -> None:
    buffer = np.zeros(3)
    if comm.rank == comm.size - 1:
        buffer[:] = np.inf, -np.inf, np.nan
    comm.allreduce(buffer)
    np.testing.assert_array_equal(buffer, [np.inf, -np.inf, np.nan])


@scenario
def bcast(comm: Comm) -> None:
    for root in range(comm.size):
        for dtype, shape in product(
            ("float64", "float32", "float16", "int64", "uint8", "bool"), ((), (5,), (3, 2), (0,))
        ):
            expected = numbers(root, shape, "int64").astype(dtype)
            buffer = expected.copy() if comm.rank == root else np.zeros(shape, dtype)
            comm.bcast(buffer, root)
            np.testing.assert_array_equal(buffer, expected, f"{dtype} {shape} from {root}")


@scenario
def allgather(comm: Comm) -> None:
    for dtype, shape in product(("float64", "float16", "int64", "uint8"), ((), (4,), (2, 3), (0,))):
        expected = np.stack(
            [numbers(rank, shape, "int64").astype(dtype) for rank in range(comm.size)]
        )
        gathered = comm.allgather(expected[comm.rank])
        assert gathered.dtype == dtype
        np.testing.assert_array_equal(gathered, expected, strict=True)


@scenario
def allgather_copies(comm: Comm) -> None:
    mine = np.array([1.0])
    gathered = comm.allgather(mine)
    gathered[:] = -1
    assert mine[0] == 1


@scenario
def allgather_takes_a_column(comm: Comm) -> None:
    table = np.arange(12.0).reshape(4, 3) + comm.rank
    np.testing.assert_array_equal(comm.allgather(table[:, 1])[:, 0], 1.0 + np.arange(comm.size))


def check_alltoallv(
    comm: Comm, count: Callable[[int, int], int], shape: tuple[int, ...], dtype: str
) -> None:
    """Send rows with different numbers from every `source` to every `dest`.

    A row that is lost or moved then shows.
    """

    def rows(source: int, dest: int) -> Array:
        n = count(source, dest)
        first = (source * 10 + dest) * 20 + np.arange(n).reshape(-1, *[1] * len(shape))
        return (first + np.zeros((n, *shape))).astype(dtype)

    outgoing = [rows(comm.rank, dest) for dest in range(comm.size)]
    received, counts = comm.alltoallv(
        np.concatenate(outgoing), np.array([len(part) for part in outgoing])
    )
    expected = np.concatenate([rows(source, comm.rank) for source in range(comm.size)])
    np.testing.assert_array_equal(counts, [count(source, comm.rank) for source in range(comm.size)])
    np.testing.assert_array_equal(received, expected, strict=True)


@scenario
def alltoallv(comm: Comm) -> None:
    patterns: list[Callable[[int, int], int]] = [
        lambda source, dest: 2,
        lambda source, dest: (3 * source + 5 * dest) % 4,  # uneven, with zeros
        lambda source, dest: 7 if dest == 0 else 0,  # all to one
        lambda source, dest: 5 if source == comm.size - 1 else 0,  # all from one
        lambda source, dest: 0,
    ]
    for count, shape, dtype in product(
        patterns, ((), (3,), (2, 2), (0,)), ("float64", "float32", "float16", "int32")
    ):
        check_alltoallv(comm, count, shape, dtype)


@scenario
def alltoallv_copies(comm: Comm) -> None:
    mine = np.arange(float(comm.size))
    received, _ = comm.alltoallv(mine, np.ones(comm.size, dtype=np.int64))
    received[:] = -1
    np.testing.assert_array_equal(mine, np.arange(comm.size))


@scenario
def send_and_receive_in_a_ring(comm: Comm) -> None:
    if comm.size == 1:
        return
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for shape, dtype in (((4, 3), "float64"), ((11,), "uint8"), ((2,), "float16")):
        got = np.zeros(shape, dtype)
        mine, expected = (numbers(rank, shape, "int64").astype(dtype) for rank in (comm.rank, left))
        if comm.rank == 0:
            comm.send(mine, right)
        comm.recv(got, left)
        if comm.rank != 0:
            comm.send(mine, right)
        np.testing.assert_array_equal(got, expected)


@scenario
def send_keeps_the_order_of_messages(comm: Comm) -> None:
    if comm.rank == 0 and comm.size > 1:
        for value in range(5):
            comm.send(np.array([value]), comm.size - 1)
    if comm.rank == comm.size - 1 and comm.size > 1:
        got = np.zeros(1, dtype=np.int64)
        for value in range(5):
            comm.recv(got, 0)
            assert got[0] == value


@scenario
def split(comm: Comm) -> None:
    color = comm.rank % 2
    group = comm.split(color)
    members = list(range(color, comm.size, 2))
    assert (group.rank, group.size) == (members.index(comm.rank), len(members))
    for _ in range(2 + 3 * color):  # the groups are independent: one calls oftener than the other
        total = np.array([comm.rank])
        group.allreduce(total)
        assert total[0] == sum(members)
    alone = comm.split(comm.rank)
    assert (alone.rank, alone.size) == (0, 1)
    total = np.array([comm.rank])
    comm.allreduce(total)
    assert total[0] == sum(range(comm.size))


@scenario
def agree_on_success(comm: Comm) -> None:
    agree(comm, None)
    with together(comm):
        pass


def failing(comm: Comm, errors: dict[int, BaseException]) -> MpigdError:
    """The error with which this rank leaves a block in which the ranks raise `errors`."""
    with pytest.raises(MpigdError) as caught, together(comm):
        if comm.rank in errors:
            raise errors[comm.rank]
    after = np.ones(1)
    comm.allreduce(after)  # all ranks are still in step
    assert after[0] == comm.size
    return caught.value


@scenario
def one_rank_fails(comm: Comm) -> None:
    for culprit in range(comm.size):
        error = failing(comm, {culprit: DataError(f"part{culprit}.h5: no dataset 'y'")})
        assert type(error) is DataError
        assert str(error) == f"part{culprit}.h5: no dataset 'y'"
        assert error.agreed


@scenario
def several_ranks_fail(comm: Comm) -> None:
    errors: dict[int, BaseException] = {
        rank: StorageError(f"rank {rank}") for rank in range(comm.size // 2, comm.size)
    }
    error = failing(comm, errors)
    assert type(error) is StorageError
    assert str(error) == f"rank {comm.size // 2}"


@scenario
def the_lowest_rank_decides_the_exit_code(comm: Comm) -> None:
    errors: dict[int, BaseException] = {comm.size - 1: UsageError("late"), 0: ReplicaError("first")}
    assert failing(comm, errors).code == 76


@scenario
def exit_codes_survive(comm: Comm) -> None:
    for code, kind in BY_CODE.items():
        error = failing(comm, {comm.size - 1: kind("text")})
        assert type(error) is kind
        assert error.code == code


@scenario
def a_foreign_exception_arrives_with_its_traceback(comm: Comm) -> None:
    error = failing(comm, {comm.size - 1: ZeroDivisionError("nothing to share")})
    assert type(error) is MpigdError, "no special kind that somebody may catch as his own"
    assert error.code == 70
    assert f"rank {comm.size - 1} failed" in str(error)
    assert "ZeroDivisionError: nothing to share" in str(error)
    assert "scenarios_comm.py" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError) == (comm.rank == comm.size - 1)


@scenario
def a_lack_of_memory_is_one_sentence(comm: Comm) -> None:
    error = failing(comm, {comm.size - 1: MemoryError("Unable to allocate 3 GiB")})
    assert error.code == 69
    assert str(error).startswith("not enough memory: Unable to allocate 3 GiB (")
    assert isinstance(error.__cause__, MemoryError) == (comm.rank == comm.size - 1)


@scenario
def a_foreign_exception_with_a_code_of_its_own(comm: Comm) -> None:
    class Odd(Exception):
        code = "E17"

    assert failing(comm, {comm.size - 1: Odd("text")}).code == 70


@scenario
def a_text_that_is_no_unicode(comm: Comm) -> None:
    for text in (
        "",
        "grün",
        b"caf\xe9.h5: damaged".decode(errors="surrogateescape"),
        "x" * 100_000,
    ):
        assert str(failing(comm, {comm.size - 1: DataError(text)})) == text


@scenario
def broadcast_bytes(comm: Comm) -> None:
    for data in (b"", b"\0", b"abc" * 5, bytes(range(256)) * 40):
        assert bcast_bytes(comm, data if comm.rank == 0 else None) == data
    assert bcast_bytes(comm, b"not mine" if comm.rank else b"root's") == b"root's"
