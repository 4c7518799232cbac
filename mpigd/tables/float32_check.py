"""Check whether float32 is precise enough for the columns of a table.

A float32 has 24 bits of precision. That is plenty for most measurements, but not for a small spread
around a large number: rounding turns seconds since 1970 within a day into a handful of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpigd.tables.encoding import listed
from mpigd.tables.exact_means import slabs

Array = np.ndarray[Any, Any]
FEW_STEPS = 1 << 10  # steps of float32 between the smallest and the largest value
MOST_COLUMNS = 1 << 22  # columns of compressed rows that are checked
NOISE = 2.0**-42  # relative differences that rounding errors of float64 can make


class Spread:
    """Measures what rounding to float32 does to p columns. Rounding damages a column if

    * a non-zero value becomes zero, or a finite one infinite; or
    * the values lie within 2^10 steps of float32 at the largest of them, and not all are float32
      numbers. Rounding then moves them by more than about a thousandth of their spread. Zeros are
      left out, since they often stand for "no value"; or
    * more than half of the changes from one row to the next vanish. This finds the same damage if
      an outlier stretches the range.

    Relative differences below 2^-42 come from rounding in float64 and are ignored. Values in steps
    of 0.1 are damaged only above 10^5 and within a range of a few units; whole numbers up to 2^24
    never are.

    The attributes are arrays (p,): the range `low` to `high` of non-zero values, the number of
    `zeros`, of non-zeros that float32 makes zero (`vanished`) or infinite (`infinite`), of
    `changes` and of those that float32 `kept`, and whether any value is `rounded`.
    """

    def __init__(self, p: int) -> None:
        self.low, self.high = np.full(p, np.inf), np.full(p, -np.inf)
        self.zeros = np.zeros(p, dtype=np.int64)
        self.vanished, self.infinite = np.zeros((2, p), dtype=np.int64)
        self.changes, self.kept = np.zeros((2, p), dtype=np.int64)
        self.rounded = np.zeros(p, dtype=bool)
        self._last = np.full(p, np.nan)

    def add(self, matrix: Array) -> None:
        """Add the next rows (p, m) float64; NaN and infinities are ignored."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for columns, rows in slabs(*matrix.shape):
                self._add(columns, matrix[columns, rows])

    def keep(self, kept: Array) -> None:
        """Keep only the columns that a mask (p,) bool selects."""
        for name, values in vars(self).items():
            setattr(self, name, values[kept])

    def damaged(self) -> list[bool]:
        """Return for each column whether float32 damages it."""
        lost = (self.vanished > 0) | (self.infinite > 0) | (2 * self.kept < self.changes)
        return [bool(one) for one in lost | self._narrow()]

    def why(self, column: int) -> str:
        """Return what float32 does to a damaged column, as text for a note."""
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
        """Add one slab; the slabs of a column come in the order of their rows."""
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
        """Count changes between neighbours, and those that remain in float32.

        A change from or to NaN does not count.
        """
        changed = np.abs(after - before) > NOISE * np.abs(after)
        self.changes[columns] += np.count_nonzero(changed, axis=1)
        kept = changed & (after.astype(np.float32) != before.astype(np.float32))
        self.kept[columns] += np.count_nonzero(kept, axis=1)


class EntrySpread(Spread):
    """The same check for compressed rows, from the stored entries of columns below MOST_COLUMNS.

    Changes from one row to the next are not examined.
    """

    def __init__(self) -> None:
        super().__init__(0)

    def add_entries(self, columns: Array, values: Array) -> None:
        """Add the entries with columns (m,) int64 and values (m,) float64.

        Zeros, NaN and infinities are ignored.
        """
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
    """Return the dtype of X, and a note if float32 damages columns.

    Parameters
    ----------
    damaged : mapping of str to str
        What float32 does to each damaged column, by name.
    asked : str
        "auto", "float32" or "float64".

    Returns
    -------
    dtype : str
        "float32" or "float64"; for "auto", float64 if a column is damaged.
    notes : list of str
        At most one note for the user.
    """
    if not damaged or asked == "float64":
        return "float32" if asked == "auto" else asked, []
    each = listed([f"{column}: {why}" for column, why in damaged.items()])
    if asked == "float32":
        return asked, [f"{each}: --dtype float64 keeps them"]
    return "float64", [f"X is float64, because of {each}"]
