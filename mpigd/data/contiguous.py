"""Direct reads of contiguous, uncompressed datasets whose dtype is the in-memory dtype.

HDF5 gives the place in the file, and the operating system reads or maps the numbers. Reads come in
pieces that stay in the core's cache, so that the check for unusable numbers costs next to nothing.
Mapped rows need no copy at all.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.errors import DataError
from mpigd.storage import resource_limits

if TYPE_CHECKING:
    import h5py

Array = np.ndarray[Any, Any]
PIECE = 1 << 18  # bytes that are read and checked together
PAGE = mmap.PAGESIZE


def offset(source: h5py.Dataset, dtype: np.dtype[Any]) -> int | None:
    """Return the byte at which a dataset's numbers begin in the file.

    Parameters
    ----------
    source : h5py.Dataset
        The dataset.
    dtype : dtype
        The type of the numbers in memory.

    Returns
    -------
    int or None
        None if the file does not store the numbers as an array of `dtype` in memory.
    """
    if source.dtype != dtype or source.chunks is not None or source.is_virtual or source.external:
        return None
    # HDF5 returns None if nothing was written yet, or if it stores the numbers elsewhere.
    found: int | None = source.id.get_offset()
    if found is None or found % dtype.itemsize or source.file.userblock_size:
        return None
    return (
        found if found + source.size * dtype.itemsize <= os.fstat(handle(source)).st_size else None
    )


def handle(source: h5py.Dataset) -> int:
    """Return the file descriptor through which HDF5 reads the dataset."""
    return int(source.file.id.get_vfd_handle())


def read(source: int, place: int, out: Array) -> Iterator[Array]:
    """Fill an array from an open file, and yield each piece while it is in the cache.

    Parameters
    ----------
    source : int
        The file descriptor.
    place : int
        The byte of the file at which the numbers begin.
    out : ndarray
        C-contiguous; receives the numbers.

    Yields
    ------
    ndarray
        A one-dimensional view of the part of `out` that was just read.

    Raises
    ------
    OSError
        If the file ends too early.
    """
    flat = out.reshape(-1)
    view, at = memoryview(flat.view(np.uint8).data), 0
    while at < len(view):
        stop = min(at + PIECE, len(view))
        begin = at
        while at < stop:
            got = os.preadv(source, [view[at:stop]], place + at)
            if not got:
                raise OSError("the file has become shorter")
            at += got
        yield flat[begin // out.itemsize : stop // out.itemsize]


class Map:
    """The rows (n, d) of a dataset, mapped from the page cache of the operating system.

    The map is private: writes would never reach the file. The file is open between `open` and
    `close`, and as long as somebody holds rows of it. The array is writable although nobody writes
    to it: kernels would be compiled a second time for a read-only array.
    """

    def __init__(self, source: h5py.Dataset, place: int, dtype: np.dtype[Any]) -> None:
        self._path, self._identity = (
            os.path.realpath(source.file.filename),
            _identity(handle(source)),
        )
        self._place, self._dtype, self._shape = place, dtype, source.shape
        self._map: mmap.mmap | None = None
        self._rows: Array | None = None

    def open(self) -> Map:
        """Map the file. DataError if it was changed or replaced since this object was made."""
        with resource_limits.named(self._path):
            file = os.open(self._path, os.O_RDONLY)
        try:
            if _identity(file) != self._identity:
                raise DataError(
                    f"{self._path}: the file has been changed or replaced since this run began"
                )
            with resource_limits.named(self._path):
                self._map = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(file)
        self._rows = np.frombuffer(
            self._map, self._dtype, math.prod(self._shape), self._place
        ).reshape(self._shape)
        return self

    def close(self) -> None:
        """Drop the map; the file is closed once nobody holds rows of it."""
        self._map = self._rows = None

    def fetch(self, rows: slice) -> Array:
        """Return the rows once they are in memory.

        One number of every page is read to get there; this waits without holding the interpreter's
        lock.
        """
        assert self._rows is not None
        found = self._rows[rows]
        found.reshape(-1)[:: PAGE // found.itemsize].max(initial=0)
        return found

    def release(self, rows: slice) -> None:
        """Let the system take back the memory of the rows.

        They no longer count as memory of this process. If they are asked for again, they come from
        the page cache or are read again.
        """
        held, row_bytes = self._map, math.prod(self._shape[1:]) * self._dtype.itemsize
        first, last = (self._place + row * row_bytes for row in (rows.start, rows.stop))
        first, last = -(-first // PAGE) * PAGE, last // PAGE * PAGE
        if first < last and held is not None:
            held.madvise(mmap.MADV_DONTNEED, first, last - first)


def _identity(file: int) -> tuple[int, ...]:
    """Return values that differ between two files, and between two states of one file."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
