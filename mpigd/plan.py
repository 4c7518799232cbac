"""`mpigd plan`: what a run will need, from the data's metadata and a short measurement on this machine. No MPI.

A step's time is the time of a rank's rows plus one Allreduce. The first is measured here, on made-up rows of the same
width, layout and loss, with as many threads as ranks share this machine's memory; the second is alpha + beta * bytes for each
of the log2(ranks) rounds.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mpigd import build
from mpigd.batches import Batch
from mpigd.comm import SelfComm
from mpigd.config import Config
from mpigd.data.matrix import CSR, Dense, Matrix
from mpigd.data.shard import Shard
from mpigd.data.source import Info
from mpigd.errors import UsageError
from mpigd.placement import cores

PROGRAM = 140e6  # bytes of a rank before it holds a row: Python, numpy, numba, h5py, MPI
PER_ROW = 24  # bytes a row takes beside X: target, weight, number
SAMPLE = 64e6  # bytes of made-up rows a thread measures on: more than a cache holds
OVERHEAD = 60e-6  # seconds of a step that has nothing to compute
NETWORK = (2e-6, 1e-10)  # seconds a message, and a byte: 10 GB/s


@dataclass(frozen=True)
class Plan:
    """Numbers of a run. memory_bytes: of a rank; seconds of a step and an epoch; share of communication in a step."""

    rows: int
    columns: int
    ranks: int
    memory_bytes: float
    steps_per_epoch: int
    step_seconds: float
    epoch_seconds: float
    epochs: int
    allreduce_bytes: int
    communication_share: float


def plan(infos: list[Info], config: Config, ranks: int, network: tuple[float, float] = NETWORK) -> Plan:
    """Predict a run on `ranks` ranks, as many on each host as this one has cores. UsageError if it cannot fit here."""
    n, d = sum(info.n for info in infos), infos[0].d
    config = build.complete(config, n)
    row_bytes = _row_bytes(infos, config.dtype or infos[0].dtype)
    steps = 1 if config.batch_size is None else -(-n // config.batch_size)
    here = min(ranks, len(cores()))
    share = -(-n // ranks)
    memory = PROGRAM + share * (row_bytes + PER_ROW) + 64 * d
    k = 1 if config.loss != "softmax" else 10
    words = 8 * (2 * k * d + 2 * (k + 1) + 16)
    talk = math.ceil(math.log2(ranks)) * (network[0] + network[1] * words) if ranks > 1 else 0.0
    per_row = row_seconds(infos[0].layout, d, row_bytes, config, here)
    step = share / steps * per_row + OVERHEAD + talk
    _check_memory(memory * here)
    return Plan(n, d, ranks, memory, steps, step, step * steps, config.epochs or 1, words, talk / step)


def _row_bytes(infos: list[Info], dtype: str) -> float:
    size = np.dtype(dtype).itemsize
    if infos[0].layout == "dense":
        return float(infos[0].d * size)
    entries = sum(info.nonzeros or 0 for info in infos) / max(1, sum(info.n for info in infos))
    return entries * (4 + size) + 8


def _check_memory(needed: float) -> None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            available = int(next(line for line in file if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        return
    if needed > available:
        raise UsageError(
            f"the ranks of a host like this one would need {needed / 1e9:.1f} GB, and it has {available / 1e9:.1f} GB: "
            "use more hosts, or fewer ranks on each"
        )


def row_seconds(layout: str, d: int, row_bytes: float, config: Config, ranks: int) -> float:
    """Seconds a rank needs for a row of a gradient while `ranks` of them share this machine's cores and memory."""
    threads = max(1, len(cores()) // ranks) * ranks
    X = _made_up(layout, d, row_bytes, threads)
    y = np.resize([1.0, 2.0], X.n)
    shard = Shard(X.n, np.arange(X.n), X, y)
    loss = config.loss if config.loss != "softmax" else "logistic"
    measured = config.replace(loss=loss, mode="full", batch_size=None, threads=threads, class_weight=None)
    problem = build.problem(shard, measured, SelfComm())
    oracle = problem.objective.on(Batch(slice(None), X.n, 0, 0, True), problem.reducer)
    w = build.start(problem)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        oracle.value_and_gradient(w)
        times.append(time.perf_counter() - begin)
    outputs = 10 if config.loss == "softmax" else 1
    return outputs * float(np.median(times[1:])) / (X.n / ranks)


def _made_up(layout: str, d: int, row_bytes: float, threads: int) -> Matrix:
    """Rows of this width; of a sparse matrix with columns as frequent as Zipf's words, and numbered at random."""
    rng = np.random.default_rng(0)
    n = max(64 * threads, int(SAMPLE * threads / row_bytes))
    if layout == "dense":
        item = 8 if row_bytes / d > 4 else 4
        return Dense(np.resize(rng.random((min(n, 4096), d)).astype(f"f{item}"), (n, d)))
    per_row = max(1, round((row_bytes - 8) / 8))
    drawn = np.minimum(np.exp(rng.random((n, per_row)) * math.log(d + 1)).astype(np.int64) - 1, d - 1)
    columns = np.sort(rng.permutation(d).astype(np.int32)[drawn], axis=1)
    indptr = np.arange(0, n * per_row + 1, per_row, dtype=np.int64)
    return CSR(indptr, columns.reshape(-1), rng.random(n * per_row, np.float32), d)


def text(predicted: Plan) -> str:
    """The plan for people."""
    p = predicted
    return "\n".join(
        (
            f"{p.rows:,} rows x {p.columns:,} columns on {p.ranks:,} rank(s)",
            f"  memory       {p.memory_bytes / 1e9:.2f} GB a rank",
            f"  steps        {p.steps_per_epoch:,} an epoch, at most {p.steps_per_epoch * p.epochs:,}",
            f"  step         {p.step_seconds * 1e3:.3g} ms, {100 * p.communication_share:.1f} % of it communication",
            f"  epoch        {p.epoch_seconds:.3g} s; all {p.epochs:,} epochs {p.epoch_seconds * p.epochs:.3g} s",
            f"  Allreduce    {p.allreduce_bytes:,} bytes a step",
        )
    )


def to_dict(predicted: Plan) -> dict[str, Any]:
    return asdict(predicted)
