"""Determine how fast the ranks of a machine are, from a profile or by measuring made-up rows.

A profile is a JSON file (results/profile.json of scripts/bench/run.py): alpha and beta of an
Allreduce, bytes per second that 1, 2, ... ranks read, what fraction of that a gradient of d
columns reaches, and the memory. What it does not contain is measured on this machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.batches import Batch
from mpigd.data.shard import Shard
from mpigd.errors import UsageError
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.parallel.affinity import cores
from mpigd.parallel.comm import SelfComm
from mpigd.training import problem as build

SAMPLE = 64e6  # bytes of made-up rows per thread: more than a cache holds
TURNS = 5  # measurements; the first one compiles and is dropped
Profile = Mapping[str, float]


def read_profile(path: str) -> Profile:
    """Read the numbers of a profile. Raise UsageError if it has none."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            str(name): float(value)
            for name, value in told.items()
            if isinstance(value, int | float)
        }
    except OSError as error:
        raise UsageError(f"--profile {path}: cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise UsageError(
            f"--profile {path}: not a JSON object of numbers, as scripts/bench/run.py writes it"
        ) from error


def cores_of(profile: Profile) -> int:
    """Return the number of ranks for which one host has cores.

    It is the largest number of ranks in the profile, or else the number of cores of this machine.
    """
    return max(_numbers(profile, "read_"), default=len(cores()))


def _numbers(profile: Profile, prefix: str) -> dict[int, float]:
    found = {
        name.removeprefix(prefix): value
        for name, value in profile.items()
        if name.startswith(prefix)
    }
    return {int(name): value for name, value in found.items() if name.isdigit() and value > 0}


def told_seconds(profile: Profile, d: int, row_bytes: float, ranks: int) -> float | None:
    """Return the seconds of a dense row in a full gradient, according to the profile.

    Parameters
    ----------
    profile : Profile
        Numbers of a machine.
    d : int
        Columns.
    row_bytes : float
        Bytes of a row.
    ranks : int
        Ranks on one host.

    Returns
    -------
    float or None
        Seconds, None if the profile lacks the numbers.
    """
    read, fraction = _numbers(profile, "read_"), _numbers(profile, "fraction_")
    if not read or not fraction:
        return None
    near = min(read, key=lambda count: abs(count - ranks))
    widths = sorted(fraction)
    reached = float(np.interp(math.log(d), np.log(widths), [fraction[width] for width in widths]))
    return row_bytes / (read[near] / near * reached)


def row_seconds(
    layout: str, d: int, row_bytes: float, config: Config, ranks: int, k: int = 1
) -> float:
    """Measure the seconds that a rank needs per row of a gradient.

    In mini-batch and stochastic mode the rows of a step lie anywhere, unless blocks of rows are
    kept together.

    Parameters
    ----------
    layout : str
        "dense", or the layout of sparse rows.
    d : int
        Columns.
    row_bytes : float
        Bytes of a row.
    config : Config
        Options of the run.
    ranks : int
        Ranks that share this machine's cores and memory.
    k : int
        Outputs.
    """
    threads = (config.threads or max(1, len(cores()) // ranks)) * ranks
    X = _made_up(layout, d, row_bytes, threads)
    y = np.resize(np.arange(1.0, max(2, k) + 1), X.n)
    measured = config.replace(
        mode="full",
        batch_size=None,
        threads=threads,
        class_weight=None,
        optimizer="auto",
        max_memory=None,
    )
    problem = build.problem(Shard(X.n, np.arange(X.n), X, y), measured, SelfComm())
    scattered = config.mode != "full" and config.shuffle == "rows"
    rows = (
        np.random.default_rng(1).permutation(X.n)[: max(64, X.n // 4)] if scattered else slice(None)
    )
    m = rows.size if isinstance(rows, np.ndarray) else X.n
    oracle = problem.objective.on(Batch(rows, m, 0, 0, True), problem.reducer)
    w = build.start(problem)
    times = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        oracle.value_and_gradient(w)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:])) / (m / ranks)


def _made_up(layout: str, d: int, row_bytes: float, threads: int) -> Matrix:
    """Return made-up rows of this width.

    The columns of a sparse matrix are as frequent as words by Zipf's law, and numbered at random.
    """
    rng = np.random.default_rng(0)
    n = max(64 * threads, int(SAMPLE * threads / row_bytes))
    if layout == "dense":
        item = 8 if row_bytes / d > 4 else 4
        return Dense(np.resize(rng.random((min(n, 4096), d)).astype(f"f{item}"), (n, d)))
    per_row = max(1, round((row_bytes - 8) / 8))
    drawn = np.minimum(
        np.exp(rng.random((n, per_row)) * math.log(d + 1)).astype(np.int64) - 1, d - 1
    )
    columns = np.sort(rng.permutation(d).astype(np.int32)[drawn], axis=1)
    indptr = np.arange(0, n * per_row + 1, per_row, dtype=np.int64)
    return CSR(indptr, columns.reshape(-1), rng.random(n * per_row, np.float32), d)
