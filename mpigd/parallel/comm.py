"""Communicators that send numpy buffers; the only module of mpigd that imports mpi4py.

`MPIComm` wraps a communicator of mpi4py, and `SelfComm` stands for a single process. Both have the
methods of the protocol `Comm`, and all other code depends on `Comm` alone.
mpigd/parallel/session.py chooses between them; without a launcher it takes `SelfComm`, and mpi4py
is not imported at all. Objects are never pickled: only buffers and byte strings are sent.

`agree` and `together` are mpigd's way to handle an error that occurs on some ranks only: they raise
the same error on all ranks, so that no rank waits in a collective that another rank never enters.
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

from mpigd.errors import BY_CODE, LaunchError, MpigdError, out_of_memory
from mpigd.parallel.flight_recorder import Recorder
from mpigd.parallel.mpi_start import end_world, initialise
from mpigd.parallel.standard_streams import flush

Array = np.ndarray[Any, Any]

# Maximal number of elements per MPI call: counts above 2**31 - 1 fail in many MPI libraries.
SLICE = 1 << 28


@runtime_checkable
class Comm(Protocol):
    """The operations that mpigd needs from a communicator.

    All methods are collective, except `send`, `recv`, `abort` and `record`.

    Attributes
    ----------
    rank : int
        The number of this rank, from 0.
    size : int
        The number of ranks.
    waited : float
        Seconds that this rank has spent in `allreduce`.
    epoch : int
        The number of rank failures after which the remaining ranks continued.
    """

    rank: int
    size: int
    waited: float
    epoch: int

    def allreduce(self, buffer: Array, op: str = "sum") -> None:
        """Replace `buffer` by its elementwise sum, maximum or minimum over all ranks.

        Parameters
        ----------
        buffer : ndarray of float64 or int64, any shape, C-contiguous
            The values of this rank; overwritten with the result, which is equal on all ranks.
        op : {"sum", "max", "min"}
            The reduction.
        """

    def bcast(self, buffer: Array, root: int = 0) -> None:
        """Overwrite `buffer` with that of rank `root`; shape and dtype are equal on all ranks."""

    def allgather(self, buffer: Array) -> Array:
        """Return the buffers of all ranks, stacked in rank order: shape (size, *buffer.shape).

        Shape and dtype of `buffer` must be equal on all ranks.
        """

    def alltoallv(self, buffer: Array, counts: Array) -> tuple[Array, Array]:
        """Send `counts[q]` consecutive rows of `buffer` to each rank q.

        Parameters
        ----------
        buffer : ndarray of shape (sum(counts), ...)
            The rows to send, in the order of the ranks that receive them.
        counts : ndarray of int64, shape (size,)
            The number of rows for each rank.

        Returns
        -------
        received : ndarray of shape (sum(incoming), ...)
            The rows from all ranks, in rank order; the dtype is that of `buffer`.
        incoming : ndarray of int64, shape (size,)
            The number of rows from each rank.
        """

    def send(self, buffer: Array, dest: int) -> None:
        """Send `buffer` to rank `dest`, which must call `recv` with the same shape and dtype."""

    def recv(self, buffer: Array, source: int) -> None:
        """Fill `buffer` with the values that rank `source` sends."""

    def split(self, color: int) -> Comm:
        """Return the communicator of all ranks that pass the same `color`, in rank order."""

    def abort(self, code: int) -> None:
        """End every process of the job with exit code `code`."""

    def record(self, step: int) -> None:
        """Set the step number that the flight recorder stores with the next collectives."""


class SelfComm:
    """The communicator of a single process: every collective is the identity."""

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
    """A communicator of mpi4py. Only its upper-case methods are used: the others would pickle."""

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
        # Each pair of ranks exchanges slices of bytes. MPI_Alltoallv would need one count per pair,
        # which can overflow a 32-bit integer.
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
        """Send a sign of life; the watchdog's thread calls this twice a second."""

    def finish(self) -> None:
        """Finalise MPI for this process, unless it is finalised already."""
        if not self.over():
            self._mpi.Finalize()

    def over(self) -> bool:
        """Return whether MPI is finalised for this process."""
        return bool(self._mpi.Is_finalized())

    def free(self) -> None:
        """Free the MPI communicator. Collective."""
        self.recorder.closed = True
        self._raw.Free()

    @property
    def library(self) -> str:
        """The name and the version of the MPI library."""
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
    """Return a one-dimensional view of `buffer` that MPI can fill.

    A strided buffer is refused: reshape would copy it silently, and the result would be lost.
    """
    if not buffer.flags.c_contiguous:
        raise ValueError(
            f"a buffer of shape {buffer.shape} that is not C-contiguous cannot be filled"
        )
    return buffer if buffer.ndim == 1 else buffer.reshape(-1)


