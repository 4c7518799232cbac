"""Reading a dataset a bounded number of chunks at a time.

HDF5 keeps some kilobytes for each chunk of a selection while it reads it. Where a chunk holds one row, a slab of some
megabytes would take gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from mpigd.data import shortage

Array = np.ndarray[Any, Any]
CHUNKS = 1024  # that one read may touch; more are no faster
CHUNK_BYTES = 5 << 10  # bytes that HDF5 keeps for each of them meanwhile
PLACE_BYTES = 32  # of a chunk in the index of all
INDEX = 32 << 20  # bytes of the index that HDF5 keeps at most


class Dataset(h5py.Dataset):  # type: ignore[misc]
    """A dataset that has been looked at. Consecutive rows are read in pieces of at most CHUNKS chunks.

    sources: what there is of each source of a virtual dataset, open as long as this is: HDF5 reads zeros from those that it
    cannot open.
    """

    def __init__(self, bind: h5py.h5d.DatasetID, sources: Sequence[Sequence[Dataset]] = ()) -> None:
        super().__init__(bind, readonly=True)
        self.sources = [list(found) for found in sources]

    def __getitem__(self, args: Any, new_dtype: Any = None) -> Any:
        self._ready()
        if new_dtype is not None or not self.ndim or (rows := self._rows(args)) is None or self._at_once(rows):
            return super().__getitem__(args, new_dtype)
        out = np.empty((rows.stop - rows.start, *self.shape[1:]), self.dtype)
        self._read(out, rows)
        return out

    def read_direct(self, dest: Array, source_sel: Any = None, dest_sel: Any = None) -> None:
        self._ready()
        rows = None if dest_sel is not None or not self.ndim else self._rows(... if source_sel is None else source_sel)
        if rows is None or self._at_once(rows) or dest.shape != (rows.stop - rows.start, *self.shape[1:]):
            super().read_direct(dest, *(part for part in (source_sel, dest_sel) if part is not None))
        else:
            self._read(dest, rows)

    def chunk_count(self) -> int:
        """How many chunks there may be, in those of all sources where it is virtual."""
        if self.chunks is not None:
            return math.prod(-(-length // chunk) for length, chunk in zip(self.shape, self.chunks, strict=True))
        return sum(source.chunk_count() for found in self.sources for source in found[:1])

    def reading_bytes(self) -> int:
        """Bytes that HDF5 takes, besides the numbers, to read it: for its chunks, for where they lie, and what filters make."""
        chunks = self.chunk_count()
        largest = math.prod(self.chunks or (0,)) * self.dtype.itemsize
        filtered = self.id.get_create_plist().get_nfilters() > 0
        return min(CHUNKS, chunks) * CHUNK_BYTES + min(INDEX, chunks * PLACE_BYTES) + (2 * largest if filtered else 0)

    def _ready(self) -> None:
        if self.sources:
            shortage.check_descriptor(f"{self.file.filename}: {(self.name or '').strip('/')!r}")

    def _rows(self, selection: Any) -> slice | None:
        """The consecutive rows that a selection is, if it is no more than that."""
        if selection is Ellipsis or (isinstance(selection, tuple) and not selection):
            return slice(0, len(self))
        if not isinstance(selection, slice) or selection.step not in (None, 1):
            return None
        start, stop, _ = selection.indices(len(self))
        return slice(start, max(start, stop))

    def _band(self) -> tuple[int, int]:
        """Rows that lie in chunks side by side, and how many such chunks there are."""
        if self.chunks is not None:
            across = zip(self.shape[1:], self.chunks[1:], strict=True)
            return self.chunks[0], math.prod(-(-length // chunk) for length, chunk in across)
        each = self.chunk_count() / max(1, len(self))  # of a row, on the average
        return (1, math.ceil(each)) if each > 1.0 else (max(1, int(1.0 / each)) if each else max(1, len(self)), 1)

    def _at_once(self, rows: slice) -> bool:
        band, across = self._band()
        return bool((-(-rows.stop // band) - rows.start // band) * across <= CHUNKS)

    def _read(self, out: Array, rows: slice) -> None:
        for part, columns in self._cuts(rows):
            inside = out[part.start - rows.start : part.stop - rows.start]
            if columns is None:
                super().read_direct(inside, part)
            else:
                super().read_direct(inside, (part, columns), np.s_[:, columns])

    def _cuts(self, rows: slice) -> Iterator[tuple[slice, slice | None]]:
        """Parts of the rows, and of their columns where one row has too many chunks."""
        band, across = self._band()
        step = max(1, CHUNKS // across) * band
        wide = self.chunks is not None and self.ndim == 2 and across > CHUNKS
        width = CHUNKS * self.chunks[1] if wide else None
        for start in range(rows.start - rows.start % band, rows.stop, step):
            part = slice(max(start, rows.start), min(start + step, rows.stop))
            if width is None:
                yield part, None
                continue
            for first in range(0, self.shape[1], width):
                yield part, slice(first, min(first + width, self.shape[1]))


def reading_bytes(found: Any) -> int:
    """Bytes that HDF5 takes to read a dataset, or the largest one of a group."""
    if isinstance(found, Dataset):
        return found.reading_bytes()
    if isinstance(found, h5py.Group):
        return max((reading_bytes(found.get(name)) for name in ("data", "indices", "indptr")), default=0)
    return 0
