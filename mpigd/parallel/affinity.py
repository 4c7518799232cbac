"""Which cores a rank may use, and how many threads that makes."""

from __future__ import annotations

import os
import socket
import zlib

import numpy as np

from mpigd.parallel.comm import Comm


def cores() -> set[int]:
    """The cores that this process may run on: what the launcher or the batch system bound it to."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return set(range(os.cpu_count() or 1))


def fair_threads(comm: Comm) -> int:
    """This rank's cores divided by the ranks of its host that are bound to the same ones, at least 1. Collective."""
    mine = sorted(cores())
    place = _place(mine)
    places = comm.allgather(np.array([place], dtype=np.int64))
    return max(1, len(mine) // int(np.count_nonzero(places == place)))


def leads_host(comm: Comm) -> bool:
    """Whether this is the lowest rank on its host. Collective."""
    hosts = comm.allgather(np.array([zlib.crc32(socket.gethostname().encode())], dtype=np.int64))[
        :, 0
    ]
    return int(np.argmax(hosts == hosts[comm.rank])) == comm.rank


def crowded(comm: Comm, threads: int) -> str | None:
    """A warning if a host, or the cores that some ranks are bound to, have more threads than cores (10 to 100 times slower).

    The same on every rank. Collective.
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
                return f"{len(here)} ranks with {running} threads on {where.format(there)}: use fewer ranks or --threads 1"
    return None


def _place(mine: list[int]) -> int:
    """A number for this host and these of its cores."""
    return zlib.crc32(f"{socket.gethostname()} {mine}".encode())
