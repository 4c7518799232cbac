"""Which rank holds which rows: pure arithmetic over the files' row counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Extent:
    """The rows of one file: how many, in chunks of how many, and how many non-zeros they hold (None if dense)."""

    rows: int
    chunk: int
    nonzeros: int | None = None


@dataclass(frozen=True)
class Segment:
    """Rows start to stop of file `file`; the first has the global number `first`."""

    file: int
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start


Search = Callable[
    [int, int], int
]  # (file, non-zeros) -> the first row of the file with so many before it


def by_range(
    extents: Sequence[Extent], rank: int, size: int, search: Search | None = None
) -> list[Segment]:
    """Consecutive rows: share `rank` of `size`, equal in rows (dense) or, given `search`, in non-zeros (CSR)."""
    first, last = (_boundary(extents, share, size, search) for share in (rank, rank + 1))
    return cut(extents, first, last)


def cut(extents: Sequence[Extent], first: int, last: int) -> list[Segment]:
    """The segments of global rows first to last."""
    segments, base = [], 0
    for file, extent in enumerate(extents):
        start, stop = max(first, base), min(last, base + extent.rows)
        if start < stop:
            segments.append(Segment(file, start - base, stop - base, start))
        base += extent.rows
    return segments


def _boundary(extents: Sequence[Extent], share: int, size: int, search: Search | None) -> int:
    """The global row at which share number `share` begins; the same on every rank that asks."""
    n = sum(extent.rows for extent in extents)
    if share in (0, size):
        return n if share else 0
    if search is not None:
        return _by_nonzeros(extents, share, size, search)
    row, base = share * n // size, 0
    for extent in extents:
        if row < base + extent.rows:
            # A chunk that straddles ranks is read twice; a boundary may move by 1/16 of a share to avoid that.
            nearest = base + (row - base + extent.chunk // 2) // extent.chunk * extent.chunk
            near = abs(nearest - row) * 16 * size <= n and nearest <= base + extent.rows
            return nearest if near else row
        base += extent.rows
    return row


def _by_nonzeros(extents: Sequence[Extent], share: int, size: int, search: Search) -> int:
    total = sum(extent.nonzeros or 0 for extent in extents)
    wanted, base = share * total // size, 0
    for file, extent in enumerate(extents):
        held = extent.nonzeros or 0
        if wanted < held:
            return base + search(file, wanted)
        wanted, base = wanted - held, base + extent.rows
    return base


def by_file(extents: Sequence[Extent], rank: int, size: int) -> list[Segment]:
    """Whole files, the largest first to the rank that has the fewest rows yet."""
    firsts = np.concatenate([[0], np.cumsum([extent.rows for extent in extents])])
    load = [0] * size
    mine = []
    for file in sorted(range(len(extents)), key=lambda f: (-extents[f].rows, f)):
        to = load.index(min(load))
        load[to] += extents[file].rows
        if to == rank and extents[file].rows:
            mine.append(file)
    return [Segment(file, 0, extents[file].rows, int(firsts[file])) for file in sorted(mine)]
