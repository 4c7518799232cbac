"""Reads datasets of texts of fixed or variable length.

Texts of fixed length are read through h5py, those of variable length from the bytes of the file.

Texts of variable length lie in HDF5's global heap. The library follows the sizes there without
checking them, so that one flipped bit sends it into an endless loop. The heap is simple: a
collection is a header and a sequence of objects. This module reads its bytes from the file and
compares every size with what holds it.

Source: HDF5 File Format Specification, sections III.E (global heap) and IV.B (datatype message).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from mpigd.errors import DataError
from mpigd.storage import dataset_checks

Array = np.ndarray[Any, Any]
# Bytes of a text in its dataset: its length, and the address and number of its object in the heap.
ELEMENT = 16
# bytes of a collection, at most: HDF5 makes them of 4096 bytes, or as large as one text
LARGEST = 16 << 20
KEPT = 256  # collections that are kept in memory for the next texts
SLAB_BYTES = 8 << 20
DEFLATE, SHUFFLE = 1, 2  # codes of filters; HDF5 takes no checksums of what lies in the heap


def holds_text(data: h5py.Dataset) -> bool:
    """Return whether the elements are texts, of fixed or of variable length."""
    return data.dtype.kind == "S" or h5py.check_string_dtype(data.dtype) is not None


def shape_of(data: h5py.Dataset) -> tuple[int, ...]:
    """Return the shape of the texts. netCDF also stores a text as a row of a matrix of letters."""
    shape: tuple[int, ...] = data.shape
    return shape[:1] if _spelt(data) else shape


def _spelt(data: h5py.Dataset) -> bool:
    return bool(data.dtype == np.dtype("S1") and data.ndim == 2 and min(data.shape) > 1)


def slabs(data: h5py.Dataset, start: int, stop: int) -> Iterator[list[bytes]]:
    """Yield texts start to stop of a dataset, piece by piece.

    Parameters
    ----------
    data : h5py.Dataset
        A vector (n,), (n, 1) or (1, n) of texts, or a matrix (n, k) of letters.
    start, stop : int
        The rows to read.

    Yields
    ------
    list of bytes
        The texts of the piece.

    Raises
    ------
    DataError
        If the file is damaged, or stores the texts in a form that only HDF5's own reader could
        read.
    """
    fixed = data.dtype.kind == "S"
    width = data.shape[1] if _spelt(data) else 1
    step = max(1, SLAB_BYTES // max(1, data.dtype.itemsize * width if fixed else ELEMENT))
    heap = None if fixed else _Stored(data)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        if _spelt(data):
            letters = np.ascontiguousarray(data[first:last])
            yield np.char.rstrip(letters.view(f"S{data.shape[1]}")[:, 0], b" ").tolist()
        elif heap is None:
            yield _padded(data, piece(data, first, last)).tolist()
        else:
            yield heap.read(first, last)


def piece(data: h5py.Dataset, start: int, stop: int) -> Array:
    """Return some elements of a vector.

    Parameters
    ----------
    data : h5py.Dataset
        A vector (n,), (n, 1) or (1, n).
    start, stop : int
        The elements, m of them.

    Returns
    -------
    ndarray (m,)
    """
    if data.ndim == 1:
        found = data[start:stop]
    else:
        found = data[start:stop, 0] if data.shape[1] == 1 else data[0, start:stop]
    return np.asarray(found)


def _padded(data: h5py.Dataset, values: Array) -> Array:
    """Return the texts without padding spaces, if their type declares such padding.

    Fortran writes it.
    """
    spaces = data.id.get_type().get_strpad() == h5py.h5t.STR_SPACEPAD
    return np.char.rstrip(values, b" ") if spaces else values


class Heap:
    """Reads texts of variable length from the bytes of a file.

    `place` is what messages call them.
    """

    def __init__(self, file: h5py.File, place: str) -> None:
        self._place = place
        self._handle = int(file.id.get_vfd_handle())
        self._base = int(file.userblock_size)
        self._size = os.fstat(self._handle).st_size
        self._collections: dict[int, dict[int, bytes]] = {}

    def texts(self, raw: bytes) -> list[bytes]:
        """Return the texts of elements, given the bytes that a dataset or attribute stores."""
        return [
            self._text(*struct.unpack_from("<IQI", raw, at)) for at in range(0, len(raw), ELEMENT)
        ]

    def _error(self, why: str) -> DataError:
        return DataError(f"{self._place} {why}")

    def _text(self, length: int, address: int, number: int) -> bytes:
        if length == 0:
            return b""
        if address not in self._collections:
            if len(self._collections) >= KEPT:
                self._collections.clear()
            self._collections[address] = self._collection(address)
        text = self._collections[address].get(number)
        if text is None or len(text) < length:
            raise self._error("is damaged: a text is not where it should be")
        return text[:length].split(b"\0", 1)[0]

    def _collection(self, address: int) -> dict[int, bytes]:
        """Return the objects of the collection at `address`, by their numbers."""
        mark, size = struct.unpack("<8sQ", self.bytes_at(self._base + address, 16))
        if mark[:5] != b"GCOL\1" or not 16 <= size <= LARGEST:
            raise self._error("is damaged: its texts are not where they should be")
        raw, at, found = self.bytes_at(self._base + address, size), 16, {}
        while at + 16 <= size:
            number, length = struct.unpack_from("<H6xQ", raw, at)
            if number == 0:  # the rest of the collection is free
                break
            if length > size - at - 16:
                raise self._error("is damaged: a text is longer than what holds it")
            found[number] = raw[at + 16 : at + 16 + length]
            at += 16 + (length + 7) // 8 * 8
        return found

    def bytes_at(self, place: int, count: int) -> bytes:
        if place + count > self._size:
            raise self._error("is damaged: its texts lie behind the end of the file")
        parts, got = [], 0
        while got < count:
            part = os.pread(self._handle, count - got, place + got)
            if not part:
                raise self._error("is damaged: the file has become shorter")
            parts.append(part)
            got += len(part)
        return b"".join(parts)


class _Stored(Heap):
    """The texts of a dataset."""

    def __init__(self, data: h5py.Dataset) -> None:
        super().__init__(data.file, dataset_checks.named(data))
        self._data = data
        sizes = data.file.id.get_create_plist().get_sizes()
        compact = data.id.get_create_plist().get_layout() == h5py.h5d.COMPACT
        if data.is_virtual or data.external or sizes != (8, 8) or compact:
            raise self._error(
                "holds texts of variable length in a way that is not read here: "
                "store texts of fixed length"
            )

    def read(self, start: int, stop: int) -> list[bytes]:
        raw = self._elements(start, stop)
        return self.texts(raw)

    def _elements(self, start: int, stop: int) -> bytes:
        if self._data.chunks is None:
            place, size = self._data.id.get_offset(), (stop - start) * ELEMENT
            # The place is None if nothing was ever written.
            return (
                bytes(size) if place is None else self.bytes_at(int(place) + start * ELEMENT, size)
            )
        if self._data.ndim != 1:
            raise self._error(
                "holds texts of variable length in chunks of a matrix: store a vector"
            )
        length, parts = self._data.chunks[0], []
        for first in range(start // length * length, stop, length):
            chunk = self._chunk(first, length * ELEMENT)
            parts.append(
                chunk[max(0, start - first) * ELEMENT : (min(length, stop - first)) * ELEMENT]
            )
        return b"".join(parts)

    def _chunk(self, first: int, size: int) -> bytes:
        """Return the bytes of the chunk that begins with element `first`, with its filters undone.

        A chunk that was never written is zeros, which are empty texts.
        """
        if self._data.id.get_chunk_info_by_coord((first,)).byte_offset is None:
            return bytes(size)
        mask, raw = self._data.id.read_direct_chunk((first,))
        codes = dataset_checks.filters(self._data)
        for number, code in reversed(list(enumerate(codes))):
            if mask >> number & 1:
                continue
            raw = self._undo(code, bytes(raw), size)
        if len(raw) != size:
            raise self._error(f"is damaged: a chunk has {len(raw)} bytes, not {size}")
        return bytes(raw)

    def _undo(self, code: int, raw: bytes, size: int) -> bytes:
        if code == SHUFFLE:
            return (
                np.frombuffer(raw[: size // ELEMENT * ELEMENT], np.uint8)
                .reshape(ELEMENT, -1)
                .T.tobytes()
            )
        if code != DEFLATE:
            raise self._error(f"holds texts compressed with filter {code}: use gzip, or none")
        try:
            return zlib.decompressobj().decompress(raw, size + 1)
        except zlib.error as error:
            raise self._error(f"is damaged: {error}") from error
