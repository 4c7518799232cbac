"""CSR rows against scipy's two products X w and X' r.

Both use the same precision and the same ranks.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import ABSENT, Row, Size, median, over_ranks, paired, ratio

CASES = (  # columns, draws a row, all ones, target
    (1_000_000, 39, False, 1.5),
    (47_000, 75, False, 1.5),
    (1_000_000, 39, True, 2.5),
)
ENTRY = 8  # bytes of a column number and a float32 value
INTENSITY = 4 / ENTRY


def case(comm: Comm, size: Size, d: int, per_row: int, ones: bool, target: float) -> list[Row]:
    values = ", all ones" if ones else ""
    name = f"CSR, {per_row} of {d:,} columns{values}: scipy's products / ours, time"
    if not find_spec("scipy"):
        return [Row(name, ABSENT, f">= {target}")]
    from scipy.sparse import csr_matrix

    indptr, indices, stored = data.zipf(size.rows(ENTRY * per_row), d, per_row, comm.rank)
    X = csr_matrix(
        (np.ones_like(stored) if ones else stored, indices, indptr), shape=(indptr.size - 1, d)
    )
    X.sort_indices()
    made = ours.problem(X, comm)
    times = paired(comm, {"scipy": products(X), "ours": ours.gradient(made)}, size.repeats)
    moved = over_ranks(ENTRY * X.nnz, comm) / 1e9
    plots: list[dict[str, Any]] = [
        {
            "speed": moved / median(times[who]),
            "intensity": INTENSITY,
            "label": f"{label} {d // 1000}k{' ones' if ones else ''}",
        }
        for who, label in (("ours", "CSR"), ("scipy", "scipy"))
    ]
    return [
        Row(name, ratio(times, "scipy", "ours"), f">= {target}", plots[0]),
        Row(
            f"CSR, {per_row} of {d:,} columns{values}: scipy, GB/s",
            plots[1]["speed"],
            plot={**plots[1], "peer": True},
        ),
    ]


def products(X: Any) -> Any:
    """Both vectors in float32: with float64 ones scipy would first make a float64 copy of X."""
    w, r = np.ones(X.shape[1], np.float32), np.ones(X.shape[0], np.float32)
    transposed = X.T
    return lambda: (X @ w, transposed @ r)


def measure(comm: Comm, size: Size) -> list[Row]:
    return [row for one in CASES for row in case(comm, size, *one)]
