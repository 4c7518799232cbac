"""Compare what `mpigd plan` predicts with what is then measured.

It predicts from metadata and this machine, for three shapes on one and two ranks. The prediction
measures too, so both are taken in turn, like everything here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.bench import data
from scripts.bench.commands import PLAIN, RANKS, Word, folder, notes, step_seconds, understands
from scripts.bench.harness import FEWEST, MISSING, RESULTS, Row, Size, launch, median

WITHIN = "<= 0.25"


def files(where: Path, size: Size) -> Iterator[tuple[str, Path]]:
    yield (
        "dense d = 32",
        data.write_dense(where / "narrow.h5", data.dense(size.rows(4 * 32), 32, 0)),
    )
    yield (
        "dense d = 512",
        data.write_dense(where / "wide.h5", data.dense(size.rows(4 * 512), 512, 0)),
    )
    csr = data.zipf(size.rows(8 * 75), 47_000, 75, 0)
    yield "CSR, 75 of 47,000 columns", data.write_csr(where / "csr.h5", csr, 47_000)


def network() -> tuple[Word, ...]:
    """The option that tells the plan of the Allreduce as it was measured here, if it was."""
    profile = RESULTS / "profile.json"
    told = json.loads(profile.read_text()) if profile.exists() else {}
    return ("--network", f"{told['alpha']},{told['beta']}") if "alpha" in told else ()


def predicted(path: Path, ranks: int) -> dict[str, Any]:
    words = ("plan", path, "--ranks", str(ranks), *PLAIN, "--json", *network())
    told: dict[str, Any] = json.loads(launch(0, "-m", "mpigd", *words))
    return told


def compared(where: Path, name: str, path: Path, ranks: int) -> list[Row]:
    told, quotients = predicted(path, ranks), []
    for _ in range(FEWEST):
        measured = step_seconds(where, path, *PLAIN, ranks=ranks)
        quotients.append(predicted(path, ranks)["step_seconds"] / measured)
    train = ("train", path, "-o", where / "model.h5", *PLAIN, "--quiet")
    peak = max(note["peak"] for note in notes(where, *train, ranks=ranks))
    title = f"plan: {name}, {ranks} rank(s)"
    return [
        Row(f"{title}, step predicted / measured", median(quotients)),
        Row(f"{title}, step time, off by", abs(median(quotients) - 1), WITHIN),
        Row(f"{title}, memory, off by", abs(told["memory_bytes"] / peak - 1), WITHIN),
    ]


def drive(size: Size) -> list[Row]:
    if not understands("plan", "--ranks"):
        return [Row("plan: predicted against measured, off by", MISSING, WITHIN)]
    rows = []
    with folder() as where:
        for name, path in files(where, size):
            for ranks in range(1, RANKS + 1):
                rows += compared(where, name, path, ranks)
            path.unlink()
    return rows
