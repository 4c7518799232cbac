"""The checksum of all bytes of a file, in a line behind what HDF5 reads: damage is found before HDF5 sees it."""

from __future__ import annotations

import hashlib
import io
import os
import re

from mpigd.errors import DataError

TRAILER = re.compile(rb"mpigd sha256 ([0-9a-f]{64})\n")  # of all bytes before it
TRAILER_BYTES = 78


def check(path: str | os.PathLike[str], sealed: bool) -> None:
    """DataError if the bytes of a sealed file are not those that were written, or if a file that must be `sealed` is not. HDF5
    has not seen them then: it may crash, or loop, over damage in its own structures.
    """
    with open(path, "rb") as file:
        told, size = _trailer(file)
        if sealed and not told:
            why = (
                "does not end with its checksum" if os.fstat(file.fileno()).st_size else "is empty"
            )
            raise DataError(f"{path}: damaged, or not written by mpigd: it {why}")
        if told and told != _digest(file, size):
            raise DataError(f"{path}: damaged: its contents do not match their checksum")


def _trailer(file: io.BufferedReader) -> tuple[bytes, int]:
    """The checksum behind a sealed file's contents, empty for others, and how many bytes these are."""
    size = max(0, os.fstat(file.fileno()).st_size - TRAILER_BYTES)
    file.seek(size)
    found = TRAILER.fullmatch(file.read())
    return (found[1], size) if found else (b"", size)


def _digest(file: io.BufferedReader | io.FileIO, size: int) -> bytes:
    """sha256, in hexadecimal digits, of the first `size` bytes."""
    total, left = hashlib.sha256(), size
    file.seek(0)
    while left and (piece := file.read(min(left, 1 << 20))):
        total.update(piece)
        left -= len(piece)
    return total.hexdigest().encode()


def there(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends with a checksum."""
    with open(path, "rb") as file:
        return bool(_trailer(file)[0])


def line(file: io.FileIO, size: int) -> bytes:
    """What to write behind the first `size` bytes of a file."""
    return b"mpigd sha256 " + _digest(file, size) + b"\n"
