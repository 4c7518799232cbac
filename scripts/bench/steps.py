"""Steps that have almost nothing to compute: one row a step, two ranks.

The Allreduce alone and torch's DDP are timed beside them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import ABSENT, Row, Size, median, seconds

D = 100
STEPS, TORCH_STEPS = 10_000, 200
ALONE = "steps: one row, d = 100, per second"
AGAINST = "steps: ours / torch DDP with gloo"


def allreduces(comm: Comm, count: int) -> float:
    """Allreduces a second of a buffer of the size of a step's."""
    buffer = np.zeros(2 * D + 10)
    return count / seconds(comm, lambda: [comm.allreduce(buffer) for _ in range(count)])


def torch_loop(comm: Comm) -> Callable[[int], Any]:
    """Return a function that makes a given number of DDP steps of one row on each rank.

    A step is forward, backward, gloo's sum and SGD.
    """
    import torch

    torch.set_num_threads(1)
    port = np.zeros(1, dtype=np.int64)
    if comm.rank == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port[0] = probe.getsockname()[1]
    comm.bcast(port)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port[0]}", rank=comm.rank, world_size=comm.size
    )
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(D, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = torch.nn.BCEWithLogitsLoss()
    X, y = torch.randn(256, 1, D), torch.randint(0, 2, (256, 1, 1)).float()

    def loop(count: int) -> None:
        for step in range(count):
            optimizer.zero_grad()
            loss(model(X[step % 256]), y[step % 256]).backward()
            optimizer.step()

    return loop


def measure(comm: Comm, size: Size) -> list[Row]:
    count = min(STEPS, int(size.megabytes * 1000))
    trainer = ours.Trainer(
        data.dense(count // comm.size, D, comm.rank),
        comm,
        mode="stochastic",
        batch_size=1,
        epochs=1,
    )
    loop = torch_loop(comm) if find_spec("torch") and comm.size > 1 else None
    mine, bare, theirs = [], [], []
    for _ in range(size.repeats + 1):
        mine.append(trainer.rates()[0])
        bare.append(allreduces(comm, count))
        if loop:
            theirs.append(TORCH_STEPS / seconds(comm, lambda: loop(TORCH_STEPS)))
    mine, bare, theirs = mine[1:], bare[1:], theirs[1:]
    rows = [
        Row(ALONE, median(mine), ">= 50000", {"steps": median(mine), "label": "ours"}),
        Row(
            "steps: Allreduces alone, per second",
            median(bare),
            plot={"steps": median(bare), "label": "Allreduce alone"},
        ),
    ]
    if not loop:
        return [*rows, Row(AGAINST, ABSENT, ">= 10")]
    import torch

    torch.distributed.destroy_process_group()
    rows.append(
        Row(
            "steps: torch DDP with gloo, per second",
            median(theirs),
            plot={"steps": median(theirs), "label": "torch DDP"},
        )
    )
    return [
        *rows,
        Row(AGAINST, median([a / b for a, b in zip(mine, theirs, strict=True)]), ">= 10"),
    ]
