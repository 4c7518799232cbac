"""Second derivatives of the objective at a point: products with a vector, and matrices, summed exactly.

The curvature of each row is made once per point from its margin, so a product is one read: margins of the vector, times the
curvature, accumulated like residuals. Its sums need no limits that are carried along: the vector is scaled by a power of
two so that no row can exceed 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.data.batches import Batch
from mpigd.matrix.base import CSR
from mpigd.model.gram import LARGE, MOST, MOST_OF_ALL, Outer, Pair, column_reach
from mpigd.model.scaling import weighted_squares
from mpigd.model.sparse_gram import SparseOuter, Split
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import NativeReducer, NotFinite, Reducer, Threads, power_above
from mpigd.reduction.exact import ExactReducer
from mpigd_kernels import curvature, residuals, vector

if TYPE_CHECKING:
    from mpigd.model.objective import Objective

Array = np.ndarray[Any, Any]
SMALLEST_SHARE = 256  # rows that are worth a thread
WHOLE = 2048  # most parameters of several outputs whose whole Hessian is made, not its diagonal blocks alone


class Curvature:
    """Of an objective at a point: h (k, n) for this rank's rows, from their margins z (k, n). Collective."""

    def __init__(self, objective: Objective, z: Array, batch: Batch, reducer: Reducer) -> None:
        self.objective, self.comm, self._batch = objective, reducer.comm, batch
        self._native = isinstance(reducer, NativeReducer)
        rows, kernel = objective.rows, objective.loss.second
        assert kernel is not None, "only smooth losses have an optimiser that asks"
        self.h = np.empty_like(z)
        kernel(z, rows.y, np.ascontiguousarray(rows.c), objective.parameter, self.h)
        self._several = objective.loss.kind == "multiclass"
        self._largest = self._bound(self.h)
        self._reach = column_reach(objective)

    def _bound(self, h: Array) -> float:
        """A power of two above all ranks' |h|; for softmax above |c p (z_q - mean z)| / max |z|."""
        if self._several:
            return float(power_above(2.0 * self.objective.statistics.heaviest))
        top = np.array([np.max(h, initial=0.0), np.count_nonzero(~np.isfinite(h))])
        self.comm.allreduce(top, "max")
        if top[1]:
            raise NotFinite("a second derivative is not finite")
        return float(power_above(top[0]))

    def times(self, v: Array, factor: float) -> Array:
        """The Hessian times v (k * p,); sums over rows are multiplied by `factor`. One read."""
        objective, k = self.objective, self.objective.k
        farthest = max(vector.dot(np.abs(part), self._reach) for part in v.reshape(k, -1))
        bound = float(power_above(farthest)) * self._largest
        if self._native:
            reducer: Reducer = NativeReducer(self.comm, k, objective.rows.X.d)
        else:
            columns = objective.statistics.bounds
            reducer = ExactReducer(
                self.comm,
                columns,
                k,
                objective.n,
                1.0,
                objective.fine,
                isinstance(objective.rows.X, CSR),
            )
        return objective.gradient(
            v / bound, self._batch, reducer, factor * bound, residuals.PRODUCT, self.h
        )[1]

    def matrices(self, factor: float) -> Array:
        """The Hessian (1, k * p, k * p); of several outputs and more than WHOLE parameters its blocks (k, p, p).

        One read, but for the largest of several outputs, whose accumulators are too many at once.
        """
        objective, found = self.objective, list[Array]()
        for pairs in groups(objective):
            outer = outer_of(objective, pairs, self._largest)
            found += over_ranks(
                outer,
                objective,
                lambda rows: np.ascontiguousarray(self.h[:, rows]),
                factor,
                self.comm,
            )
            objective.counter.reads += self._batch.size / objective.n
        return assemble(objective, found)

    def diagonal(self, factor: float) -> Array:
        """The diagonal of the Hessian (k * p,). One read."""
        objective, h = self.objective, self.h
        if self._several:
            p, c, h = h, np.ascontiguousarray(objective.rows.c), np.empty_like(h)
            for q in range(h.shape[0]):
                curvature.softmax_pair(p, c, q, q, h[q])
        scaling = objective.scaling
        squares, sums = weighted_squares(
            objective.rows.X, h, self._largest, objective.statistics, scaling.center, self.comm
        )
        found = np.column_stack([squares * scaling.inverse**2, *[sums] * scaling.intercept])
        objective.counter.reads += objective.width * self._batch.size / objective.n
        return factor * found.reshape(-1)


