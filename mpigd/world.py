"""The job that this process is part of: joining it, leaving it together, and ending it when it cannot go on."""

from __future__ import annotations

import atexit
import faulthandler
import os
import socket
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

import numpy as np

from mpigd import elastic
from mpigd.comm import Comm, MPIComm, SelfComm, world
from mpigd.errors import LaunchError, MpigdError
from mpigd.launch import fits, launched, mismatch
from mpigd.watch import Watch

HANG_TIMEOUT = 300.0  # seconds a collective may take, unless --hang-timeout says otherwise
LEAVING = 30.0  # seconds that MPI may take to end, at least: all is saved by then, and ending it would cost the exit code

_world: MPIComm | None = None
_watch: Watch | None = None


def library_version() -> str | None:
    """The MPI library in use, or None if this process does not take part in MPI."""
    return None if _world is None else _world.library


def end_all(code: int) -> None:
    """End every process of the job, if this one takes part in MPI; an error known to one rank alone must."""
    if _world is not None:
        _world.abort(code)


def place() -> tuple[int, int]:
    """This rank and the number of ranks, as they are now."""
    return (launched() or (0, 1)) if _world is None else (_world.rank, _world.size)


def here() -> str:
    """Which rank this is, where, and how far it has come."""
    rank = (launched() or (0, 1))[0]
    step = 0 if _world is None else _world.recorder.step
    return f"rank {rank} on {socket.gethostname()}" + (f" at step {step:,}" if step else "")


def complain(error: BaseException, what: str = "") -> None:
    """Write who failed, with what, and the traceback; at once, since line by line those of several ranks would mix."""
    what = what or "".join(traceback.format_exception_only(error)).strip()
    trace = "".join(traceback.format_exception(error))
    with suppress(OSError):  # the launcher that reads it may be gone
        sys.stderr.write(f"mpigd: {here()}: {what}\n{trace}")


def leave() -> None:
    """Meet once more before the ranks exit: a launcher that sees one gone may drop what another prints."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _world is not None:
        try:
            _world.allreduce(np.zeros(1))
        except Exception as error:
            if not elastic.lost(_world, error):  # else gone a little earlier
                raise


def _exit() -> None:
    """At the end of the interpreter, before that of MPI: nobody is watched any more, and a process that cannot end is ended."""
    if _watch is not None:
        _watch.stop()
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(max(_watch.limit, LEAVING), exit=True, file=sys.__stderr__)
        if _world is not None:
            _world.finish()  # here: where Python itself ends MPI, faulthandler has been ended before


def watch(limit: float, code: Callable[[], int], folder: str | None = None, tolerant: bool = False) -> None:
    """A collective may take `limit` seconds; then the job ends with `code()`. In `folder` the flight recorder keeps its file.

    tolerant: other ranks may be gone.
    """
    if _watch is None or _world is None:
        return
    _watch.limit, _watch.code, _watch.tolerant = limit, code, tolerant
    if folder is not None:
        with suppress(OSError):  # not a shared folder, or a full one: the run is worth more than its record
            _world.recorder.keep(folder)
            _watch.folder = folder


def give_up(ranks: Iterable[int]) -> None:
    """End those of these ranks that are on this host: the launcher would wait for one that only stands still."""
    for rank in ranks:
        if _watch is not None and rank in _watch.peers:
            elastic.end(_watch.peers[rank], rank)


def connect() -> Comm:
    """The world's communicator: MPI under a launcher, else a SelfComm.

    Raises LaunchError (exit code 69) when the launcher started more processes than MPI can see, the sign of
    an mpiexec or srun that does not belong to the MPI library, and when ranks run different versions.
    """
    global _world, _watch
    told = launched()
    if told is None:
        return SelfComm()
    if _world is not None:
        return _world
    comm = elastic.join() if elastic.enabled() else world(MPIComm)
    if not fits(told, comm.rank, comm.size):
        raise LaunchError(mismatch(told[1] or told[0] + 1, comm.size, comm.library))
    _world = comm
    _abort_on_uncaught(comm)
    _abort_on_exit(comm)
    _watch = Watch(comm.recorder, _neighbours(comm), HANG_TIMEOUT, lambda text, code: _last_words(comm, text, code), comm.pulse)
    _watch.start()
    atexit.register(_exit)
    return comm


def _neighbours(comm: Comm) -> dict[int, int]:
    """Process ids of the other ranks of this host. Collective."""
    told = comm.allgather(np.array([zlib.crc32(socket.gethostname().encode()), os.getpid()], dtype=np.int64))
    return {rank: int(pid) for rank, (host, pid) in enumerate(told) if rank != comm.rank and host == told[comm.rank][0]}


def _last_words(comm: Comm, text: str, code: int) -> None:
    with suppress(OSError):  # the launcher that reads it may be gone
        os.write(2, f"mpigd: {text}\n".encode(errors="replace"))
    comm.abort(code)


def _abort_on_uncaught(comm: Comm) -> None:
    """Let an uncaught exception end the world, in a thread too: the other ranks would wait in a collective for ever."""

    def end(error: BaseException | None) -> None:
        if error is not None:
            complain(error)
        comm.abort(error.code if isinstance(error, MpigdError) else MpigdError.code)

    sys.excepthook = lambda kind, error, trace: end(error)
    threading.excepthook = lambda lost: end(lost.exc_value)


def _abort_on_exit(comm: MPIComm) -> None:
    """Let os._exit before the end of MPI end the world: of a rank that is gone with code 0 MPICH may report success."""
    usual, process = os._exit, os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() == process and not comm.over():  # not a fork, which may end like that
            status = status or MpigdError.code
            with suppress(OSError):
                sys.stderr.write(f"mpigd: {here()}: os._exit\n{''.join(traceback.format_stack()[:-1])}")
            comm.abort(status)
        usual(status)

    os._exit = leave
