"""Peak resident size of a rank in training, evaluation and prediction.

It is divided by what is allowed: 1.1 times the rank's share of the data, plus 300 MB.
"""

from __future__ import annotations

from pathlib import Path

from scripts.bench import data
from scripts.bench.commands import RANKS, folder, notes
from scripts.bench.harness import Row, Size

D = 128
COLUMNS, PER_ROW = 1_000_000, 39
ALLOWED = 300e6  # for Python, numba, MPI and what a model of any size needs
MORE = 2.5  # times the other subjects' data, or the 300 MB would hide a copy of it


def rows_of(where: Path, path: Path, share: float, kind: str) -> list[Row]:
    model = where / "model.h5"
    train = ("train", path, "-o", model, "--loss", "logistic", "--epochs", "2", "--quiet")
    commands = {
        "train": train,
        "evaluate": ("evaluate", model, path),
        "predict": ("predict", model, path, "-o", where / "predictions.h5"),
    }
    rows = []
    for name, words in commands.items():
        peak = max(note["peak"] for note in notes(where, *words))
        rows.append(
            Row(f"memory: {kind}, {name}, peak / allowed", peak / (1.1 * share + ALLOWED), "<= 1")
        )
        rows.append(Row(f"memory: {kind}, {name}, peak over the share, MB", (peak - share) / 1e6))
    return rows


def drive(size: Size) -> list[Row]:
    n = size.rows(4 * D / MORE) * RANKS
    with folder() as where:
        path = data.write_dense(where / "dense.h5", data.dense(n, D, 0))
        rows = rows_of(where, path, n * (4 * D + 8) / RANKS, "dense float32")
        path.unlink()
        csr = data.zipf(size.rows(8 * PER_ROW / MORE) * RANKS, COLUMNS, PER_ROW, 0)
        share = (sum(part.nbytes for part in csr) + 8 * csr[0].size) / RANKS
        path = data.write_csr(where / "csr.h5", csr, COLUMNS)
        del csr
        return rows + rows_of(where, path, share, "CSR float32")
