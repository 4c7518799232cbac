"""Duality gap: an upper bound on F(w) - F*, computed without another read of X.

For convex losses and a ridge penalty, every dual point t (n, k) whose weighted sums over rows are
zero for each unpenalised intercept gives a lower bound on the optimum. With the per-sample
gradients r_i = dloss/dz at w as the dual point, the gap is |g|^2 / (2 l2). Here g is the gradient
of the whole objective, and the norm is that of the inverse penalty weights.

The sums of the r_i are zero only at the optimum, so they are rescaled: t_i = s_i r_i with 0 < s_i
<= 1, one factor for each class of y (softmax) or sign of the residual (all other losses). The
factors for which the sums vanish are the stationary distribution of a Markov chain. Losses are at
least zero, so by convexity their conjugate at s r is at most (1 - s) times the loss above its
tangent:

    F(w) - F* <= sum_i c_i (1 - s_i) loss_i / C
                 + (|g| + |sum_i c_i (1 - s_i) r_i x_i / C|)^2 / (2 l2),

and by Cauchy and Schwarz the last sum is at most sqrt(sum_i c_i (1 - s_i)^2 r_i^2 / C * trace of
the weighted X'CX / C).

With l1 or bounds the penalty's own conjugate takes the place of the last term, coordinate by
coordinate (`Gaps`). If it is infinite (no ridge, |g_j| > l1), all residuals are shrunk by one more
factor until it is finite. The bound is rigorous up to rounding.

References: Rockafellar, "Convex Analysis" (1970), section 31; Fercoq, Gramfort, Salmon (ICML 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.model.objective import Objective
from mpigd.model.penalties import L2, ElasticNet
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import total
from mpigd_kernels import linalg, vector

Array = np.ndarray[Any, Any]
MOST_OUTPUTS = 64  # each of the k classes needs k sums over rows for its rates


def least_gap(length: float, penalty: L2) -> float | None:
    """Return a rough lower bound on `duality_gap` for a gradient of this norm.

    Parameters
    ----------
    length
        Norm of the gradient of the whole objective.
    penalty
        The objective's penalty.

    Returns
    -------
    gap : float or None
        None if the gap has no finite bound.
    """
    if not _confines(penalty):
        return None
    if isinstance(penalty, ElasticNet):
        return 0.0
    return (
        length
        * length
        / (2.0 * penalty.strength * max(1.0, float(penalty.weights.max(initial=0.0))))
    )


def _confines(penalty: L2) -> bool:
    """Whether the penalty is strong enough for a bound: a ridge, an l1, or bounds on both sides."""
    kinked = isinstance(penalty, ElasticNet) and bool(penalty.l1.any())
    box = (
        isinstance(penalty, ElasticNet)
        and np.isfinite(penalty.high - penalty.low)[penalty.weights > 0.0].all()
    )
    return penalty.strength > 0.0 or kinked or bool(box)


def duality_gap(w: Array, g: Array, objective: Objective, penalty: L2, comm: Comm) -> float | None:
    """Return an upper bound on F(w) - F*, or None if there is no finite one. Collective.

    There is none if the penalty has neither ridge nor l1 (nor bounds on both sides), if no row has
    a weight, if residuals have one sign only, or if there are more than MOST_OUTPUTS classes. This
    uses each row's margin, which is remembered or costs one read.

    Parameters
    ----------
    w : (k * p,) float64
        Parameters.
    g : (k * p,) float64
        The gradient of objective plus penalty at w.
    objective
        The objective of all rows, without the penalty.
    penalty
        The objective's penalty.
    comm
        The communicator of these ranks.
    """
    k, scaling, weight = objective.k, objective.scaling, objective.statistics.weight
    if weight <= 0.0 or k > MOST_OUTPUTS or not _confines(penalty):
        return None
    if isinstance(penalty, ElasticNet):
        return _conjugate_gap(w, g, objective, penalty, comm)
    inverse = np.divide(1.0, penalty.weights, out=np.zeros_like(g), where=penalty.weights > 0.0)
    square = float(vector.dot(g * inverse, g))
    if not scaling.levels.any():
        return square / (2.0 * penalty.strength)
    rates, losses, squares = _sums(w, objective, comm)
    scales = linalg.stationary(rates)
    if not scales.all():
        return None
    missing = 1.0 - scales
    shifted = vector.dot(missing * missing, squares) / weight * _trace(objective, penalty)
    length = math.sqrt(square) + math.sqrt(shifted)
    return float(vector.dot(missing, losses) / weight + length * length / (2.0 * penalty.strength))


def _conjugate_gap(
    w: Array, g: Array, objective: Objective, penalty: ElasticNet, comm: Comm
) -> float | None:
    """Return the bound for a penalty with l1 or bounds.

    It is the better of two: the residuals as they are, or shrunk into the conjugate's domain.
    """
    gaps, scaling = Gaps(w, penalty), objective.scaling
    v = g - penalty.strength * penalty.weights * w
    rates, losses, squares = _sums(w, objective, comm)
    levels = np.tile(scaling.levels, objective.k)
    spread = np.tile(np.append(_spread(objective), [0.0] * scaling.intercept), objective.k)
    # Either the residuals are rescaled so that their sum is zero, or they stay as they are. The
    # latter is impossible if an intercept is unbounded.
    choices = [(linalg.stationary(rates), levels)] if levels.any() else []
    if not (levels & np.isinf(penalty.high) & np.isinf(penalty.low)).any():
        choices.append((np.ones(losses.size), np.zeros_like(levels)))
    found = []
    for scales, free in choices:
        shifted = vector.dot((1.0 - scales) * (1.0 - scales), squares) / objective.statistics.weight
        error = np.sqrt(shifted * np.where(free, 0.0, spread)) * (1.0 + 1e-9)
        for theta in {1.0, gaps.shrink(np.abs(v) + error, v, error, free)} if scales.all() else ():
            missing = 1.0 - theta * scales
            # The cost of shrinking. For the squared loss it is known exactly and of second order,
            # so that a small l1 does no harm.
            cost = missing * missing if objective.loss.name == "squared" else missing
            rest = vector.dot(cost, losses) / objective.statistics.weight
            found.append(rest + gaps.at(theta * v, theta * error, free))
    best = min(found, default=math.inf)
    return best if math.isfinite(best) else None


@dataclass(frozen=True)
class Gaps:
    """The gaps P(w) + P*(-v) + v w >= 0 of a penalty P, one for each coordinate of w (p,).

    v (p,) is known up to `error` (p,).
    """

    w: Array
    penalty: ElasticNet

    def at(self, v: Array, error: Array, free: Array) -> float:
        """Return an upper bound on the sum of the gaps.

        The conjugate is convex, so it is largest at one end of the error's interval.

        Parameters
        ----------
        v : (p,) float64
            Dual coordinates.
        error : (p,) float64
            By how much v may be wrong.
        free : (p,) bool
            Coordinates at which v is 0.
        """
        w, penalty = self.w, self.penalty
        worst = np.maximum(self._conjugate(-v - error), self._conjugate(-v + error))
        worst[free] = 0.0
        ridge = 0.5 * penalty.strength * penalty.weights * w
        each = (v + ridge) * w + penalty.l1 * np.abs(w) + error * np.abs(w) + worst
        each[free] = 0.0
        return (
            max(0.0, float(vector.dot(each, np.ones_like(w))))
            if np.isfinite(each).all()
            else math.inf
        )

    def _conjugate(self, u: Array) -> Array:
        """Return the supremum over low <= x <= high of u x - P(x) for each element of u (p,)."""
        penalty = self.penalty
        bend = penalty.strength * penalty.weights
        excess = np.maximum(np.abs(u) - penalty.l1, 0.0)
        end = np.where(u > 0.0, penalty.high, -penalty.low)
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.minimum(np.where(excess > 0.0, excess / bend, 0.0), end)
            return np.where(x > 0.0, x * (excess - 0.5 * np.where(bend > 0.0, bend * x, 0.0)), 0.0)

    def shrink(self, size: Array, v: Array, error: Array, free: Array) -> float:
        """Return the largest factor <= 1 for v that makes all conjugates finite.

        Parameters
        ----------
        size : (p,) float64
            Upper bounds on |v|.
        v : (p,) float64
            Dual coordinates.
        error : (p,) float64
            By how much v may be wrong.
        free : (p,) bool
            Coordinates at which v is 0.
        """
        penalty = self.penalty
        open_ended = ((v - error < 0.0) & np.isinf(penalty.high)) | (
            (v + error > 0.0) & np.isinf(penalty.low)
        )
        flat = ~free & ~(penalty.strength * penalty.weights > 0.0)
        bound = open_ended & flat & (size > penalty.l1)
        return float(np.min(penalty.l1[bound] / size[bound], initial=1.0)) * (
            1.0 - 1e-15 * bool(bound.any())
        )


def _spread(objective: Objective) -> Array:
    """Return the weighted mean square (d,) of each centred and scaled column: 1 if standardised."""
    scaling, statistics = objective.scaling, objective.statistics
    apart = statistics.mean - scaling.center
    return np.asarray(
        (statistics.deviation * statistics.deviation + apart * apart)
        * scaling.inverse
        * scaling.inverse
    )


def _trace(objective: Objective, penalty: L2) -> float:
    """Return the trace of the weighted covariance of the penalised columns over their weights.

    This is the number of columns if they are standardised.
    """
    spread = _spread(objective)
    weights = penalty.weights[: spread.size]
    # The factor 1 + 1e-9 keeps this an upper bound although the statistics are rounded.
    return (1.0 + 1e-9) * float(
        vector.dot(spread, np.divide(1.0, weights, out=np.zeros_like(spread), where=weights > 0.0))
    )


def _sums(w: Array, objective: Objective, comm: Comm) -> tuple[Array, Array, Array]:
    """Sum over the rows of each class (softmax), or of each sign of the residual.

    Returns the rates (k, k) between the classes, the losses (k,), and c r^2 (k,).
    """
    rows, several = objective.rows, objective.k > 1
    z = objective.margins(w)
    r, l = np.empty_like(z), np.empty(z.shape[1])
    objective.loss.kernel(z, rows.y, np.ascontiguousarray(rows.c), objective.parameter, r, l)
    side = rows.y.astype(np.int64) if several else (r[0] < 0.0).astype(np.int64)
    k = objective.k if several else 2
    parts = []
    length = np.zeros_like(l)
    for residual in r:  # not numpy's sum, whose order is another one for a rank with one row
        length += residual * residual
    squares = np.divide(length, rows.c, out=np.zeros_like(l), where=rows.c > 0.0)
    for q in range(k):
        mine = side == q
        # The two signs act as two classes: the flow out of one goes to the other.
        flows = (
            r[:, mine].T
            if several
            else np.abs(r[0, mine])[:, np.newaxis] * np.array([q == 1, q == 0])
        )
        parts.append(total(np.column_stack([flows, l[mine], squares[mine]]), comm))
    table = np.array(parts)
    return np.ascontiguousarray(table[:, :k]), table[:, k], table[:, k + 1]