def column_squares(objective: Objective, comm: Comm) -> Array:
    """The weighted mean square of every parameter's column (k * p,) over the objective's rows. One read. Collective."""
    rows, scaling = objective.rows, objective.scaling
    c, heaviest = np.ascontiguousarray(rows.c)[np.newaxis], objective.statistics.heaviest
    squares, sums = weighted_squares(
        rows.X, c, heaviest, objective.statistics, scaling.center, comm
    )
    found = squares[0] * scaling.inverse**2 / (sums[0] or 1.0)
    objective.counter.reads += objective.width * objective.share
    return np.tile(np.append(found, [1.0] * scaling.intercept), objective.k)


def outer_of(objective: Objective, pairs: Sequence[Pair], largest: float) -> Outer | SparseOuter:
    """What sums h x x', by entries of compressed rows or by dense ones: whichever is cheaper."""
    split = Split.of(objective)
    return (
        Outer(objective, pairs, largest)
        if split is None
        else SparseOuter(objective, pairs, largest, split)
    )


def accumulators(objective: Objective) -> int:
    """Numbers that a thread adds to for a pair of outputs."""
    split = Split.of(objective)
    return objective.scaling.p**2 if split is None else split.numbers(objective.scaling.intercept)


def over_ranks(
    outer: Outer | SparseOuter,
    objective: Objective,
    curvatures: Callable[[slice], Array],
    factor: float,
    comm: Comm,
) -> list[Array]:
    """The sums of all rows. Collective."""
    n, most = objective.rows.X.n, MOST_OF_ALL // (len(outer.pairs) * accumulators(objective))
    count = max(1, min(objective.threads, most, n // SMALLEST_SHARE))
    shares = [slice(t * n // count, (t + 1) * n // count) for t in range(count)]
    parts = [list[Array]()] * count

    def work(thread: int) -> None:
        parts[thread] = outer.over(shares[thread], curvatures)

    Threads().run(work, count)
    return outer.matrices(parts, factor, comm)


def pairs_of(objective: Objective) -> list[Pair]:
    """The pairs of outputs whose blocks the Hessian has."""
    k, several = (
        objective.k,
        is_whole(objective.k, objective.scaling.p) and objective.loss.kind == "multiclass",
    )
    return [(q, s) for q in range(k) for s in range(q, k if several else q + 1)]


def groups(objective: Objective) -> list[list[Pair]]:
    """These pairs, cut into as many as one visit of the rows can sum."""
    pairs, size = pairs_of(objective), max(1, MOST // accumulators(objective))
    return [pairs[a : a + size] for a in range(0, len(pairs), size)]


def assemble(objective: Objective, blocks: Sequence[Array]) -> Array:
    """The Hessian, or its diagonal blocks, of the blocks of all pairs."""
    k, p = objective.k, objective.scaling.p
    if k == 1:
        return blocks[0][np.newaxis]
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
        self._outer = outer_of(objective, pairs, float(power_above(bound)))
        self._parts: dict[int, list[Array]] = {}

    @staticmethod
    def fits(objective: Objective) -> bool:
        """Whether each thread has room for accumulators of its own, and a grid is known."""
        if (
            objective.loss.curvature is None
            or len(pairs_of(objective)) * accumulators(objective) > MOST
        ):
            return False
        return objective.scaling.p <= LARGE or Split.of(objective) is not None

    def visit(self, share: slice, sweep: Callable[[slice], None]) -> None:
        """Once a share. Where a sweep is repeated with other limits, margins and what is made of them here stay."""
        if share.start in self._parts:
            sweep(share)
        else:
            self._parts[share.start] = self._outer.over(share, self._curvatures, sweep)

    def matrices(self, factor: float, comm: Comm) -> Array:
        return assemble(
            self._objective, self._outer.matrices(list(self._parts.values()), factor, comm)
        )

    def _curvatures(self, rows: slice) -> Array:
        objective = self._objective
        h, kernel = np.empty((objective.k, rows.stop - rows.start)), objective.loss.second
        assert kernel is not None
        z, c = (
            np.ascontiguousarray(self._keep[:, rows]),
            np.ascontiguousarray(objective.rows.c[rows]),
        )
        kernel(z, objective.rows.y[rows], c, objective.parameter, h)
        return h


def is_whole(k: int, p: int) -> bool:
    """Whether `Curvature.matrices` is the Hessian itself."""
    return k == 1 or k * p <= WHOLE
