"""A rank's rows in memory. Dense and CSR answer the same few questions; nothing above knows which it has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpigd_kernels import csr, dense, sampling
from mpigd_kernels.blocks import take_vector_sums
from mpigd_kernels.host import aligned
from mpigd_kernels.sweep import add_sparse, room_for, sweep_csr, sweep_dense

Array = np.ndarray[Any, Any]
Selection = slice | Array
BLOCK_BYTES, SMALLEST_BLOCK = (
    1 << 17,
    64,
)  # rows that one call from Python takes at once, and the least that a thread is asked for
SWEEP_BYTES = (
    1 << 14
)  # dense rows that a sweep takes at once: they stay in the first cache from margins to accumulation
SMALLEST_SWEEP, LARGEST_SWEEP = (
    8,
    512,
)  # rows: more would be too many terms for an accumulator (blocks.py)
# The same of compressed rows, and the most rows: the second cache is left to the coefficients and accumulators that they meet.
SPARSE_BLOCK, SPARSE_ROWS = 1 << 17, 256
NO_ROWS, NONE, NOWHERE = np.empty(0, np.int64), np.empty(0), np.empty((0, 0))


@dataclass(frozen=True)
class Columns:
    """What is known of the columns of some rows: extremes of the stored values and how many are stored, (d,) each."""

    low: Array
    high: Array
    count: Array


class Task(NamedTuple):
    """What a sweep makes of rows: `what` (a number of mpigd_kernels/sweep.py) of `loss` (a type there, with its parameter).

    y (q, n), weights c (n,) or (1,) for all alike, coef (k, d), intercept (k,), offset (n,) or None; keep (k, n) takes the
    margins if given. A tuple, because every step makes one.
    """

    what: int
    loss: Any
    y: Array
    c: Array
    coef: Array
    intercept: Array
    offset: Array | None = None
    keep: Array | None = None

    def at(self, selection: Selection) -> Task:
        """The same of some rows, which are then all; margins can only be kept of a slice."""
        offset = None if self.offset is None else self.offset[selection]
        keep = None if self.keep is None else self.keep[:, selection]
        c = self.c if self.c.size == 1 else self.c[selection]
        return Task(
            self.what, self.loss, self.y[:, selection], c, self.coef, self.intercept, offset, keep
        )


class Into(Protocol):
    """Accumulators of a sweep: arrays as the kernels take them (limits, biases, S, counts, tops, A, C, D, T of
    mpigd_kernels/sweep.py), and how many rows they hold unflushed."""

    arrays: tuple[Any, ...]
    filled: int
    panel: int
    S: Array  # (1 + k, 2)
    room: Array  # for what a sweep makes of a block
    coef: Array | None  # (k, d): where coefficients lie beside the accumulators of compressed rows
    pairs: Array | None  # they are the two columns of pairs (1 or 2, 1, d, 2), or
    lines: Array | None  # in lines (d, 2 or 3, k or more) of mpigd_kernels/outputs.py

    def in_units(self, unit: Array, inverse: Array) -> AbstractContextManager[None]:
        """Within the block the accumulators are those of columns divided by `unit` (d,), powers of two; inverse = 1 / unit."""


class Matrix(Protocol):
    """Rows (n, d). `row_bytes`: of an average row; `entries`: stored values; `dtype`: of these."""

    n: int
    d: int
    row_bytes: int
    entries: int
    dtype: np.dtype[Any]

    def rows(self, selection: Selection) -> Matrix:
        """Rows of a slice (a view) or of an index array (a copy in that order)."""

    def margins(self, w: Array, b: float, z: Array) -> None:
        """z (n,) = X w + b for w (d,) float64."""

    def sweep(self, selection: Selection, task: Task, into: Into) -> None:
        """Add up what `task` makes of the selected rows: all three phases, block by block."""

    def accumulate(self, r: Array, l: Array, into: Into) -> None:
        """The third phase alone: add up X' r', residuals r (k, n), losses l (n,). May overwrite r and l."""

    def columns(self) -> Columns:
        """Extremes and counts of the stored values; for CSR without the zeros."""

    def arrange(self, count: Array) -> Array | None:
        """Renumber the columns, in place, so that those of which all ranks store most, count (d,), come first.

        Returns which column each one was before (d,), or None where columns keep their numbers.
        """

    def squared_deviation(self, center: Array) -> Matrix:
        """The matrix of (x_ij - center_j)**2 over the stored values, float64."""

    def ones(self) -> Matrix:
        """The pattern: 1 wherever a value is stored."""

    def absorb(self, hashes: Array) -> None:
        """Mix each row's stored bits into hashes (n,) uint64."""


