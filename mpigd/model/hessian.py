"""Second derivatives of the objective at a point: products with a vector, and matrices, summed exactly.

The curvature of each row is made once per point from its margin, so a product is one read: margins of the vector, times the
curvature, accumulated like residuals. Its sums need no limits that are carried along: the vector is scaled by a power of
two so that no row can exceed 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.batches import Batch
from mpigd.comm import Comm
from mpigd.data.matrix import CSR
from mpigd.exact import ExactReducer
from mpigd.model.outer import LARGE, MOST, Outer, Pair, column_reach
from mpigd.model.scaling import weighted_squares
from mpigd.reduce import NativeReducer, NotFinite, Reducer, Threads, power_above
from mpigd_kernels import curvature, residuals, vector

if TYPE_CHECKING:
    from mpigd.model.objective import Objective

Array = np.ndarray[Any, Any]
WHOLE = 2048  # most parameters of several outputs whose whole Hessian is made, not its diagonal blocks alone


class Curvature:
    """Of an objective at a point: h (k, n) for this rank's rows, from their margins z (k, n). Collective."""

    def __init__(self, objective: Objective, z: Array, batch: Batch, reducer: Reducer) -> None:
        self._objective, self._batch, self._comm = objective, batch, reducer.comm
        self._native = isinstance(reducer, NativeReducer)
        rows, kernel = objective.rows, objective.loss.second
        assert kernel is not None, "only smooth losses have an optimiser that asks"
        self._h = np.empty_like(z)
        kernel(z, rows.y, np.ascontiguousarray(rows.c), objective.parameter, self._h)
        self._several = objective.loss.kind == "multiclass"
        self._largest = self._bound(self._h)
        self._reach = column_reach(objective)

    def _bound(self, h: Array) -> float:
        """A power of two above all ranks' |h|; for softmax above |c p (z_q - mean z)| / max |z|."""
        if self._several:
            return float(power_above(2.0 * self._objective.statistics.heaviest))
        top = np.array([np.max(h, initial=0.0), np.count_nonzero(~np.isfinite(h))])
        self._comm.allreduce(top, "max")
        if top[1]:
            raise NotFinite("a second derivative is not finite")
        return float(power_above(top[0]))

    def times(self, v: Array, factor: float) -> Array:
        """The Hessian times v (k * p,); sums over rows are multiplied by `factor`. One read."""
        objective, k = self._objective, self._objective.k
        farthest = max(vector.dot(np.abs(part), self._reach) for part in v.reshape(k, -1))
        bound = float(power_above(farthest)) * self._largest
        if self._native:
            reducer: Reducer = NativeReducer(self._comm, k, objective.rows.X.d)
        else:
            columns = objective.statistics.bounds
            reducer = ExactReducer(self._comm, columns, k, objective.n, 1.0, objective.fine, isinstance(objective.rows.X, CSR))
        return objective.gradient(v / bound, self._batch, reducer, factor * bound, residuals.PRODUCT, self._h)[1]

    def matrices(self, factor: float) -> Array:
        """The Hessian (1, k * p, k * p); of several outputs and more than WHOLE parameters its blocks (k, p, p).

        One read, but for the largest of several outputs, whose accumulators are too many at once.
        """
        objective, found = self._objective, list[Array]()
        for pairs in groups(objective):
            outer = Outer(objective, pairs, self._largest)
            found += over_ranks(outer, objective, lambda rows: np.ascontiguousarray(self._h[:, rows]), factor, self._comm)
            objective.counter.reads += self._batch.size / objective.n
        return assemble(objective, found)

    def diagonal(self, factor: float) -> Array:
        """The diagonal of the Hessian (k * p,). One read."""
        objective, h = self._objective, self._h
        if self._several:
            p, c, h = h, np.ascontiguousarray(objective.rows.c), np.empty_like(h)
            for q in range(h.shape[0]):
                curvature.softmax_pair(p, c, q, q, h[q])
        scaling = objective.scaling
        squares, sums = weighted_squares(objective.rows.X, h, self._largest, objective.statistics, scaling.center, self._comm)
        found = np.column_stack([squares * scaling.inverse**2, *[sums] * scaling.intercept])
        objective.counter.reads += objective.width * self._batch.size / objective.n
        return factor * found.reshape(-1)


