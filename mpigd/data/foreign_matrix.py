"""Matrices of other programs, read as slabs of rows for `mpigd convert`.

Dense ones are read as their marks say, sparse ones may be stored by rows or by columns. A sparse
matrix by columns is read once for each ENTRIES of its numbers, and once more to count the entries
of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from mpigd.data import foreign, foreign_marks, metadata
from mpigd.errors import DataError
from mpigd.storage import dataset_checks, hdf5

Array = np.ndarray[Any, Any]
ENTRIES = 1 << 24  # entries of a sparse matrix that are held at once
SLAB_BYTES = 8 << 20


def is_nan(values: Array) -> Array:
    gone: Array = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    return gone


@dataclass(frozen=True)
class Slab:
    """Rows start to stop (exclusive) of a matrix, m rows.

    Attributes
    ----------
    start, stop : int
        The rows.
    values : ndarray (m, d), or (nnz,) if sparse
        The values.
    gone : ndarray (m,) of bool
        Which rows miss a number.
    lengths : ndarray (m,)
        The number of entries of each row; empty if dense.
    indices : ndarray (nnz,)
        The columns of the entries; empty if dense.
    """

    start: int
    stop: int
    values: Array
    gone: Array
    lengths: Array = field(default_factory=lambda: np.empty(0, np.int64))
    indices: Array = field(default_factory=lambda: np.empty(0, np.int64))

    def kept(self, keep: Array) -> Slab:
        """Return the rows that are True in `keep` (m,)."""
        if not self.lengths.size:
            return replace(self, values=self.values[keep], gone=self.gone[keep])
        entries = np.repeat(keep, self.lengths)
        return replace(
            self,
            values=self.values[entries],
            gone=self.gone[keep],
            lengths=self.lengths[keep],
            indices=self.indices[entries],
        )


class Dense:
    """A dense dataset, row by row as its marks say.

    `turned`: it is transposed against what the marks say.
    """

    layout = "dense"

    def __init__(self, data: h5py.Dataset, x: str, y: str, turned: bool) -> None:
        foreign.check_records(data)
        dataset_checks.check_type(data)
        if data.ndim != 2:
            raise DataError(
                f"{dataset_checks.named(data)} has shape {data.shape}, expected (rows, columns)"
            )
        self._view = foreign_marks.View(
            data, foreign_marks.of(data), turned != bool(foreign_marks.transposed(data)), x, y
        )
        self.shape, self.dtype, self.place = (
            self._view.shape,
            self._view.dtype,
            dataset_checks.named(data),
        )

    def slabs(self) -> Iterator[Slab]:
        n, d = self.shape
        chunk = self._view.chunks[0] if self._view.chunks else 1
        step = max(1, SLAB_BYTES // max(1, 8 * d) // chunk) * chunk
        for start in range(0, n, step):
            stop = min(start + step, n)
            stored = self._view.stored(slice(start, stop))
            values, gone = self._view.marks.numbers(stored), self._view.marks.missing(stored)
            yield Slab(start, stop, values, np.any(gone | is_nan(values), axis=1))


class Sparse:
    """A sparse matrix, by rows or by columns.

    AnnData's groups are read, and MATLAB's, which calls the parts jc and ir. `turned`: transposed
    against what the group says.
    """

    layout = "csr"

    def __init__(self, group: hdf5.Group, x: str, turned: bool) -> None:
        self.place = f"{group.filename}: {x!r}"
        matlab = "MATLAB_sparse" in group.attrs
        names = ("data", "ir", "jc") if matlab else ("data", "indices", "indptr")
        if not set(names) & set(group):
            foreign.refuse_group(group, self.place, "a matrix of numbers")
        self._data, self._indices, indptr = (hdf5.dataset(group, name) for name in names)
        if matlab:
            stored = [int(foreign_marks.attribute(group, "MATLAB_sparse")[0]), indptr.shape[0] - 1]
            by_rows = False
        else:
            told = metadata.sparse_shape(group)
            if told is None or np.shape(told) != (2,) or np.asarray(told).dtype.kind not in "iu":
                raise DataError(
                    f"{self.place} has no encoding-type and shape, "
                    "expected a sparse matrix with both"
                )
            stored = np.asarray(told).tolist()
            by_rows = metadata.sparse_encoding(group, stored, indptr.shape) == "csr_matrix"
        lines, others = stored if by_rows else reversed(stored)
        self._indptr = np.asarray(indptr[...]).astype(np.int64)
        if (
            indptr.shape != (lines + 1,)
            or self._indices.dtype.kind not in "iu"
            or self._indices.shape != self._data.shape
        ):
            raise DataError(f"{self.place}: shape {stored} does not fit its parts")
        if (
            np.any(np.diff(self._indptr) < 0)
            or self._indptr[0] != 0
            or self._indptr[-1] != self._data.shape[0]
        ):
            raise DataError(f"{self.place}: indptr does not ascend from 0 to the number of entries")
        dataset_checks.check_columns(group.filename, max(stored), self.place)
        self._by_rows = by_rows != turned
        self.shape = (lines, others) if self._by_rows else (others, lines)
        self.dtype = self._data.dtype

    def slabs(self) -> Iterator[Slab]:
        n = self.shape[0]
        ends = self._indptr[1:] if self._by_rows else np.cumsum(self._count())
        start = 0
        while start < n:
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + ENTRIES, "right")))
            lengths = np.diff(ends[start:stop], prepend=before)
            rows, indices, values = (
                self._whole(start, stop) if self._by_rows else self._picked(start, stop)
            )
            order = np.lexsort((indices, rows))
            gone = np.zeros(stop - start, bool)
            gone[rows[is_nan(values)]] = True
            yield Slab(start, stop, values[order], gone, lengths, indices[order])
            start = stop

    def _pieces(self) -> Iterator[tuple[int, int, Array]]:
        """Yield all indices in pieces: first entry, the one behind the last, indices."""
        step = SLAB_BYTES // 8
        for first in range(0, self._data.shape[0], step):
            last = min(first + step, self._data.shape[0])
            yield first, last, self._checked(first, last)

    def _checked(self, first: int, last: int) -> Array:
        limit = self.shape[1] if self._by_rows else self.shape[0]
        indices = np.asarray(self._indices[first:last]).astype(np.int64)
        if indices.min(initial=0) < 0 or indices.max(initial=0) >= limit:
            raise DataError(f"{self.place}: an index is outside 0..{limit - 1}")
        return indices

    def _count(self) -> Array:
        """Return the number of entries of each row (n,)."""
        counts = np.zeros(self.shape[0], np.int64)
        for _, _, indices in self._pieces():
            counts += np.bincount(indices, minlength=counts.size)
        return counts

    def _whole(self, start: int, stop: int) -> tuple[Array, Array, Array]:
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        rows = np.repeat(np.arange(stop - start), np.diff(self._indptr[start : stop + 1]))
        indices = self._checked(first, last)
        return rows, indices, np.asarray(self._data[first:last])

    def _picked(self, start: int, stop: int) -> tuple[Array, Array, Array]:
        """Return the entries of rows start to stop among all columns.

        They are returned as rows, columns and values.
        """
        rows, columns, values = [], [], []
        for first, last, indices in self._pieces():
            mine = np.flatnonzero((indices >= start) & (indices < stop))
            if mine.size:
                rows.append(indices[mine] - start)
                columns.append(np.searchsorted(self._indptr, mine + first, "right") - 1)
                values.append(np.asarray(self._data[first:last])[mine])
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, self.dtype)
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
