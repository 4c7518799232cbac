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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import numpy as np

from mpigd.errors import LaunchError, MpigdError
from mpigd.parallel import adopted_comm, elastic
from mpigd.parallel.comm import Comm, MPIComm, SelfComm, world
from mpigd.parallel.flight_recorder import Recorder
from mpigd.parallel.launcher import UNTOLD, child, fits, launched, mismatch
from mpigd.parallel.mpi_start import end_world
from mpigd.parallel.standard_streams import flush, say
from mpigd.parallel.watchdog import Watch

HANG_TIMEOUT = 300.0  # seconds a collective may take, unless --hang-timeout says otherwise
NAME = 64  # bytes of a function's name, for comparison
LEAVING = 30.0  # seconds that MPI may take to end, at least: all is saved by then, and ending it would cost the exit code

_world: MPIComm | None = None
_watches: dict[
    Recorder, Watch
] = {}  # those of the world's communicator and of others', by what they look at


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
    say(f"mpigd: {here()}: {what}\n{trace}")


def leave() -> None:
    """Meet once more before the ranks exit: a launcher that sees one gone may drop what another prints."""
    flush()
    if _world is not None:
        try:
            _world.allreduce(np.zeros(1))
        except Exception as error:
            if not elastic.lost(_world, error):  # else gone a little earlier
                raise


def _exit() -> None:
    """At the end of the interpreter, before that of MPI: nobody is watched any more, and a process that cannot end is ended."""
    for watch in _watches.values():
        watch.stop()
    if _world is not None:
        if sys.__stderr__ is not None:
            limit = _watches[_world.recorder].limit
            with suppress(OSError, ValueError):  # it is closed
                faulthandler.dump_traceback_later(
                    max(limit, LEAVING), exit=True, file=sys.__stderr__
                )
        _world.finish()  # here: where Python itself ends MPI, faulthandler has been ended before


def watch(
    comm: Comm,
    limit: float,
    code: Callable[[], int],
    folder: str | None = None,
    tolerant: bool = False,
) -> None:
    """A collective may take `limit` seconds; then the job ends with `code()`. In `folder` the flight recorder keeps its file.

    tolerant: other ranks may be gone.
    """
    if (found := _watch_of(comm)) is None:
        return
    found.limit, found.code, found.tolerant = limit, code, tolerant
    if folder is not None:
        with suppress(
            OSError
        ):  # not a shared folder, or a full one: the run is worth more than its record
            found.recorder.keep(folder)
            found.folder = folder


def _watch_of(comm: Comm) -> Watch | None:
    return _watches.get(comm.recorder) if isinstance(comm, MPIComm) else None


def give_up(comm: Comm, ranks: Iterable[int]) -> None:
    """End those of these ranks that are on this host: the launcher would wait for one that only stands still."""
    found = _watch_of(comm)
    for rank in ranks:
        if found is not None and rank in found.peers:
            elastic.end(found.peers[rank], rank)


def enter(comm: Any, what: str, limit: float | None = None) -> Comm:
    """The communicator to work with: ours for `comm`, one of ours or of mpi4py's, or for None that of the world. Collective.

    what: the function that all ranks call, for the words where some do not. limit: seconds to wait for them (default: as before).
    Raises LaunchError, on all ranks, if they call different ones, and UsageError if `comm` is no communicator.
    """
    ours = (
        connect(limit or HANG_TIMEOUT, what)
        if comm is None
        else adopt(comm, limit or HANG_TIMEOUT, what)
    )
    if ours.size == 1:
        return ours
    if (found := _watch_of(ours)) is not None:
        found.limit, found.entrance = limit or found.limit, what
    mine = np.frombuffer(what.encode().ljust(NAME)[:NAME], dtype=np.int64)
    told = ours.allgather(mine)
    if found is not None:
        found.entrance = ""
    others = np.flatnonzero(np.any(told != told[0], axis=1))
    if others.size:
        names = [told[rank].tobytes().decode(errors="replace").strip() for rank in (0, others[0])]
        error = LaunchError(
            f"rank 0 calls {names[0]}, rank {others[0]} calls {names[1]}: all ranks must call the same"
        )
        error.agreed = True
        raise error
    return ours


