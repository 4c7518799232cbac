"""Ranks that may die: a communicator that goes on with those that are left. For Open MPI started with `mpirun --with-ft ulfm`.

The calls are those of User Level Failure Mitigation, a chapter of MPI 5 to be: whoever meets a failure revokes the communicator,
so that nobody waits in it for ever; the survivors shrink it, and agree.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mpigd.parallel.comm import Array, Comm, MPIComm, world
from mpigd.parallel.flight_recorder import Recorder
from mpigd.parallel.standard_streams import flush

# A rank that only stands still is given up too, after so many seconds without a sign of life. The signs are sent from within MPI
# calls: `pulse` sees to it that there are some. Not by Open MPI's own thread for them, with which jobs are lost as they start.
DETECTOR = {"OMPI_MCA_mpi_ft_detector": "1", "OMPI_MCA_mpi_ft_detector_timeout": "20"}
# Not coll/han: cut off from a host, it returned wrong sums without an error (Open MPI 5.0). The other two: as Open MPI's own file
# of parameters for ULFM has it.
COLLECTIVES = {"OMPI_MCA_coll": "^han,hcoll,portals4"}
LOOKS = 16  # Open MPI sends what is due at every eighth call at least


class CutOff(Exception):
    """Too few are left with this rank: the others may be going on without them."""


def enabled(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher was told to let ranks die."""
    return env.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")


def join(recorder: Recorder) -> ElasticComm:
    """The communicator of all ranks. It is never finalised: where a host is lost without a word, that would never end."""
    for name, value in (DETECTOR | COLLECTIVES).items():
        os.environ.setdefault(name, value)
    return world(ElasticComm, recorder, finalize=False)


def quorum(left: int, of: int, lowest: bool) -> bool:
    """Whether `left` of `of` ranks may go on: no other part of them may too. `lowest`: the lowest of all is among them."""
    return 2 * left > of or (2 * left == of and lowest)


def lost(comm: Comm, error: Exception) -> bool:
    """Whether `error` was raised because ranks of `comm` are gone, and it can go on without them."""
    return isinstance(comm, ElasticComm) and comm.lost(error)


def end(pid: int, rank: int) -> None:
    """Kill the process that was this rank of this job, if that is what it still is."""
    marks = (f"OMPI_COMM_WORLD_RANK={rank}", f"PMIX_NAMESPACE={os.environ.get('PMIX_NAMESPACE')}")
    with suppress(OSError):
        if {mark.encode() for mark in marks} <= set(
            Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ):
            os.kill(pid, signal.SIGKILL)


class ElasticComm(MPIComm):
    """An MPI communicator that may lose ranks: `mend` makes it that of the others, and counts `epoch`."""

    def __init__(self, mpi: Any, raw: Any, recorder: Recorder | None = None) -> None:
        super().__init__(mpi, raw, recorder)
        self._cut, self.gone = False, list[int]()  # the latter: ranks of the world at first
        self._signs = {
            mpi.ERR_PROC_FAILED,
            mpi.ERR_PROC_FAILED_PENDING,
            mpi.ERR_REVOKED,
            mpi.ERR_IN_STATUS,
        }

    def lost(self, error: Exception) -> bool:
        """Whether MPI raised `error` because ranks are gone: what was under way is not done, on some of the others at least.

        Not the signs alone: while ranks are gone a call may fail in other words too.
        """
        if not isinstance(error, self._mpi.Exception):
            return False
        return error.Get_error_class() in self._signs or self._raw.Get_failed().Get_size() > 0

    def mend(self, step: int) -> int:
        """Go on with the ranks that are left; returns the least `step` of them. Called by each of them where `lost`.

        The first who comes here revokes, so that all do. Raises CutOff, on all that are left with this one, without a quorum of
        the last world that was agreed on: more may die meanwhile.
        """
        self.recorder.leave()
        self.recorder.enter(b"mend", 0)
        raw, before = self._raw, self._raw.Get_group()
        raw.Revoke()
        while True:
            raw = raw.Shrink()
            lowest = (
                self._mpi.Group.Translate_ranks(before, [0], raw.Get_group())[0]
                != self._mpi.UNDEFINED
            )
            if not quorum(raw.Get_size(), before.Get_size(), lowest):
                self._cut = True
                raise CutOff(f"{raw.Get_size()} of {before.Get_size()} ranks are left here")
            least = np.array(
                [step, -self.recorder.count], dtype=np.int64
            )  # some may have entered one call more
            if self._agreed(raw, least):
                break
        self._raw, self.rank, self.size = raw, raw.Get_rank(), raw.Get_size()
        self.epoch += 1
        everyone = self._mpi.COMM_WORLD.Get_group()
        found = self._mpi.Group.Translate_ranks(
            everyone, range(everyone.Get_size()), raw.Get_group()
        )
        self.gone = [rank for rank, now in enumerate(found) if now == self._mpi.UNDEFINED]
        self.recorder.leave()
        self.recorder.go_on(self.epoch, -int(least[1]))
        return int(least[0])

    def _agreed(self, raw: Any, least: Array) -> bool:
        """The minimum of `least` in it; the same answer on all ranks: whether all of them have that."""
        try:
            raw.Allreduce(self._in_place, least, self._mpi.MIN)
            whole = 1
        except self._mpi.Exception:
            whole = 0
        try:
            return bool(raw.Agree(whole))
        except self._mpi.Exception:  # one died before all had agreed: so it is told to each
            return False

    def pulse(self) -> None:
        for _ in range(LOOKS):
            self._mpi.COMM_SELF.Iprobe()

    def finish(self) -> None:
        pass  # Open MPI's end would wait for the dead ones' heartbeats

    def over(self) -> bool:
        return self._cut or super().over()

    def abort(self, code: int) -> None:
        if self._cut:  # the others are to go on
            flush()
            os._exit(code)
        super().abort(code)