def world(kind: type[AnyComm], recorder: Recorder, finalize: bool = True) -> AnyComm:
    """Initialise MPI if necessary and return a communicator of all ranks. Collective.

    Parameters
    ----------
    kind : type
        `MPIComm` or a subclass.
    recorder : Recorder
        The flight recorder of this rank.
    finalize : bool
        Whether MPI is finalised at exit. If it is, the communicator is a duplicate of
        MPI_COMM_WORLD, so that messages of mpigd and of the program cannot meet; otherwise it is
        MPI_COMM_WORLD itself.
    """
    import mpi4py

    if mpi4py.rc.finalize is None or not finalize:  # else keep the program's setting
        mpi4py.rc.finalize = finalize
    if "mpi4py.MPI" not in sys.modules:
        # mpi4py's own initialisation would hold the GIL, and the watchdog's thread could not run.
        mpi4py.rc.initialize = False
    from mpi4py import MPI

    recorder.enter(b"MPI's start", 0)
    if not MPI.Is_initialized():
        initialise(MPI, mpi4py.rc)
    recorder.leave()
    return kind(MPI, duplicate(MPI.COMM_WORLD, recorder) if finalize else MPI.COMM_WORLD, recorder)


def duplicate(theirs: Any, recorder: Recorder) -> Any:
    """Return a duplicate of the communicator `theirs` for mpigd's messages alone. Collective.

    Parameters
    ----------
    theirs : mpi4py.MPI.Intracomm
        The communicator to duplicate.
    recorder : Recorder
        The flight recorder of this rank.
    """
    recorder.enter(b"dup", 0)
    own = theirs.Dup()
    recorder.leave()
    return own


def agree(comm: Comm, error: BaseException | None) -> None:
    """Raise the error of the lowest failed rank on all ranks; return if no rank has an error.

    Parameters
    ----------
    comm : Comm
        The ranks that agree. All of them must call this function (collective).
    error : BaseException or None
        The error of this rank, or None if it has none.

    Raises
    ------
    MpigdError
        With the text of the lowest failed rank's error, the class that `BY_CODE` has for its exit
        code, and ``agreed`` set. A MemoryError becomes one sentence with the code of a LimitError.
        Any other exception that is no MpigdError becomes a plain MpigdError whose text is the
        traceback.
    """
    shown = out_of_memory(error) if isinstance(error, MemoryError) else error
    first = np.array([comm.rank if error is not None else comm.size], dtype=np.int64)
    comm.allreduce(first, "min")
    root = int(first[0])
    if root == comm.size:
        return
    text = b""
    if comm.rank == root and shown is not None:
        # File names that are not Unicode appear in the text as lone surrogates, which a plain
        # encode() refuses.
        text = (str(shown) if isinstance(shown, MpigdError) else _trace(shown, root)).encode(
            errors="surrogatepass"
        )
    head = np.array([len(text), _code(shown)], dtype=np.int64)
    comm.bcast(head, root)
    body = np.frombuffer(text.ljust(int(head[0])), dtype=np.uint8).copy()
    comm.bcast(body, root)
    shared = BY_CODE.get(int(head[1]), MpigdError)(body.tobytes().decode(errors="surrogatepass"))
    shared.agreed = True
    raise shared from error


def _code(error: BaseException | None) -> int:
    """Return the key of the error's class in BY_CODE.

    It is 0 for a plain MpigdError and for other exceptions: their exit code is shared by a
    subclass, which must not be raised in their place.
    """
    return error.code if isinstance(error, MpigdError) and type(error) is not MpigdError else 0


def _trace(error: BaseException, rank: int) -> str:
    return f"rank {rank} failed:\n" + "".join(traceback.format_exception(error))


@contextmanager
def together(comm: Comm) -> Iterator[None]:
    """Run a block that may fail on some ranks only, and raise its error on all ranks. Collective.

    The block must not contain a collective: a rank that has failed would not enter it, and the
    other ranks would wait. See `agree` for the error that is raised.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    agree(comm, error)


def bcast_bytes(comm: Comm, data: bytes | None) -> bytes:
    """Return the bytes of rank 0 on all ranks. Collective.

    Parameters
    ----------
    comm : Comm
        The ranks that receive the bytes.
    data : bytes or None
        The bytes on rank 0; ignored on the other ranks.
    """
    length = np.array([len(data) if comm.rank == 0 and data is not None else 0], dtype=np.int64)
    comm.bcast(length)
    buffer = np.empty(int(length[0]), dtype=np.uint8)
    if comm.rank == 0 and data is not None:
        buffer[:] = np.frombuffer(data, dtype=np.uint8)
    comm.bcast(buffer)
    return buffer.tobytes()
