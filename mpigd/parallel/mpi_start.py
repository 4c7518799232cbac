"""Initialise MPI, and abort the job if it cannot continue."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

from mpigd.errors import LaunchError
from mpigd.parallel.standard_streams import flush

# Seconds between the last message and the abort: the launcher needs them to forward the output of
# the ranks, since it drops the rest when it kills them.
LAST_WORDS = 0.5


def initialise(mpi: Any, rc: Any) -> None:
    """Initialise MPI with the thread level of `mpi4py.rc`, without holding the GIL. Collective.

    The call waits for all ranks. mpi4py's own initialisation holds the GIL meanwhile, so that the
    watchdog's thread could not report a rank that never arrives. This function therefore calls the
    function of the library with ctypes.

    Parameters
    ----------
    mpi : module
        The module mpi4py.MPI.
    rc : object
        The settings mpi4py.rc.

    Raises
    ------
    LaunchError
        If MPI cannot be initialised.
    """
    level = getattr(mpi, f"THREAD_{rc.thread_level.upper()}") if rc.threads else mpi.THREAD_SINGLE
    try:
        start = ctypes.CDLL(mpi.__file__).MPI_Init_thread
    except (OSError, AttributeError):  # mpi4py is linked so that the function is not visible
        mpi.Init_thread(level)
        return
    if start(None, None, ctypes.c_int(level), ctypes.byref(ctypes.c_int())):
        raise LaunchError(
            "MPI cannot be initialised: mpigd doctor looks at the launcher and the library"
        )
    for own in (mpi.COMM_WORLD, mpi.COMM_SELF):
        own.Set_errhandler(mpi.ERRORS_RETURN)  # raise exceptions, as mpi4py does


def end_world(code: int) -> None:
    """Abort the job with exit code `code`; may return before the processes have ended.

    If MPI is not initialised, or already finalised, only this process ends.
    """
    flush()
    time.sleep(LAST_WORDS)
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(code)
    else:
        os._exit(code)
