"""The MPI session of this process: join the job, leave it together, or end it after an error.

`enter` is the beginning of every command and of every public function. It returns the communicator
to work with, starts a watchdog (mpigd/parallel/watchdog.py) for it, and checks that all ranks call
the same function. An error that all ranks share ends with `leave`; an error of one rank must end
the whole job (`end_all`), because the other ranks would wait for it in a collective for ever. For
the same reason uncaught exceptions and ``os._exit`` are redirected to an abort of the job.
"""

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

# Seconds that a collective may take if --hang-timeout is not given.
HANG_TIMEOUT = 300.0
# Bytes of the name of the called function that ranks compare.
NAME = 64
# Minimal time limit, in seconds, for the end of MPI. All results are saved by then, and killing the
# process would replace its exit code.
LEAVING = 30.0

_world: MPIComm | None = None
# The watchdogs of the world communicator and of adopted communicators, by the recorder they watch.
_watches: dict[Recorder, Watch] = {}


def library_version() -> str | None:
    """Return the name and version of the MPI library, or None if this process does not use MPI."""
    return None if _world is None else _world.library


def end_all(code: int) -> None:
    """Abort the job with exit code `code`, if this process uses MPI.

    This is necessary after an error of one rank alone: the other ranks would wait for it.
    """
    if _world is not None:
        _world.abort(code)


def place() -> tuple[int, int]:
    """Return (rank, size): the current number of this rank and of all ranks."""
    return (launched() or (0, 1)) if _world is None else (_world.rank, _world.size)


def here() -> str:
    """Return a text with the rank, its host and its current step, for error messages."""
    rank = (launched() or (0, 1))[0]
    step = 0 if _world is None else _world.recorder.step
    return f"rank {rank} on {socket.gethostname()}" + (f" at step {step:,}" if step else "")


def complain(error: BaseException, what: str = "") -> None:
    """Write the rank, the error and its traceback to stderr.

    All is written in one call: line by line, the tracebacks of several ranks would mix.

    Parameters
    ----------
    error : BaseException
        The error.
    what : str
        A description of the error; by default the type and text of `error`.
    """
    what = what or "".join(traceback.format_exception_only(error)).strip()
    trace = "".join(traceback.format_exception(error))
    say(f"mpigd: {here()}: {what}\n{trace}")


def leave() -> None:
    """Wait for all ranks before this one exits. Collective.

    A launcher that sees one rank exit may drop the output of the others.
    """
    flush()
    if _world is not None:
        try:
            _world.allreduce(np.zeros(1))
        except Exception as error:
            if not elastic.lost(_world, error):  # else the rank has exited already
                raise


def _exit() -> None:
    """Stop the watchdogs and finalise MPI at the end of the interpreter, with a time limit."""
    for watch in _watches.values():
        watch.stop()
    if _world is not None:
        if sys.__stderr__ is not None:
            limit = _watches[_world.recorder].limit
            with suppress(OSError, ValueError):  # stderr is closed
                faulthandler.dump_traceback_later(
                    max(limit, LEAVING), exit=True, file=sys.__stderr__
                )
        # MPI is finalised here, since faulthandler is disabled before mpi4py would finalise it.
        _world.finish()


def watch(
    comm: Comm,
    limit: float,
    code: Callable[[], int],
    folder: str | None = None,
    tolerant: bool = False,
) -> None:
    """Set what the watchdog of `comm` enforces; do nothing if `comm` has none.

    Parameters
    ----------
    comm : Comm
        The communicator that is watched.
    limit : float
        Seconds that a collective may take before the job is ended.
    code : callable
        Returns the exit code with which the job is ended.
    folder : str or None
        A folder, shared by all ranks, for the file of the flight recorder. If it cannot be written,
        the run continues without the file.
    tolerant : bool
        Whether the run continues after a rank failure, so that missing ranks are no reason to end.
    """
    if (found := _watch_of(comm)) is None:
        return
    found.limit, found.code, found.tolerant = limit, code, tolerant
    if folder is not None:
        # The folder is not shared, or full: the run is worth more than its record.
        with suppress(OSError):
            found.recorder.keep(folder)
            found.folder = folder


def _watch_of(comm: Comm) -> Watch | None:
    return _watches.get(comm.recorder) if isinstance(comm, MPIComm) else None


