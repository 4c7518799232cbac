"""A rank's rows in memory. Dense and CSR answer the same few questions; nothing above knows which it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mpigd_kernels import csr, dense, sampling

Array = np.ndarray[Any, Any]
Selection = slice | Array
Pair = tuple[Array, Array]  # of the coarse and the fine grid
BLOCK_BYTES = 1 << 19  # rows processed at once: they stay in the core's cache from margins to accumulation
SMALLEST_BLOCK = 64


@dataclass(frozen=True)
class Columns:
    """What is known of the columns of some rows: extremes of the stored values and how many are stored, (d,) each."""

    low: Array
    high: Array
    count: Array


class Matrix(Protocol):
    """Rows (n, d). `row_bytes`: of an average row; `entries`: stored values."""

    n: int
    d: int
    row_bytes: int
    entries: int

    def rows(self, selection: Selection) -> Matrix:
        """Rows of a slice (a view) or of an index array (a copy in that order)."""

    def margins(self, w: Array, b: float, z: Array) -> None:
        """z (n,) = X w + b for w (d,) float64."""

    def add_exact(self, r: Array, A: Array, C: Array, T: Array, filled: int, panel: int) -> int:
        """Accumulate r_i X_ij on the grid of C (sums.py); returns how many rows A holds unflushed."""

    def add_fine(self, r: Array, A: Pair, C: Pair, T: Pair, filled: int, panel: int) -> int:
        """add_exact on two grids, the second of which takes what rounding to the first cuts off."""

    def add_native(self, r: Array, A: Array) -> None:
        """A (d,) += X' r."""

    def columns(self) -> Columns:
        """Extremes and counts of the stored values; for CSR without the zeros."""

    def squared_deviation(self, center: Array) -> Matrix:
        """The matrix of (x_ij - center_j)**2 over the stored values, float64."""

    def ones(self) -> Matrix:
        """The pattern: 1 wherever a value is stored."""

    def absorb(self, hashes: Array) -> None:
        """Mix each row's stored bits into hashes (n,) uint64."""


def block_rows(matrix: Matrix) -> int:
    return max(SMALLEST_BLOCK, BLOCK_BYTES // max(1, matrix.row_bytes) // 16 * 16)


class Dense:
    """C-contiguous values (n, d), float64 or float32."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.n, self.d = values.shape
        self.row_bytes = self.d * values.itemsize
        self.entries = values.size

    def rows(self, selection: Selection) -> Dense:
        if isinstance(selection, slice):
            return Dense(self.values[selection])
        values = np.empty((selection.size, self.d), self.values.dtype)
        dense.gather(self.values, selection, values)
        return Dense(values)

    def margins(self, w: Array, b: float, z: Array) -> None:
        dense.margins(self.values, w, b, z)

    def add_exact(self, r: Array, A: Array, C: Array, T: Array, filled: int, panel: int) -> int:
        return int(dense.accumulate_exact(self.values, r, A, C, T, filled))

    def add_fine(self, r: Array, A: Pair, C: Pair, T: Pair, filled: int, panel: int) -> int:
        return int(dense.accumulate_fine(self.values, r, *A, *C, *T, filled))

    def add_native(self, r: Array, A: Array) -> None:
        dense.accumulate_native(self.values, r, A)

    def columns(self) -> Columns:
        low, high = np.full(self.d, np.inf), np.full(self.d, -np.inf)
        dense.column_range(self.values, low, high)
        return Columns(low, high, np.full(self.d, self.n, dtype=np.int64))

    def squared_deviation(self, center: Array) -> Dense:
        out = np.empty(self.values.shape)
        dense.squared_deviation(self.values, center, out)
        return Dense(out)

    def ones(self) -> Dense:
        return Dense(np.ones(self.values.shape))

    def absorb(self, hashes: Array) -> None:
        words = self.values.view(np.uint64) if self.row_bytes % 8 == 0 else self.values.view(np.uint32)
        sampling.absorb(hashes, words)


class CSR:
    """Compressed sparse rows: indptr (n + 1,) int64 into indices and data; columns ascend within a row."""

    def __init__(self, indptr: Array, indices: Array, data: Array, d: int) -> None:
        self.indptr, self.indices, self.data, self.d = indptr, indices, data, d
        self.n = indptr.size - 1
        self.entries = int(indptr[-1] - indptr[0])
        self.row_bytes = self.entries * (indices.itemsize + data.itemsize) // max(1, self.n) + 8

    def rows(self, selection: Selection) -> CSR:
        if isinstance(selection, slice):
            start, stop, _ = selection.indices(self.n)
            return CSR(self.indptr[start : stop + 1], self.indices, self.data, self.d)
        lengths = self.indptr[selection + 1] - self.indptr[selection]
        size = int(lengths.sum())
        indptr = np.empty(selection.size + 1, dtype=np.int64)
        indices, data = np.empty(size, self.indices.dtype), np.empty(size, self.data.dtype)
        csr.gather(self.indptr, self.indices, self.data, selection, indptr, indices, data)
        return CSR(indptr, indices, data, self.d)

    def margins(self, w: Array, b: float, z: Array) -> None:
        csr.margins(self.indptr, self.indices, self.data, w, b, z)

    def add_exact(self, r: Array, A: Array, C: Array, T: Array, filled: int, panel: int) -> int:
        return int(csr.accumulate_exact(self.indptr, self.indices, self.data, r, A, C, T, filled, panel))

    def add_fine(self, r: Array, A: Pair, C: Pair, T: Pair, filled: int, panel: int) -> int:
        return int(csr.accumulate_fine(self.indptr, self.indices, self.data, r, *A, *C, *T, filled, panel))

    def add_native(self, r: Array, A: Array) -> None:
        csr.accumulate_native(self.indptr, self.indices, self.data, r, A)

    def _stored(self) -> slice:
        return slice(int(self.indptr[0]), int(self.indptr[-1]))

    def columns(self) -> Columns:
        low, high, count = np.full(self.d, np.inf), np.full(self.d, -np.inf), np.zeros(self.d, dtype=np.int64)
        csr.column_range(self.indices[self._stored()], self.data[self._stored()], low, high, count)
        return Columns(low, high, count)

    def squared_deviation(self, center: Array) -> CSR:
        indices = self.indices[self._stored()]
        out = np.empty(indices.size)
        csr.squared_deviation(indices, self.data[self._stored()], center, out)
        return CSR(self.indptr - self.indptr[0], indices, out, self.d)

    def ones(self) -> CSR:
        indices = self.indices[self._stored()]
        return CSR(self.indptr - self.indptr[0], indices, np.ones(indices.size), self.d)

    def absorb(self, hashes: Array) -> None:
        words = self.data.view(f"u{self.data.itemsize}")
        sampling.absorb_sparse(hashes, self.indptr, self.indices, words)
