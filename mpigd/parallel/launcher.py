"""Rank and size from the environment variables of the launcher, read before MPI is initialised.

They decide whether mpi4py is imported at all, and are compared with what MPI sees: a difference
shows an mpiexec that does not belong to the MPI library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

# The variables with rank and size that each launcher sets. Those of other launchers come before
# Slurm's, which an mpiexec inside a batch job inherits. prterun and similar launchers set only the
# rank: PMIX_SIZE is set by none.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "PMIX_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
UNTOLD = 0  # the size if the launcher does not set one
STARTED = os.getpid()  # the process that imported this module


def launched(env: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Return (rank, size) from the launcher's environment variables, or None without a launcher.

    The size is UNTOLD if the launcher does not set one.
    """
    # srun sets PMIX_RANK too, but its size is in Slurm's variables.
    srun = env.get("PMIX_NAMESPACE", "").startswith("slurm")
    for rank, size in LAUNCHERS:
        if rank in env and (size in env or (rank == "PMIX_RANK" and not srun)):
            return int(env[rank]), int(env.get(size, UNTOLD))
    return None


def elsewhere() -> bool:
    """Return whether another process of the launcher, that of rank 0, runs this serial command."""
    return (launched() or (0, 1))[0] > 0


def fits(told: tuple[int, int], rank: int, size: int) -> bool:
    """Return whether MPI sees the rank and size that the launcher set.

    Parameters
    ----------
    told : tuple of (int, int)
        Rank and size by `launched`. If the size is UNTOLD, the ranks are compared instead.
    rank, size : int
        Rank and size by MPI.
    """
    return told[1] == size if told[1] != UNTOLD else told[0] == rank


def mismatch(told: int, seen: int, library: str) -> str:
    """Return the error text for a launcher that does not belong to the MPI library.

    Without the error every process would train alone, as rank 0 of 1.

    Parameters
    ----------
    told : int
        The number of processes that the launcher started.
    seen : int
        The number of processes that MPI sees.
    library : str
        The name and version of the MPI library.
    """
    return (
        f"the launcher started {told} processes, but MPI ({library}) sees {seen}: "
        "use the mpiexec of that library, or srun --mpi=pmi2 / --mpi=pmix"
    )


def child() -> bool:
    """Return whether this process is a child of a rank: a fork, or a process of multiprocessing.

    Such a child inherits the launcher's variables, but is not a rank.
    """
    made: Any = sys.modules.get("multiprocessing.process")  # None if it is not in use
    return os.getpid() != STARTED or (made is not None and made.parent_process() is not None)
