"""Start-up: a whole training command on 1,000 x 10 rows, and the modules a rank imports.

The command runs with compiled kernels and without.
"""

from __future__ import annotations

from pathlib import Path

from scripts.bench import data
from scripts.bench.commands import folder, notes, timed
from scripts.bench.harness import FEWEST, Row, Size, median


def drive(size: Size) -> list[Row]:
    with folder() as where:
        path = data.write_dense(where / "small.h5", data.dense(1000, 10, 0))
        train = ("train", path, "-o", where / "model.h5", "--loss", "logistic", "--quiet")
        cold = [timed(*train, env=fresh(where, turn)) for turn in range(FEWEST)]
        warm = [timed(*train, env=fresh(where, 0)) for _ in range(size.repeats)]
        modules = max(note["modules"] for note in notes(where, *train))
    return [
        Row("start-up: whole command, warm, seconds", median(warm), "<= 1.5"),
        Row("start-up: whole command, nothing compiled, seconds", median(cold), "<= 15"),
        Row("start-up: modules imported by a training rank", float(modules), "<= 850"),
    ]


def fresh(where: Path, turn: int) -> dict[str, str]:
    """A cache of compiled kernels of its own; the same turn finds it filled."""
    return {"MPIGD_CACHE_DIR": str(where / f"cache-{turn}")}