def connect(limit: float = HANG_TIMEOUT, what: str = "mpigd") -> Comm:
    """The world's communicator: MPI under a launcher, else a SelfComm. limit, what: as for `enter`.

    Raises LaunchError (exit code 69) when the launcher started more processes than MPI can see, the sign of
    an mpiexec or srun that does not belong to the MPI library, and in a process that is none of the launcher's.
    """
    global _world
    told = launched()
    if told is None:
        return SelfComm()
    if told[1] == 1 and child():
        return SelfComm()  # nobody is waited for, and nobody waits
    _refuse_child(told[0])
    if _world is not None:
        return _world
    recorder = Recorder(told[0], told[1] if told[1] != UNTOLD else told[0] + 1)
    with _watched(recorder, limit, what) as watch:
        comm = elastic.join(recorder) if elastic.enabled() else world(MPIComm, recorder)
        if not fits(told, comm.rank, comm.size):
            raise LaunchError(mismatch(told[1] or told[0] + 1, comm.size, comm.library))
        recorder.of(comm.rank, comm.size)
        _world = comm
        _abort_on_uncaught(comm)
        _abort_on_exit(comm)
        watch.peers, watch.pulse = _neighbours(comm), comm.pulse
    return comm


def adopt(comm: Any, limit: float = HANG_TIMEOUT, what: str = "mpigd") -> Comm:
    """Ours for a communicator of mpi4py's, or of mpigd's: that one itself. Collective. Raises as `enter` does."""
    ours = adopted_comm.known(comm)
    if ours is None or isinstance(ours, MPIComm):
        _refuse_child((launched() or (0, 1))[0])
    if ours is not None:
        return ours
    recorder = Recorder(comm.Get_rank(), comm.Get_size())
    with _watched(recorder, limit, what) as watch:
        made = adopted_comm.adopt(comm, recorder)
        watch.peers, watch.lenient = _neighbours(made), True
    return made


def _refuse_child(rank: int) -> None:
    if child():
        raise LaunchError(
            f"this process was made by rank {rank} (a fork, or a pool of multiprocessing) and is no rank of MPI: "
            "pass comm=SelfComm() (from mpigd.parallel.comm import SelfComm) for a model of its own, "
            "or start the program without mpiexec"
        )


@contextmanager
def _watched(recorder: Recorder, limit: float, what: str) -> Iterator[Watch]:
    """Watch what this rank does, from the block on, in which it waits for all others to call `what`."""
    if not _watches:
        atexit.register(_exit)
    for closed in [old for old in _watches if old.closed]:
        del _watches[closed]
    watch = _watches[recorder] = Watch(recorder, {}, limit, _last_words)
    watch.entrance = what
    watch.start()
    try:
        yield watch
    except BaseException:
        watch.stop()
        raise
    watch.entrance = ""


def _neighbours(comm: Comm) -> dict[int, int]:
    """Process ids of the other ranks of this host. Collective."""
    told = comm.allgather(
        np.array([zlib.crc32(socket.gethostname().encode()), os.getpid()], dtype=np.int64)
    )
    return {
        rank: int(pid)
        for rank, (host, pid) in enumerate(told)
        if rank != comm.rank and host == told[comm.rank][0]
    }


def _last_words(text: str, code: int) -> None:
    if sys.__stderr__ is not None and sys.__stderr__.fileno() == 2:  # else 2 may be any file by now
        with suppress(OSError):  # the launcher that reads it may be gone
            os.write(2, f"mpigd: {text}\n".encode(errors="replace"))
    (end_world if _world is None else _world.abort)(code)


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
            say(f"mpigd: {here()}: os._exit\n{''.join(traceback.format_stack()[:-1])}")
            comm.abort(status)
        usual(status)

    os._exit = leave