def column_squares(objective: Objective, comm: Comm) -> Array:
    """The weighted mean square of every parameter's column (k * p,) over the objective's rows. One read. Collective."""
    rows, scaling = objective.rows, objective.scaling
    c, heaviest = np.ascontiguousarray(rows.c)[np.newaxis], objective.statistics.heaviest
    squares, sums = weighted_squares(rows.X, c, heaviest, objective.statistics, scaling.center, comm)
    found = squares[0] * scaling.inverse**2 / (sums[0] or 1.0)
    objective.counter.reads += objective.width * objective.share
    return np.tile(np.append(found, [1.0] * scaling.intercept), objective.k)


def over_ranks(
    outer: Outer, objective: Objective, curvatures: Callable[[slice], Array], factor: float, comm: Comm
) -> list[Array]:
    """The sums of all rows. Collective."""
    n, count = objective.rows.X.n, objective.threads if objective.scaling.p <= LARGE else 1
    shares = [slice(t * n // count, (t + 1) * n // count) for t in range(count)]
    parts = [np.zeros(0)] * count

    def work(thread: int) -> None:
        parts[thread] = outer.over(shares[thread], curvatures)

    Threads().run(work, count)
    return outer.matrices(parts, factor, comm)


def groups(objective: Objective) -> list[list[Pair]]:
    """The pairs of outputs whose blocks the Hessian has, cut into as many as one visit of the rows can sum."""
    k, p = objective.k, objective.scaling.p
    several = is_whole(k, p) and objective.loss.kind == "multiclass"
    pairs = [(q, s) for q in range(k) for s in range(q, k if several else q + 1)]
    size = max(1, MOST // (p * p))
    return [pairs[a : a + size] for a in range(0, len(pairs), size)]


def assemble(objective: Objective, blocks: Sequence[Array]) -> Array:
    """The Hessian, or its diagonal blocks, of the blocks of all pairs."""
    k, p = objective.k, objective.scaling.p
    if not is_whole(k, p):
        return np.array(blocks)
    H = np.zeros((k, p, k, p))
    pairs = [pair for group in groups(objective) for pair in group]
    for (q, s), block in zip(pairs, blocks, strict=True):
        H[q, :, s] = H[s, :, q] = block if q == s else -block
    return H.reshape(1, k * p, k * p)


class Alongside:
    """A Hessian summed while a sweep visits the rows: its panels follow the sweep's, which leaves their margins in `keep`.

    For losses whose curvature has a bound: the grid must be known before the margins are.
    """

    def __init__(self, objective: Objective, keep: Array) -> None:
        loss, heaviest = objective.loss, objective.statistics.heaviest
        assert loss.curvature is not None
        self._objective, self._keep = objective, keep
        bound = loss.curvature(objective.parameter) * heaviest
        (pairs,) = groups(objective)
        self._outer = Outer(objective, pairs, float(power_above(bound)))
        self._parts: dict[int, Array] = {}

    @staticmethod
    def fits(objective: Objective) -> bool:
        return objective.loss.curvature is not None and len(groups(objective)) == 1 and objective.scaling.p <= LARGE

    def visit(self, share: slice, sweep: Callable[[slice], None]) -> None:
        """Once a share. Where a sweep is repeated with other limits, margins and what is made of them here stay."""
        if share.start in self._parts:
            sweep(share)
        else:
            self._parts[share.start] = self._outer.over(share, self._curvatures, sweep)

    def matrices(self, factor: float, comm: Comm) -> Array:
        return assemble(self._objective, self._outer.matrices(list(self._parts.values()), factor, comm))

    def _curvatures(self, rows: slice) -> Array:
        objective = self._objective
        h, kernel = np.empty((objective.k, rows.stop - rows.start)), objective.loss.second
        assert kernel is not None
        z, c = np.ascontiguousarray(self._keep[:, rows]), np.ascontiguousarray(objective.rows.c[rows])
        kernel(z, objective.rows.y[rows], c, objective.parameter, h)
        return h


def is_whole(k: int, p: int) -> bool:
    """Whether `Curvature.matrices` is the Hessian itself."""
    return k == 1 or k * p <= WHOLE
