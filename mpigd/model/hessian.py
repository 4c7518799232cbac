"""Second derivatives of the objective at a point: products with a vector, and matrices, summed exactly.

The curvature of each row is made once per point from its margin, so a product is one read: margins of the vector, times the
curvature, accumulated like residuals. Its sums need no limits that are carried along: the vector is scaled by a power of
two so that no row can exceed 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.batches import Batch
from mpigd.data.half import Half
from mpigd.data.matrix import CSR, Dense, Matrix
from mpigd.exact import ExactReducer
from mpigd.reduce import NativeReducer, NotFinite, Reducer, Threads, power_above
from mpigd_kernels import curvature, sweep, vector

if TYPE_CHECKING:
    from mpigd.model.objective import Objective

Array = np.ndarray[Any, Any]
PANEL_BYTES = 1 << 18  # of dense rows at once: they stay in the core's cache while p columns pass over them
WHOLE = 2048  # most parameters of several outputs whose whole Hessian is made, not its diagonal blocks alone
LARGE = 1024  # columns from which every thread's own accumulators would take too much room


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
            columns = objective.statistics.bounds(objective.n)
            reducer = ExactReducer(self._comm, columns, k, objective.n, 1.0, objective.fine, isinstance(objective.rows.X, CSR))
        code = sweep.SOFTMAX_PRODUCT if self._several else sweep.PRODUCT
        sums = objective.sums(v / bound, self._batch, reducer, code, self._h)
        return objective.scaling.gradient(sums.gradient, sums.residual, factor * bound)

    def matrices(self, factor: float) -> Array:
        """The Hessian (1, k * p, k * p); of several outputs and more than WHOLE parameters its blocks (k, p, p). One read."""
        objective, k, p = self._objective, self._objective.k, self._objective.scaling.p
        whole = is_whole(k, p)
        H = np.empty((1, k * p, k * p) if whole else (k, p, p))
        for q in range(k):
            H[0 if whole else q][self._place(q, whole), self._place(q, whole)] = self._block(q, q, factor)
            for s in range(q + 1, k if whole else 0):
                block = self._block(q, s, factor)
                H[0][self._place(q), self._place(s)] = H[0][self._place(s), self._place(q)] = -block
        objective.counter.reads += self._batch.size / objective.n
        return H

    def _place(self, q: int, whole: bool = True) -> slice:
        p = self._objective.scaling.p
        return slice(q * p, (q + 1) * p) if whole else slice(None)

    def _block(self, q: int, s: int, factor: float) -> Array:
        """sum_i |d2loss_i / dz_q dz_s| x_i x_i' (p, p), centred and scaled, times `factor`."""
        objective, h = self._objective, self._h[q]
        if self._several:
            h = np.empty(h.size)
            curvature.softmax_pair(self._h, np.ascontiguousarray(objective.rows.c), q, s, h)
        unit = power_above(self._reach)  # powers of two: nothing is rounded by dividing
        scale = np.append(objective.scaling.inverse, [1.0] * objective.scaling.intercept) / unit
        T = self._outer_sums(h / self._largest, scale)
        self._comm.allreduce(T)
        upper = np.triu(T[0] + T[1]) * unit[:, np.newaxis] * unit * (self._largest * factor)
        return np.asarray(upper + np.triu(upper, 1).T)

    def _outer_sums(self, h: Array, scale: Array) -> Array:
        """sum_i h_i x_i x_i' over this rank's rows, centred and times `scale`: two-word totals (2, p, p)."""
        X, p = self._objective.rows.X, scale.size
        count = self._objective.threads if p <= LARGE else 1
        step = int(min(curvature.PANEL, max(8, PANEL_BYTES // (8 * p) // 8 * 8)))
        panels = [slice(a, min(X.n, a + step)) for a in range(0, X.n, step)]
        totals = [np.zeros((2, p, p)) for _ in range(count)]

        def work(thread: int) -> None:
            A, Z, filled = np.full((p, p), curvature.BIAS), np.empty((step, p)), 0
            for panel in panels[thread * len(panels) // count : (thread + 1) * len(panels) // count]:
                block = X.rows(panel)
                if filled + block.n > curvature.PANEL:
                    curvature.flush_outer(A, totals[thread])
                    filled = 0
                dense_rows(block, self._objective.scaling.center, scale, Z[: block.n])
                curvature.add_outer(Z[: block.n], h[panel], A)
                filled += block.n
            curvature.flush_outer(A, totals[thread])

        Threads().run(work, count)
        for other in totals[1:]:
            totals[0] += other
        return totals[0]


def is_whole(k: int, p: int) -> bool:
    """Whether `Curvature.matrices` is the Hessian itself."""
    return k == 1 or k * p <= WHOLE


def column_reach(objective: Objective) -> Array:
    """The largest |x_j - centre_j| / scale_j of each parameter's column (p,), over all rows; 1 for the intercept."""
    scaling, statistics = objective.scaling, objective.statistics
    far = np.maximum(np.abs(statistics.high - scaling.center), np.abs(statistics.low - scaling.center))
    return np.append(far * scaling.inverse, [1.0] * scaling.intercept)


def dense_rows(X: Matrix, center: Array, scale: Array, Z: Array) -> None:
    """Z (m, p) = the rows, centred and times `scale` (p,), the intercept's column of ones too."""
    if isinstance(X, CSR):
        curvature.csr_rows(X.indptr, X.indices, X.data, center, scale, Z)
    elif isinstance(X, Half):
        curvature.dense_rows(X.widened().values, center, scale, Z)
    elif isinstance(X, Dense):
        curvature.dense_rows(X.values, center, scale, Z)
