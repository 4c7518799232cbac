"""Numbers that lie in an HDF5 file as they will in memory: contiguous, uncompressed, of the very type that is kept.

HDF5 says where; the system then reads or maps them itself. Reading in pieces that stay in the core's cache lets the check for
what cannot be used cost next to nothing, and mapped rows need no copy at all.
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
PIECE = 1 << 18  # bytes read and looked at together
PAGE = mmap.PAGESIZE


def offset(source: h5py.Dataset, dtype: np.dtype[Any]) -> int | None:
    """The place in the file where the numbers of a dataset begin; None unless they lie there as `dtype` does in memory."""
    if source.dtype != dtype or source.chunks is not None or source.is_virtual or source.external:
        return None
    found: int | None = (
        source.id.get_offset()
    )  # None where HDF5 has written nothing yet, or keeps it elsewhere
    if found is None or found % dtype.itemsize or source.file.userblock_size:
        return None
    return (
        found if found + source.size * dtype.itemsize <= os.fstat(handle(source)).st_size else None
    )


def handle(source: h5py.Dataset) -> int:
    """The file descriptor by which HDF5 itself reads the dataset."""
    return int(source.file.id.get_vfd_handle())


def read(source: int, place: int, out: Array) -> Iterator[Array]:
    """Fill out, C-contiguous, from byte `place` of an open file; every piece is handed out while it is in the cache."""
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
    """The rows (n, d) of a dataset, straight from the system's page cache. Private: writing would never reach the file.

    The file is open while it is mapped, from `open` to `close`, and as long as somebody has rows of it.
    A writable array although nobody writes: kernels would be compiled a second time for one that is not.
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
        """Map the file. DataError if it is another one than before."""
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
        """Give the file back, once nobody has rows of it."""
        self._map = self._rows = None

    def fetch(self, rows: slice) -> Array:
        """The rows, once they are in memory: a number of every page was looked at, which waits without the interpreter."""
        assert self._rows is not None
        found = self._rows[rows]
        found.reshape(-1)[:: PAGE // found.itemsize].max(initial=0)
        return found

    def release(self, rows: slice) -> None:
        """The rows count no longer as this process's memory; asked for again, they are found in the page cache, or read."""
        held, row_bytes = self._map, math.prod(self._shape[1:]) * self._dtype.itemsize
        first, last = (self._place + row * row_bytes for row in (rows.start, rows.stop))
        first, last = -(-first // PAGE) * PAGE, last // PAGE * PAGE
        if first < last and held is not None:
            held.madvise(mmap.MADV_DONTNEED, first, last - first)


def _identity(file: int) -> tuple[int, ...]:
    """What tells an open file from another one, or from what it was."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
