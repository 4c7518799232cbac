"""Rows that cannot be encoded: either the first one is an error, or all are counted and left out.

The first SHOWN of the rows that were left out are named in a note.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpigd.errors import DataError

Array = np.ndarray[Any, Any]
SHOWN = 10  # rows named in the note


class BadRows:
    """Collects the faults of rows, one block after the other.

    If `skips` is true, bad rows are left out; otherwise the first one raises an error.

    Attributes
    ----------
    count : int
        The number of rows that were left out.
    lines : list of str
        The place, column and value of the first SHOWN of them.
    """

    def __init__(self, skips: bool) -> None:
        self.count = 0
        self.lines: list[str] = []
        self._skips = skips
        self._faults: list[tuple[Array, Callable[[int], str]]] = []

    def add(self, where: Array, describe: Callable[[int], str]) -> None:
        """Add a fault of some rows of the block.

        Parameters
        ----------
        where : (m,) bool
            The rows.
        describe : callable
            Returns what is wrong with a row of the block.
        """
        if where.any():
            self._faults.append((where, describe))

    def name(self, line: str) -> None:
        """Count one row that was left out before its block was made; `line` describes it."""
        self.count += 1
        if len(self.lines) < SHOWN:
            self.lines.append(line)

    def end_block(self) -> Array | None:
        """Return which rows (m,) bool of the block are bad, or None if none is.

        Raises DataError for the first of them unless bad rows are skipped.
        """
        faults, self._faults = self._faults, []
        if not faults:
            return None
        bad = np.logical_or.reduce([where for where, _ in faults])
        rows = np.flatnonzero(bad)
        for row in map(int, rows[: SHOWN - len(self.lines)] if self._skips else rows[:1]):
            line = next(describe(row) for where, describe in faults if where[row])
            if not self._skips:
                raise DataError(line)
            self.lines.append(line)
        self.count += rows.size
        return np.asarray(bad)

    def notes(self) -> list[str]:
        """Return notes for the user: the number of rows left out, and the first of them."""
        if not self.count:
            return []
        more = self.count - len(self.lines)
        rest = [f"... and {more:,} more"] if more else []
        rows = "1 row was" if self.count == 1 else f"{self.count:,} rows were"
        return [f"{rows} left out (--on-bad-row skip)", *self.lines, *rest]
