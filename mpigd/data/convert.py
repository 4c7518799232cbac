"""`mpigd convert`: data of another program as mpigd reads them best, slab by slab.

Matrices that are stored transposed or by columns are turned, scaled numbers become what they mean, and rows that miss something
can be left out. A sparse matrix by columns is read once for each ENTRIES of its numbers, and once more to count its rows'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from mpigd.data import declared, foreign, hdf5, marks, source, unwritten, vectors
from mpigd.data.writer import VECTORS, Stream, Writer
from mpigd.errors import DataError, UsageError

Array = np.ndarray[Any, Any]
ENTRIES = 1 << 24  # of a sparse matrix that are held at once
SLAB_BYTES = 8 << 20
POLICIES = ("refuse", "drop")


@dataclass(frozen=True)
class Done:
    """What was written: rows x columns, dense or csr, and the rows that were left out."""

    path: str
    rows: int
    columns: int
    layout: str
    dropped: int


@dataclass(frozen=True)
class Slab:
    """Rows start to stop: dense values (m, d), or of a sparse matrix how many entries each row has, their columns and values.

    gone (m,): which rows miss a number. lengths, indices: empty where dense.
    """

    start: int
    stop: int
    values: Array
    gone: Array
    lengths: Array = field(default_factory=lambda: np.empty(0, np.int64))
    indices: Array = field(default_factory=lambda: np.empty(0, np.int64))

    def kept(self, keep: Array) -> Slab:
        """Some of the rows, `keep` (m,) bool."""
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
    """A dense dataset, row by row as its marks say, or `turned` against that."""

    layout = "dense"

    def __init__(self, data: h5py.Dataset, x: str, y: str, turned: bool) -> None:
        foreign.check_records(data)
        declared.check_type(data)
        if data.ndim != 2:
            raise DataError(f"{declared.named(data)} has shape {data.shape}, expected (rows, columns)")
        self._view = marks.View(data, marks.of(data), turned != bool(marks.transposed(data)), x, y)
        self.shape, self.dtype, self.place = self._view.shape, self._view.dtype, declared.named(data)

    def slabs(self) -> Iterator[Slab]:
        n, d = self.shape
        chunk = self._view.chunks[0] if self._view.chunks else 1
        step = max(1, SLAB_BYTES // max(1, 8 * d) // chunk) * chunk
        for start in range(0, n, step):
            stop = min(start + step, n)
            stored = self._view.stored(slice(start, stop))
            values, gone = self._view.marks.numbers(stored), self._view.marks.missing(stored)
            yield Slab(start, stop, values, np.any(gone | _nan(values), axis=1))


class Sparse:
    """A sparse matrix, by rows or by columns: AnnData's groups, and MATLAB's, which calls the parts jc and ir."""

    layout = "csr"

    def __init__(self, group: hdf5.Group, x: str, turned: bool) -> None:
        self.place = f"{group.filename}: {x!r}"
        matlab = "MATLAB_sparse" in group.attrs
        names = ("data", "ir", "jc") if matlab else ("data", "indices", "indptr")
        if not set(names) & set(group):
            foreign.refuse_group(group, self.place, "a matrix of numbers")
        self._data, self._indices, indptr = (hdf5.dataset(group, name) for name in names)
        if matlab:
            stored = [int(marks.attribute(group, "MATLAB_sparse")[0]), indptr.shape[0] - 1]
            by_rows = False
        else:
            told = source.sparse_shape(group)
            if told is None or np.shape(told) != (2,) or np.asarray(told).dtype.kind not in "iu":
                raise DataError(f"{self.place} has no encoding-type and shape, expected a sparse matrix with both")
            stored = np.asarray(told).tolist()
            by_rows = source.sparse_encoding(group, stored, indptr.shape) == "csr_matrix"
        lines, others = stored if by_rows else reversed(stored)
        self._indptr = np.asarray(indptr[...]).astype(np.int64)
        if indptr.shape != (lines + 1,) or self._indices.dtype.kind not in "iu" or self._indices.shape != self._data.shape:
            raise DataError(f"{self.place}: shape {stored} does not fit its parts")
        if np.any(np.diff(self._indptr) < 0) or self._indptr[0] != 0 or self._indptr[-1] != self._data.shape[0]:
            raise DataError(f"{self.place}: indptr does not ascend from 0 to the number of entries")
        declared.check_columns(group.filename, max(stored), self.place)
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
            rows, indices, values = self._whole(start, stop) if self._by_rows else self._picked(start, stop)
            order = np.lexsort((indices, rows))
            gone = np.zeros(stop - start, bool)
            gone[rows[_nan(values)]] = True
            yield Slab(start, stop, values[order], gone, lengths, indices[order])
            start = stop

    def _pieces(self) -> Iterator[tuple[int, int, Array]]:
        """All indices, piece by piece: the first entry, the one behind the last, and the indices."""
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
        """How many entries each row has (n,)."""
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
        """The entries of rows start to stop among all columns."""
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


def convert(
    path: str,
    output: str,
    x: str,
    y: str,
    transpose: bool = False,
    missing: str = "refuse",
    links: Sequence[str] = (),
    allow_unwritten: bool = False,
) -> Done:
    """Write X and the vectors beside it, of one file, to a new one. DataError for what cannot be used."""
    if missing not in POLICIES:
        raise UsageError(f"--missing {missing}: expected {' or '.join(POLICIES)}")
    if os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
        raise UsageError(f"-o {output} would replace a file that is read")
    with hdf5.open_read(path, links) as file:
        if not allow_unwritten:
            unwritten.check(file, [x, y, *source.EXTRAS], by_rows=False)
        matrix = _matrix(file, x, y, transpose)
        beside = _vectors(file, y, matrix.shape[0])
        with hdf5.create(output) as out:
            done = _write(out, matrix, beside, missing, path)
            if "encoding" in file and not transpose:
                hdf5.write_json(out, "encoding", hdf5.read_json(file, "encoding"))
    return Done(output, done[0], matrix.shape[1], matrix.layout, done[1])


def _matrix(file: hdf5.Group, x: str, y: str, transpose: bool) -> Dense | Sparse:
    found = file.raw(x)
    if isinstance(found, hdf5.Group):
        return Sparse(found, x, transpose)
    if not isinstance(found, h5py.Dataset):
        hdf5.dataset(file, x)
    return Dense(found, x, y, transpose)


def _vectors(file: hdf5.Group, y: str, n: int) -> dict[str, vectors.Vector]:
    """The vectors of n rows, by the names that they will have."""
    found: dict[str, vectors.Vector] = {}
    for name in (*source.EXTRAS, y):
        if vectors.there(file, name):
            found["y" if name == y else name] = vector = vectors.find(file, name)
            if vector.shape not in ((n,), (n, 1), (1, n)):
                raise DataError(f"{vector.place} has shape {vector.shape}, expected ({n},)")
        elif name == y != "y":
            hdf5.dataset(file, name)
    return found


def _nan(values: Array) -> Array:
    gone: Array = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    return gone


class _Output:
    """The new file: X and the vectors, which grow by slabs."""

    def __init__(self, out: h5py.File, matrix: Dense | Sparse, beside: dict[str, vectors.Vector]) -> None:
        d, dtype = matrix.shape[1], source.stored_type(matrix.dtype)
        self._beside = beside
        self._classes = {name: vector.classes() for name, vector in beside.items()}
        self._labels = {name: hdf5.texts(names) for name, names in self._classes.items() if names is not None}
        kinds = {name: self._labels[name].dtype if name in self._labels else np.dtype(VECTORS[name]) for name in beside}
        self._streams = {name: Stream(out, name, kinds[name]) for name in beside}
        self._sparse = Writer(out, "csr", d, dtype, ()) if matrix.layout == "csr" else None
        self._dense = Stream(out, "X", dtype, (d,)) if matrix.layout == "dense" else None

    def read(self, slab: Slab) -> dict[str, tuple[Array, Array]]:
        """The vectors' values in the rows of a slab (m,), and which are missing (m,) bool."""
        found = {name: vector.read(slab.start, slab.stop, self._classes[name]) for name, vector in self._beside.items()}
        return {name: (values, gone | _nan(values)) for name, (values, gone) in found.items()}

    def append(self, slab: Slab, keep: Array, read: dict[str, tuple[Array, Array]]) -> None:
        kept = slab.kept(keep)
        if self._sparse is not None:
            self._sparse.append(kept.lengths, kept.indices, kept.values, {})
        if self._dense is not None:
            self._dense.append(kept.values)
        for name, (values, _) in read.items():
            known = self._labels.get(name)
            self._streams[name].append(values[keep] if known is None else known[values[keep].astype(np.int64)])

    def close(self) -> None:
        for stream in (*self._streams.values(), self._sparse, self._dense):
            if stream is not None:
                stream.close()


def _write(out: h5py.File, matrix: Dense | Sparse, beside: dict[str, vectors.Vector], missing: str, path: str) -> tuple[int, int]:
    """Write all rows that are to be kept; how many they are, and how many others there were."""
    output, rows, dropped = _Output(out, matrix, beside), 0, 0
    for slab in matrix.slabs():
        read = output.read(slab)
        keep = ~np.logical_or.reduce([slab.gone, *(gone for _, gone in read.values())])
        if missing == "refuse" and not keep.all():
            at = int(np.argmin(keep))
            absent = [beside[name].place for name, (_, gone) in read.items() if gone[at]]
            place = matrix.place if slab.gone[at] else absent[0]
            raise DataError(f"{place} row {slab.start + at}: a value is missing: --missing drop leaves such rows out")
        output.append(slab, keep, read)
        rows += int(keep.sum())
        dropped += int((~keep).sum())
    if rows == 0:
        raise DataError(f"{path}: no row is left")
    output.close()
    return rows, dropped
