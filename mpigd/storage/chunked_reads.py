"""Reads of datasets in pieces of a bounded number of chunks.

HDF5 keeps some kilobytes for each chunk of a selection while it reads it. If each chunk holds one
row, reading a slab of some megabytes at once would take gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from mpigd.storage import resource_limits

Array = np.ndarray[Any, Any]
CHUNKS = 1024  # chunks that one read may touch; more are no faster
CHUNK_BYTES = 5 << 10  # bytes that HDF5 keeps for each of these chunks meanwhile
PLACE_BYTES = 32  # bytes of one chunk in the index of all chunks
INDEX = 32 << 20  # bytes of the index that HDF5 keeps in memory, at most


class Dataset(h5py.Dataset):  # type: ignore[misc]
    """A checked dataset. Consecutive rows and columns are read in pieces of at most CHUNKS chunks.

    `sources` holds the datasets found for each source of a virtual dataset. They stay open as long
    as this object: HDF5 reads zeros from sources that it cannot open.
    """

    def __init__(self, bind: h5py.h5d.DatasetID, sources: Sequence[Sequence[Dataset]] = ()) -> None:
        super().__init__(bind, readonly=True)
        self.sources = [list(found) for found in sources]

    def __getitem__(self, args: Any, new_dtype: Any = None) -> Any:
        self._ready()
        box = self._box(args)
        if new_dtype is not None or box is None or self._touched(box) <= CHUNKS:
            return super().__getitem__(args, new_dtype)
        out = np.empty([part.stop - part.start for part in box], self.dtype)
        self._read(out, box)
        return out

    def read_direct(self, dest: Array, source_sel: Any = None, dest_sel: Any = None) -> None:
        self._ready()
        box = None if dest_sel is not None else self._box(() if source_sel is None else source_sel)
        if (
            box is None
            or self._touched(box) <= CHUNKS
            or dest.shape != tuple(part.stop - part.start for part in box)
        ):
            super().read_direct(
                dest, *(part for part in (source_sel, dest_sel) if part is not None)
            )
        else:
            self._read(dest, box)

    def chunk_count(self) -> int:
        """Return the largest possible number of chunks.

        For a virtual dataset, add those of its sources.
        """
        if self.chunks is not None:
            return math.prod(
                -(-length // chunk) for length, chunk in zip(self.shape, self.chunks, strict=True)
            )
        return sum(source.chunk_count() for found in self.sources for source in found[:1])

    def reading_bytes(self) -> int:
        """Return the bytes that HDF5 needs, besides the numbers, to read the dataset.

        They hold its state for the chunks being read, the index of all chunks, and the output of
        filters.
        """
        chunks = self.chunk_count()
        largest = math.prod(self.chunks or (0,)) * self.dtype.itemsize
        filtered = self.id.get_create_plist().get_nfilters() > 0
        return (
            min(CHUNKS, chunks) * CHUNK_BYTES
            + min(INDEX, chunks * PLACE_BYTES)
            + (2 * largest if filtered else 0)
        )

    def _ready(self) -> None:
        if self.sources:
            resource_limits.check_descriptor(
                f"{self.file.filename}: {(self.name or '').strip('/')!r}"
            )

    def _box(self, selection: Any) -> tuple[slice, ...] | None:
        """Return a selection as ranges along each axis, or None if it is anything else."""
        parts = (
            selection
            if isinstance(selection, tuple)
            else ()
            if selection is Ellipsis
            else (selection,)
        )
        if (
            not self.ndim
            or len(parts) > self.ndim
            or not all(isinstance(part, slice) for part in parts)
        ):
            return None
        if any(part.step not in (None, 1) for part in parts):
            return None
        whole = (*parts, *(slice(None) for _ in range(self.ndim - len(parts))))
        edges = [part.indices(length)[:2] for part, length in zip(whole, self.shape, strict=True)]
        return tuple(slice(start, max(start, stop)) for start, stop in edges)

    def _grid(self) -> tuple[float, ...]:
        """Return the length of a chunk along each axis.

        For a virtual dataset, the first is the mean number of rows for each chunk of the sources.
        """
        if self.chunks is not None:
            return tuple(self.chunks)
        count = self.chunk_count()
        return (len(self) / count if count else math.inf, *(math.inf for _ in self.shape[1:]))

    def _touched(self, box: tuple[slice, ...]) -> float:
        """Return the number of chunks that a read of the box touches.

        For a virtual dataset this is an estimate from the mean length of a chunk.
        """
        return float(
            math.prod(_chunks(part, length) for part, length in zip(box, self._grid(), strict=True))
        )

    def _read(self, out: Array, box: tuple[slice, ...]) -> None:
        for part in self._cuts(box):
            rows = out[part[0].start - box[0].start : part[0].stop - box[0].start]
            inner = tuple(
                slice(p.start - b.start, p.stop - b.start)
                for p, b in zip(part[1:], box[1:], strict=True)
            )
            if part[1:] == box[1:]:
                super().read_direct(rows, part if self.ndim > 1 else part[0])
            else:
                super().read_direct(rows, part, (slice(None), *inner))

    def _cuts(self, box: tuple[slice, ...]) -> Iterator[tuple[slice, ...]]:
        """Yield parts of a box, each of which touches at most CHUNKS chunks.

        The box is cut along the first axis. If one row of chunks is already too much, it is also
        cut along the second. Cuts lie where chunks end.
        """
        grid = self._grid()
        across = math.prod(
            _chunks(part, length) for part, length in zip(box[1:], grid[1:], strict=True)
        )
        for rows in _steps(box[0], grid[0], CHUNKS / max(1.0, across)):
            if across <= CHUNKS or self.ndim == 1:
                yield rows, *box[1:]
                continue
            for columns in _steps(box[1], grid[1], CHUNKS):
                yield rows, columns, *box[2:]


def _chunks(part: slice, length: float) -> float:
    """Return how many chunks of length `length` lie along a part of an axis."""
    if length < 1.0 or math.isinf(length):  # several chunks for each row, or one chunk for all
        return 1.0 if math.isinf(length) else (part.stop - part.start) / length
    return float(math.ceil(part.stop / length) - math.floor(part.start / length))


def _steps(part: slice, length: float, chunks: float) -> Iterator[slice]:
    """Yield a part of an axis in steps of `chunks` chunks, which end where chunks end.

    `length` is the length of a chunk along the axis.
    """
    if math.isinf(length):
        yield part
        return
    step = max(1, int(max(1, int(chunks)) * length) if length >= 1.0 else int(chunks * length))
    for start in range(part.start - part.start % step, part.stop, step):
        yield slice(max(start, part.start), min(start + step, part.stop))


def reading_bytes(found: Any) -> int:
    """Return the bytes that HDF5 needs to read a dataset, or the largest of a sparse group."""
    if isinstance(found, Dataset):
        return found.reading_bytes()
    if isinstance(found, h5py.Group):
        return max(
            (reading_bytes(found.get(name)) for name in ("data", "indices", "indptr")), default=0
        )
    return 0
