"""Reads slabs of rows, and vectors, from open files and checks them.

All numbers must be finite and fit the requested type. Subnormal numbers become zero, except in
float16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpigd.data import contiguous, file_vectors, foreign_marks
from mpigd.data.extreme_values import LARGEST, advice
from mpigd.data.metadata import Info, sparse_shape
from mpigd.data.partition import Segment
from mpigd.errors import DataError
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.matrix.half import Half
from mpigd.storage import hdf5
from mpigd_kernels import bits
from mpigd_kernels import csr as csr_kernels
from mpigd_kernels import dense as dense_kernels
from mpigd_kernels import half as half_kernels

Array = np.ndarray[Any, Any]
SLAB_BYTES = 8 << 20


class Slabs:
    """A dense dataset (n, d) of an open file that is read in slabs aligned to its chunks."""

    def __init__(self, file: hdf5.Group, name: str, dtype: np.dtype[Any], y: str = "y") -> None:
        """Open the dataset.

        Parameters
        ----------
        file : hdf5.Group
            The open file.
        name : str
            The name of the dataset.
        dtype : dtype
            The type that is read.
        y : str
            The name of the target, for advice in messages.
        """
        self._file, self._name, self._dtype = file, name, dtype
        self._source = foreign_marks.matrix(file[name], name, y)
        self.d = int(self._source.shape[1])
        self._chunk = self._source.chunks[0] if self._source.chunks else 1
        self._place = (
            None
            if isinstance(self._source, foreign_marks.View)
            else contiguous.offset(self._source, dtype)
        )

    def cuts(self, segment: Segment) -> Iterator[slice]:
        """Yield the file's rows of `segment`, slab by slab."""
        chunk = self._chunk
        step = max(1, SLAB_BYTES // max(1, self._dtype.itemsize * self.d) // chunk) * chunk
        for start in range(segment.start - segment.start % chunk, segment.stop, step):
            yield slice(max(start, segment.start), min(start + step, segment.stop))

    def map(self) -> contiguous.Map | None:
        """Return a memory map of the rows if the file stores them as memory would, else None.

        The mapped values have not been checked yet.
        """
        return (
            None if self._place is None else contiguous.Map(self._source, self._place, self._dtype)
        )

    def read(self, rows: slice, out: Array) -> None:
        """Read rows of the file and check them.

        Parameters
        ----------
        rows : slice
            The rows (m) of the file.
        out : ndarray (m, d)
            C-contiguous, of the dtype of the slabs; for float16, uint16 that receives the bits.

        Raises
        ------
        DataError
            If a number is not finite or does not fit the type.
        """
        values = out.view(np.float16) if self._dtype == np.float16 else out
        with hdf5.readable(self._file.filename):
            self._read(rows, values)

    def _read(self, rows: slice, values: Array) -> None:
        if self._fill(rows, values):
            return
        where = int(np.argmin(np.isfinite(values))) if self._dtype == np.float16 else scrub(values)
        if where is not None:
            row, column = divmod(where, self.d)
            row += rows.start
            stored, place = self._source[row, column], f" column {column}"
            raise DataError(_not_finite(self._file, self._name, row, stored, self._dtype, place))

    def _fill(self, rows: slice, values: Array) -> bool:
        """Read the rows, and return whether all numbers can be used as they are."""
        if self._place is None:
            self._source.read_direct(values, np.s_[rows])
            return usable(values)
        start = self._place + rows.start * self.d * self._dtype.itemsize
        return all(
            [
                usable(piece)
                for piece in contiguous.read(contiguous.handle(self._source), start, values)
            ]
        )


@contextmanager
def reading(info: Info, segment: Segment) -> Iterator[hdf5.Group]:
    """Open the file of a segment, as a context manager.

    Parameters
    ----------
    info : Info
        The metadata of the file.
    segment : Segment
        The rows that will be read, for messages.

    Raises
    ------
    DataError
        Instead of the errors that HDF5 raises in the body.
    """
    with hdf5.open_read(info.path, info.links) as file:
        try:
            yield file
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{info.path}: rows {segment.start} to {segment.stop} cannot be read: {error}"
            ) from error


