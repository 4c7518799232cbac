"""How far an objective is from its optimum, at most: a duality gap, without another read of X.

For convex losses and a ridge penalty, every dual point t (n, k) whose weighted sums over rows are zero for each unpenalised
intercept bounds the optimum from below. With residuals r_i = dloss/dz at w as the dual point, the gap is |g|^2 / (2 l2), g
the gradient of the whole objective and the norm that of the inverse penalty weights. The residuals' sums are zero at
the optimum only, so they are rescaled, t_i = s_i r_i with 0 < s_i <= 1, one factor for each class of y (softmax) or sign of
the residual (all others): those factors for which the sums vanish are the stationary distribution of a Markov
chain. Losses are at least zero, so that by convexity their conjugate at s r is at most (1 - s) times the loss above its tangent:

    F(w) - F* <= sum_i c_i (1 - s_i) loss_i / C + (|g| + |sum_i c_i (1 - s_i) r_i x_i / C|)^2 / (2 l2),

and the last sum is at most sqrt(sum_i c_i (1 - s_i)^2 r_i^2 / C * trace of the weighted X'CX / C) by Cauchy and Schwarz.
Rigorous up to rounding. Rockafellar, "Convex Analysis" (1970), section 31; Fercoq, Gramfort, Salmon (ICML 2015).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpigd.comm import Comm
from mpigd.model.objective import Objective
from mpigd.model.penalties import L2, Penalty
from mpigd.reduce import total
from mpigd_kernels import linalg, vector

Array = np.ndarray[Any, Any]
MOST_OUTPUTS = 64  # the rates between k classes are k sums over rows each


def least_gap(length: float, penalty: Penalty) -> float | None:
    """What `duality_gap` is about, at least, for a gradient of this norm; None where it has no bound."""
    if not isinstance(penalty, L2) or not penalty.strength > 0.0:
        return None
    return length * length / (2.0 * penalty.strength * max(1.0, float(penalty.weights.max(initial=0.0))))


def duality_gap(w: Array, g: Array, objective: Objective, penalty: Penalty, comm: Comm) -> float | None:
    """A bound on F(w) - F*, for the gradient g (k * p,) of objective plus penalty at w. Collective.

    None if there is no finite bound: no ridge penalty, no weight, residuals of one sign only, or too many classes. Looks
    at each row's margin, which is remembered or costs one read.
    """
    k, scaling, weight = objective.k, objective.scaling, objective.statistics.weight
    if not isinstance(penalty, L2) or not penalty.strength > 0.0 or weight <= 0.0 or k > MOST_OUTPUTS:
        return None
    inverse = np.divide(1.0, penalty.weights, out=np.zeros_like(g), where=penalty.weights > 0.0)
    square = float(vector.dot(g * inverse, g))
    if not scaling.intercept:
        return square / (2.0 * penalty.strength)
    rates, losses, squares = _sums(w, objective, comm)
    scales = linalg.stationary(rates)
    if not scales.all():
        return None
    missing = 1.0 - scales
    shifted = vector.dot(missing * missing, squares) / weight * _trace(objective, penalty)
    length = math.sqrt(square) + math.sqrt(shifted)
    return float(vector.dot(missing, losses) / weight + length * length / (2.0 * penalty.strength))


def _trace(objective: Objective, penalty: L2) -> float:
    """Of the weighted covariance of the penalised columns over their penalty weights: the number of columns if standardised."""
    scaling, statistics = objective.scaling, objective.statistics
    apart = statistics.mean - scaling.center
    spread = (statistics.deviation * statistics.deviation + apart * apart) * scaling.inverse * scaling.inverse
    weights = penalty.weights[: spread.size]
    # 1 + 1e-9: a bound must not suffer from the rounding of the statistics
    return (1.0 + 1e-9) * float(vector.dot(spread, np.divide(1.0, weights, out=np.zeros_like(spread), where=weights > 0.0)))


def _sums(w: Array, objective: Objective, comm: Comm) -> tuple[Array, Array, Array]:
    """Over the rows of each class (softmax) or sign of the residual: rates (k, k) between them, losses, c r^2 summed (k,)."""
    rows, several = objective.rows, objective.k > 1
    z = objective.margins(w)
    r, l = np.empty_like(z), np.empty(z.shape[1])
    objective.loss.kernel(z, rows.y, np.ascontiguousarray(rows.c), objective.parameter, r, l)
    side = rows.y.astype(np.int64) if several else (r[0] < 0.0).astype(np.int64)
    k = objective.k if several else 2
    parts = []
    length = np.zeros_like(l)
    for residual in r:  # not numpy's sum: for a rank with one row it adds in another order
        length += residual * residual
    squares = np.divide(length, rows.c, out=np.zeros_like(l), where=rows.c > 0.0)
    for q in range(k):
        mine = side == q
        # Two signs are two classes: what leaves the positive one goes to the negative one, and the other way.
        flows = r[:, mine].T if several else np.abs(r[0, mine])[:, np.newaxis] * np.array([q == 1, q == 0])
        parts.append(total(np.column_stack([flows, l[mine], squares[mine]]), comm))
    table = np.array(parts)
    return np.ascontiguousarray(table[:, :k]), table[:, k], table[:, k + 1]
