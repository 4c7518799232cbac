"""The cores to which ranks are bound, and the number of threads that follows from them."""

from __future__ import annotations

import os
import socket
import zlib

import numpy as np

from mpigd.parallel.comm import Comm


def cores() -> set[int]:
    """Return the cores to which the launcher or the batch system bound this process."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return set(range(os.cpu_count() or 1))


def fair_threads(comm: Comm) -> int:
    """Return the number of threads for this rank, at least 1. Collective.

    It is the number of the rank's cores, divided by the number of ranks on its host that are bound
    to the same cores.
    """
    mine = sorted(cores())
    place = _place(mine)
    places = comm.allgather(np.array([place], dtype=np.int64))
    return max(1, len(mine) // int(np.count_nonzero(places == place)))


def leads_host(comm: Comm) -> bool:
    """Return whether this is the lowest rank on its host. Collective."""
    hosts = comm.allgather(np.array([zlib.crc32(socket.gethostname().encode())], dtype=np.int64))[
        :, 0
    ]
    return int(np.argmax(hosts == hosts[comm.rank])) == comm.rank


def crowded(comm: Comm, threads: int) -> str | None:
    """Return a warning if ranks run more threads than they have cores, else None. Collective.

    Such a run is 10 to 100 times slower. Hosts are checked first, then groups of ranks that are
    bound to the same cores. The result is the same on every rank.

    Parameters
    ----------
    comm : Comm
        The ranks of the run.
    threads : int
        The number of threads of this rank.
    """
    mine, host = sorted(cores()), zlib.crc32(socket.gethostname().encode())
    told = comm.allgather(
        np.array([host, _place(mine), threads, os.cpu_count() or 1, len(mine)], dtype=np.int64)
    )
    for column, available, where in (
        (0, 3, "a host with {} cores"),
        (1, 4, "the {} core(s) that they are bound to"),
    ):
        for group in np.unique(told[:, column]):
            here = told[told[:, column] == group]
            running, there = int(here[:, 2].sum()), int(here[0, available])
            if running > there:
                return (
                    f"{len(here)} ranks with {running} threads on {where.format(there)}: "
                    "use fewer ranks or --threads 1"
                )
    return None


def _place(mine: list[int]) -> int:
    """Return a hash of this host and of the cores `mine`."""
    return zlib.crc32(f"{socket.gethostname()} {mine}".encode())
