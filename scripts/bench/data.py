"""Synthetic data: arrays and HDF5 files of any size and shape, determined by the seed.

The module uses numpy and h5py alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpigd_kernels.host import aligned

Array = np.ndarray[Any, Any]
CSR = tuple[Array, Array, Array]


def dense(n: int, d: int, seed: int) -> Array:
    """X (n, d) float32, standard normal."""
    X = aligned((n, d), np.float32)  # as loading gives it
    return np.random.default_rng(seed).standard_normal(dtype=np.float32, out=X)


def zipf(n: int, d: int, per_row: int, seed: int) -> CSR:
    """Make sparse rows: (indptr, indices int32, data float32).

    Each row draws `per_row` columns whose frequency falls like 1 / rank. A column stands at most
    once in a row.
    """
    rng = np.random.default_rng(seed)
    drawn = np.exp(rng.random((n, per_row)) * np.log(d)).astype(np.int32) - 1
    # Columns are numbered at random, as a dictionary or a hash numbers them, so that frequent
    # columns are not next to each other.
    indices = np.random.default_rng(0).permutation(d).astype(np.int32)[drawn]
    indices.sort(axis=1)
    kept = np.concatenate([np.ones((n, 1), dtype=bool), indices[:, 1:] != indices[:, :-1]], axis=1)
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    return indptr, indices[kept], rng.standard_normal(int(indptr[-1]), dtype=np.float32)


def target(loss: str, n: int, seed: int, k: int = 10) -> Array:
    """y (n,) float64 that the loss accepts; at least one row of each class where n allows."""
    rng = np.random.default_rng(seed + 1000)
    if loss in ("logistic", "hinge", "squared_hinge"):
        return (rng.permutation(n) % 2).astype(np.float64)
    if loss == "softmax":
        return (rng.permutation(n) % k).astype(np.float64)
    return (
        rng.poisson(1.0, n).astype(np.float64)
        if loss == "poisson"
        else rng.gamma(2.0, 0.5, n) + 0.01
    )


def write_dense(path: Path, X: Array, rows_per_chunk: int = 0, **filters: Any) -> Path:
    """Write a data set of X and a logistic y.

    It is contiguous unless `rows_per_chunk` is given; `filters` compress the chunks.
    """
    import h5py

    with h5py.File(path, "w") as file:
        chunks = {"chunks": (min(rows_per_chunk, X.shape[0]), X.shape[1])} if rows_per_chunk else {}
        file.create_dataset("X", data=X, **chunks, **filters)
        file["y"] = target("logistic", X.shape[0], 0)
    return path


def write_csr(path: Path, rows: CSR, d: int) -> Path:
    """A data set of CSR rows in AnnData's encoding and a logistic y."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        n = rows[0].size - 1
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n, d)}
        )
        for name, values in zip(("indptr", "indices", "data"), rows, strict=True):
            group[name] = values
        file["y"] = target("logistic", n, 0)
    return path
