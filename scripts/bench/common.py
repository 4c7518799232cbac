"""The one float64 objective that all contestants of the subject `solve` are measured by: numpy alone, nothing of mpigd."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SLAB = 1 << 16
POLISH = 3  # Newton steps from a solution: far beyond what is compared with


@dataclass(frozen=True)
class Part:
    """What a solver must know: the loss, the ridge penalty on standardised coefficients, outputs, offset or None."""

    loss: str
    l2: float
    k: int
    offset: Array | None

    def of(self, rows: slice) -> Part:
        """The same of some rows."""
        return replace(self, offset=None if self.offset is None else self.offset[rows])


class Common:
    """mean loss + l2 / 2 * sum of squares of coefficients times their column's deviation; X dense or scipy's CSR."""

    def __init__(self, X: Any, y: Array, loss: str, l2: float, offset: Array | None) -> None:
        self.X, self.y, self.sparse = X, y, not isinstance(X, np.ndarray)
        self.part = Part(loss, l2, len(np.unique(y)) if loss == "softmax" else 1, offset)
        sums = sum(np.stack([part.sum(axis=0), (part * part).sum(axis=0)]) for _, part in self._slabs())
        self.mean = sums[0] / len(y)
        shifted = sum(((part - self.mean) ** 2).sum(axis=0) for _, part in self._slabs())
        self.scale = np.sqrt(shifted / len(y))
        self.inverse = np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 1e-12 * np.abs(self.mean))

    @classmethod
    def read(cls, path: str, loss: str, l2: float) -> Common:
        import h5py
        from scipy import sparse

        with h5py.File(path) as file:
            group = file["X"]
            if isinstance(group, h5py.Group):
                parts = group["data"][:], group["indices"][:], group["indptr"][:]
                X: Any = sparse.csr_matrix(parts, shape=tuple(group.attrs["shape"]))
            else:
                X = group[:]
            offset = file["offset"][:].astype(np.float64) if "offset" in file else None
            return cls(X, file["y"][:].astype(np.float64), loss, l2, offset)

    def _slabs(self) -> Any:
        for a in range(0, len(self.y), SLAB):
            rows = slice(a, min(len(self.y), a + SLAB))
            part = self.X[rows]
            yield rows, (part.toarray() if self.sparse else part).astype(np.float64)

    def standardised(self) -> Any:
        """X with columns of deviation 1; dense ones centred, in the data's own type. Sparse ones are not, so float64."""
        if self.sparse:
            return self.X.multiply(self.inverse).tocsr().astype(np.float64)
        return np.concatenate([((part - self.mean) * self.inverse).astype(self.X.dtype) for _, part in self._slabs()])

    def from_standardised(self, coef: Array, intercept: Array) -> tuple[Array, Array]:
        coef = coef.astype(np.float64) * self.inverse
        return coef, intercept - (0.0 if self.sparse else coef @ self.mean)

    def value(self, coef: Array, intercept: Array) -> float:
        return self._all(coef, intercept, False)[0]

    def _all(self, coef: Array, intercept: Array, second: bool) -> tuple[float, Array, Array]:
        """Value, gradient and Hessian by (scaled coefficients, intercept) of every output, k * (d + 1) of them."""
        k, d = self.part.k, self.inverse.size
        value, g, H = 0.0, np.zeros((k, d + 1)), np.zeros((k, d + 1, k, d + 1))
        for rows, X in self._slabs():
            z = X @ coef.T + intercept
            if self.part.offset is not None:
                z += self.part.offset[rows, np.newaxis]
            losses, r, h = self._pointwise(z, self.y[rows])
            value += losses.sum()
            if second:
                Z = np.column_stack([(X - self.mean) * self.inverse, np.ones(len(X))])
                g += r.T @ Z
                for q in range(k):
                    for s in range(q, k):
                        block = (Z * h[:, q, s][:, np.newaxis]).T @ Z
                        H[q, :, s] += block
                        if s > q:
                            H[s, :, q] += block
        n, U = len(self.y), coef * self.scale
        g, H = g / n, H / n
        g[:, :d] += self.part.l2 * U
        for q in range(k):
            H[q, np.arange(d), q, np.arange(d)] += self.part.l2
        return float(value / n + 0.5 * self.part.l2 * np.sum(U * U)), g.ravel(), H.reshape(g.size, g.size)

    def _pointwise(self, z: Array, y: Array) -> tuple[Array, Array, Array]:
        """Losses (m,), first (m, k) and second derivatives (m, k, k)."""
        from scipy.special import expit, logsumexp, xlogy

        if self.part.loss == "softmax":
            own = np.eye(z.shape[1])[y.astype(int)]
            total = logsumexp(z, axis=1, keepdims=True)
            p = np.exp(z - total)
            return total[:, 0] - (own * z).sum(axis=1), p - own, p[:, :, np.newaxis] * (np.eye(z.shape[1]) - p[:, np.newaxis])
        t = z[:, 0]
        if self.part.loss == "poisson":
            mean = np.exp(t)
            return mean - y + xlogy(y, y) - y * t, (mean - y)[:, np.newaxis], mean[:, np.newaxis, np.newaxis]
        p = expit(t)
        return np.logaddexp(0.0, t) - y * t, (p - y)[:, np.newaxis], (p * (1.0 - p))[:, np.newaxis, np.newaxis]

    def optimum(self, coef: Array, intercept: Array) -> float:
        """The smallest value, from near it."""
        k, d = self.part.k, self.inverse.size
        best = np.inf
        for _ in range(POLISH):
            value, g, H = self._all(coef, intercept, True)
            best = min(best, value)
            step = np.linalg.lstsq(H, g, rcond=1e-12)[0].reshape(k, d + 1)
            coef = coef - step[:, :d] * self.inverse
            intercept = intercept - step[:, d] + (step[:, :d] * self.inverse) @ self.mean
            if g @ step.ravel() < 1e-14 * abs(value):
                break
        return min(best, self.value(coef, intercept))