def give_up(comm: Comm, ranks: Iterable[int]) -> None:
    """Kill those of `ranks` that run on this host.

    A rank that only hangs would keep the launcher waiting.

    Parameters
    ----------
    comm : Comm
        The communicator whose watchdog has the process ids.
    ranks : iterable of int
        The failed ranks.
    """
    found = _watch_of(comm)
    for rank in ranks:
        if found is not None and rank in found.peers:
            elastic.end(found.peers[rank], rank)


def enter(comm: Any, what: str, limit: float | None = None) -> Comm:
    """Return the communicator to work with, and check that all ranks call `what`. Collective.

    Parameters
    ----------
    comm : Comm, mpi4py.MPI.Intracomm or None
        A communicator of mpigd, which is returned itself; one of mpi4py, for which mpigd makes its
        own (see `adopt`); or None for all ranks of the job.
    what : str
        The name of the function that all ranks call, for error messages.
    limit : float or None
        Seconds to wait for the other ranks. None keeps the current limit.

    Raises
    ------
    LaunchError
        On all ranks, if they call different functions.
    UsageError
        If `comm` is not a communicator.
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
            f"rank 0 calls {names[0]}, rank {others[0]} calls {names[1]}: "
            "all ranks must call the same"
        )
        error.agreed = True
        raise error
    return ours


def connect(limit: float = HANG_TIMEOUT, what: str = "mpigd") -> Comm:
    """Return the communicator of all ranks: MPI under a launcher, else a SelfComm. Collective.

    Parameters
    ----------
    limit : float
        Seconds to wait for the other ranks.
    what : str
        The name of the function that all ranks call, for error messages.

    Raises
    ------
    LaunchError
        If the launcher started more processes than MPI sees (exit code 69), which happens with an
        mpiexec or srun that does not belong to the MPI library; or if this process was not started
        by the launcher but by one of its ranks.
    """
    global _world
    told = launched()
    if told is None:
        return SelfComm()
    if told[1] == 1 and child():
        return SelfComm()  # a child of a single rank: no other rank waits for it
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
    """Return mpigd's communicator for one of mpi4py; one of mpigd is returned itself. Collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or Comm
        The communicator that the program passed.
    limit : float
        Seconds to wait for the other ranks.
    what : str
        The name of the function that all ranks call, for error messages.

    Raises
    ------
    UsageError
        If `comm` is not a communicator.
    LaunchError
        If this process was not started by the launcher but by one of its ranks.
    """
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
            f"this process was made by rank {rank} (a fork, or a pool of multiprocessing) "
            "and is no rank of MPI: pass comm=SelfComm() "
            "(from mpigd.parallel.comm import SelfComm) for a model of its own, "
            "or start the program without mpiexec"
        )


@contextmanager
def _watched(recorder: Recorder, limit: float, what: str) -> Iterator[Watch]:
    """Start a watchdog and yield it; in the block this rank waits until all others call `what`.

    The watchdog keeps running after the block, unless the block raises.
    """
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
    """Return the process ids of the other ranks on this host, by rank. Collective."""
    told = comm.allgather(
        np.array([zlib.crc32(socket.gethostname().encode()), os.getpid()], dtype=np.int64)
    )
    return {
        rank: int(pid)
        for rank, (host, pid) in enumerate(told)
        if rank != comm.rank and host == told[comm.rank][0]
    }


def _last_words(text: str, code: int) -> None:
    # If stderr is closed or replaced, descriptor 2 may belong to any other file.
    if sys.__stderr__ is not None and sys.__stderr__.fileno() == 2:
        with suppress(OSError):  # the launcher that reads it may have exited
            os.write(2, f"mpigd: {text}\n".encode(errors="replace"))
    (end_world if _world is None else _world.abort)(code)


def _abort_on_uncaught(comm: Comm) -> None:
    """Abort the job after an uncaught exception, in a thread too.

    The other ranks would wait in a collective for ever.
    """

    def end(error: BaseException | None) -> None:
        if error is not None:
            complain(error)
        comm.abort(error.code if isinstance(error, MpigdError) else MpigdError.code)

    sys.excepthook = lambda kind, error, trace: end(error)
    threading.excepthook = lambda lost: end(lost.exc_value)


def _abort_on_exit(comm: MPIComm) -> None:
    """Abort the job if ``os._exit`` is called before MPI is finalised.

    MPICH may report success for a job in which a rank has exited early with code 0.
    """
    usual, process = os._exit, os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() == process and not comm.over():  # a fork may end with os._exit
            status = status or MpigdError.code
            say(f"mpigd: {here()}: os._exit\n{''.join(traceback.format_stack()[:-1])}")
            comm.abort(status)
        usual(status)

    os._exit = leave
