"""Speed of loss and gradient of dense rows, as a fraction of a read of the same bytes.

The other losses are timed beside logistic.
"""

from __future__ import annotations

from mpigd.model.losses import LOSSES
from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import MISSING, Row, Size, median, over_ranks, paired, ratio
from scripts.bench.roof import sweep

TARGETS = {32: 0.60, 128: 0.80, 512: 0.90}
INTENSITY = 1.0  # two products of 2 flops each per value of 4 bytes


def fractions(comm: Comm, size: Size) -> list[Row]:
    rows = []
    for d, target in TARGETS.items():
        X = data.dense(size.rows(4 * d), d, comm.rank)
        made = ours.problem(X, comm)
        times = paired(comm, {"roof": sweep(X), "ours": ours.gradient(made)}, size.repeats)
        speed = over_ranks(X.nbytes, comm) / median(times["ours"]) / 1e9
        rows.append(
            Row(
                f"kernels: logistic float32, d = {d}, fraction of the roof",
                ratio(times, "roof", "ours"), f">= {target}",
                {
                    "speed": speed, "intensity": INTENSITY, "label": f"logistic d={d}",
                    "d": d, "gradient": True,
                },
            )
        )  # fmt: skip
    return rows


def other_losses(comm: Comm, size: Size) -> list[Row]:
    """Each one's time over logistic's on the same X; softmax has a subject of its own."""
    X = data.dense(size.rows(4 * 128), 128, comm.rank)
    names = [name for name, loss in LOSSES.items() if loss.kind != "multiclass"]
    works = {name: ours.gradient(ours.problem(X, comm, loss=name)) for name in names}
    times = paired(comm, works, size.repeats)
    return [
        Row(f"kernels: {name} / logistic, time, d = 128", ratio(times, name, "logistic"), "<= 1.15")
        for name in names
        if name != "logistic"
    ]


def half(comm: Comm, size: Size) -> list[Row]:
    """float16 in memory: rows a second and bytes, over those of float32, at d = 512."""
    names = (
        "kernels: float16 / float32, rows per second, d = 512",
        "kernels: float16 / float32, bytes in memory",
    )
    targets = (">= 1.6", "<= 0.5")
    if not ours.offers("dtype", "float16"):
        return [Row(name, MISSING, target) for name, target in zip(names, targets, strict=True)]
    X = data.dense(size.rows(4 * 512), 512, comm.rank)
    single, halved = ours.problem(X, comm, dtype="float32"), ours.problem(X, comm, dtype="float16")
    times = paired(
        comm, {"float32": ours.gradient(single), "float16": ours.gradient(halved)}, size.repeats
    )
    memory = halved.shard.X.row_bytes / single.shard.X.row_bytes
    speed = over_ranks(X.nbytes / 2, comm) / median(times["float16"]) / 1e9
    plot = {"speed": speed, "intensity": 2 * INTENSITY, "label": "float16 d=512"}
    return [
        Row(names[0], ratio(times, "float32", "float16"), targets[0], plot),
        Row(names[1], memory, targets[1]),
    ]


def measure(comm: Comm, size: Size) -> list[Row]:
    return [*fractions(comm, size), *other_losses(comm, size), *half(comm, size)]
