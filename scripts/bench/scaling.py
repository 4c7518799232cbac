"""Weak scaling: one rank with its share alone against every rank with its own share.

The result is divided by the slow-down of the bare read.
"""

from __future__ import annotations

from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import Row, Size, median, paired, ratio
from scripts.bench.roof import alone, sweep

D = 128


def measure(comm: Comm, size: Size) -> list[Row]:
    X = data.dense(size.rows(4 * D), D, comm.rank)
    mine = comm.split(comm.rank)
    works = {
        "roof one": alone(comm, sweep(X)),
        "roof all": sweep(X),
        "ours one": alone(comm, ours.gradient(ours.problem(X, mine))),
        "ours all": ours.gradient(ours.problem(X, comm)),
    }
    times = paired(comm, works, size.repeats)
    relative = [
        (o1 / o2) / (r1 / r2)
        for r1, r2, o1, o2 in zip(
            times["roof one"], times["roof all"], times["ours one"], times["ours all"], strict=True
        )
    ]
    return [
        Row("scaling: the roof, 1 to 2 ranks, weak", ratio(times, "roof one", "roof all")),
        Row("scaling: a gradient, 1 to 2 ranks, weak", ratio(times, "ours one", "ours all")),
        Row("scaling: a gradient's / the roof's", median(relative), ">= 0.95"),
    ]
