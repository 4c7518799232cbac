"""Whether float32 is enough for the columns of a table.

Rounding to float32 leaves 24 bits, which is plenty for what is measured, but not for a small spread
around a large number: seconds since 1970 within a day become a handful of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpigd.tables.encoding import listed
from mpigd.tables.exact_means import slabs

Array = np.ndarray[Any, Any]
FEW_STEPS = 1 << 10  # of float32 between the smallest and the largest value
MOST_COLUMNS = 1 << 22  # of compressed rows whose spread is known
NOISE = 2.0**-42  # relative: what computing in float64 leaves of equal numbers


class Spread:
    """What rounding to float32 does to p columns. A column is damaged if

    * a value that is not zero becomes zero, or a finite one infinite;
    * its values (zeros aside, which often stand for nothing) lie within 2^10 steps of float32 at
      the largest of them and not all are float32 numbers. Rounding then moves them by more than
      about a thousandth of their spread;
    * of the changes from one row to the next, more than half vanish. This sees the same where an
      outlier stretches the range.

    Differences below 2^-42 of the values are those of computing in float64 and count for nothing.
    Steps of 0.1 suffer above 10^5 alone, within a few units; whole numbers up to 2^24 never do.
    """

    def __init__(self, p: int) -> None:
        self.low, self.high = np.full(p, np.inf), np.full(p, -np.inf)
        self.zeros = np.zeros(p, dtype=np.int64)
        self.vanished, self.infinite = np.zeros((2, p), dtype=np.int64)
        self.changes, self.kept = np.zeros((2, p), dtype=np.int64)
        self.rounded = np.zeros(p, dtype=bool)
        self._last = np.full(p, np.nan)

    def add(self, matrix: Array) -> None:
        """Look at the next rows (p, m) float64; NaN and infinities are left out."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for columns, rows in slabs(*matrix.shape):
                self._add(columns, matrix[columns, rows])

    def keep(self, kept: Array) -> None:
        """Forget all columns but those of a mask (p,)."""
        for name, values in vars(self).items():
            setattr(self, name, values[kept])

    def damaged(self) -> list[bool]:
        """Which columns float32 damages."""
        lost = (self.vanished > 0) | (self.infinite > 0) | (2 * self.kept < self.changes)
        return [bool(one) for one in lost | self._narrow()]

    def why(self, column: int) -> str:
        """What float32 does to a damaged column, for a note."""
        low, high = self.low[column], self.high[column]
        if self.infinite[column]:
            return f"values up to {max(-low, high):g}, too large for float32"
        if self.vanished[column]:
            return f"non-zero values ({self.vanished[column]:,}) become zero in float32"
        step = np.spacing(np.float32(max(abs(low), abs(high))))
        return f"float32 rounds values between {low:.10g} and {high:.10g} to steps of {step:g}"

    def _narrow(self) -> Array:
        largest = np.maximum(np.abs(self.low), np.abs(self.high))
        known = self.low <= self.high
        with np.errstate(over="ignore", invalid="ignore"):
            step = np.spacing(np.where(known, largest, 1.0).astype(np.float32)).astype(np.float64)
            width = self.high - self.low
            some = (width < FEW_STEPS * step) & (width > NOISE * largest)
        return np.asarray(known & self.rounded & some)

    def _add(self, columns: slice, values: Array) -> None:
        """The slabs of a column come in the order of their rows."""
        if np.isinf(values).any():
            values = np.where(np.isinf(values), np.nan, values)
        short = values.astype(np.float32)
        some = values != 0
        self.zeros[columns] += values.shape[1] - np.count_nonzero(some, axis=1)
        self.rounded[columns] |= np.any((short != values) & (values == values), axis=1)
        self.vanished[columns] += np.count_nonzero(some & (short == 0), axis=1)
        self.infinite[columns] += np.count_nonzero(np.isinf(short), axis=1)
        there = np.where(some, values, np.nan)
        low, high = np.fmin.reduce(there, axis=1), np.fmax.reduce(there, axis=1)
        self.low[columns] = np.fmin(self.low[columns], low)
        self.high[columns] = np.fmax(self.high[columns], high)
        self._compare(columns, there[:, :1], self._last[columns, None])
        self._compare(columns, there[:, 1:], there[:, :-1])
        self._last[columns] = there[:, -1]

    def _compare(self, columns: slice, after: Array, before: Array) -> None:
        """Count changes, and those of them that float32 keeps; those from and to NaN are none."""
        changed = np.abs(after - before) > NOISE * np.abs(after)
        self.changes[columns] += np.count_nonzero(changed, axis=1)
        kept = changed & (after.astype(np.float32) != before.astype(np.float32))
        self.kept[columns] += np.count_nonzero(kept, axis=1)


class EntrySpread(Spread):
    """The same of compressed rows, from the entries that are stored, for columns below MOST_COLUMNS.

    How values change from one row to the next is not looked at.
    """

    def __init__(self) -> None:
        super().__init__(0)

    def add_entries(self, columns: Array, values: Array) -> None:
        """Look at entries: their columns (m,) and values (m,) float64; NaN and zeros are left out."""
        some = (columns < MOST_COLUMNS) & (values != 0) & np.isfinite(values)
        columns, values = columns[some], values[some]
        if columns.size == 0:
            return
        self._grow(int(columns.max()) + 1)
        with np.errstate(over="ignore", under="ignore"):
            short = values.astype(np.float32)
        np.minimum.at(self.low, columns, values)
        np.maximum.at(self.high, columns, values)
        self.rounded[columns[short != values]] = True
        np.add.at(self.vanished, columns[short == 0], 1)
        np.add.at(self.infinite, columns[np.isinf(short)], 1)

    def _grow(self, p: int) -> None:
        more = p - self.low.size
        if more > 0:
            fresh = vars(Spread(max(more, self.low.size)))
            for name, known in vars(self).items():
                setattr(self, name, np.concatenate([known, fresh[name]]))


def type_of(damaged: Mapping[str, str], asked: str) -> tuple[str, list[str]]:
    """The type of X, and a note if float32 damages columns. damaged: column -> what float32 does to
    it; asked: "auto", "float32" or "float64"."""
    if not damaged or asked == "float64":
        return "float32" if asked == "auto" else asked, []
    each = listed([f"{column}: {why}" for column, why in damaged.items()])
    if asked == "float32":
        return asked, [f"{each}: --dtype float64 keeps them"]
    return "float64", [f"X is float64, because of {each}"]
