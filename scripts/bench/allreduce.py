"""Compare mpi4py's Allreduce with mpigd's for several buffer sizes.

The buffers hold one number, a model and a big model. The subject also measures the network's alpha
and beta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpigd.parallel.comm import Comm
from scripts.bench.harness import Row, Size, median, paired, ratio

SIZES = ((8, 2000), (8192, 2000), (1 << 20, 100))  # bytes, calls


def measure(comm: Comm, size: Size) -> list[Row]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rows, took = [], {}
    for length, calls in SIZES:
        buffer = np.zeros(length // 8)
        works: dict[str, Callable[[], Any]] = {
            "raw": lambda buffer=buffer, calls=calls: [
                world.Allreduce(MPI.IN_PLACE, buffer) for _ in range(calls)
            ],
            "ours": lambda buffer=buffer, calls=calls: [
                comm.allreduce(buffer) for _ in range(calls)
            ],
        }
        times = paired(comm, works, size.repeats)
        took[length] = median(times["raw"]) / calls
        rows.append(
            Row(f"Allreduce of {length:,} bytes: raw mpi4py, microseconds", 1e6 * took[length])
        )
        rows.append(Row(f"Allreduce of {length:,} bytes: ours / raw", ratio(times, "ours", "raw")))
    alpha = took[8]
    beta = max(0.0, took[1 << 20] - alpha) / (1 << 20)
    plot = {"alpha": alpha, "beta": beta}
    return [*rows, Row("Allreduce: beta, nanoseconds per byte", 1e9 * beta, plot=plot)]
