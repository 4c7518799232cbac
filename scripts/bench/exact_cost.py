"""The cost of exact sums: full logistic gradients with --reduce exact over native.

Both are timed in turn on the same rows.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import ABSENT, Row, Size, paired, ratio

SPARSE = "exact sums: cost, CSR float32, 75 of 47,000 columns"


def cost(X: Any, comm: Comm, repeats: int) -> float:
    """Median of exact / native - 1 over pairs."""
    made = ours.problem(X, comm)
    works = {kind: ours.gradient(made, kind) for kind in ("exact", "native")}
    return ratio(paired(comm, works, repeats), "exact", "native") - 1


def measure(comm: Comm, size: Size) -> list[Row]:
    rows = []
    for d in (32, 128, 512):
        X = data.dense(size.rows(4 * d), d, comm.rank)
        rows.append(
            Row(f"exact sums: cost, dense float32, d = {d}", cost(X, comm, size.repeats), "<= 0.06")
        )
    if not find_spec("scipy"):  # which holds the CSR rows
        return [*rows, Row(SPARSE, ABSENT, "<= 0.2")]
    from scipy.sparse import csr_matrix

    indptr, indices, values = data.zipf(size.rows(8 * 75), 47_000, 75, comm.rank)
    rows.append(
        Row(
            SPARSE,
            cost(
                csr_matrix((values, indices, indptr), shape=(indptr.size - 1, 47_000)),
                comm,
                size.repeats,
            ),
            "<= 0.2",
        )
    )
    return rows
