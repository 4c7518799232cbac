"""Communicators of mpi4py's that a program hands in: ours beside each, so that messages never meet.

Ours is a copy of the communicator, kept as its attribute: made once, and freed when its owner frees it. mpi4py is not imported
here: who hands in a communicator has done so.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from mpigd.errors import UsageError
from mpigd.parallel.comm import Comm, MPIComm, SelfComm, duplicate
from mpigd.parallel.flight_recorder import Recorder

_key: int | None = None  # of the attribute


def known(comm: Any) -> Comm | None:
    """Ours for a communicator; None if there is none yet, and `adopt` is to make it.

    Raises UsageError for what is no communicator, or none whose processes can all reach each other.
    """
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is None or not isinstance(comm, mpi.Comm):
        if isinstance(comm, Comm):
            return comm
        kind = type(comm).__name__
        raise UsageError(
            f"comm is of type {kind}: pass a communicator of mpi4py, like MPI.COMM_WORLD, or None for all ranks"
        )
    if comm == mpi.COMM_NULL:
        raise UsageError(
            "comm is MPI.COMM_NULL: this process is no rank of that communicator, and is not to make the call"
        )
    if not isinstance(comm, mpi.Intracomm):
        raise UsageError(
            "comm is an intercommunicator, of two groups: pass comm.Merge(), of both in one"
        )
    if comm.Get_size() == 1:
        return SelfComm()
    return None if _key is None else comm.Get_attr(_key)


def adopt(comm: Any, recorder: Recorder) -> MPIComm:
    """Make ours for a communicator of mpi4py's. Collective."""
    global _key
    mpi: Any = sys.modules["mpi4py.MPI"]
    if _key is None:
        _key = mpi.Comm.Create_keyval(delete_fn=_let_go)
    own = duplicate(comm, recorder)
    own.Set_errhandler(mpi.ERRORS_RETURN)  # exceptions, as mpi4py's own communicators have them
    ours = MPIComm(mpi, own, recorder)
    comm.Set_attr(_key, ours)
    return ours


def _let_go(comm: Any, key: int, ours: MPIComm) -> None:
    """Its owner frees the communicator."""
    with suppress(Exception):  # MPI is ending, and everything with it
        ours.free()
