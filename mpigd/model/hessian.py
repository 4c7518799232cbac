"""Second derivatives of the objective: products with vectors and matrices, summed exactly.

The curvature h of each row is computed once per point from its margin. A product with a vector is
then one read: margins of the vector times the curvature are accumulated like residuals. These sums
need no bounds carried from sweep to sweep: the vector is scaled by a power of two so that no row
can exceed 1.
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
SMALLEST_SHARE = 256  # the least number of rows for which a thread is started
# The most parameters of several outputs for which the whole Hessian is made. Above, only its
# diagonal blocks are.
WHOLE = 2048


class Curvature:
    """The Hessian of an objective at a point, from the curvatures h (k, n) of this rank's rows.

    The curvatures are computed from the margins z (k, n). For softmax h holds the probabilities.
    Collective.
    """

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
        """Return a power of two above all ranks' |h|.

        For softmax it is above |c p (z_q - mean z)| / max |z|.
        """
        if self._several:
            return float(power_above(2.0 * self.objective.statistics.heaviest))
        top = np.array([np.max(h, initial=0.0), np.count_nonzero(~np.isfinite(h))])
        self.comm.allreduce(top, "max")
        if top[1]:
            raise NotFinite("a second derivative is not finite")
        return float(power_above(top[0]))

    def times(self, v: Array, factor: float) -> Array:
        """Return the Hessian times a vector. One read. Collective.

        Parameters
        ----------
        v : (k * p,) float64
        factor
            Multiplies the sums over rows.

        Returns
        -------
        product : (k * p,) float64
        """
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
        """Return the Hessian (1, k * p, k * p), sums over rows multiplied by `factor`.

        For several outputs with more than WHOLE parameters, return its diagonal blocks (k, p, p).
        This costs one read, or several if the accumulators of all pairs of outputs do not fit at
        once.
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
        """Return the diagonal of the Hessian (k * p,), sums multiplied by `factor`. One read."""
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
    """Return the weighted mean square (k * p,) of every parameter's column.

    It costs one read. Collective.
    """
    rows, scaling = objective.rows, objective.scaling
    c, heaviest = np.ascontiguousarray(rows.c)[np.newaxis], objective.statistics.heaviest
    squares, sums = weighted_squares(
        rows.X, c, heaviest, objective.statistics, scaling.center, comm
    )
    found = squares[0] * scaling.inverse**2 / (sums[0] or 1.0)
    objective.counter.reads += objective.width * objective.share
    return np.tile(np.append(found, [1.0] * scaling.intercept), objective.k)


def outer_of(objective: Objective, pairs: Sequence[Pair], largest: float) -> Outer | SparseOuter:
    """Return the object that sums h x x': by entries of compressed rows, or by dense rows.

    It takes the cheaper of both.

    Parameters
    ----------
    objective
        The objective of the rows.
    pairs
        The pairs of outputs whose blocks are summed.
    largest
        A power of two above all |h|, equal on all ranks.
    """
    split = Split.of(objective)
    return (
        Outer(objective, pairs, largest)
        if split is None
        else SparseOuter(objective, pairs, largest, split)
    )


def accumulators(objective: Objective) -> int:
    """Return how many accumulators a thread has for one pair of outputs."""
    split = Split.of(objective)
    return objective.scaling.p**2 if split is None else split.numbers(objective.scaling.intercept)


def over_ranks(
    outer: Outer | SparseOuter,
    objective: Objective,
    curvatures: Callable[[slice], Array],
    factor: float,
    comm: Comm,
) -> list[Array]:
    """Return the blocks (p, p) of the pairs of `outer`, summed over all rows. Collective.

    Parameters
    ----------
    outer
        Sums h x x' over shares of this rank's rows.
    objective
        Whose rows are summed over.
    curvatures
        Maps a slice of rows to their curvatures (k, m).
    factor
        Multiplies the sums.
    comm
        The communicator of these ranks.
    """
    n, most = objective.rows.X.n, MOST_OF_ALL // (len(outer.pairs) * accumulators(objective))
    count = max(1, min(objective.threads, most, n // SMALLEST_SHARE))
    shares = [slice(t * n // count, (t + 1) * n // count) for t in range(count)]
    parts = [list[Array]()] * count

    def work(thread: int) -> None:
        parts[thread] = outer.over(shares[thread], curvatures)

    Threads().run(work, count)
    return outer.matrices(parts, factor, comm)


def pairs_of(objective: Objective) -> list[Pair]:
    """Return the pairs of outputs (q, s), q <= s, for which the Hessian has blocks."""
    k, several = (
        objective.k,
        is_whole(objective.k, objective.scaling.p) and objective.loss.kind == "multiclass",
    )
    return [(q, s) for q in range(k) for s in range(q, k if several else q + 1)]


def groups(objective: Objective) -> list[list[Pair]]:
    """Cut these pairs into groups whose accumulators fit into one pass over the rows."""
    pairs, size = pairs_of(objective), max(1, MOST // accumulators(objective))
    return [pairs[a : a + size] for a in range(0, len(pairs), size)]


def assemble(objective: Objective, blocks: Sequence[Array]) -> Array:
    """Return the Hessian, or its diagonal blocks, from the blocks of all pairs of outputs.

    Parameters
    ----------
    objective
        The objective, which determines the pairs.
    blocks
        One (p, p) array for each pair, in the order of `groups`.

    Returns
    -------
    H : (1, k * p, k * p) or (k, p, p) float64
    """
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
    """Sum a Hessian while a sweep visits the rows.

    The rows are cut into panels. After the sweep has visited a panel, it leaves the margins in
    `keep`, and the same panel is added to the Hessian. This works for losses whose curvature has a
    bound, since the grid must be known before the margins are.
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
        """Whether each thread has room for its own accumulators, and the grid is known before."""
        if (
            objective.loss.curvature is None
            or len(pairs_of(objective)) * accumulators(objective) > MOST
        ):
            return False
        return objective.scaling.p <= LARGE or Split.of(objective) is not None

    def visit(self, share: slice, sweep: Callable[[slice], None]) -> None:
        """Visit a share of the rows, with the Hessian only the first time.

        If a sweep is repeated with other bounds on its terms, the margins are the same, so the
        Hessian's sums stay.
        """
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
    """Whether `Curvature.matrices` returns the Hessian itself, not its diagonal blocks alone."""
    return k == 1 or k * p <= WHOLE
