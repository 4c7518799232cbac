"""The Matrix protocol, and its implementations for dense rows and compressed sparse rows (CSR).

A matrix holds rows of X that belong to one rank. Code in the packages above uses the methods of the
protocol only, so that it does not depend on the storage format. Other implementations are `Half`
(half.py), `Subset` (subset.py) and the streamed matrices of mpigd/data.
"""

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
# One call from Python processes BLOCK_BYTES of rows at once; a thread gets at least SMALLEST_BLOCK
# rows.
BLOCK_BYTES, SMALLEST_BLOCK = 1 << 17, 64
# A sweep over dense rows processes this many bytes at once, so that the rows stay in the
# first-level cache from the linear predictor to the gradient.
SWEEP_BYTES = 1 << 14
# Rows of a dense block. With more than LARGEST_SWEEP, an accumulator would get too many terms
# (mpigd_kernels/blocks.py).
SMALLEST_SWEEP, LARGEST_SWEEP = 8, 512
# Bytes and maximal number of rows of a block of compressed rows. They leave the rest of the
# second-level cache to the coefficients and accumulators that the rows use.
SPARSE_BLOCK, SPARSE_ROWS = 1 << 17, 256
# Empty arrays that stand for an absent argument: kernels are compiled for one type of each
# argument.
NO_ROWS, NONE, NOWHERE = np.empty(0, np.int64), np.empty(0), np.empty((0, 0))


@dataclass(frozen=True)
class Columns:
    """Statistics of the columns over some rows, each an array (d,).

    low, high: the smallest and the largest stored value, inf and -inf if there is none. count: the
    number of stored values, int64.
    """

    low: Array
    high: Array
    count: Array


