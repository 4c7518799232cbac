"""Rows that cannot be encoded: the first is an error, or all are counted, left out and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpigd.errors import DataError

Array = np.ndarray[Any, Any]
SHOWN = 10  # rows named


class BadRows:
    """Collects what is wrong with the rows of one block after the other."""

    def __init__(self, skips: bool) -> None:
        self.count = 0
        self.lines: list[str] = []  # about the first rows: place, column and value
        self._skips = skips
        self._faults: list[tuple[Array, Callable[[int], str]]] = []

    def add(self, where: Array, describe: Callable[[int], str]) -> None:
        """Note the rows `where` (m,) bool of the block; describe: row -> what is wrong with it."""
        if where.any():
            self._faults.append((where, describe))

    def name(self, line: str) -> None:
        """Note one row that was left out before it came to a block, as `line` describes it."""
        self.count += 1
        if len(self.lines) < SHOWN:
            self.lines.append(line)

    def end_block(self) -> Array | None:
        """Which rows (m,) of the block are bad; None if none is. DataError about the first of them,
        unless bad rows are skipped."""
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
        """What is said to the user: how many rows, and the first of them."""
        if not self.count:
            return []
        more = self.count - len(self.lines)
        rest = [f"... and {more:,} more"] if more else []
        rows = "1 row was" if self.count == 1 else f"{self.count:,} rows were"
        return [f"{rows} left out (--on-bad-row skip)", *self.lines, *rest]