def wide(infos: Sequence[Info]) -> np.dtype[Any]:
    """Return the type in which numbers are read before they become float16."""
    return np.dtype("float64" if any(info.dtype == "float64" for info in infos) else "float32")


def slabs(
    infos: Sequence[Info],
    segments: Sequence[Segment],
    x: str,
    dtype: np.dtype[Any],
    out: Array | None = None,
) -> Iterator[tuple[slice, Array]]:
    """Yield this rank's dense rows slab by slab.

    Parameters
    ----------
    infos : sequence of Info
        The metadata of all files.
    segments : sequence of Segment
        This rank's rows (m).
    x : str
        The name of the matrix.
    dtype : dtype
        The type that is read.
    out : ndarray (m, d), optional
        Receives the values. Without it, all slabs share one buffer.

    Yields
    ------
    slice
        The local rows of the slab.
    ndarray
        Their values, a view of `out` or of the buffer.
    """
    first, buffer = 0, np.empty((0, 0), dtype)
    for segment in segments:
        with reading(infos[segment.file], segment) as file:
            source = Slabs(file, x, dtype, infos[segment.file].y)
            for cut in source.cuts(segment):
                m = cut.stop - cut.start
                if out is None and buffer.shape[0] < m:
                    buffer = np.empty((m, source.d), dtype)
                rows = slice(first, first + m)
                slab = buffer[:m] if out is None else out[rows]
                source.read(cut, slab)
                yield rows, slab
                first += m


def matrices(
    infos: Sequence[Info], segments: Sequence[Segment], x: str, dtype: np.dtype[Any]
) -> Iterator[tuple[slice, Matrix]]:
    """Yield this rank's rows slab by slab, as matrices.

    Parameters
    ----------
    infos : sequence of Info
        The metadata of all files.
    segments : sequence of Segment
        This rank's rows.
    x : str
        The name of the matrix.
    dtype : dtype
        The type of X in memory.

    Yields
    ------
    slice
        The local rows of the slab.
    Matrix
        Their matrix, valid until the next one is asked for.
    """
    if infos[0].layout == "csr":
        yield from _sparse(infos, segments, x, dtype)
        return
    for rows, slab in slabs(infos, segments, x, dtype):
        yield (
            rows,
            Half(slab.view(np.uint16), np.ones(infos[0].d)) if dtype == np.float16 else Dense(slab),
        )


