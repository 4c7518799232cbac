"""The one door to MPI: communicators that move numpy buffers, never pickles.

``MPIComm`` and, for one process, ``SelfComm`` have the same methods, so the rest of the program does not know which it holds;
mpigd/parallel/session.py decides, and without a launcher mpi4py is not imported at all.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from mpigd.errors import BY_CODE, LaunchError, MpigdError
from mpigd.parallel.flight_recorder import Recorder
from mpigd.parallel.mpi_start import end_world, initialise
from mpigd.parallel.standard_streams import flush

Array = np.ndarray[Any, Any]

SLICE = 1 << 28  # elements per MPI call: counts above 2**31 - 1 fail in many MPI libraries


@runtime_checkable
class Comm(Protocol):
    """What the program asks of a communicator. Every method but send and recv is collective."""

    rank: int
    size: int
    waited: float  # seconds this rank has spent in allreduce
    epoch: int  # how often ranks have died, and the others gone on

    def allreduce(self, buffer: Array, op: str = "sum") -> None:
        """Replace `buffer` (any shape, float64 or int64, C-contiguous) by its `op` (sum, max, min) over ranks."""

    def bcast(self, buffer: Array, root: int = 0) -> None:
        """Overwrite `buffer` with that of `root`."""

    def allgather(self, buffer: Array) -> Array:
        """Stack every rank's `buffer` (equal shape and dtype): shape (size, *buffer.shape)."""

    def alltoallv(self, buffer: Array, counts: Array) -> tuple[Array, Array]:
        """Send `counts[q]` consecutive rows of `buffer` to each rank q; returns (rows received in rank order, counts)."""

    def send(self, buffer: Array, dest: int) -> None:
        """Send a buffer whose shape and dtype the receiver knows."""

    def recv(self, buffer: Array, source: int) -> None:
        """Fill `buffer` with what `source` sends."""

    def split(self, color: int) -> Comm:
        """The communicator of all ranks that give the same `color`, in rank order."""

    def abort(self, code: int) -> None:
        """End every process of the job with exit code `code`."""

    def record(self, step: int) -> None:
        """What follows belongs to this step, for the flight recorder. Not collective."""


class SelfComm:
    """One process: every collective is the identity."""

    rank = 0
    size = 1
    waited = 0.0
    epoch = 0

    def allreduce(self, buffer: Array, op: str = "sum") -> None:
        pass

    def bcast(self, buffer: Array, root: int = 0) -> None:
        pass

    def allgather(self, buffer: Array) -> Array:
        return buffer[np.newaxis].copy()

    def alltoallv(self, buffer: Array, counts: Array) -> tuple[Array, Array]:
        return buffer.copy(), np.array(counts, dtype=np.int64)

    def send(self, buffer: Array, dest: int) -> None:
        raise LaunchError("one process has nobody to send to")

    def recv(self, buffer: Array, source: int) -> None:
        raise LaunchError("one process has nobody to receive from")

    def split(self, color: int) -> Comm:
        return self

    def abort(self, code: int) -> None:
        flush()
        os._exit(code)

    def record(self, step: int) -> None:
        pass


class MPIComm:
    """An MPI communicator. Buffers only: the lower-case methods of mpi4py would pickle."""

    epoch = 0

    def __init__(self, mpi: Any, raw: Any, recorder: Recorder | None = None) -> None:
        self._mpi, self._raw, self._in_place = mpi, raw, mpi.IN_PLACE
        self.rank: int = raw.Get_rank()
        self.size: int = raw.Get_size()
        self.waited = 0.0
        self.recorder = recorder or Recorder(self.rank, self.size)
        self._ops = {"sum": mpi.SUM, "max": mpi.MAX, "min": mpi.MIN}

    def allreduce(self, buffer: Array, op: str = "sum") -> None:
        begin = time.perf_counter()
        flat = _flat(buffer)
        self.recorder.enter(b"allreduce", flat.nbytes)
        if flat.size <= SLICE:
            self._raw.Allreduce(self._in_place, flat, self._ops[op])
        else:
            for start in range(0, flat.size, SLICE):
                self._raw.Allreduce(self._in_place, flat[start : start + SLICE], self._ops[op])
        self.recorder.leave()
        self.waited += time.perf_counter() - begin

    def bcast(self, buffer: Array, root: int = 0) -> None:
        flat = _flat(buffer)
        self.recorder.enter(b"bcast", flat.nbytes)
        for start in range(0, flat.size, SLICE):
            self._raw.Bcast(flat[start : start + SLICE], root)
        self.recorder.leave()

    def allgather(self, buffer: Array) -> Array:
        gathered = np.empty((self.size, *buffer.shape), buffer.dtype)
        self.recorder.enter(b"allgather", gathered.nbytes)
        self._raw.Allgather(np.ascontiguousarray(buffer), gathered)
        self.recorder.leave()
        return gathered

    def alltoallv(self, buffer: Array, counts: Array) -> tuple[Array, Array]:
        counts = np.asarray(counts, dtype=np.int64)
        incoming = np.empty(self.size, dtype=np.int64)
        self.recorder.enter(b"alltoallv", buffer.nbytes)
        self._raw.Alltoall(counts, incoming)
        received = np.empty((int(incoming.sum()), *buffer.shape[1:]), buffer.dtype)
        # One message per pair and slice, by bytes: counts of whole rows would overflow 32-bit integers first.
        starts = np.concatenate([[0], np.cumsum(counts)])
        ends = np.concatenate([[0], np.cumsum(incoming)])
        requests = []
        for peer in range(self.size):
            requests += self._slices(self._raw.Irecv, received[ends[peer] : ends[peer + 1]], peer)
        for peer in range(self.size):
            requests += self._slices(self._raw.Isend, buffer[starts[peer] : starts[peer + 1]], peer)
        self._mpi.Request.Waitall(requests)
        self.recorder.leave()
        return received, incoming

    def send(self, buffer: Array, dest: int) -> None:
        self.recorder.wait()
        self._slices(self._raw.Send, buffer, dest)
        self.recorder.go()

    def recv(self, buffer: Array, source: int) -> None:
        self.recorder.wait()
        self._slices(self._raw.Recv, _flat(buffer), source)
        self.recorder.go()

    def split(self, color: int) -> Comm:
        self.recorder.enter(b"split", 0)
        part = self._raw.Split(color, self.rank)
        self.recorder.leave()
        return MPIComm(self._mpi, part, self.recorder)

    def record(self, step: int) -> None:
        self.recorder.mark(step)

    def abort(self, code: int) -> None:
        end_world(code)

    def pulse(self) -> None:
        """A sign of life: called twice a second, from a thread."""

    def finish(self) -> None:
        """End MPI for this process, unless that is done."""
        if not self.over():
            self._mpi.Finalize()

    def over(self) -> bool:
        """Whether MPI has ended for this process."""
        return bool(self._mpi.Is_finalized())

    def free(self) -> None:
        """Give the communicator back. Collective."""
        self.recorder.closed = True
        self._raw.Free()

    @property
    def library(self) -> str:
        """The name and version of the MPI library."""
        return str(self._mpi.Get_library_version().splitlines()[0].strip("\0 "))

    def _slices(self, call: Any, rows: Array, peer: int) -> list[Any]:
        raw = (
            np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
            if rows.size
            else rows.reshape(-1).view(np.uint8)
        )
        return [call(raw[start : start + SLICE], peer) for start in range(0, raw.size, SLICE)]


