"""Training data in memory: this rank's own arrays become its part of the data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.data.shard import RowNumbers, Shard
from mpigd.errors import DataError, UsageError
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.matrix.half import Half, Narrowing
from mpigd.parallel.comm import Comm, together

Array = np.ndarray[Any, Any]


def shard_of(data: tuple[Any, ...], dtype: str | None, comm: Comm) -> Shard:
    """Make a Shard of this rank's arrays. Collective.

    Parameters
    ----------
    data : tuple
        (X, y[, sample_weight[, offset]]), of m rows; see `matrix_of` for X. The others are (m,).
    dtype : str or None
        The type of X in memory; None keeps float32 and makes float64 of all else.
    comm : Comm

    Returns
    -------
    Shard
        Its rows, numbered in rank order.

    Raises
    ------
    UsageError
        If the number of arrays is wrong, or float16 is asked for sparse data.
    DataError
        If the arrays are unusable or do not fit together, on this rank or between ranks.
    """
    if not 2 <= len(data) <= 4:
        raise UsageError(
            "arrays come as (X, y), (X, y, sample_weight) or (X, y, sample_weight, offset)"
        )
    with together(comm):
        X = matrix_of(data[0], None if dtype == "float16" else dtype)
        if dtype == "float16" and not isinstance(X, Dense):
            raise UsageError("--dtype float16 is for dense data, and these are sparse: use float32")
        y, c, offset = (
            _vector(*named, X.n)
            for named in zip(
                ("y", "sample_weight", "offset"), (*data[1:], None, None), strict=False
            )
        )
        if c is not None and np.any(c < 0):
            raise DataError(
                f"sample_weight[{int(np.argmax(c < 0))}] on rank {comm.rank} is negative"
            )
    shapes = comm.allgather(np.array([X.n, X.d], dtype=np.int64))
    with together(comm):
        if np.any(shapes[:, 1] != X.d):
            raise DataError(
                "ranks have different numbers of columns: "
                f"{', '.join(str(d) for d in shapes[:, 1])}"
            )
        if shapes[:, 0].sum() == 0:
            raise DataError("the data has no rows")
    if dtype == "float16" and isinstance(X, Dense):
        X = _narrowed(X, comm)
    first = int(shapes[: comm.rank, 0].sum())
    return Shard(int(shapes[:, 0].sum()), RowNumbers([(first, X.n)]), X, y, c, offset)


def _narrowed(X: Dense, comm: Comm) -> Half:
    """Return the rows as float16. Collective."""
    columns = X.columns()
    narrowing = Narrowing(columns.low, columns.high, comm)
    bits = np.empty(X.values.shape, np.uint16)
    narrowing.narrow(X.values, bits)
    narrowing.check("X", None, comm)
    return Half(bits, narrowing.unit)


def matrix_of(X: Any, dtype: str | None = None) -> Matrix:
    """Return a Matrix of a numpy array or a scipy.sparse matrix (n, d).

    Parameters
    ----------
    X : array-like or sparse matrix
        Two-dimensional. Duplicate entries of a sparse matrix are summed.
    dtype : str or None
        The type of the values; None keeps float32 and makes float64 of all else.

    Returns
    -------
    Dense or CSR

    Raises
    ------
    DataError
        If it does not hold finite numbers in two dimensions.
    """
    if hasattr(X, "tocsr"):
        sparse = X.tocsr()
        sparse.sum_duplicates()
        values = _finite(sparse.data, dtype, "X")
        return CSR(
            sparse.indptr.astype(np.int64),
            sparse.indices.astype(np.int32),
            values,
            int(sparse.shape[1]),
        )
    dense = np.asarray(X)
    if dense.ndim != 2:
        raise DataError(f"X has shape {dense.shape}, expected (rows, columns)")
    return Dense(_finite(dense, dtype, "X"))


def _vector(name: str, values: Any, n: int) -> Array | None:
    if values is None:
        return None
    vector = np.asarray(values)
    if vector.shape != (n,):
        raise DataError(f"{name} has shape {vector.shape}, expected ({n},)")
    return _finite(vector, "float64", name)


def _finite(values: Array, dtype: str | None, name: str) -> Array:
    if values.dtype.kind not in "fiub":
        raise DataError(f"{name} holds {values.dtype}, expected numbers")
    kept = dtype or ("float32" if values.dtype == np.float32 else "float64")
    result = np.ascontiguousarray(values, dtype=kept)
    bad = np.argwhere(~np.isfinite(result))
    if bad.size:
        where = ", ".join(str(index) for index in bad[0])
        raise DataError(
            f"{name}[{where}] is {values[tuple(bad[0])]}: not a finite number in {kept}"
        )
    return result