def _sparse(
    infos: Sequence[Info], segments: Sequence[Segment], x: str, dtype: np.dtype[Any]
) -> Iterator[tuple[slice, Matrix]]:
    first = 0
    for segment in segments:
        info = infos[segment.file]
        row_bytes = (info.nonzeros or 0) * (dtype.itemsize + 4) // max(1, info.n) + 8
        step = max(1, SLAB_BYTES // row_bytes)
        with reading(info, segment) as file:
            for start in range(segment.start, segment.stop, step):
                part = Segment(
                    segment.file,
                    start,
                    min(start + step, segment.stop),
                    segment.first + start - segment.start,
                )
                yield slice(first, first + len(part)), read_csr(file, x, part, dtype)
                first += len(part)


def usable(values: Array) -> bool:
    """Return whether all numbers of a C-contiguous array can be used as they are.

    They must be finite and, except for float16, not subnormal.
    """
    words = values.reshape(-1).view(f"u{values.itemsize}")
    if values.dtype == np.float16:
        return bool(half_kernels.all_finite(words.reshape(1, -1)))
    return bool((bits.all_normal_32 if values.itemsize == 4 else bits.all_normal_64)(words))


def scrub(values: Array) -> int | None:
    """Set subnormal numbers to zero.

    Returns the flat index of the first number that is not finite, or None.
    """
    if usable(values):
        return None
    where = int(dense_kernels.scrub(values.reshape(-1), float(np.finfo(values.dtype).tiny)))
    return None if where < 0 else where


def _not_finite(
    file: hdf5.Group, name: str, row: int, stored: Any, dtype: np.dtype[Any], place: str = ""
) -> str:
    if np.isfinite(stored) and abs(stored) > LARGEST:
        told = (
            f"{file.filename}: {name!r} row {row}{place} is {stored:g}: sums of such numbers "
            "overflow, in float64 too"
        )
        return f"{told}: {advice(float(stored), 'the column')}"
    if np.isfinite(stored):
        return (
            f"{file.filename}: {name!r} row {row}{place}: "
            f"{stored} does not fit {dtype.name} (use --dtype float64)"
        )
    return f"{file.filename}: {name!r} row {row}{place} is {stored}: not a finite number"


def read_csr(file: hdf5.Group, name: str, segment: Segment, dtype: np.dtype[Any]) -> CSR:
    """Read the rows of `segment` of a CSR group, with the columns of each row sorted.

    Parameters
    ----------
    file : hdf5.Group
        The open file.
    name : str
        The name of the group.
    segment : Segment
        The rows to read.
    dtype : dtype
        The type of the values in memory.

    Returns
    -------
    CSR
        Its indptr is int64 and begins at 0. Its indices are int32 for fewer than 2**31 columns,
        else int64.

    Raises
    ------
    DataError
        If indptr does not ascend, a number is not finite or does not fit the type, or a row has a
        column twice or one out of range.
    """
    group = file[name]
    d = int(sparse_shape(group)[1])
    indptr = group["indptr"][segment.start : segment.stop + 1].astype(np.int64)
    start, stop = int(indptr[0]), int(indptr[-1])
    if np.any(indptr[1:] < indptr[:-1]) or start < 0 or stop > group["data"].shape[0]:
        raise DataError(
            f"{file.filename}: {name!r}: "
            f"indptr does not ascend within rows {segment.start} to {segment.stop}"
        )
    data = np.empty(stop - start, dtype)
    indices = np.empty(stop - start, np.int32 if d < 2**31 else np.int64)
    if stop > start:
        group["data"].read_direct(data, np.s_[start:stop])
        group["indices"].read_direct(indices, np.s_[start:stop])
    indptr -= start
    where = scrub(data)
    if where is not None:
        row = segment.start + int(np.searchsorted(indptr, where, "right")) - 1
        place = f" column {indices[where]}"
        raise DataError(_not_finite(file, name, row, group["data"][start + where], dtype, place))
    bad = int(csr_kernels.sort_rows(indptr, indices, data, d))
    if bad >= 0:
        where_row = segment.start + bad
        raise DataError(
            f"{file.filename}: {name!r} row {where_row} has a column twice or outside 0..{d - 1}"
        )
    return CSR(indptr, indices, data, d)


def read_vector(file: hdf5.Group, name: str, segment: Segment, info: Info) -> Array:
    """Read the rows of `segment` of a vector.

    Parameters
    ----------
    file : hdf5.Group
        The open file.
    name : str
        The name of the vector.
    segment : Segment
        The rows (m) to read.
    info : Info
        The metadata of the file.

    Returns
    -------
    ndarray (m,)
        float64, but int64 for the key. Class names of the target become their positions in
        `info.classes`.

    Raises
    ------
    DataError
        If a value is missing or not finite, or a sample weight is negative.
    """
    source = file_vectors.find(file, name)
    stored, gone = source.read(segment.start, segment.stop, info.classes)
    if gone.any():
        row = segment.start + int(np.argmax(gone))
        way = foreign_marks.command(info.path, info.x, info.y, "--missing", "drop")
        raise DataError(
            f"{source.place} row {row} {source.why(row)}: "
            f"a missing value: {way} leaves such rows out"
        )
    if name == "key" and stored.dtype.kind != "f":
        return stored.astype(np.int64)
    values = stored.astype(np.float64)
    where = scrub(values)
    if where is not None:
        row = segment.start + where
        raise DataError(_not_finite(file, name, row, stored[where], np.dtype("float64")))
    if name == "key":
        return values.astype(np.int64)
    if name == "sample_weight" and np.any(values < 0):
        row = int(np.argmax(values < 0))
        raise DataError(
            f"{file.filename}: 'sample_weight' row {segment.start + row} is {values[row]}: "
            "weights are at least 0"
        )
    return values
