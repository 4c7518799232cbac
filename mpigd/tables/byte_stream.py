"""A file object that reads from an iterator of bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any


class Chunks(io.RawIOBase):
    """A raw file whose contents are the concatenated pieces of an iterator.

    Only one piece is in memory at a time.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
