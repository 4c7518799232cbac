"""What the first pass has read, kept for the second one as far as it is small: text is then read once."""

from __future__ import annotations

from collections.abc import Iterator

from mpigd.tables.readers import Block

KEPT_BYTES = 1 << 26  # of values; tables with more are read again


class Kept:
    """Blocks of raw columns, numbers as numbers. It is all blocks or none."""

    def __init__(self) -> None:
        self._blocks: list[Block] | None = []
        self._bytes = 0

    def add(self, block: Block) -> None:
        """Keep the next block, or give up."""
        if self._blocks is not None:
            self._blocks.append(block)
            self._bytes += sum(array.nbytes for array in block.columns.values())
            if self._bytes > KEPT_BYTES:
                self.give_up()

    def give_up(self) -> None:
        """Forget all blocks: they are too large, or not what the second pass needs."""
        self._blocks = None

    @property
    def complete(self) -> bool:
        """Whether all blocks are here."""
        return self._blocks is not None

    def blocks(self) -> Iterator[Block]:
        """The blocks, each of which is forgotten once it was given."""
        blocks, self._blocks = self._blocks or [], None
        blocks.reverse()
        while blocks:
            yield blocks.pop()
