"""Reads attributes that are texts of variable length from the bytes of the file.

HDF5's own reader may loop over a damaged heap, see text_datasets.py. Attributes are messages in the
header of their object, which is a chain of blocks.

Source: HDF5 File Format Specification, sections IV.A.1 (object headers) and IV.A.2.m (attribute
message).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import h5py

from mpigd.storage.text_datasets import ELEMENT, Heap

BLOCKS = 1000  # blocks of one header, at most; damage may make a circle of them
LARGEST = 1 << 20  # bytes of a block, at most
CONTINUATION, ATTRIBUTE = 0x10, 0x0C  # types of messages
SHARED = 0x02  # flag of a message that is stored elsewhere


def texts(item: h5py.Group | h5py.Dataset, key: str, place: str) -> list[bytes] | None:
    """Return the texts of an attribute, or None if it is stored in another way.

    In new files, an object with many attributes has a heap of its own for them, which is not read
    here.

    Parameters
    ----------
    item : h5py.Group or h5py.Dataset
        The object with the attribute.
    key : str
        The name of the attribute.
    place : str
        What messages call it.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    if item.file.id.get_create_plist().get_sizes() != (8, 8):
        return None
    count = math.prod(h5py.h5a.open(item.id, key.encode()).shape)
    for kind, message in _Header(item, place).messages():
        raw = _value(message) if kind == ATTRIBUTE else None
        if raw is not None and raw[0] == key.encode() and len(raw[1]) >= count * ELEMENT:
            return Heap(item.file, place).texts(raw[1][: count * ELEMENT])
    return None


class _Header(Heap):
    """The header of an object."""

    def __init__(self, item: h5py.Group | h5py.Dataset, place: str) -> None:
        super().__init__(item.file, place)
        self._address = int(h5py.h5o.get_info(item.id).addr)

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the type and the contents of every message in the header's own blocks."""
        head = self.bytes_at(self._base + self._address, 16)
        new = head.startswith(b"OHDR")
        form = "<BHB" if new else "<HHB3x"
        if new:
            width, skipped = (
                1 << (head[5] & 3),
                (16 if head[5] & 0x20 else 0) + (4 if head[5] & 0x10 else 0),
            )
            form += "2x" if head[5] & 4 else ""
            start = self._address + 6 + skipped
            size = int.from_bytes(self.bytes_at(self._base + start, width), "little")
            blocks = [(start + width, size)]
        else:
            blocks = [(self._address + 16, struct.unpack_from("<I", head, 8)[0])]
        for number, (start, size) in enumerate(blocks):  # the list grows on the way
            if number > BLOCKS or size > LARGEST:
                raise self._error("is damaged: the header of its object has no end")
            for kind, flags, message in _split(self.bytes_at(self._base + start, size), form):
                if kind == CONTINUATION and len(message) >= 16:
                    at, length = struct.unpack_from("<QQ", message)
                    # A new block has the mark OCHK before its messages, and a checksum behind them.
                    blocks.append((at + 4, max(0, length - 8)) if new else (at, length))
                elif not flags & SHARED:
                    yield kind, message


def _split(block: bytes, form: str) -> Iterator[tuple[int, int, bytes]]:
    at, head = 0, struct.calcsize(form)
    while at + head <= len(block):
        kind, size, flags = struct.unpack_from(form, block, at)
        yield kind, flags, block[at + head : at + head + size]
        at += head + size


def _value(message: bytes) -> tuple[bytes, bytes] | None:
    """Return the name of an attribute and the bytes of its value.

    None if the message is malformed or of an unknown version.
    """
    if len(message) < 9 or message[0] not in (1, 2, 3):
        return None
    version, lengths = message[0], struct.unpack_from("<HHH", message, 2)
    at, parts = 9 if version == 3 else 8, []
    for length in lengths:
        parts.append(message[at : at + length])
        at += (length + 7) // 8 * 8 if version == 1 else length
    return parts[0].split(b"\0", 1)[0], message[at:]
