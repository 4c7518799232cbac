"""Find the number in the data that makes sums over rows overflow, for error messages only.

The search runs only after a sum has overflowed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from mpigd.data.extreme_values import advice
from mpigd.data.metadata import agreed
from mpigd.data.shard import Shard
from mpigd.errors import DataError, NumericalError
from mpigd.matrix.base import CSR, Matrix, block_rows
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import NotFinite

Array = np.ndarray[Any, Any]
MATRIX, WEIGHT, OFFSET = range(3)


SUSPECT = 2.0**200  # smaller numbers do not make a sum overflow
Build = TypeVar("Build", bound=Callable[..., Any])


def explained(build: Build) -> Build:
    """Decorate a function (shard, config, comm) -> ... so that an overflow names its cause."""

    @wraps(build)
    def explaining(shard: Shard, config: Any, comm: Comm) -> Any:
        try:
            with np.errstate(over="ignore"):  # an overflow raises NotFinite
                return build(shard, config, comm)
        except NotFinite as error:  # all ranks raise it together
            raise named(error, shard, comm) from error

    return cast(Build, explaining)


def named(error: NumericalError, shard: Shard, comm: Comm) -> DataError | NumericalError:
    """Return an error that names the place of the data's largest number and the remedy. Collective.

    Parameters
    ----------
    error
        The error, which all ranks met before the first step.
    shard
        This rank's rows.
    comm
        The communicator of these ranks.

    Returns
    -------
    error
        A DataError; or `error` itself if no number is large enough to be the cause.
    """
    every = comm.allgather(
        np.array(
            [_matrix(shard.X, shard.rows), _vector(shard.c, shard), _vector(shard.offset, shard)]
        )
    )
    # (ranks, kinds, 4): size, global row, column, value. The largest number is named; if there are
    # several, the one in the first row.
    size, row, column, value = np.moveaxis(every, -1, 0)
    kind = int(np.argmax(size.max(axis=0)))
    there = np.flatnonzero(size[:, kind] == size[:, kind].max())
    rank = there[np.argmin(row[there, kind])]
    if not size[rank, kind] > SUSPECT:
        return error
    number, place = float(value[rank, kind]), shard.where(int(row[rank, kind]))
    if kind == OFFSET:
        return agreed(
            DataError(f"{place}: 'offset' is {number:g}: sums of such numbers overflow: correct it")
        )
    if kind == WEIGHT:
        told = (
            f"{place}: 'sample_weight' is {number:g}: sums of such numbers overflow: "
            f"{advice(number, 'all weights')}"
        )
        return agreed(DataError(told))
    j = int(column[rank, kind])
    if isinstance(shard.X, CSR) and shard.X.number is not None:  # columns have been rearranged
        j = int(shard.X.number[j])
    name = f" ({shard.feature_names[j]})" if shard.feature_names else ""
    return agreed(
        DataError(
            f"{place}: column {j}{name} is {number:g}: sums of such numbers overflow: "
            f"{advice(number, 'the column')}"
        )
    )


def _matrix(X: Matrix, rows: Any) -> list[float]:
    """Return size, global row, column and value of this rank's largest number."""
    if not X.n or not X.d:
        return [0.0] * 4
    columns = X.columns()
    sizes = np.maximum(np.abs(columns.low), np.abs(columns.high))
    sizes[columns.count == 0] = 0.0
    j = int(np.argmax(sizes))
    unit = np.zeros(X.d)
    unit[j] = 1.0
    for start in range(0, X.n, block_rows(X)):
        block = slice(start, min(X.n, start + block_rows(X)))
        z = np.empty(block.stop - block.start)
        X.rows(block).margins(unit, 0.0, z)
        at = int(np.argmax(np.abs(z)))
        if abs(z[at]) == sizes[j]:
            return [float(sizes[j]), float(rows[start + at]), float(j), float(z[at])]
    return [0.0] * 4


def _vector(values: Array | None, shard: Shard) -> list[float]:
    if values is None or not values.size:
        return [0.0] * 4
    at = int(np.argmax(np.abs(values)))
    return [float(abs(values[at])), float(shard.rows[at]), 0.0, float(values[at])]
