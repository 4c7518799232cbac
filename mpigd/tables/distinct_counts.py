"""Count the distinct values of number columns, up to a limit, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LIMIT = 100  # a column with more values holds measurements, and its values are not kept


class Distinct:
    """The distinct values of p columns, kept as long as a column has at most LIMIT of them.

    `count` (p,) int64 is the number of distinct values; LIMIT + 1 means more than LIMIT.
    """

    def __init__(self, p: int) -> None:
        self.count = np.zeros(p, dtype=np.int64)
        self._known = np.full((p, 1), np.nan)

    def keep(self, kept: Array) -> None:
        """Keep only the columns that a mask (p,) bool selects."""
        self.count, self._known = self.count[kept], self._known[kept]

    def add(self, values: Array) -> None:
        """Add the next rows (p, m) float64, NaN if missing."""
        # The first rows show that most columns have many values. Only the others are scanned whole.
        for rows in (slice(0, 4 * LIMIT), slice(4 * LIMIT, None)):
            columns = np.flatnonzero(self.count <= LIMIT)
            if columns.size and values[:, rows].size:
                self._merge(values[columns, rows], columns)

    def _merge(self, values: Array, columns: Array) -> None:
        together = np.concatenate([self._known[columns], values], axis=1)
        together.sort(axis=1)  # NaN last
        new = np.ones(together.shape, dtype=bool)
        new[:, 1:] = together[:, 1:] != together[:, :-1]
        new &= ~np.isnan(together)
        place = np.cumsum(new, axis=1)
        self.count[columns] = np.minimum(place[:, -1], LIMIT + 1)
        new &= place <= LIMIT
        width = int(min(self.count.max(), LIMIT))
        if width > self._known.shape[1]:
            room = np.full((self._known.shape[0], width - self._known.shape[1]), np.nan)
            self._known = np.concatenate([self._known, room], axis=1)
        self._known[columns] = np.nan
        row, at = np.nonzero(new)
        self._known[columns[row], place[row, at] - 1] = together[row, at]
