"""Communicators for those of mpi4py that a program passes to mpigd.

mpigd works with a duplicate of the program's communicator, so that the messages of both cannot
meet. The duplicate is made once, is stored as an attribute of the original, and is freed together
with it. This module does not import mpi4py: a program that passes a communicator has imported it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from mpigd.errors import UsageError
from mpigd.parallel.comm import Comm, MPIComm, SelfComm, duplicate
from mpigd.parallel.flight_recorder import Recorder

_key: int | None = None  # the key of the attribute


def known(comm: Any) -> Comm | None:
    """Return mpigd's communicator for `comm`, or None if `adopt` has not made it yet.

    Raises UsageError if `comm` is no communicator, is MPI.COMM_NULL, or is an intercommunicator.
    """
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is None or not isinstance(comm, mpi.Comm):
        if isinstance(comm, Comm):
            return comm
        kind = type(comm).__name__
        raise UsageError(
            f"comm is of type {kind}: pass a communicator of mpi4py, "
            "like MPI.COMM_WORLD, or None for all ranks"
        )
    if comm == mpi.COMM_NULL:
        raise UsageError(
            "comm is MPI.COMM_NULL: this process is no rank of that communicator, "
            "and is not to make the call"
        )
    if not isinstance(comm, mpi.Intracomm):
        raise UsageError(
            "comm is an intercommunicator, of two groups: pass comm.Merge(), of both in one"
        )
    if comm.Get_size() == 1:
        return SelfComm()
    return None if _key is None else comm.Get_attr(_key)


def adopt(comm: Any, recorder: Recorder) -> MPIComm:
    """Create mpigd's communicator for a communicator of mpi4py. Collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The communicator of the program.
    recorder : Recorder
        The flight recorder of this rank.
    """
    global _key
    mpi: Any = sys.modules["mpi4py.MPI"]
    if _key is None:
        _key = mpi.Comm.Create_keyval(delete_fn=_let_go)
    own = duplicate(comm, recorder)
    own.Set_errhandler(mpi.ERRORS_RETURN)  # raise exceptions, as mpi4py does
    ours = MPIComm(mpi, own, recorder)
    comm.Set_attr(_key, ours)
    return ours


def _let_go(comm: Any, key: int, ours: MPIComm) -> None:
    """Free mpigd's communicator when the program frees its own."""
    with suppress(Exception):  # MPI is being finalised, which frees everything
        ours.free()