class Task(NamedTuple):
    """The arguments of a sweep: the quantity to sum, the targets, and the coefficients.

    It is a tuple because every optimiser step makes one.

    Attributes
    ----------
    what : int
        The quantity that is computed from the margins: LOSS, FOLDS, PRODUCT or SQUARES of
        mpigd_kernels/residuals.py.
    loss : namedtuple
        The loss, one of the types in mpigd_kernels/residuals.py, with its parameter.
    y : array (q, n) of float64
        Targets.
    c : array (n,) or (1,) of float64
        Sample weights; (1,) if all are equal.
    coef : array (k, d) of float64
        Coefficients.
    intercept : array (k,) of float64
        Intercepts.
    offset : array (n,) of float64 or None
        Offsets of the linear predictor.
    keep : array (k, n) of float64 or None
        Receives the margins.
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
        """Return the task for a matrix that consists of the selected rows only.

        If `keep` is given, the selection must be a slice: a copy could not receive the margins.
        """
        offset = None if self.offset is None else self.offset[selection]
        keep = None if self.keep is None else self.keep[:, selection]
        c = self.c if self.c.size == 1 else self.c[selection]
        return Task(
            self.what, self.loss, self.y[:, selection], c, self.coef, self.intercept, offset, keep
        )


class Into(Protocol):
    """The accumulators that a sweep adds to.

    `arrays` holds limits, biases, S, counts, tops, A, C, D and T, in this order, as the kernels of
    mpigd_kernels/sweep.py take them.
    """

    arrays: tuple[Any, ...]
    filled: int  # rows in the accumulators A that have not been flushed into the totals T
    panel: int  # the flush interval, in rows
    S: Array  # (1 + k, 2): sums of the losses and of each output's residuals
    room: Array  # scratch memory of a sweep for one block
    # Compressed rows: coefficients (k, d) in the same memory as the accumulators, so that an entry
    # finds both in one cache line. None if they are not kept so.
    coef: Array | None
    pairs: Array | None  # for one output: (1 or 2, 1, d, 2), coefficients and accumulators as pairs
    # for several outputs: (d, 2 or 3, k or more) of mpigd_kernels/simd/multi_output.py
    lines: Array | None

    def in_units(self, unit: Array, inverse: Array) -> AbstractContextManager[None]:
        """Return a context in which the accumulators are scaled for columns divided by `unit`.

        unit (d,) are powers of two, so that the scaling is exact; inverse (d,) is 1 / unit.
        """


class Matrix(Protocol):
    """Rows of X (n, d) in some storage format."""

    n: int
    d: int
    row_bytes: int  # bytes of an average row
    entries: int  # number of stored values
    dtype: np.dtype[Any]  # of the stored values

    def rows(self, selection: Selection) -> Matrix:
        """Return the selected rows: a view for a slice, a copy in this order for an index array."""

    def margins(self, w: Array, b: float, z: Array) -> None:
        """Write the margins X w + b into z (n,), for w (d,) float64."""

    def sweep(self, selection: Selection, task: Task, into: Into) -> None:
        """Compute margins, residuals and gradient sums of the selected rows, block by block.

        Parameters
        ----------
        selection : slice or array (m,) of int64
            The rows. The vectors of `task` are those of all n rows.
        task : Task
            The quantity to compute.
        into : Into
            The accumulators; the sums are added to what they hold.
        """

    def accumulate(self, r: Array, l: Array, into: Into) -> None:
        """Add up X' r' for residuals r (k, n) and the sum of losses l (n,), both given.

        This is the third phase of a sweep alone. It may overwrite r and l.
        """

    def columns(self) -> Columns:
        """Return extremes and counts of the stored values; CSR leaves its implicit zeros out."""

    def arrange(self, count: Array) -> Array | None:
        """Renumber the columns in place, so that those with the most stored values come first.

        Parameters
        ----------
        count : array (d,) of int64
            The number of stored values of each column over all ranks.

        Returns
        -------
        array (d,) or None
            The number that each column had before; None if the columns keep their numbers.
        """

    def squared_deviation(self, center: Array) -> Matrix:
        """Return the matrix of (x_ij - center_j)**2 over the stored values, in float64.

        center is an array (d,).
        """

    def ones(self) -> Matrix:
        """Return the sparsity pattern: a matrix with 1 for every stored value."""

    def absorb(self, hashes: Array) -> None:
        """Mix the stored bits of each row into its hash, hashes (n,) uint64, in place."""


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
    """Call a compiled sweep over the selected rows of a matrix.

    Parameters
    ----------
    kernel : compiled function
        `sweep_dense` or `sweep_csr` of mpigd_kernels/sweep.py. It returns the new `into.filled`.
    parts : tuple of arrays
        The arrays of the matrix, as the kernel takes them.
    block : int
        The maximal number of rows of a block.
    width : int
        float64 numbers of scratch memory that the kernel needs for each row of a block, besides
        those that every sweep needs (`room_for`).
    n : int
        The number of rows of the matrix.
    selection, task, into
        As of `Matrix.sweep`.
    """
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
            into.room, *parts, first, order, m, block,
            task.y, task.c, NONE if task.offset is None else task.offset,
            coef, task.intercept, task.what, task.loss,
            NOWHERE if task.keep is None else task.keep,
            *arrays, into.filled, into.panel,
        )  # fmt: skip


def block_rows(matrix: Matrix) -> int:
    """Return the number of rows that one call from Python processes at once."""
    return max(SMALLEST_BLOCK, BLOCK_BYTES // max(1, matrix.row_bytes) // 16 * 16)


def sweep_rows(row_bytes: int) -> int:
    """Return the number of rows of a block of a sweep over dense rows."""
    return max(SMALLEST_SWEEP, min(LARGEST_SWEEP, SWEEP_BYTES // max(1, row_bytes) // 8 * 8))


class Dense:
    """Dense rows: C-contiguous values (n, d), float64 or float32."""

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
    """Compressed sparse rows: indptr (n + 1,) int64 into indices and data.

    Column indices ascend within a row, until `arrange` renumbers the columns. `number` (d,) then
    holds the number that each column has in the data set. If all values are 1, `data` is a
    broadcast of a single 1, and `values`, which is what the kernels take, is None.
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
        """Renumber the columns by frequency, so that frequent columns share cache lines.

        The entries of a row keep their order in memory, so a margin remains a function of the row
        and of the column counts of the whole data set.
        """
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
