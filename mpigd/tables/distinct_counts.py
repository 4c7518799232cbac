"""How many different values number columns have, up to a limit, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LIMIT = 100  # more are "many": a column of measurements is not worth remembering


class Distinct:
    """The different values of p columns, as long as a column has at most LIMIT of them."""

    def __init__(self, p: int) -> None:
        self.count = np.zeros(p, dtype=np.int64)  # LIMIT + 1: more than LIMIT
        self._known = np.full((p, 1), np.nan)

    def keep(self, kept: Array) -> None:
        """Forget all columns but those of a mask (p,)."""
        self.count, self._known = self.count[kept], self._known[kept]

    def add(self, values: Array) -> None:
        """The next rows (p, m) float64, NaN where missing."""
        # Few rows show that most columns have many values; only the others are looked at whole.
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
