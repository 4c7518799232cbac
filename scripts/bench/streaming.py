"""Epochs streamed from the page cache because of --max-memory, over epochs in memory.

Both are the same command on two ranks.
"""

from __future__ import annotations

from pathlib import Path

from scripts.bench import data
from scripts.bench.commands import PLAIN, RANKS, folder, step_seconds, understands
from scripts.bench.harness import MISSING, Row, Size, median

D = 128
NAME = "streaming: an epoch from the page cache / in memory, time, full mode"


def drive(size: Size) -> list[Row]:
    if not understands("train", "--max-memory"):
        return [Row(NAME, MISSING, "<= 1.5")]
    n = size.rows(4 * D) * RANKS
    with folder() as where:
        path = data.write_dense(where / "data.h5", data.dense(n, D, 0))
        quotients = [
            pair(where, path, f"{max(1, int(size.megabytes / 4))}MB") for _ in range(size.repeats)
        ]
    return [Row(NAME, median(quotients), "<= 1.5")]


def pair(where: Path, path: Path, limit: str) -> float:
    held = step_seconds(where, path, *PLAIN)
    return step_seconds(where, path, *PLAIN, "--max-memory", limit) / held
