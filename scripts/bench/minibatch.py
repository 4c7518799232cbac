"""Mini-batches of shuffled rows against full mode, in rows a second of whole training loops."""

from __future__ import annotations

from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import Row, Size, median

BATCH, D = 4096, 128


def measure(comm: Comm, size: Size) -> list[Row]:
    X = data.dense(size.rows(4 * D), D, comm.rank)
    full = ours.Trainer(X, comm, mode="full", epochs=2)
    batches = ours.Trainer(X, comm, mode="minibatch", batch_size=min(BATCH, X.shape[0]), epochs=1)
    full.rates(), batches.rates()
    pairs = [(full.rates()[1], batches.rates()[1]) for _ in range(size.repeats)]
    return [
        Row("full mode, d = 128, rows per second", median([pair[0] for pair in pairs])),
        Row(
            f"mini-batch {BATCH}, d = 128: rows per second / full mode",
            median([b / a for a, b in pairs]),
            ">= 0.5",
        ),
    ]
