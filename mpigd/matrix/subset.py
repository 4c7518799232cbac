"""A selection of rows from a streamed matrix.

The rows do not fit into memory. Every pass reads them again, block by block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.matrix.base import Columns, Into, Matrix, Selection, Task, block_rows

Array = np.ndarray[Any, Any]


class Subset:
    """Rows `order` (n,) of a matrix X, in that order; implements the Matrix protocol.

    The matrices that `rows` returns are in memory.
    """

    def __init__(self, X: Matrix, order: Array) -> None:
        self._X, self._order = X, order.astype(np.int64)
        self.n, self.d, self.row_bytes = order.size, X.d, X.row_bytes
        self.dtype = X.dtype
        self.entries = self.n * X.d
        self._blocks = [
            slice(a, min(self.n, a + 16 * block_rows(X)))
            for a in range(0, self.n, 16 * block_rows(X))
        ]

    def rows(self, selection: Selection) -> Matrix:
        return self._X.rows(self._order[selection])

    def margins(self, w: Array, b: float, z: Array) -> None:
        for rows in self._blocks:
            self.rows(rows).margins(w, b, z[rows])

    def sweep(self, selection: Selection, task: Task, into: Into) -> None:
        chosen = np.arange(self.n)[selection] if isinstance(selection, slice) else selection
        step = 16 * block_rows(self._X)
        for start in range(0, chosen.size, step):
            part = chosen[start : start + step]
            piece = slice(int(part[0]), int(part[-1]) + 1) if isinstance(selection, slice) else part
            self.rows(piece).sweep(slice(None), task.at(piece), into)

    def accumulate(self, r: Array, l: Array, into: Into) -> None:
        for rows in self._blocks:
            self.rows(rows).accumulate(r[:, rows].copy(), l[rows], into)

    def columns(self) -> Columns:
        raise NotImplementedError("those of all rows are known")

    def arrange(self, count: Array) -> None:
        return None

    def squared_deviation(self, center: Array) -> Matrix:
        return self.rows(slice(None)).squared_deviation(center)

    def ones(self) -> Matrix:
        return self.rows(slice(None)).ones()

    def absorb(self, hashes: Array) -> None:
        for rows in self._blocks:
            self.rows(rows).absorb(hashes[rows])


def chosen_rows(X: Matrix, order: Array) -> Matrix:
    """Return the rows `order` (n,) of X: a copy if X is in memory, else a Subset."""
    return X.rows(order) if getattr(X, "expect", None) is None else Subset(X, order)
