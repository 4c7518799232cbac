"""Exact means of many columns at once.

Each is the sum of exact fractions, rounded once, however the rows are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SLAB_VALUES = 1 << 15  # values worked on at once; they stay in the second-level cache
MOST_ROWS = 1 << 20  # rows added at once
LOWEST = -1088  # exponent of the first limb's lowest bit, below that of any float64
LIMB_BITS, LIMBS = 32, 69
MASK = (1 << LIMB_BITS) - 1


class ExactSums:
    """Sums of p columns of float64 values without rounding errors.

    The sum of a column is an integer in limbs of 32 bits, each stored in an int64. Before a block
    reaches the limbs, its values are cut at a power of two, which is large enough that the upper
    parts add up without rounding in any order. The lower parts are treated in the same way until
    nothing is left.

    References
    ----------
    S. M. Rump, T. Ogita, S. Oishi, Accurate floating-point summation part I: faithful rounding,
    SIAM J. Sci. Comput. 31 (2008) 189-224.
    """

    def __init__(self, p: int) -> None:
        self.count = np.zeros(p, dtype=np.int64)
        self._limbs = np.zeros((p, LIMBS), dtype=np.int64)

    def add(self, matrix: Array) -> None:
        """Add finite values (p, m) float64; NaN are ignored."""
        for columns, rows in slabs(*matrix.shape):
            values = matrix[columns, rows]
            gone = np.isnan(values)
            self.count[columns] += values.shape[1] - np.count_nonzero(gone, axis=1)
            self._add(np.arange(columns.start, columns.stop), np.where(gone, 0.0, values))

    def keep(self, kept: Array) -> None:
        """Keep only the columns that a mask (p,) bool selects."""
        self.count, self._limbs = self.count[kept], self._limbs[kept]

    def means(self) -> list[float | None]:
        """Return the mean of each column, rounded once; None for a column without values."""
        totals = [0] * self.count.size
        for column, limb in zip(*np.nonzero(self._limbs), strict=True):
            totals[column] += int(self._limbs[column, limb]) << LIMB_BITS * int(limb)
        counts = self.count.tolist()
        # Python divides integers with a single, correct rounding.
        pairs = zip(totals, counts, strict=True)
        return [total / (count << -LOWEST) if count else None for total, count in pairs]

    def _add(self, columns: Array, values: Array) -> None:
        """Add values (q, m) to the q columns; `values` is overwritten."""
        room = max(1, values.shape[1]).bit_length()
        largest = np.maximum(values.max(axis=1), -values.min(axis=1))
        top = np.frexp(largest)[1].astype(np.int64)
        huge = top + room > 1020  # the power of two that cuts them would overflow
        for row in np.flatnonzero(huge):
            self._deposit(np.full(values.shape[1], columns[row]), values[row])
            values[row], top[row] = 0.0, 0
        while True:
            cut = np.ldexp(1.5, np.maximum(top + room - 1, -1074))[:, None]
            upper = values + cut
            upper -= cut
            self._deposit(columns, upper.sum(axis=1))
            values -= upper
            if not values.any():
                return
            top += room - 53

    def _deposit(self, columns: Array, values: Array) -> None:
        """Add values (q,) to the limbs of the columns (q,), which may repeat."""
        fraction, exponent = np.frexp(values)
        whole = np.ldexp(fraction, 53).astype(np.int64)
        place = np.where(whole == 0, 0, exponent.astype(np.int64) - 53 - LOWEST)
        limb, shift = place // LIMB_BITS, place % LIMB_BITS
        low = (whole & MASK) << shift
        high = (whole >> LIMB_BITS) << shift  # carries the sign
        np.add.at(self._limbs, (columns, limb), low & MASK)
        np.add.at(self._limbs, (columns, limb + 1), (low >> LIMB_BITS) + (high & MASK))
        np.add.at(self._limbs, (columns, limb + 2), high >> LIMB_BITS)


def slabs(p: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of columns and rows that cut a matrix (p, m) into slabs for the cache."""
    for first in range(0, m, MOST_ROWS):
        rows = slice(first, min(m, first + MOST_ROWS))
        step = max(1, SLAB_VALUES // (rows.stop - rows.start))
        for start in range(0, p, step):
            yield slice(start, min(p, start + step)), rows
