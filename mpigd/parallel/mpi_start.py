"""The start of MPI, and its end when the job cannot go on."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

from mpigd.errors import LaunchError
from mpigd.parallel.standard_streams import flush

LAST_WORDS = 0.5  # seconds for the launcher to pass on what ranks have just said, before it ends them and drops the rest


def initialise(mpi: Any, rc: Any) -> None:
    """Initialise MPI as `mpi4py.rc` says, without Python's lock. mpi: the module mpi4py.MPI. LaunchError if that fails.

    The call waits for all ranks. mpi4py's own keeps the lock: the thread that watches could not say that one never comes.
    """
    level = getattr(mpi, f"THREAD_{rc.thread_level.upper()}") if rc.threads else mpi.THREAD_SINGLE
    try:
        start = ctypes.CDLL(mpi.__file__).MPI_Init_thread
    except (OSError, AttributeError):  # linked in a way that hides the library's functions
        mpi.Init_thread(level)
        return
    if start(None, None, ctypes.c_int(level), ctypes.byref(ctypes.c_int())):
        raise LaunchError(
            "MPI cannot be initialised: mpigd doctor looks at the launcher and the library"
        )
    for own in (mpi.COMM_WORLD, mpi.COMM_SELF):
        own.Set_errhandler(mpi.ERRORS_RETURN)  # exceptions, as mpi4py's own start has them


def end_world(code: int) -> None:
    """End every process of the job, as far as MPI has begun and not ended, or this one. May return before the end."""
    flush()
    time.sleep(LAST_WORDS)
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(code)
    else:
        os._exit(code)
