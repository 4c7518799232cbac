"""The best constant model of a loss with kinks: a weighted quantile, without a distributed sort.

Each rank sorts its own rows' kinks and adds up their weights, as integers, so that sums are exact
in any order. Then all ranks search for the same number: a bracket of floats is cut into CUTS parts
at once, by the weight below each cut.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from mpigd.model.losses import Loss
from mpigd.model.objective import Objective
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import total

Array = np.ndarray[Any, Any]
CUTS = 256  # parts into which a bracket is cut at once: eight bits of the number
BITS = 62  # bits of the sum of all integer weights


def information(objective: Objective, comm: Comm) -> float:
    """Return how informative a row is about the optimum, at most 1. Collective.

    This is for losses with kinks. Rows are less informative for extreme quantiles and rare classes,
    and if few rows have most of the weight (Kish's effective number of rows).
    """
    rows, heaviest = objective.rows, objective.statistics.heaviest
    if not heaviest > 0.0:
        return 0.0
    c = rows.c / heaviest
    ones = rows.y if objective.loss.classifies else np.zeros_like(c)
    whole, squares, first = (float(x) for x in total(np.column_stack([c, c * c, c * ones]), comm))
    share = first / whole if objective.loss.classifies else objective.parameter
    return 4.0 * share * (1.0 - share) * whole * whole / (objective.n * squares)


class Rows(Protocol):
    """Targets y (m,), weights c (m,) and offsets (m,) or None of this rank's rows, and their loss.

    n is the number of rows over all ranks.
    """

    @property
    def loss(self) -> Loss: ...

    @property
    def parameter(self) -> float: ...

    @property
    def y(self) -> Array: ...

    @property
    def c(self) -> Array: ...

    @property
    def offset(self) -> Array | None: ...

    @property
    def n(self) -> int: ...


def best_constant(rows: Rows, comm: Comm) -> float:
    """Return the intercept that minimises a hinge or quantile loss alone. Collective.

    Parameters
    ----------
    rows
        This rank's rows.
    comm
        The communicator of these ranks.

    Returns
    -------
    intercept : float
        The smallest one if there are several.
    """
    offset = 0.0 if rows.offset is None else rows.offset
    if rows.loss.kind == "regression":
        return weighted_quantile(rows.y - offset, rows.c, rows.parameter, rows.n, comm)
    # At the left end the hinge's slope is minus the weight of class 1. It rises by c_i at
    # s_i - offset_i.
    sign = 2.0 * rows.y - 1.0
    weights = integers(rows.c, rows.n, comm)
    below = np.array([weights[sign > 0.0].sum()], dtype=np.int64)
    comm.allreduce(below)
    return _smallest(sign - offset, weights, int(below[0]), comm)


def weighted_quantile(values: Array, c: Array, level: float, n: int, comm: Comm) -> float:
    """Return the smallest value below or at which a share `level` of the weights lies. Collective.

    Parameters
    ----------
    values : (m,) float64
        Of this rank's rows.
    c : (m,) float64
        Weights.
    level
        0 < level <= 1.
    n
        The number of rows over all ranks.
    comm
        The communicator of these ranks.
    """
    weights = integers(c, n, comm)
    whole = np.array([weights.sum()], dtype=np.int64)
    comm.allreduce(whole)
    return _smallest(values, weights, max(1, math.ceil(level * int(whole[0]))), comm)


def integers(c: Array, n: int, comm: Comm) -> Array:
    """Return weights as integers whose sum over all rows fits into 63 bits. Collective.

    Parameters
    ----------
    c : (m,) float64
        Weights of this rank's rows.
    n
        The number of rows over all ranks.
    comm
        The communicator of these ranks.

    Returns
    -------
    weights : (m,) int64
        C times a power of two, rounded.
    """
    top = np.array([np.max(c, initial=0.0)])
    comm.allreduce(top, "max")
    exponent = int(np.frexp(top[0])[1]) if top[0] > 0.0 else 0
    return np.rint(
        np.ldexp(np.asarray(c, dtype=np.float64), BITS - math.ceil(math.log2(max(2, n))) - exponent)
    ).astype(np.int64)


def _smallest(values: Array, weights: Array, target: int, comm: Comm) -> float:
    """Return the smallest value at which all ranks' weights add up to `target`. Collective.

    It is 0 if they do not.
    """
    order = np.argsort(values, kind="stable")
    keys = _ordered(values[order])
    sums = np.concatenate([[0], np.cumsum(weights[order])]).astype(np.int64)
    ends = np.array(
        [-keys[0], keys[-1]] if keys.size else [np.iinfo(np.int64).min] * 2, dtype=np.int64
    )
    comm.allreduce(ends, "max")
    # The weights up to `low` are below the target, those up to `high` reach it.
    low, high = -int(ends[0]) - 1, int(ends[1])
    if target < 1 or low >= high:
        return 0.0
    while high - low > 1:
        cuts = np.array([low + (high - low) * k // CUTS for k in range(1, CUTS)], dtype=np.int64)
        below = sums[np.searchsorted(keys, cuts, "right")]
        comm.allreduce(below)
        enough = int(np.searchsorted(below, target))
        edges = [low, *cuts.tolist(), high]
        low, high = edges[enough], edges[enough + 1]
    return float(_floats(np.array([high], dtype=np.int64))[0])


def _ordered(values: Array) -> Array:
    """Return int64 keys in the order of the floats; neighbouring floats have neighbouring keys."""
    bits = np.ascontiguousarray(values + 0.0, dtype=np.float64).view(np.int64)
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits)


def _floats(keys: Array) -> Array:
    return np.where(keys < 0, np.int64(-(2**63)) - keys, keys).view(np.float64)
