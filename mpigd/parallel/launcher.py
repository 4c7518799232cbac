"""What the launcher told its processes: read before MPI, and compared with what MPI sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

# (rank, size) as each launcher tells its children. The launcher's own variables come before Slurm's,
# which an mpiexec inside a batch job inherits.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    (
        "PMIX_RANK",
        "PMIX_SIZE",
    ),  # prterun and its like, which tell no size: the second is nowhere set
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
UNTOLD = 0  # a size
STARTED = os.getpid()  # of the process that imported this


def launched(env: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, size) by the launcher's environment variables, or None without a launcher; size UNTOLD where it tells none."""
    srun = env.get("PMIX_NAMESPACE", "").startswith("slurm")  # its size stands in its own variables
    for rank, size in LAUNCHERS:
        if rank in env and (size in env or (rank == "PMIX_RANK" and not srun)):
            return int(env[rank]), int(env.get(size, UNTOLD))
    return None


def fits(told: tuple[int, int], rank: int, size: int) -> bool:
    """Whether what a launcher told this process is what MPI sees."""
    return told[1] == size if told[1] != UNTOLD else told[0] == rank


def mismatch(told: int, seen: int, library: str) -> str:
    """What is wrong where a launcher started `told` processes and MPI sees `seen`: every one would train alone as rank 0 of 1."""
    return (
        f"the launcher started {told} processes, but MPI ({library}) sees {seen}: "
        "use the mpiexec of that library, or srun --mpi=pmi2 / --mpi=pmix"
    )


def child() -> bool:
    """Whether this process was made by one that the launcher started: a fork, or one of multiprocessing's, which inherits the
    launcher's variables.
    """
    made: Any = sys.modules.get("multiprocessing.process")  # where that is in use
    return os.getpid() != STARTED or (made is not None and made.parent_process() is not None)
