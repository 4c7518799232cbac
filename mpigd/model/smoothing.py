"""Smoothed losses: a loss with kinks, rounded off over a width, with its gradient, Hessian and gap.

Hinge and pinball loss are max(0, u) - (1 - quantile) u of the distance u to the kink (hinge: u = 1
- s z, quantile 1; pinball: u = y - z). Their slope jumps at u = 0. Smoothed with a width, it rises
linearly over |u| < width / 2 instead. That slope q(u) is a subgradient of the true loss only
outside this interval, but it is a dual point everywhere. By convexity

    F(v) >= F(w) - gap + g . (v - w) + l2 / 2 |v - w|^2    for all v,
    gap = sum_i c_i (loss(u_i) - q_i u_i) / C,

with g the gradient of the smoothed objective at w. Only rows near their kink, |u| < width / 2 (the
"band"), add to the gap.

References: Madsen and Nielsen, "A finite smoothing algorithm for linear l1 estimation" (SIAM J.
Optim. 1993); Chen, "A finite smoothing algorithm for quantile regression" (JCGS 2007). The idea to
visit only the rows near a kink is due to Portnoy and Koenker, "The Gaussian hare and the Laplacian
tortoise" (Statistical Science 1997).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpigd.data.batches import Batch
from mpigd.matrix.base import Into
from mpigd.matrix.subset import chosen_rows
from mpigd.model.constant_model import weighted_quantile
from mpigd.model.hessian import Curvature
from mpigd.model.objective import Objective, Oracle, Rows
from mpigd.model.penalties import Penalty
from mpigd.model.scaling import blocks
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import NativeReducer, Reducer, total
from mpigd.reduction.exact import ExactReducer
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
# The objective over some rows, their positions among this rank's rows, their number over all ranks.
Band = tuple[Objective, Array | slice, int]
# If margins have changed by more than this multiple of the distance within which rows are near
# their kinks, other rows may have come near.
STRAYED = 4.0
MOST = 1 / 4  # the largest share of rows that is copied; beyond, all rows are visited


@dataclass
class Look:
    """An evaluation at parameters w (p,).

    It holds the value of the true objective, the gradient g (p,) of the smoothed one, and the
    margins z (n,) of this rank's rows. If only rows near their kinks were visited, the value is
    that of these rows.
    """

    w: Array
    width: float
    value: float
    g: Array
    z: Array
    band: Band | None = field(default=None, repr=False)


class Smoothed:
    """The smoothed objective of an oracle's rows, with its penalty. All methods are collective.

    factor multiplies sums over rows. linear (p,) is the gradient of the rows that are left out,
    which is taken as constant; it is None if no row is left out.
    """

    def __init__(self, oracle: Oracle, penalty: Penalty, factor: float) -> None:
        self.oracle, self.penalty, self.factor = oracle, penalty, factor
        self.linear: Array | None = None
        # If only rows near their kinks are kept: their first margins, and the largest distance.
        self._from, self._limit = np.zeros(0), math.inf
        objective = oracle.objective
        rows, hinge = objective.rows, objective.loss.classifies
        self._sign = 2.0 * rows.y - 1.0 if hinge else np.ones(1)
        self._anchor = np.ones(1) if hinge else rows.y
        self.quantile = 1.0 if hinge else float(objective.parameter)
        self._comm: Comm = oracle.reducer.comm

    @staticmethod
    def of(oracle: Oracle, penalty: Penalty) -> Smoothed:
        """Return the smoothed objective of all rows of an oracle."""
        objective, weight = oracle.objective, oracle.objective.statistics.weight
        return Smoothed(
            oracle, penalty, objective.n / (oracle.batch.size * weight) if weight > 0.0 else 0.0
        )

    def distances(self, z: Array) -> Array:
        """Return the distance (n,) of each row to its kink, for margins z (n,)."""
        return np.asarray(self._anchor - self._sign * z)

    def look(self, w: Array, width: float) -> Look:
        """Evaluate the objective at a point. It costs one read of these rows.

        Parameters
        ----------
        w : (p,) float64
            Parameters in the optimiser's coordinates.
        width
            The width over which kinks are rounded off, in units of the margin.

        Raises
        ------
        NumericalError
            On all ranks, if a number is not finite.
        """
        objective = smoothed(self.oracle.objective, self.quantile, width)
        keep = np.empty((1, objective.rows.X.n))
        value, g = objective.gradient(
            w, self.oracle.batch, self.oracle.reducer, self.factor, keep=keep
        )
        if self.linear is not None:
            g += self.linear
        self.penalty.add_gradient(w, g)
        self.oracle.objective.remember(w, keep)
        return Look(w, width, value + self.penalty.value(w), g, keep[0])

    def again(self, w: Array, width: float, g: Array) -> Look:
        """Return a Look at a point whose gradient is already known; its value is NaN.

        Margins that are not remembered are computed again, which costs a read.

        Parameters
        ----------
        w : (p,) float64
            Parameters in the optimiser's coordinates.
        width
            The width over which kinks are rounded off.
        g : (p,) float64
            The gradient of the smoothed objective at w.
        """
        return Look(w, width, math.nan, g, self.oracle.objective.margins(w)[0])

    def hessian(self, look: Look) -> Array:
        """Return the Hessian (p, p) of the smoothed objective without the penalty.

        It costs a read of the rows in the band.
        """
        H: Array = self._curvature(look).matrices(self.factor)[0]
        return H

    def diagonal(self, look: Look) -> Array:
        """Return the diagonal of the Hessian (p,). It costs a read of the rows in the band."""
        return self._curvature(look).diagonal(self.factor)

    def product(self, look: Look) -> Callable[[Array], Array]:
        """Return a function that multiplies the Hessian by a vector (p,).

        Each call costs a read of the rows in the band.
        """
        curvature = self._curvature(look)
        return lambda v: curvature.times(v, self.factor)

    def _curvature(self, look: Look) -> Curvature:
        band, inside, size = self._band(look)
        objective = smoothed(band, self.quantile, look.width)
        z = np.ascontiguousarray(look.z[np.newaxis, inside])
        return Curvature(objective, z, Batch.whole(size), self.oracle.reducer)

    def drift(self, look: Look) -> Array:
        """Return the derivative (p,) of the gradient by the width.

        It costs a read of the rows in the band.
        """
        of, inside, size = self._band(look)
        share = (self._sign * self.distances(look.z))[inside] / look.width
        r = (of.rows.c * np.where(np.abs(share) < 0.5, share, 0.0))[np.newaxis]

        def visit(rows: slice, into: Into) -> None:
            for part in blocks(of.rows.X):
                of.rows.X.rows(part).accumulate(
                    r[:, part].copy(), np.zeros(part.stop - part.start), into
                )

        reducer, scaling = _accumulating(of, self.oracle.reducer), of.scaling
        self.oracle.objective.counter.reads += size / of.n
        factor = self.factor / look.width
        return reducer.sweep_for(
            lambda T, S: scaling.gradient(T, S, factor)[1], [slice(None)], visit, size
        )

    def gap(self, look: Look) -> float:
        """Return by how much the true loss exceeds the tangent with the smoothed slopes.

        This is the gap of the module's formula, over these rows.
        """
        size = np.abs(self.distances(look.z))
        inside = np.flatnonzero(size < 0.5 * look.width)
        u, c = size[inside], self.oracle.objective.rows.c[inside]
        return self.factor * float(total(c * u * (0.5 - u / look.width), self._comm)[0])

    def curved(self, look: Look) -> int:
        """Return the number of rows in the band, over all ranks."""
        return self._count(int(np.count_nonzero(np.abs(self.distances(look.z)) < 0.5 * look.width)))

    def strayed(self, look: Look) -> bool:
        """Whether margins have changed so much that rows which were left out may matter."""
        if self.linear is None:
            return False
        most = np.array([np.max(np.abs(look.z - self._from), initial=0.0)])
        self._comm.allreduce(most, "max")
        return bool(most[0] > STRAYED * self._limit)

    def within(self, look: Look, share: float) -> float:
        """Return the distance to the kink that this share of the rows does not exceed."""
        size = np.abs(self.distances(look.z))
        return weighted_quantile(
            size, np.ones(size.size), share, self._count(size.size), self._comm
        )

    def line(self, look: Look, there: Look) -> Line:
        """Return the smoothed objective on the line between two points.

        Its width is that of the second point.
        """
        return Line(self, look, there)

    def near(self, look: Look, limit: float, fewest: int) -> tuple[Smoothed, Look]:
        """Return the objective of the rows near their kinks alone, and the same look at it.

        Returns all rows if there are too many near ones to be copied.

        Parameters
        ----------
        look
            An evaluation of this objective.
        limit
            The largest distance to the kink; it is doubled until there are `fewest` rows.
        fewest
            The least number of rows over all ranks.
        """
        n = self._count(look.z.size)
        size = np.abs(self.distances(look.z))
        while True:
            chosen = np.flatnonzero(size <= limit)
            count = self._count(chosen.size)
            if count >= min(fewest, n):
                break
            limit *= 2.0
        if count > MOST * n:
            return self, look
        objective = _take(self.oracle.objective, chosen)
        batch = Batch.whole(count)
        part = Smoothed(
            Oracle(objective, batch, objective.reducer_like(self.oracle.reducer)),
            self.penalty,
            self.factor,
        )
        here = part.look(look.w, look.width)
        part.linear, part._from, part._limit = look.g - here.g, here.z, limit
        here.g = look.g.copy()
        return part, here

    def _band(self, look: Look) -> Band:
        """Return the rows with curvature, or all rows if these are too many to be copied."""
        if look.band is None:
            chosen = np.flatnonzero(np.abs(self.distances(look.z)) < 0.5 * look.width)
            count, n = self._count(chosen.size), self._count(look.z.size)
            objective = self.oracle.objective
            if count > MOST * n:
                look.band = objective, slice(None), n
            else:
                look.band = _take(objective, chosen), chosen, count
        return look.band

    def _count(self, rows: int) -> int:
        count = np.array([rows], dtype=np.int64)
        self._comm.allreduce(count)
        return int(count[0])


class Line:
    """Slope and curvature of a smoothed objective along w + t s, from the margins at both ends.

    This needs no read.
    """

    def __init__(self, of: Smoothed, look: Look, there: Look) -> None:
        self._of, self._w, self._s = of, look.w, there.w - look.w
        self._u, self._width = of.distances(look.z), there.width
        self._v = of.distances(there.z) - self._u
        self._cv = of.oracle.objective.rows.c * self._v

    def slopes(self, t: float) -> tuple[float, float]:
        """Return the first and second derivative by t. Collective."""
        of, share = self._of, (self._u + t * self._v) / self._width
        slope = self._cv * (np.clip(share + 0.5, 0.0, 1.0) - (1.0 - of.quantile))
        bend = np.where(np.abs(share) < 0.5, self._cv * self._v, 0.0)
        first, second = (
            of.factor * float(x)
            for x in total(np.column_stack([slope, bend]), of.oracle.reducer.comm)
        )
        g, h = np.zeros_like(self._s), np.zeros_like(self._s)
        of.penalty.add_gradient(self._w + t * self._s, g)
        of.penalty.add_gradient(self._s, h)
        if of.linear is not None:
            g += of.linear
        return first + vector.dot(g, self._s), second / self._width + vector.dot(h, self._s)


def smoothed(objective: Objective, quantile: float, width: float) -> Objective:
    """Return the objective of the same rows with the loss's kinks rounded off.

    Margins are remembered for both together.

    Parameters
    ----------
    objective
        An objective whose loss has kinks.
    quantile
        The quantile of the pinball loss; 1 for the hinge.
    width
        The width over which the kink is rounded off, in units of the margin.
    """
    loss = objective.loss.smoothed
    assert loss is not None, "only losses with kinks are smoothed"
    part = copy.copy(objective)
    part.loss, part.parameter = loss, (quantile, width)  # type: ignore[assignment]
    part.kind = loss.with_parameter(part.parameter)
    return part


def _accumulating(objective: Objective, like: Reducer) -> Reducer:
    """Return a reducer for residuals of at most the largest weight.

    It is for residuals that are accumulated, not computed in a sweep.
    """
    if isinstance(like, NativeReducer):
        return NativeReducer(like.comm, 1, objective.rows.X.d)
    statistics = objective.statistics
    return ExactReducer(
        like.comm, statistics.bounds, 1, objective.n, statistics.heaviest, objective.fine
    )


def _take(objective: Objective, chosen: Array) -> Objective:
    """Return the objective over some of this rank's rows, copied if they are in memory."""
    rows, part = objective.rows, copy.copy(objective)
    offset = None if rows.offset is None else rows.offset[chosen]
    part.rows = Rows(chosen_rows(rows.X, chosen), rows.y[chosen], rows.c[chosen], offset)
    part.keeps_margins, part._points, part._samples, part._columns = True, [], {}, None
    return part
