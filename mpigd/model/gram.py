"""The sums that Hessians are made of, sum_i h_i x_i x_i' for every pair of outputs, exact, in one visit of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.matrix.half import Half
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import power_above
from mpigd_kernels import curvature
from mpigd_kernels.host import aligned

if TYPE_CHECKING:
    from mpigd.model.objective import Objective

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]
PANEL_BYTES = (
    1 << 18
)  # of dense rows at once: they stay in the core's cache while p columns pass over them
LARGE = 1024  # columns from which dense accumulators of every thread take too much room beside those of a sweep
MOST, MOST_OF_ALL = (
    4_000_000,
    16_000_000,
)  # numbers in the accumulators of a thread's visit, and of all of a rank's threads


class Outer:
    """Of an objective, for some `pairs` of outputs; `largest`: a power of two above all |h|."""

    def __init__(self, objective: Objective, pairs: Sequence[Pair], largest: float) -> None:
        self._objective, self.pairs, self._largest = objective, pairs, largest
        self._unit = power_above(
            column_reach(objective)
        )  # powers of two: nothing is rounded by dividing
        ones = [1.0] * objective.scaling.intercept
        self._scale = np.append(objective.scaling.inverse, ones) / self._unit

    def over(
        self,
        share: slice,
        curvatures: Callable[[slice], Array],
        before: Callable[[slice], None] | None = None,
    ) -> list[Array]:
        """This rank's sums over the rows of a share, as two-word totals (pairs, 2, p, p).

        Panel by panel: `before` (rows) is called first, then `curvatures` (rows) for what the loss's kernel says of them.
        """
        X, p = self._objective.rows.X, self._scale.size
        wide = -(-p // curvature.LANES) * curvature.LANES
        A, T = aligned((len(self.pairs), wide, wide)), np.zeros((len(self.pairs), 2, p, p))
        step = int(min(curvature.PANEL, max(8, PANEL_BYTES // (8 * p) // 8 * 8)))
        Z, filled = aligned((step, wide)), 0
        A.fill(curvature.BIAS)
        Z.fill(0.0)
        for start in range(share.start, share.stop, step):
            rows = slice(start, min(share.stop, start + step))
            m = rows.stop - start
            if before:
                before(rows)
            if filled + m > curvature.PANEL:
                self._flush(A, T)
                filled = 0
            dense_rows(X.rows(rows), self._objective.scaling.center, self._scale, Z[:m])
            weights = weights_of(self._objective, self.pairs, curvatures(rows), rows, self._largest)
            for h, sums in zip(weights, A, strict=True):
                curvature.add_outer(Z[:m], h, sums)
            filled += m
        self._flush(A, T)
        return [T]

    def _flush(self, A: Array, T: Array) -> None:
        for sums, words in zip(A, T, strict=True):
            curvature.flush_outer(sums, words)

    def matrices(self, parts: Sequence[list[Array]], factor: float, comm: Comm) -> list[Array]:
        """Symmetric (p, p) for every pair, centred, scaled, times `factor`, from all ranks' parts. Collective."""
        (words,) = added(parts, comm)
        found = []
        for T in words:
            upper = (
                np.triu(T[0] + T[1])
                * self._unit[:, np.newaxis]
                * self._unit
                * (self._largest * factor)
            )
            found.append(upper + np.triu(upper, 1).T)
        return found


def weights_of(
    objective: Objective, pairs: Sequence[Pair], h: Array, rows: slice, largest: float
) -> list[Array]:
    """|d2loss / dz_q dz_s| / largest of the rows, for every pair (q, s), of what the loss's kernel says of them."""
    if objective.loss.kind != "multiclass":
        return [h[q] / largest for q, _ in pairs]
    c, found = np.ascontiguousarray(objective.rows.c[rows]), list[Array]()
    for q, s in pairs:
        found.append(np.empty(c.size))
        curvature.softmax_pair(h, c, q, s, found[-1])
        found[-1] /= largest
    return found


def added(parts: Sequence[list[Array]], comm: Comm) -> list[Array]:
    """The sums of all threads' and ranks' totals. Collective."""
    for totals, *others in zip(*parts, strict=True):
        for other in others:
            totals += other
        comm.allreduce(totals)
    return parts[0]


def column_reach(objective: Objective) -> Array:
    """The largest |x_j - centre_j| / scale_j of each parameter's column (p,), over all rows; 1 for the intercept."""
    scaling, statistics = objective.scaling, objective.statistics
    far = np.maximum(
        np.abs(statistics.high - scaling.center), np.abs(statistics.low - scaling.center)
    )
    return np.append(far * scaling.inverse, [1.0] * scaling.intercept)


def dense_rows(X: Matrix, center: Array, scale: Array, Z: Array) -> None:
    """Z (m, p or more) = the rows, centred and times `scale` (p,), the intercept's column of ones too."""
    if isinstance(X, CSR):
        curvature.csr_rows(X.indptr, X.indices, X.data, center, scale, Z)
    elif isinstance(X, Half):
        curvature.dense_rows(X.widened().values, center, scale, Z)
    elif isinstance(X, Dense):
        curvature.dense_rows(X.values, center, scale, Z)
