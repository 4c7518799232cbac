"""N virtual ranks as threads of one process, a communicator for tests without MPI.

``run(size, function, *args)`` calls ``function(comm, *args)`` on every rank. It is stricter than
MPI: if ranks call different collectives, or wait for one another for ever, the run ends at once in
an AssertionError that names them. No time limit is needed for that: a deadlock is the state in
which every rank waits and none may go on.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from mpigd.parallel.comm import Comm

Array = np.ndarray[Any, Any]
T = TypeVar("T")
OPS: dict[str, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class Aborted(BaseException):
    """A virtual rank called comm.abort(code).

    It is not an Exception, so that code under test does not catch it.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"abort({code})")
        self.code = code


class _Broken(BaseException):
    """Another rank failed while this one waited for it."""


class _World:
    """What the threads share: one lock, who waits for what, and why the world ended."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.waiting: dict[int, tuple[Callable[[], bool], str]] = {}
        self.results: dict[int, Any] = {}
        self.failures: dict[int, BaseException] = {}
        self.broken: BaseException | None = None

    def end(self, error: BaseException) -> BaseException:
        """Break every wait of every rank; the first reason counts."""
        with self.changed:
            self.broken = self.broken or error
            self.changed.notify_all()
        return error

    def check(self) -> None:
        if self.broken or self.failures:
            raise _Broken

    def wait(self, rank: int, ready: Callable[[], bool], doing: str) -> None:
        """Sleep until `ready()`; the caller holds the lock."""
        self.waiting[rank] = (ready, doing)
        self._look_for_deadlock()
        self.changed.wait_for(lambda: ready() or self.broken or self.failures)
        del self.waiting[rank]
        if not ready():
            raise _Broken

    def _look_for_deadlock(self) -> None:
        if (
            self.broken
            or self.failures
            or not self.waiting
            or len(self.waiting) + len(self.results) < self.size
        ):
            return
        if not any(ready() for ready, _ in self.waiting.values()):
            doing = {rank: f"waits in {doing}" for rank, (_, doing) in self.waiting.items()}
            doing.update(dict.fromkeys(self.results, "has returned"))
            self.end(AssertionError(f"deadlock: {_by_rank(doing)}"))

    def live(self, rank: int, work: Callable[[], Any]) -> None:
        """The body of one thread."""
        try:
            result = work()
        except _Broken:
            return
        except BaseException as error:
            error.add_note(f"on virtual rank {rank} of {self.size}")
            with self.changed:
                self.failures[rank] = error
                self.changed.notify_all()
        else:
            with self.changed:
                self.results[rank] = result
                self._look_for_deadlock()
                self.changed.notify_all()


def _by_rank(words: dict[int, str]) -> str:
    """{0: "a", 1: "b", 2: "a"} as "rank 0, 2 a; rank 1 b"."""
    ranks: dict[str, list[str]] = {}
    for rank in sorted(words):
        ranks.setdefault(words[rank], []).append(str(rank))
    return "; ".join(f"rank {', '.join(who)} {what}" for what, who in ranks.items())


@dataclass
class _Message:
    content: Array
    taken: bool = False


@dataclass
class _Group:
    """The ranks of one communicator, and the collective that they are in."""

    world: _World
    members: list[int]  # numbers in the world
    round: int = 0
    arrived: dict[int, tuple[str, Any]] = field(default_factory=dict)
    complete: list[Any] = field(default_factory=list)
    children: dict[tuple[int, int], _Group] = field(default_factory=dict)
    messages: dict[tuple[int, int], deque[_Message]] = field(default_factory=dict)

    def meet(self, rank: int, call: str, payload: Any) -> list[Any]:
        """Return every member's payload in rank order, once all are in the same `call`.

        Payloads are copies: nobody waits for the readers.
        """
        world = self.world
        with world.changed:
            world.check()
            now = self.round
            self.arrived[rank] = (call, payload)
            if len(self.arrived) < len(self.members):
                world.wait(self.members[rank], lambda: self.round > now, call)
                return self.complete
            calls = {self.members[r]: f"calls {self.arrived[r][0]}" for r in self.arrived}
            if len(set(calls.values())) > 1:
                raise world.end(AssertionError(f"ranks differ in a collective: {_by_rank(calls)}"))
            self.complete = [self.arrived[r][1] for r in range(len(self.members))]
            self.arrived = {}
            self.round += 1
            world.changed.notify_all()
            return self.complete


class ThreadComm:
    """A communicator between threads.

    Reductions go in rank order, so that results do not depend on timing.
    """

    def __init__(self, group: _Group, rank: int) -> None:
        self._group, self._world = group, group.world
        self.rank, self.size = rank, len(group.members)
        self.waited, self.epoch = 0.0, 0

    def allreduce(self, buffer: Array, op: str = "sum") -> None:
        self._demand(buffer.dtype in (np.float64, np.int64), f"allreduce of {buffer.dtype}")
        self._contiguous("allreduce", buffer)
        parts = self._group.meet(self.rank, f"allreduce {op} {_shape(buffer)}", buffer.copy())
        total = parts[0].copy()
        for part in parts[1:]:
            OPS[op](total, part, out=total)
        buffer[...] = total

    def bcast(self, buffer: Array, root: int = 0) -> None:
        self._demand(0 <= root < self.size, f"bcast from rank {root} of {self.size}")
        self._contiguous("bcast", buffer)
        call = f"bcast root {root} {_shape(buffer)}"
        buffer[...] = self._group.meet(
            self.rank, call, buffer.copy() if self.rank == root else None
        )[root]

    def allgather(self, buffer: Array) -> Array:
        return np.stack(self._group.meet(self.rank, f"allgather {_shape(buffer)}", buffer.copy()))

    def alltoallv(self, buffer: Array, counts: Array) -> tuple[Array, Array]:
        counts = np.array(counts, dtype=np.int64)
        self._demand(
            counts.shape == (self.size,)
            and bool((counts >= 0).all())
            and counts.sum() == len(buffer),
            f"alltoallv of {len(buffer)} rows to {self.size} ranks with counts {counts.tolist()}",
        )
        call = f"alltoallv {buffer.dtype} rows {buffer.shape[1:]}"
        outgoing = np.split(buffer.copy(), np.cumsum(counts)[:-1])
        pieces = [parts[self.rank] for parts in self._group.meet(self.rank, call, outgoing)]
        return np.concatenate(pieces), np.array([len(piece) for piece in pieces], dtype=np.int64)

    def send(self, buffer: Array, dest: int) -> None:
        """Send a buffer and wait for the receiver, as MPI may do.

        Code that relies on buffering therefore deadlocks here for all sizes, not only for large
        messages.
        """
        self._demand(
            0 <= dest < self.size and dest != self.rank, f"send to rank {dest} of {self.size}"
        )
        message = _Message(buffer.copy())
        with self._world.changed:
            self._world.check()
            self._group.messages.setdefault((self.rank, dest), deque()).append(message)
            self._world.changed.notify_all()
            self._world.wait(
                self._number, lambda: message.taken, f"send to {self._group.members[dest]}"
            )

    def recv(self, buffer: Array, source: int) -> None:
        self._demand(
            0 <= source < self.size and source != self.rank,
            f"recv from rank {source} of {self.size}",
        )
        self._contiguous("recv", buffer)
        with self._world.changed:
            self._world.check()
            queue = self._group.messages.setdefault((source, self.rank), deque())
            self._world.wait(
                self._number, lambda: bool(queue), f"recv from {self._group.members[source]}"
            )
            message = queue.popleft()
            sent = _shape(message.content)
            self._demand(
                sent == _shape(buffer), f"recv of {_shape(buffer)} from {source}, which sent {sent}"
            )
            buffer[...] = message.content
            message.taken = True
            self._world.changed.notify_all()

    def split(self, color: int) -> Comm:
        colors = self._group.meet(self.rank, "split", color)
        ranks = [rank for rank in range(self.size) if colors[rank] == color]
        with (
            self._world.changed
        ):  # whoever comes first makes the group; the round tells this split from the next
            group = self._group.children.setdefault(
                (self._group.round, color),
                _Group(self._world, [self._group.members[rank] for rank in ranks]),
            )
        return ThreadComm(group, ranks.index(self.rank))

    def record(self, step: int) -> None:
        pass

    def abort(self, code: int) -> None:
        raise self._world.end(Aborted(code))

    @property
    def _number(self) -> int:
        return self._group.members[self.rank]

    def _contiguous(self, call: str, buffer: Array) -> None:
        self._demand(
            buffer.flags.c_contiguous and buffer.flags.writeable,
            f"{call} into a buffer it cannot fill",
        )

    def _demand(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise self._world.end(AssertionError(f"rank {self._number}: {otherwise}"))


def _shape(buffer: Array) -> str:
    return f"{buffer.dtype} {buffer.shape}"


def run(size: int, function: Callable[..., T], *args: Any, limit: float = 300.0) -> list[T]:
    """Call ``function(comm, *args)`` on `size` virtual ranks; their results in rank order.

    Raises what the lowest failing rank raised; AssertionError when ranks disagree, wait for each
    other for ever, or compute longer than `limit` seconds; Aborted when one called comm.abort.
    """
    world = _World(size)
    group = _Group(world, list(range(size)))
    threads = []
    for rank in range(size):
        work = _bind(function, ThreadComm(group, rank), args)
        threads.append(
            threading.Thread(target=world.live, args=(rank, work), name=f"rank {rank}", daemon=True)
        )
    for thread in threads:
        thread.start()
    with world.changed:
        world.changed.wait_for(
            lambda: len(world.results) == size or world.broken or world.failures, limit
        )
    failed = world.broken or world.failures
    for thread in threads:
        thread.join(
            2.0 if failed else 0.1
        )  # one that computes on for a while is left behind: it ends with the process
    if world.broken:
        raise world.broken
    if world.failures:
        raise world.failures[min(world.failures)]
    if len(world.results) < size:
        raise AssertionError(
            f"no end after {limit:g} s\n" + "".join(_stack(thread) for thread in threads)
        )
    return [world.results[rank] for rank in range(size)]


def _bind(function: Callable[..., T], comm: ThreadComm, args: tuple[Any, ...]) -> Callable[[], T]:
    return lambda: function(comm, *args)


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread.name}:\n" + "".join(traceback.format_stack(frame)) if frame is not None else ""
