"""Softmax with ten classes against the two BLAS products it replaces.

These are X W and R' X in float32, without the pointwise part.
"""

from __future__ import annotations

import numpy as np

from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import Row, Size, median, over_ranks, paired, ratio

K, D = 10, 128


def measure(comm: Comm, size: Size) -> list[Row]:
    X = data.dense(size.rows(4 * D), D, comm.rank)
    made = ours.problem(X, comm, loss="softmax")
    W = np.random.default_rng(1).standard_normal((D, K), dtype=np.float32)
    Z, G = np.empty((X.shape[0], K), np.float32), np.empty((K, D), np.float32)

    def products() -> None:
        np.matmul(X, W, out=Z)
        np.matmul(Z.T, X, out=G)

    times = paired(comm, {"BLAS": products, "ours": ours.gradient(made)}, size.repeats)
    moved = over_ranks(X.nbytes, comm) / 1e9
    speed, blas = moved / median(times["ours"]), moved / median(times["BLAS"])
    return [
        Row(
            f"softmax k = {K}, d = {D}: time / two BLAS products",
            ratio(times, "ours", "BLAS"), "<= 1.5",
            {"speed": speed, "intensity": float(K), "label": f"softmax k={K}"},
        ),
        Row(
            f"softmax k = {K}, d = {D}: two BLAS products, GB/s", blas,
            plot={"speed": blas, "intensity": float(K), "label": "BLAS k=10", "peer": True},
        ),
    ]  # fmt: skip
