"""From coefficients to predictions: margins, mean responses, classes.

Each number is a function of its own row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.matrix.base import Matrix, block_rows
from mpigd.model.losses import Loss

Array = np.ndarray[Any, Any]


def predicted_class(loss: Loss, output: Array) -> Array:
    """Return the predicted classes.

    Parameters
    ----------
    loss
        The model's loss.
    output : (k, m) float64
        Probabilities or decision values.

    Returns
    -------
    codes : (m,) int64
        Positions in the model's classes.
    """
    if loss.kind == "multiclass":
        return np.asarray(output.argmax(axis=0))
    return np.asarray(output[0] > (0.5 if loss.kind == "binary" else 0.0), dtype=np.int64)


def margins(X: Matrix, coef: Array, intercept: Array, offset: Array | None) -> Array:
    """Return margins z (k, m) = coef X' + intercept + offset, computed block by block.

    Parameters
    ----------
    X
        The matrix (m, d).
    coef : (k, d) float64
    intercept : (k,) float64
    offset : (m,) float64 or None
    """
    z = np.empty((coef.shape[0], X.n))
    step = block_rows(X)
    for start in range(0, X.n, step):
        rows = slice(start, min(X.n, start + step))
        block = X.rows(rows)
        for q in range(coef.shape[0]):
            block.margins(coef[q], intercept[q], z[q, rows])
    return z if offset is None else z + offset


def mean_response(loss: Loss, z: Array) -> Array:
    """Return the mean responses or probabilities for margins.

    Parameters
    ----------
    loss
        The model's loss.
    z : (k, m) float64
        Margins.

    Returns
    -------
    output : (k, m) float64
        The margins themselves for losses that have neither.
    """
    if loss.mean is None:
        return z
    out = np.empty_like(z)
    loss.mean(z, out)
    return out
