"""The sums that Hessians are made of, sum_i h_i x_i x_i' for every pair of outputs, exact, in one visit of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.comm import Comm
from mpigd.data.half import Half
from mpigd.data.matrix import CSR, Dense, Matrix
from mpigd.reduce import power_above
from mpigd_kernels import curvature
from mpigd_kernels.host import aligned

if TYPE_CHECKING:
    from mpigd.model.objective import Objective

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]
PANEL_BYTES = 1 << 18  # of dense rows at once: they stay in the core's cache while p columns pass over them
LARGE = 1024  # columns from which every thread's own accumulators would take too much room
MOST = 4_000_000  # numbers in the accumulators of one visit


class Outer:
    """Of an objective, for some `pairs` of outputs; `largest`: a power of two above all |h|."""

    def __init__(self, objective: Objective, pairs: Sequence[Pair], largest: float) -> None:
        self._objective, self.pairs, self._largest = objective, pairs, largest
        self._unit = power_above(column_reach(objective))  # powers of two: nothing is rounded by dividing
        ones = [1.0] * objective.scaling.intercept
        self._scale = np.append(objective.scaling.inverse, ones) / self._unit

    def over(self, share: slice, curvatures: Callable[[slice], Array], before: Callable[[slice], None] | None = None) -> Array:
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
            for h, sums in zip(self._weights(curvatures(rows), rows), A, strict=True):
                curvature.add_outer(Z[:m], h, sums)
            filled += m
        self._flush(A, T)
        return T

    def _weights(self, h: Array, rows: slice) -> list[Array]:
        """|d2loss / dz_q dz_s| / largest of the rows, for every pair (q, s)."""
        if self._objective.loss.kind != "multiclass":
            return [h[q] / self._largest for q, _ in self.pairs]
        c, found = np.ascontiguousarray(self._objective.rows.c[rows]), []
        for q, s in self.pairs:
            found.append(np.empty(c.size))
            curvature.softmax_pair(h, c, q, s, found[-1])
            found[-1] /= self._largest
        return found

    def _flush(self, A: Array, T: Array) -> None:
        for sums, words in zip(A, T, strict=True):
            curvature.flush_outer(sums, words)

    def matrices(self, parts: Sequence[Array], factor: float, comm: Comm) -> list[Array]:
        """Symmetric (p, p) for every pair, centred, scaled, times `factor`, from all ranks' parts. Collective."""
        words = parts[0]
        for other in parts[1:]:
            words += other
        comm.allreduce(words)
        found = []
        for T in words:
            upper = np.triu(T[0] + T[1]) * self._unit[:, np.newaxis] * self._unit * (self._largest * factor)
            found.append(upper + np.triu(upper, 1).T)
        return found


def column_reach(objective: Objective) -> Array:
    """The largest |x_j - centre_j| / scale_j of each parameter's column (p,), over all rows; 1 for the intercept."""
    scaling, statistics = objective.scaling, objective.statistics
    far = np.maximum(np.abs(statistics.high - scaling.center), np.abs(statistics.low - scaling.center))
    return np.append(far * scaling.inverse, [1.0] * scaling.intercept)


def dense_rows(X: Matrix, center: Array, scale: Array, Z: Array) -> None:
    """Z (m, p or more) = the rows, centred and times `scale` (p,), the intercept's column of ones too."""
    if isinstance(X, CSR):
        curvature.csr_rows(X.indptr, X.indices, X.data, center, scale, Z)
    elif isinstance(X, Half):
        curvature.dense_rows(X.widened().values, center, scale, Z)
    elif isinstance(X, Dense):
        curvature.dense_rows(X.values, center, scale, Z)
