"""Blocks of the first pass, kept in memory for the second pass if they are small.

The text of small tables is then parsed only once.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpigd.tables.readers import Block

KEPT_BYTES = 1 << 26  # of values; tables with more values are read a second time


class Kept:
    """Holds either all blocks of the data set or none.

    The blocks have raw columns, but columns of numbers are already parsed.
    """

    def __init__(self) -> None:
        self._blocks: list[Block] | None = []
        self._bytes = 0

    def add(self, block: Block) -> None:
        """Keep the next block; discard all if they exceed KEPT_BYTES."""
        if self._blocks is not None:
            self._blocks.append(block)
            self._bytes += sum(array.nbytes for array in block.columns.values())
            if self._bytes > KEPT_BYTES:
                self.give_up()

    def give_up(self) -> None:
        """Discard all blocks: they are too large, or differ from what the second pass needs."""
        self._blocks = None

    @property
    def complete(self) -> bool:
        """Whether all blocks were kept."""
        return self._blocks is not None

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in order, and release each one, so that it can be iterated only once."""
        blocks, self._blocks = self._blocks or [], None
        blocks.reverse()
        while blocks:
            yield blocks.pop()
