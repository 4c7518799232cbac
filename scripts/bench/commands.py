"""Whole commands of mpigd, as a user starts them, and what they leave behind."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bench.harness import RESULTS, ROOT, launch

RANKS = 2
EPOCHS = 20
# One read of the data a step, so many steps: what is compared is the same work.
PLAIN = ("--loss", "logistic", "--optimizer", "sgd", "--lr", "0.01", "--lr-schedule", "constant")
PLAIN += ("--epochs", str(EPOCHS), "--tol", "0")
Word = str | Path


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for files of some size, gone afterwards."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as made:
        yield Path(made)


def timed(
    *words: Word, ranks: int = RANKS, env: Mapping[str, str] | None = None, limit: float = 120.0
) -> float:
    """Seconds of ``mpiexec -n RANKS python -m mpigd WORDS`` from its start to its end."""
    begin = time.perf_counter()
    launch(ranks, "-m", "mpigd", *words, env=env, limit=limit)
    return time.perf_counter() - begin


def trained(where: Path, *words: Word, ranks: int = RANKS, limit: float = 120.0) -> dict[str, Any]:
    """The summary (seconds, steps, ...) of a model that `train WORDS` made."""
    model = where / "timed.h5"
    launch(ranks, "-m", "mpigd", "train", *words, "-o", model, "--quiet", limit=limit)
    summary: dict[str, Any] = json.loads(launch(0, "-m", "mpigd", "info", "--json", model))
    return summary


def step_seconds(where: Path, *words: Word, ranks: int = RANKS) -> float:
    summary = trained(where, *words, ranks=ranks)
    return float(summary["seconds"]) / float(summary["steps"])


def notes(where: Path, *words: Word, ranks: int = RANKS) -> list[dict[str, int]]:
    """Of every rank of a command: `modules` imported and `peak` resident bytes."""
    note = where / "note"
    launch(ranks, ROOT / "scripts" / "bench" / "inside.py", note, *words)
    return [json.loads(Path(f"{note}.{rank}").read_text()) for rank in range(ranks)]


def understands(*words: str) -> bool:
    """Return whether mpigd knows this command or option: its --help mentions it."""
    try:
        return words[-1] in launch(0, "-m", "mpigd", *words[:-1], "--help")
    except RuntimeError:
        return False
