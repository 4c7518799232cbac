"""Sizes of the samples of rows on which Newton's method starts.

A sample that carries too little information is worse than none.
"""

from __future__ import annotations

import numpy as np

from mpigd.model.constant_model import information
from mpigd.model.null_model import NullModel
from mpigd.model.objective import Objective
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import total
from mpigd_kernels import vector

ROWS_PER_PARAMETER = 25


def sizes(objective: Objective, null: NullModel, comm: Comm) -> tuple[int, ...]:
    """Return sample sizes, ascending; empty if no size is useful. Collective.

    They are about a hundredth and a tenth of the rows, and each has at least 25 informative rows a
    parameter. A size above half of all rows is left out.

    The information of a row is its weight (Kish's effective number of rows) times its curvature at
    the null model. For a rare class, or for counts that are nearly all zero, a sample holds almost
    no information.

    Parameters
    ----------
    objective
        The objective of all rows.
    null
        Its null model.
    comm
        The communicator of these ranks.
    """
    if objective.loss.smoothed:
        share = information(objective, comm)
    else:
        share = _effective_share(objective, comm) * _information(objective, null)
    return sizes_for(objective.n, objective.scaling.p, share)


def sizes_for(n: int, p: int, share: float) -> tuple[int, ...]:
    """Return the sizes for n rows and p parameters if a share of the rows is informative."""
    if not share > 0.0:
        return ()
    least = int(min(2.0 * n, ROWS_PER_PARAMETER * p / share)) + 1
    small, large = max(n // 100, least), max(n // 10, least)
    return tuple(m for m in ((small, large) if 2 * small <= large else (large,)) if 2 * m <= n)


def _effective_share(objective: Objective, comm: Comm) -> float:
    """Return (sum c)^2 / (n sum c^2), at most 1 except for rounding. Collective."""
    c, heaviest = objective.rows.c, objective.statistics.heaviest
    every = np.array([float(bool(c.size and c.strides[0]))])
    comm.allreduce(every, "max")
    if not every[0] or not heaviest > 0.0:  # one weight for all rows
        return 1.0 if heaviest > 0.0 else 0.0
    part = c / heaviest
    whole, squares = (float(number) for number in total(np.column_stack([part, part * part]), comm))
    return whole * whole / (objective.n * squares)


def _information(objective: Objective, null: NullModel) -> float:
    """Return the curvature at the null model over its upper bound, at most 1; for counts over 1."""
    loss = objective.loss
    if loss.kind == "multiclass":
        shares = np.array([float(vector.exponential(b)) for b in null.intercept])
        rarest = float(shares.min()) / float(vector.dot(shares, np.ones(shares.size)))
        return min(1.0, 4.0 * rarest * (1.0 - rarest))
    bound = 1.0 if loss.curvature is None else loss.curvature(objective.parameter)
    return min(1.0, null.curvature / bound)
