"""A communicator that continues after rank failures, for Open MPI with `mpirun --with-ft ulfm`.

It uses User Level Failure Mitigation (ULFM), which is proposed for MPI 5. A rank that notices a
failure revokes the communicator, so that no other rank waits in it for ever. The surviving ranks
then shrink it, and agree that all of them hold the new one. Experimental; see docs/elastic.md.
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

# A rank that only hangs counts as failed too, after 20 seconds without a heartbeat. Heartbeats are
# sent within MPI calls, and `pulse` makes some of them. Open MPI's own heartbeat thread is not
# used: jobs failed at their start with it.
DETECTOR = {"OMPI_MCA_mpi_ft_detector": "1", "OMPI_MCA_mpi_ft_detector_timeout": "20"}
# coll/han is excluded because it returned wrong sums without an error after the connection to a
# host was lost (Open MPI 5.0). The other two are excluded in Open MPI's own parameter file for
# ULFM.
COLLECTIVES = {"OMPI_MCA_coll": "^han,hcoll,portals4"}
LOOKS = 16  # MPI calls per pulse; Open MPI sends pending messages at least at every eighth call


class CutOff(Exception):
    """Raised if too few ranks are left in this partition: the others may continue without them."""


def enabled(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether the job was started with fault tolerance (`mpirun --with-ft ulfm`)."""
    return env.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")


def join(recorder: Recorder) -> ElasticComm:
    """Return the communicator of all ranks. Collective.

    MPI is never finalised: after the silent loss of a host this would never end.
    """
    for name, value in (DETECTOR | COLLECTIVES).items():
        os.environ.setdefault(name, value)
    return world(ElasticComm, recorder, finalize=False)


def quorum(left: int, of: int, lowest: bool) -> bool:
    """Return whether a partition of the ranks may continue; at most one partition may.

    A majority may continue, and of two halves the one with the lowest rank.

    Parameters
    ----------
    left : int
        The number of ranks in this partition.
    of : int
        The number of ranks before the failure.
    lowest : bool
        Whether the lowest of all ranks is in this partition.
    """
    return 2 * left > of or (2 * left == of and lowest)


def lost(comm: Comm, error: Exception) -> bool:
    """Return whether `error` is a rank failure after which `comm` can continue."""
    return isinstance(comm, ElasticComm) and comm.lost(error)


def end(pid: int, rank: int) -> None:
    """Kill a process if its environment shows that it is still that rank of this job.

    Parameters
    ----------
    pid : int
        The process id, which another process may have by now.
    rank : int
        The rank in MPI_COMM_WORLD that the process had.
    """
    marks = (f"OMPI_COMM_WORLD_RANK={rank}", f"PMIX_NAMESPACE={os.environ.get('PMIX_NAMESPACE')}")
    with suppress(OSError):
        if {mark.encode() for mark in marks} <= set(
            Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ):
            os.kill(pid, signal.SIGKILL)


class ElasticComm(MPIComm):
    """An MPI communicator that may lose ranks.

    After a rank failure `mend` shrinks it to the surviving ranks and increments `epoch`.

    Attributes
    ----------
    gone : list of int
        The failed ranks, by their numbers in MPI_COMM_WORLD.
    """

    def __init__(self, mpi: Any, raw: Any, recorder: Recorder | None = None) -> None:
        super().__init__(mpi, raw, recorder)
        self._cut, self.gone = False, list[int]()
        self._signs = {
            mpi.ERR_PROC_FAILED,
            mpi.ERR_PROC_FAILED_PENDING,
            mpi.ERR_REVOKED,
            mpi.ERR_IN_STATUS,
        }

    def lost(self, error: Exception) -> bool:
        """Return whether MPI raised `error` because of a rank failure.

        The operation is then incomplete, at least on some of the other ranks. The error class alone
        does not decide: after a rank failure a call may fail with another class too.
        """
        if not isinstance(error, self._mpi.Exception):
            return False
        return error.Get_error_class() in self._signs or self._raw.Get_failed().Get_size() > 0

    def mend(self, step: int) -> int:
        """Shrink the communicator to the surviving ranks. Each of them must call this after `lost`.

        The first rank that calls it revokes the communicator, so that the others fail and call it
        too. Further ranks may die meanwhile; the loop ends when all survivors agree.

        Parameters
        ----------
        step : int
            The next optimiser step of this rank.

        Returns
        -------
        int
            The smallest `step` of the surviving ranks.

        Raises
        ------
        CutOff
            On all ranks of this partition, if it has no quorum of the last communicator that all
            ranks agreed on.
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
            # The counts can differ, since some ranks may have entered one call more.
            least = np.array([step, -self.recorder.count], dtype=np.int64)
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
        """Replace `least` by its minimum over the ranks of `raw`.

        Returns, with the same result on all ranks, whether all of them have the minimum.
        """
        try:
            raw.Allreduce(self._in_place, least, self._mpi.MIN)
            whole = 1
        except self._mpi.Exception:
            whole = 0
        try:
            return bool(raw.Agree(whole))
        except self._mpi.Exception:  # a rank died during the agreement, which all ranks see
            return False

    def pulse(self) -> None:
        for _ in range(LOOKS):
            self._mpi.COMM_SELF.Iprobe()

    def finish(self) -> None:
        pass  # MPI_Finalize would wait for heartbeats of the dead ranks

    def over(self) -> bool:
        return self._cut or super().over()

    def abort(self, code: int) -> None:
        if self._cut:  # the ranks of the other partition continue
            flush()
            os._exit(code)
        super().abort(code)
