"""Speed limits of this machine for the roofline.

They are the speed at which the cores read memory, for one rank and for all ranks, and the speed at
which they multiply.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from mpigd.parallel.comm import Comm
from scripts.bench.harness import Row, Size, median, over_ranks, paired

Array = np.ndarray[Any, Any]
SIDE = 512  # of the matrices whose product shows the arithmetic


@njit(cache=True, nogil=True)
def read(words: Array) -> Any:
    """The sum of words (n,) uint64.

    A sum of integers vectorises in any order, so only the read takes time.
    """
    total = np.uint64(0)
    for i in range(words.size):
        total += words[i]
    return total


def sweep(values: Array) -> Callable[[], Any]:
    """A call that reads the values once."""
    words = values.reshape(-1)
    words = words[: words.size * words.itemsize // 8 * 8 // words.itemsize].view(np.uint64)
    return lambda: read(words)


def alone(comm: Comm, work: Callable[[], Any]) -> Callable[[], Any]:
    """The work of rank 0 while the other ranks wait."""
    return lambda: work() if comm.rank == 0 else None


def memory() -> float:
    """Bytes of memory that this machine has for programs."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def measure(comm: Comm, size: Size) -> list[Row]:
    words = np.arange(size.bytes // 8, dtype=np.uint64)
    factor = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    product = np.empty_like(factor)
    works = {
        "one": alone(comm, sweep(words)),
        "all": sweep(words),
        "product": lambda: [np.matmul(factor, factor, out=product) for _ in range(10)],
    }
    times = paired(comm, works, size.repeats)
    every = over_ranks(words.nbytes, comm)
    one = words.nbytes / median(times["one"]) / 1e9
    both = every / median(times["all"]) / 1e9
    flops = comm.size * 20 * SIDE**3 / median(times["product"]) / 1e9
    return [
        Row("roof: read-only sum, one rank, GB/s", one, plot={"read": one, "ranks": 1}),
        Row(
            f"roof: read-only sum, {comm.size} ranks, GB/s",
            both,
            plot={"read": both, "ranks": comm.size, "memory": memory()},
        ),
        Row(
            f"roof: float32 matrix product (BLAS), {comm.size} ranks, GFLOP/s",
            flops,
            plot={"flops": flops},
        ),
    ]
