"""From coefficients to what a model says of rows: margins, mean responses, classes. Each row on its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.matrix.base import Matrix, block_rows
from mpigd.model.losses import Loss

Array = np.ndarray[Any, Any]


def predicted_class(loss: Loss, output: Array) -> Array:
    """Positions of the classes predicted for outputs (k, m)."""
    if loss.kind == "multiclass":
        return np.asarray(output.argmax(axis=0))
    return np.asarray(output[0] > (0.5 if loss.kind == "binary" else 0.0), dtype=np.int64)


def margins(X: Matrix, coef: Array, intercept: Array, offset: Array | None) -> Array:
    """z (k, m) = coef X' + intercept + offset for coef (k, d), intercept (k,), block by block."""
    z = np.empty((coef.shape[0], X.n))
    step = block_rows(X)
    for start in range(0, X.n, step):
        rows = slice(start, min(X.n, start + step))
        block = X.rows(rows)
        for q in range(coef.shape[0]):
            block.margins(coef[q], intercept[q], z[q, rows])
    return z if offset is None else z + offset


def mean_response(loss: Loss, z: Array) -> Array:
    """Mean responses, probabilities, or for losses without either the margins themselves, (k, m)."""
    if loss.mean is None:
        return z
    out = np.empty_like(z)
    loss.mean(z, out)
    return out