AnyComm = TypeVar("AnyComm", bound=MPIComm)


def _flat(buffer: Array) -> Array:
    """A one-dimensional view for MPI to fill: reshape would silently copy a strided buffer, and the result be lost."""
    if not buffer.flags.c_contiguous:
        raise ValueError(
            f"a buffer of shape {buffer.shape} that is not C-contiguous cannot be filled"
        )
    return buffer if buffer.ndim == 1 else buffer.reshape(-1)


def world(kind: type[AnyComm], recorder: Recorder, finalize: bool = True) -> AnyComm:
    """A communicator of all ranks; of our own, unless `finalize` is off. Only here is MPI initialised."""
    import mpi4py

    if mpi4py.rc.finalize is None or not finalize:  # else as who uses us has it
        mpi4py.rc.finalize = finalize
    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize = False  # it would not let the watch's thread run meanwhile
    from mpi4py import MPI

    recorder.enter(b"MPI's start", 0)
    if not MPI.Is_initialized():
        initialise(MPI, mpi4py.rc)
    recorder.leave()
    return kind(MPI, duplicate(MPI.COMM_WORLD, recorder) if finalize else MPI.COMM_WORLD, recorder)


def duplicate(theirs: Any, recorder: Recorder) -> Any:
    """The same ranks, for messages of ours alone. Collective."""
    recorder.enter(b"dup", 0)
    own = theirs.Dup()
    recorder.leave()
    return own


def agree(comm: Comm, error: BaseException | None) -> None:
    """Raise on all ranks the error of the lowest rank that has one; return on all ranks if none has.

    Collective. Any other exception than a MpigdError arrives as one with its traceback as the text.
    """
    first = np.array([comm.rank if error is not None else comm.size], dtype=np.int64)
    comm.allreduce(first, "min")
    root = int(first[0])
    if root == comm.size:
        return
    text = b""
    if comm.rank == root and error is not None:
        # File names that are no Unicode reach the text as lone surrogates, which a plain encode() refuses.
        text = (str(error) if isinstance(error, MpigdError) else _trace(error, root)).encode(
            errors="surrogatepass"
        )
    head = np.array([len(text), _code(error)], dtype=np.int64)
    comm.bcast(head, root)
    body = np.frombuffer(text.ljust(int(head[0])), dtype=np.uint8).copy()
    comm.bcast(body, root)
    shared = BY_CODE.get(int(head[1]), MpigdError)(body.tobytes().decode(errors="surrogatepass"))
    shared.agreed = True
    raise shared from error


def _code(error: BaseException | None) -> int:
    """The key of the error's kind in BY_CODE; 0 for plain and foreign ones, which must not arrive as a special kind."""
    return error.code if isinstance(error, MpigdError) and type(error) is not MpigdError else 0


def _trace(error: BaseException, rank: int) -> str:
    return f"rank {rank} failed:\n" + "".join(traceback.format_exception(error))


@contextmanager
def together(comm: Comm) -> Iterator[None]:
    """Work that may fail on some ranks only: ``with together(comm): ...``; all ranks leave it the same way.

    The body must not contain a collective: a rank that failed would be missing in it.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    agree(comm, error)


def bcast_bytes(comm: Comm, data: bytes | None) -> bytes:
    """Give every rank the bytes of rank 0."""
    length = np.array([len(data) if comm.rank == 0 and data is not None else 0], dtype=np.int64)
    comm.bcast(length)
    buffer = np.empty(int(length[0]), dtype=np.uint8)
    if comm.rank == 0 and data is not None:
        buffer[:] = np.frombuffer(data, dtype=np.uint8)
    comm.bcast(buffer)
    return buffer.tobytes()
