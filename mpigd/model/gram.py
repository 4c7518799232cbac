"""Sums for Hessians, sum_i h_i x_i x_i' for pairs of outputs, exact, in one pass over the rows.

`Outer` makes the rows dense, panel by panel; sparse_gram.py works on the entries of compressed
rows.
"""

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
# Bytes of dense rows in a panel: they stay in the core's cache while p columns pass over them.
PANEL_BYTES = 1 << 18
# Above this number of columns, dense accumulators of every thread take too much memory beside
# those of a sweep.
LARGE = 1024
# The most numbers in the accumulators of one thread's pass, and of all threads of a rank.
MOST, MOST_OF_ALL = 4_000_000, 16_000_000


class Outer:
    """Sum h_i x_i x_i' over the rows of an objective, for some `pairs` of outputs.

    The rows are made dense, panel by panel. Columns are centred and scaled as in the optimiser's
    coordinates. `largest` is a power of two above all |h|.
    """

    def __init__(self, objective: Objective, pairs: Sequence[Pair], largest: float) -> None:
        self._objective, self.pairs, self._largest = objective, pairs, largest
        # Powers of two, so that division rounds nothing.
        self._unit = power_above(column_reach(objective))
        ones = [1.0] * objective.scaling.intercept
        self._scale = np.append(objective.scaling.inverse, ones) / self._unit

    def over(
        self,
        share: slice,
        curvatures: Callable[[slice], Array],
        before: Callable[[slice], None] | None = None,
    ) -> list[Array]:
        """Return this rank's sums over the rows of a share, as two-word totals (pairs, 2, p, p).

        The rows are visited in panels.

        Parameters
        ----------
        share
            The rows.
        curvatures
            Maps the rows of a panel to what the loss's curvature kernel returns for them, (k, m)
            float64.
        before
            Called first with the rows of each panel, or None.
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
        return [T]

    def _weights(self, h: Array, rows: slice) -> list[Array]:
        """Return the weights (m,), at most 1, by which each pair sums x x' over some rows.

        Parameters
        ----------
        h : (k, m) float64
            What `curvatures` returned for these rows.
        rows
            Their slice.
        """
        return weights_of(self._objective, self.pairs, h, rows, self._largest)

    def _flush(self, A: Array, T: Array) -> None:
        for sums, words in zip(A, T, strict=True):
            curvature.flush_outer(sums, words)

    def matrices(self, parts: Sequence[list[Array]], factor: float, comm: Comm) -> list[Array]:
        """Return the sum of all ranks' rows for every pair: symmetric (p, p) float64. Collective.

        Parameters
        ----------
        parts
            What `over` returned for each share of this rank.
        factor
            Multiplies the sums.
        comm
            The communicator of these ranks.
        """
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
    """Return |d2loss / dz_q dz_s| / largest (m,) for every pair (q, s) of outputs.

    Parameters
    ----------
    objective
        Whose loss and weights apply.
    pairs
        Of outputs.
    h : (k, m) float64
        What the loss's curvature kernel returned: second derivatives, or for softmax probabilities.
    rows
        The slice of these m rows.
    largest
        A power of two above all |h|.
    """
    if objective.loss.kind != "multiclass":
        return [h[q] / largest for q, _ in pairs]
    c, found = np.ascontiguousarray(objective.rows.c[rows]), list[Array]()
    for q, s in pairs:
        found.append(np.empty(c.size))
        curvature.softmax_pair(h, c, q, s, found[-1])
        found[-1] /= largest
    return found


def added(parts: Sequence[list[Array]], comm: Comm) -> list[Array]:
    """Return the sums of all threads' and ranks' totals. Collective."""
    for totals, *others in zip(*parts, strict=True):
        for other in others:
            totals += other
        comm.allreduce(totals)
    return parts[0]


def column_reach(objective: Objective) -> Array:
    """Return the largest |x_j - centre_j| / scale_j (p,) of each column over all rows.

    It is 1 for the intercept.
    """
    scaling, statistics = objective.scaling, objective.statistics
    far = np.maximum(
        np.abs(statistics.high - scaling.center), np.abs(statistics.low - scaling.center)
    )
    return np.append(far * scaling.inverse, [1.0] * scaling.intercept)


def dense_rows(X: Matrix, center: Array, scale: Array, Z: Array) -> None:
    """Write centred and scaled rows into a dense array, the intercept's column of ones included.

    Parameters
    ----------
    X
        The rows (m, d), dense or compressed.
    center : (d,) float64
        What is subtracted from each column.
    scale : (p,) float64
        By which columns (and the ones) are multiplied.
    Z : (m, p or more) float64
        The array to fill.
    """
    if isinstance(X, CSR):
        curvature.csr_rows(X.indptr, X.indices, X.data, center, scale, Z)
    elif isinstance(X, Half):
        curvature.dense_rows(X.widened().values, center, scale, Z)
    elif isinstance(X, Dense):
        curvature.dense_rows(X.values, center, scale, Z)