def run(
    kernel: Callable[..., int],
    parts: tuple[Array | None, ...],
    block: int,
    width: int,
    n: int,
    selection: Selection,
    task: Task,
    into: Into,
) -> None:
    """Sweep over the selected of n rows, of which a matrix's `parts` hold the values. width: of room_for()."""
    if isinstance(selection, slice):
        first, stop, _ = selection.indices(n)
        order, m = NO_ROWS, stop - first
    else:
        first, order, m = 0, selection, selection.size
        if order.dtype != np.int64:
            order = order.astype(np.int64)
    coef, arrays = task.coef, into.arrays
    if into.coef is not None:
        into.coef[:] = coef
    if into.pairs is not None:
        coef, arrays = into.pairs[0], (*arrays[:5], into.pairs, *arrays[6:])
    if m > 0:
        block = min(block, m)
        size = room_for(into.S.shape[0] - 1, task.y.shape[0], block, width)
        if into.room.size < size:
            into.room = aligned(size)
        into.filled = kernel(
            into.room, *parts, first, order, m, block, task.y, task.c, NONE if task.offset is None else task.offset,
            coef, task.intercept, task.what, task.loss, NOWHERE if task.keep is None else task.keep,
            *arrays, into.filled, into.panel,
        )  # fmt: skip


