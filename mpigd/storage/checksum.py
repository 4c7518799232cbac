"""The checksum of a file's bytes, in a line behind its HDF5 contents.

It is compared before HDF5 opens the file, so that damage is found before it can harm HDF5.
"""

from __future__ import annotations

import hashlib
import io
import os
import re

from mpigd.errors import DataError

TRAILER = re.compile(rb"mpigd sha256 ([0-9a-f]{64})\n")  # sha256 of all bytes before this line
TRAILER_BYTES = 78


def check(path: str | os.PathLike[str], sealed: bool) -> None:
    """Compare the bytes of a file with its checksum, if it has one.

    This happens before HDF5 sees the file: HDF5 may crash or loop over damage in its own
    structures.

    Parameters
    ----------
    path : path
        The file.
    sealed : bool
        Whether the file must have a checksum.

    Raises
    ------
    DataError
        If the bytes do not match the checksum, or a checksum is required and missing.
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
    """Return the checksum at the end of a file and the size of its contents in bytes.

    The checksum is empty if the file has none.
    """
    size = max(0, os.fstat(file.fileno()).st_size - TRAILER_BYTES)
    file.seek(size)
    found = TRAILER.fullmatch(file.read())
    return (found[1], size) if found else (b"", size)


def _digest(file: io.BufferedReader | io.FileIO, size: int) -> bytes:
    """Return the sha256 of the first `size` bytes, in hexadecimal digits."""
    total, left = hashlib.sha256(), size
    file.seek(0)
    while left and (piece := file.read(min(left, 1 << 20))):
        total.update(piece)
        left -= len(piece)
    return total.hexdigest().encode()


def there(path: str | os.PathLike[str]) -> bool:
    """Return whether a file ends with a checksum."""
    with open(path, "rb") as file:
        return bool(_trailer(file)[0])


def line(file: io.FileIO, size: int) -> bytes:
    """Return the line to write behind the first `size` bytes of a file."""
    return b"mpigd sha256 " + _digest(file, size) + b"\n"
