"""Rows of CSV files that were left out, because they have too many or too few fields."""

from __future__ import annotations

from typing import Any

import numpy as np


class Lost:
    """Rows of a file that were left out: data row -> what is wrong with it."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}

    def place(self, first: int, count: int) -> tuple[Any, list[str]]:
        """Which data rows (m,) the next `count` rows are, those from `first` on; None if they are
        consecutive. And what is wrong with the rows among and before them, which are forgotten."""
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
        """What is wrong with the rows after the last one."""
        return [self.rows.pop(row) for row in sorted(self.rows)]
