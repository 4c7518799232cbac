"""Records of the rows of a CSV file that were left out for a wrong number of fields."""

from __future__ import annotations

from typing import Any

import numpy as np


class Lost:
    """Rows of a file that were left out: data row -> description of the fault."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}

    def place(self, first: int, count: int) -> tuple[Any, list[str]]:
        """Assign data row numbers to the next rows that were read.

        Parameters
        ----------
        first : int
            The first data row that has no row assigned yet.
        count : int
            The number of rows that were read.

        Returns
        -------
        rows : array (count,) of int64, or None
            Their data row numbers, which skip the rows left out; None if they are consecutive.
        faults : list of str
            The faults of the rows left out before and among them, which are removed from the
            record.
        """
        rows, number = list[int](), first
        if not any(row < first + count for row in self.rows):
            return None, []
        while len(rows) < count:
            if number not in self.rows:
                rows.append(number)
            number += 1
        before = sorted(row for row in self.rows if row < number)
        return np.array(rows, dtype=np.int64), [self.rows.pop(row) for row in before]

    def rest(self) -> list[str]:
        """Remove and return the faults of the rows after the last row that was read."""
        return [self.rows.pop(row) for row in sorted(self.rows)]
