"""What the launcher told its processes: read before MPI, and compared with what MPI sees."""

from __future__ import annotations

import os
from collections.abc import Mapping

# (rank, size) as each launcher tells its children. The launcher's own variables come before Slurm's,
# which an mpiexec inside a batch job inherits.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def launched(env: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, size) according to the launcher's environment variables, or None without a launcher."""
    for rank, size in LAUNCHERS:
        if rank in env and size in env:
            return int(env[rank]), int(env[size])
    return None


def mismatch(told: int, seen: int, library: str) -> str:
    """What is wrong where a launcher started `told` processes and MPI sees `seen`: every one would train alone as rank 0 of 1."""
    return (
        f"the launcher started {told} processes, but MPI ({library}) sees {seen}: "
        "use the mpiexec of that library, or srun --mpi=pmi2 / --mpi=pmix"
    )
