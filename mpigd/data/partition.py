"""Partitions: which rank holds which rows, computed from the row counts of the files alone.

Every function takes the extents of all files and returns the segments of one rank. Every row lies
in exactly one segment; a rank may have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Extent:
    """The number of rows of one file, of rows per chunk, and of non-zeros (None if dense)."""

    rows: int
    chunk: int
    nonzeros: int | None = None


@dataclass(frozen=True)
class Segment:
    """Rows start to stop (exclusive) of the file with index `file`.

    `first` is the global number of row `start`.
    """

    file: int
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start


# (file, non-zeros) -> the first row of the file with at least that many non-zeros before it.
Search = Callable[[int, int], int]


def by_range(
    extents: Sequence[Extent], rank: int, size: int, search: Search | None = None
) -> list[Segment]:
    """Return the segments of a share of consecutive rows.

    Parameters
    ----------
    extents : sequence of Extent
        The files, in order.
    rank, size : int
        The share `rank` of `size`.
    search : callable, optional
        Given for CSR data: (file, non-zeros) -> the first row of the file with at least that number
        of non-zeros before it. Shares are then equal in non-zeros. Without it they are equal in
        rows, up to chunks.

    Returns
    -------
    list of Segment
        In ascending order of global rows.
    """
    first, last = (_boundary(extents, share, size, search) for share in (rank, rank + 1))
    return cut(extents, first, last)


def cut(extents: Sequence[Extent], first: int, last: int) -> list[Segment]:
    """Return the segments of some consecutive global rows.

    Parameters
    ----------
    extents : sequence of Extent
        The files, in order.
    first, last : int
        The global rows, first to last (exclusive).

    Returns
    -------
    list of Segment
        In ascending order of global rows.
    """
    segments, base = [], 0
    for file, extent in enumerate(extents):
        start, stop = max(first, base), min(last, base + extent.rows)
        if start < stop:
            segments.append(Segment(file, start - base, stop - base, start))
        base += extent.rows
    return segments


def _boundary(extents: Sequence[Extent], share: int, size: int, search: Search | None) -> int:
    """Return the global row at which a share begins; every rank computes the same value."""
    n = sum(extent.rows for extent in extents)
    if share in (0, size):
        return n if share else 0
    if search is not None:
        return _by_nonzeros(extents, share, size, search)
    row, base = share * n // size, 0
    for extent in extents:
        if row < base + extent.rows:
            # A chunk that straddles ranks is read twice. A boundary may move by 1/16 of a share to
            # avoid that.
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
    """Return the segments of a rank that holds whole files.

    Files are assigned in descending order of rows, each to the rank with the fewest rows so far.

    Parameters
    ----------
    extents : sequence of Extent
        The files, in order.
    rank, size : int

    Returns
    -------
    list of Segment
        In ascending order of global rows; empty files are left out.
    """
    firsts = np.concatenate([[0], np.cumsum([extent.rows for extent in extents])])
    load = [0] * size
    mine = []
    for file in sorted(range(len(extents)), key=lambda f: (-extents[f].rows, f)):
        to = load.index(min(load))
        load[to] += extents[file].rows
        if to == rank and extents[file].rows:
            mine.append(file)
    return [Segment(file, 0, extents[file].rows, int(firsts[file])) for file in sorted(mine)]
