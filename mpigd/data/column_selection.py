"""Matrices derived from a rank's rows: some of their columns, or all minus a constant for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.data.streamed import Streamed
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.matrix.half import Half
from mpigd_kernels import csr

Array = np.ndarray[Any, Any]


def columns(X: Matrix, chosen: Array) -> Matrix | None:
    """Return a copy of some columns of a matrix.

    Parameters
    ----------
    X : Matrix (n, d)
    chosen : ndarray (s,)
        Columns, ascending.

    Returns
    -------
    Matrix (n, s) or None
        None if the rows are not in memory.
    """
    if isinstance(X, Dense):
        return Dense(np.ascontiguousarray(X.values[:, chosen]))
    if isinstance(X, Half):
        return Half(np.ascontiguousarray(X.bits[:, chosen]), X.unit[chosen], X.inverse[chosen])
    if not isinstance(X, CSR):
        return None
    place = np.full(X.d, -1, np.int64)
    place[chosen] = np.arange(chosen.size)
    indptr = np.empty(X.n + 1, np.int64)
    size = csr.count_chosen(X.indptr, X.indices, place, indptr)
    ones = X.values is None
    indices, data = np.empty(size, X.indices.dtype), np.empty(0 if ones else size, X.data.dtype)
    csr.take_chosen(X.indptr, X.indices, X.values, place, indices, data)
    return CSR(indptr, indices, np.broadcast_to(X.data[:1], (size,)) if ones else data, chosen.size)


def shifted(X: Matrix, shift: Array) -> Matrix:
    """Return x_ij - shift_j over the stored values; for a CSR matrix, zeros stay.

    Parameters
    ----------
    X : Matrix (n, d)
        Of float32 or float64.
    shift : ndarray (d,)

    Returns
    -------
    Matrix (n, d)
        Of the type of X; a copy if the rows are in memory.
    """
    if isinstance(X, Streamed):
        return X.shifted(shift)
    if isinstance(X, CSR):
        stored = slice(int(X.indptr[0]), int(X.indptr[-1]))
        indices = X.indices[stored]
        data = X.data[stored] - shift.astype(X.dtype)[indices]
        return CSR(X.indptr - X.indptr[0], indices, data, X.d, X.number)
    assert isinstance(X, Dense)
    return Dense(X.values - shift.astype(X.dtype))
