"""The float64 objective by which the subject `solve` measures every program.

It uses numpy alone and nothing of mpigd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SLAB, SPARSE_ROWS = (
    1 << 23,
    1 << 17,
)  # at once: numbers of rows that are dense or made so, and compressed rows
POLISH = 3  # Newton steps from a solution: far beyond what is compared with


@dataclass(frozen=True)
class Part:
    """The parts of a problem: loss, ridge penalty, number of outputs, and offset or None.

    The penalty applies to standardised coefficients. `levels` has the number of columns of each
    factor whose levels are one-hot; these columns come first.
    """

    loss: str
    l2: float
    k: int
    offset: Array | None
    levels: tuple[int, ...] = ()

    def of(self, rows: slice) -> Part:
        """The same of some rows."""
        return replace(self, offset=None if self.offset is None else self.offset[rows])


class Common:
    """The mean loss plus a ridge penalty; X is dense or scipy's CSR.

    The penalty is l2 / 2 times the sum of squares of each coefficient times its column's deviation.
    """

    def __init__(
        self,
        X: Any,
        y: Array,
        loss: str,
        l2: float,
        offset: Array | None,
        levels: tuple[int, ...] = (),
    ) -> None:
        self.X, self.y, self.sparse = X, y, not isinstance(X, np.ndarray)
        self.part = Part(loss, l2, len(np.unique(y)) if loss == "softmax" else 1, offset, levels)
        sums = sum(
            np.stack([part.sum(axis=0), (part * part).sum(axis=0)]) for _, part in self._slabs()
        )
        self.mean = sums[0] / len(y)
        shifted = sum(((part - self.mean) ** 2).sum(axis=0) for _, part in self._slabs())
        self.scale = np.sqrt(shifted / len(y))
        self.inverse = np.divide(
            1.0,
            self.scale,
            out=np.zeros_like(self.scale),
            where=self.scale > 1e-12 * np.abs(self.mean),
        )

    @classmethod
    def read(cls, path: str, loss: str, l2: float) -> Common:
        import h5py
        from scipy import sparse

        with h5py.File(path) as file:
            group, levels = file["X"], ()
            if isinstance(group, h5py.Group):
                parts = group["data"][:], group["indices"][:], group["indptr"][:]
                X: Any = sparse.csr_matrix(parts, shape=tuple(group.attrs["shape"]))
                levels = tuple(int(count) for count in group.attrs.get("levels", ()))
            else:
                X = group[:]
            offset = file["offset"][:].astype(np.float64) if "offset" in file else None
            return cls(X, file["y"][:].astype(np.float64), loss, l2, offset, levels)

    def _slabs(self) -> Any:
        step = max(1, SLAB // self.X.shape[1])
        yield from ((rows, self._dense(self.X[rows])) for rows in self._rows(step))

    def _rows(self, step: int) -> Iterator[slice]:
        return (slice(a, min(len(self.y), a + step)) for a in range(0, len(self.y), step))

    def _dense(self, part: Any) -> Array:
        return np.asarray(part.toarray() if self.sparse else part, dtype=np.float64)

    def standardised(self) -> Any:
        """X with columns of deviation 1.

        Dense columns are also centred and keep the type of the data. Sparse columns are not
        centred, so they are float64.
        """
        if self.sparse:
            return self.X.multiply(self.inverse).tocsr().astype(np.float64)
        return np.concatenate(
            [((part - self.mean) * self.inverse).astype(self.X.dtype) for _, part in self._slabs()]
        )

    def from_standardised(self, coef: Array, intercept: Array) -> tuple[Array, Array]:
        coef = coef.astype(np.float64) * self.inverse
        return coef, intercept - (0.0 if self.sparse else coef @ self.mean)

    def value(self, coef: Array, intercept: Array) -> float:
        return self._all(coef, intercept, False)[0]

    def _all(self, coef: Array, intercept: Array, second: bool) -> tuple[float, Array, Array]:
        """Value, gradient and Hessian by (scaled coefficients, intercept) of every output.

        There are k * (d + 1) of these parameters.
        """
        k, d = self.part.k, self.inverse.size
        value, g, H = 0.0, np.zeros((k, d + 1)), np.zeros((k, d + 1, k, d + 1))
        for rows in self._rows(SPARSE_ROWS if self.sparse else max(1, SLAB // d)):
            X = self.X[rows] if self.sparse else self._dense(self.X[rows])
            z = X @ coef.T + intercept
            if self.part.offset is not None:
                z += self.part.offset[rows, np.newaxis]
            losses, r, h = self._pointwise(z, self.y[rows])
            value += losses.sum()
            if second:
                sums, moments = (self._sparse_products if self.sparse else self._products)(X, r, h)
                g += sums
                for q in range(k):
                    for s in range(q, k):
                        block = moments(q, s)
                        H[q, :, s] += block
                        if s > q:
                            H[s, :, q] += block
        n, U = len(self.y), coef * self.scale
        g, H = g / n, H / n
        g[:, :d] += self.part.l2 * U
        for q in range(k):
            H[q, np.arange(d), q, np.arange(d)] += self.part.l2
        return (
            float(value / n + 0.5 * self.part.l2 * np.sum(U * U)),
            g.ravel(),
            H.reshape(g.size, g.size),
        )

    def _products(self, X: Array, r: Array, h: Array) -> tuple[Array, Callable[[int, int], Array]]:
        """r'Z (k, d + 1), and a function that computes Z'diag(h_qs)Z from q and s.

        Z has the centred, scaled columns and the column of the intercept.
        """
        Z = np.column_stack([(X - self.mean) * self.inverse, np.ones(len(X))])
        return r.T @ Z, lambda q, s: (Z * h[:, q, s][:, np.newaxis]).T @ Z

    def _sparse_products(
        self, X: Any, r: Array, h: Array
    ) -> tuple[Array, Callable[[int, int], Array]]:
        """The same by scipy's sparse products, centred afterwards: the columns' means are small."""
        scale = np.append(self.inverse, 1.0)
        shift = np.append(self.mean, 0.0)

        def with_one(sums: Array, total: Any) -> Array:
            return (np.column_stack([sums, total]) - np.outer(total, shift)) * scale

        def moments(q: int, s: int) -> Array:
            weights = h[:, q, s]
            sums, total = X.T @ weights, weights.sum()
            raw = (X.T @ X.multiply(weights[:, np.newaxis])).toarray()
            rows = with_one(np.vstack([raw, sums]), np.append(sums, total))
            return (rows - np.outer(shift, rows[-1])) * scale[:, np.newaxis]

        return with_one((X.T @ r).T, r.sum(axis=0)), moments

    def _pointwise(self, z: Array, y: Array) -> tuple[Array, Array, Array]:
        """Losses (m,), first (m, k) and second derivatives (m, k, k)."""
        from scipy.special import expit, logsumexp, xlogy

        if self.part.loss == "softmax":
            own = np.eye(z.shape[1])[y.astype(int)]
            total = logsumexp(z, axis=1, keepdims=True)
            p = np.exp(z - total)
            return (
                total[:, 0] - (own * z).sum(axis=1),
                p - own,
                p[:, :, np.newaxis] * (np.eye(z.shape[1]) - p[:, np.newaxis]),
            )
        t = z[:, 0]
        if self.part.loss == "poisson":
            mean = np.exp(t)
            return (
                mean - y + xlogy(y, y) - y * t,
                (mean - y)[:, np.newaxis],
                mean[:, np.newaxis, np.newaxis],
            )
        p = expit(t)
        return (
            np.logaddexp(0.0, t) - y * t,
            (p - y)[:, np.newaxis],
            (p * (1.0 - p))[:, np.newaxis, np.newaxis],
        )

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