def block_rows(matrix: Matrix) -> int:
    return max(SMALLEST_BLOCK, BLOCK_BYTES // max(1, matrix.row_bytes) // 16 * 16)


def sweep_rows(row_bytes: int) -> int:
    return max(SMALLEST_SWEEP, min(LARGEST_SWEEP, SWEEP_BYTES // max(1, row_bytes) // 8 * 8))


class Dense:
    """C-contiguous values (n, d), float64 or float32."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.n, self.d = values.shape
        self.row_bytes = self.d * values.itemsize
        self.entries, self.dtype = values.size, values.dtype
        self._block = sweep_rows(self.row_bytes)

    def rows(self, selection: Selection) -> Dense:
        if isinstance(selection, slice):
            return Dense(self.values[selection])
        values = np.empty((selection.size, self.d), self.values.dtype)
        dense.gather(self.values, selection, values)
        return Dense(values)

    def margins(self, w: Array, b: float, z: Array) -> None:
        dense.margins(self.values, w, b, z)

    def sweep(self, selection: Selection, task: Task, into: Into) -> None:
        run(sweep_dense, (self.values,), self._block, 0, self.n, selection, task, into)

    def accumulate(self, r: Array, l: Array, into: Into) -> None:
        r = np.ascontiguousarray(r)
        if take_vector_sums(r, l, *into.arrays[:5], into.arrays[6]):
            before = into.filled
            for q, residual in enumerate(r):
                into.filled = dense.add_one(self.values, residual, *into.arrays[5:], q, before)

    def columns(self) -> Columns:
        low, high = np.full(self.d, np.inf), np.full(self.d, -np.inf)
        dense.column_range(self.values, low, high)
        return Columns(low, high, np.full(self.d, self.n, dtype=np.int64))

    def arrange(self, count: Array) -> None:
        return None

    def squared_deviation(self, center: Array) -> Dense:
        out = np.empty(self.values.shape)
        dense.squared_deviation(self.values, center, out)
        return Dense(out)

    def ones(self) -> Dense:
        return Dense(np.ones(self.values.shape))

    def absorb(self, hashes: Array) -> None:
        words = (
            self.values.view(np.uint64) if self.row_bytes % 8 == 0 else self.values.view(np.uint32)
        )
        sampling.absorb(hashes, words)


class CSR:
    """Compressed sparse rows: indptr (n + 1,) int64 into indices and data; columns ascend within a row.

    number (d,): after `arrange`, the number in the data of each column. Where all values are one, `data` is that one number,
    broadcast, and `values`, which the kernels take, None.
    """

    def __init__(
        self, indptr: Array, indices: Array, data: Array, d: int, number: Array | None = None
    ) -> None:
        self.indptr, self.indices, self.data, self.d, self.number = indptr, indices, data, d, number
        self.n, self.dtype = indptr.size - 1, data.dtype
        self.entries = int(indptr[-1] - indptr[0])
        self.row_bytes = self.entries * (indices.itemsize + data.itemsize) // max(1, self.n) + 8

    @property
    def values(self) -> Array | None:
        return self.data if self.data.strides[0] or self.data.size == 0 else None

    def arrange(self, count: Array) -> Array:
        """Frequent columns then lie together in the cache. Entries stay where they are, so that a margin is still a function
        of its row, and of the data's counts."""
        order = np.argsort(-count, kind="stable")
        place = np.empty(self.d, self.indices.dtype)
        place[order] = np.arange(self.d)
        csr.renumber(self.indices, place)
        self.number = order.astype(place.dtype) if self.number is None else self.number[order]
        if self.data.size and self.data.strides[0] and csr.all_ones(self.data):
            self.data = np.broadcast_to(self.data[:1].copy(), self.data.shape)
        return order

    def rows(self, selection: Selection) -> CSR:
        if isinstance(selection, slice):
            start, stop, _ = selection.indices(self.n)
            return CSR(self.indptr[start : stop + 1], self.indices, self.data, self.d, self.number)
        lengths = self.indptr[selection + 1] - self.indptr[selection]
        size = int(lengths.sum())
        indptr = np.empty(selection.size + 1, dtype=np.int64)
        ones = self.values is None
        indices, data = (
            np.empty(size, self.indices.dtype),
            np.empty(0 if ones else size, self.data.dtype),
        )
        csr.gather(self.indptr, self.indices, self.values, selection, indptr, indices, data)
        data = np.broadcast_to(self.data[:1], (size,)) if ones else data
        return CSR(indptr, indices, data, self.d, self.number)

    def margins(self, w: Array, b: float, z: Array) -> None:
        csr.margins(self.indptr, self.indices, self.values, w, b, z)

    def sweep(self, selection: Selection, task: Task, into: Into) -> None:
        block = max(
            SMALLEST_BLOCK, min(SPARSE_ROWS, SPARSE_BLOCK // max(1, self.row_bytes) // 16 * 16)
        )
        width = 2 + (0 if into.lines is None else into.lines.shape[2])
        run(
            sweep_csr,
            (self.indptr, self.indices, self.values, into.lines),
            block,
            width,
            self.n,
            selection,
            task,
            into,
        )

    def accumulate(self, r: Array, l: Array, into: Into) -> None:
        r = np.ascontiguousarray(r)
        if take_vector_sums(r, l, *into.arrays[:5], into.arrays[6]):
            rows = self.indptr[:-1], self.indptr[1:], self.indices, self.values
            held = [
                add_sparse(*rows, residual, *into.arrays[5:], q, into.filled, into.panel)
                for q, residual in enumerate(r)
            ]
            into.filled = held[-1]

    def _stored(self) -> slice:
        return slice(int(self.indptr[0]), int(self.indptr[-1]))

    def columns(self) -> Columns:
        low, high, count = (
            np.full(self.d, np.inf),
            np.full(self.d, -np.inf),
            np.zeros(self.d, dtype=np.int64),
        )
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
        stored = self._stored()
        words = np.ascontiguousarray(self.data[stored]).view(f"u{self.data.itemsize}")
        indices = (
            self.indices[stored]
            if self.number is None
            else self.number[self.indices[stored]].astype(self.indices.dtype)
        )
        sampling.absorb_sparse(hashes, self.indptr - self.indptr[0], indices, words)
