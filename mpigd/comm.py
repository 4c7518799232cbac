"""The one door to MPI: communicators that move numpy buffers, never pickles.

``connect()`` gives an ``MPIComm`` under a launcher and a ``SelfComm`` otherwise, in which case mpi4py is
not imported at all. Both have the same methods, so the rest of the program does not know which it holds.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from mpigd.errors import BY_CODE, LaunchError, MpigdError

Array = np.ndarray[Any, Any]

# (rank, size) as each launcher tells its children. The launcher's own variables come before Slurm's,
# which an mpiexec inside a batch job inherits.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
LAST_WORDS = 0.5  # seconds for the launcher to pass on what ranks have just said, before it ends them and drops the rest
SLICE = 1 << 28  # elements per MPI call: counts above 2**31 - 1 fail in many MPI libraries


def launched(env: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, size) according to the launcher's environment variables, or None without a launcher."""
    for rank, size in LAUNCHERS:
        if rank in env and size in env:
            return int(env[rank]), int(env[size])
    return None


class Comm(Protocol):
    """What the program asks of a communicator. Every method but send and recv is collective."""

    rank: int
    size: int
    waited: float  # seconds this rank has spent in allreduce

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


class SelfComm:
    """One process: every collective is the identity."""

    rank = 0
    size = 1
    waited = 0.0

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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class MPIComm:
    """An MPI communicator. Buffers only: the lower-case methods of mpi4py would pickle."""

    def __init__(self, mpi: Any, raw: Any) -> None:
        self._mpi, self._raw, self._in_place = mpi, raw, mpi.IN_PLACE
        self.rank: int = raw.Get_rank()
        self.size: int = raw.Get_size()
        self.waited = 0.0
        self._ops = {"sum": mpi.SUM, "max": mpi.MAX, "min": mpi.MIN}

    def allreduce(self, buffer: Array, op: str = "sum") -> None:
        begin = time.perf_counter()
        flat = _flat(buffer)
        if flat.size <= SLICE:
            self._raw.Allreduce(self._in_place, flat, self._ops[op])
        else:
            for start in range(0, flat.size, SLICE):
                self._raw.Allreduce(self._in_place, flat[start : start + SLICE], self._ops[op])
        self.waited += time.perf_counter() - begin

    def bcast(self, buffer: Array, root: int = 0) -> None:
        flat = _flat(buffer)
        for start in range(0, flat.size, SLICE):
            self._raw.Bcast(flat[start : start + SLICE], root)

    def allgather(self, buffer: Array) -> Array:
        gathered = np.empty((self.size, *buffer.shape), buffer.dtype)
        self._raw.Allgather(np.ascontiguousarray(buffer), gathered)
        return gathered

    def alltoallv(self, buffer: Array, counts: Array) -> tuple[Array, Array]:
        counts = np.asarray(counts, dtype=np.int64)
        incoming = np.empty(self.size, dtype=np.int64)
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
        return received, incoming

    def send(self, buffer: Array, dest: int) -> None:
        self._slices(self._raw.Send, buffer, dest)

    def recv(self, buffer: Array, source: int) -> None:
        self._slices(self._raw.Recv, _flat(buffer), source)

    def split(self, color: int) -> Comm:
        return MPIComm(self._mpi, self._raw.Split(color, self.rank))

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(LAST_WORDS)
        self._mpi.COMM_WORLD.Abort(code)

    def _slices(self, call: Any, rows: Array, peer: int) -> list[Any]:
        raw = np.ascontiguousarray(rows).reshape(-1).view(np.uint8) if rows.size else rows.reshape(-1).view(np.uint8)
        return [call(raw[start : start + SLICE], peer) for start in range(0, raw.size, SLICE)]


def _flat(buffer: Array) -> Array:
    """A one-dimensional view for MPI to fill: reshape would silently copy a strided buffer, and the result be lost."""
    if not buffer.flags.c_contiguous:
        raise ValueError(f"a buffer of shape {buffer.shape} that is not C-contiguous cannot be filled")
    return buffer.reshape(-1)


_world: MPIComm | None = None


def library_version() -> str | None:
    """The MPI library in use, or None if this process does not take part in MPI."""
    if _world is None:
        return None
    from mpi4py import MPI

    return str(MPI.Get_library_version().splitlines()[0].strip("\0 "))


def end_all(code: int) -> None:
    """End every process of the job, if this one takes part in MPI; an error known to one rank alone must."""
    if _world is not None:
        _world.abort(code)


def leave() -> None:
    """Meet once more before the ranks exit with an error: a launcher that sees one gone may drop what another prints."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _world is not None:
        _world.allreduce(np.zeros(1))


def connect() -> Comm:
    """The world's communicator: MPI under a launcher, else a SelfComm.

    Raises LaunchError (exit code 69) when the launcher started more processes than MPI can see, the sign of
    an mpiexec or srun that does not belong to the MPI library: every process would train alone as rank 0 of 1.
    """
    global _world
    told = launched()
    if told is None:
        return SelfComm()
    from mpi4py import MPI

    comm = MPIComm(MPI, MPI.COMM_WORLD)
    if comm.size != told[1]:
        library = MPI.Get_library_version().splitlines()[0].strip("\0 ")
        raise LaunchError(
            f"the launcher started {told[1]} processes, but MPI ({library}) sees {comm.size}: "
            "use the mpiexec of that library, or srun --mpi=pmi2 / --mpi=pmix"
        )
    _world = comm
    _abort_on_uncaught(comm)
    return comm


def _abort_on_uncaught(comm: Comm) -> None:
    """Let an uncaught exception end the world: the other ranks would wait in a collective for ever."""

    def hook(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        # At once: written line by line, the tracebacks of several ranks would mix.
        sys.stderr.write("".join(traceback.format_exception(kind, value, trace)))
        comm.abort(value.code if isinstance(value, MpigdError) else MpigdError.code)

    sys.excepthook = hook


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
        text = (str(error) if isinstance(error, MpigdError) else _trace(error, root)).encode(errors="surrogatepass")
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
