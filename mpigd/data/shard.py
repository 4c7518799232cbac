"""A rank's rows of a data set, with everything that is known of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpigd.matrix.base import Matrix, Selection

Array = np.ndarray[Any, Any]


class RowNumbers:
    """Ascending global row numbers that are a few consecutive ranges, as an array of them would answer, without one."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """From the first number and the length of each range, ascending."""
        self._firsts = np.array([first for first, _ in ranges], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum([count for _, count in ranges])]).astype(
            np.int64
        )
        self.size = int(self._starts[-1])

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, selection: Selection | int) -> Any:
        if isinstance(selection, slice):
            start, stop, step = selection.indices(self.size)
            held = int(np.searchsorted(self._starts, start, "right")) - 1
            if (
                step > 0 and start < stop <= self._starts[held + 1]
            ):  # of one range, as nearly always
                shift = int(self._firsts[held] - self._starts[held])
                return np.arange(start + shift, stop + shift, step, dtype=np.int64)
            selection = np.arange(start, stop, step, dtype=np.int64)
        places = np.asarray(selection, dtype=np.int64)
        piece = np.searchsorted(self._starts, places, "right") - 1
        return self._firsts[piece] + (places - self._starts[piece])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        numbers: Array = self[:]
        return numbers if dtype is None else numbers.astype(dtype)

    def locate(self, numbers: Array) -> tuple[Array, Array]:
        """Where each global number is among these, and whether it is there at all (the place means nothing then)."""
        if not self.size:
            return np.zeros(numbers.shape, dtype=np.int64), np.zeros(numbers.shape, dtype=bool)
        piece = np.maximum(np.searchsorted(self._firsts, numbers, "right") - 1, 0)
        within = numbers - self._firsts[piece]
        return self._starts[piece] + within, (within >= 0) & (within < np.diff(self._starts)[piece])


def locate(rows: Array | RowNumbers, numbers: Array) -> tuple[Array, Array]:
    """RowNumbers.locate for either form of ascending row numbers."""
    if isinstance(rows, RowNumbers):
        return rows.locate(numbers)
    at = np.minimum(np.searchsorted(rows, numbers), max(0, rows.size - 1))
    return at, rows[at] == numbers if rows.size else np.zeros(numbers.shape, dtype=bool)


@dataclass(frozen=True)
class Shard:
    """This rank's m rows of a data set of `n`: X (m, d); y, weights c, offset (m,) float64 or None.

    rows (m,): their global numbers, ascending, int64 or ranges of them. files: (path, rows) of every file in order.
    encoding: how raw columns were encoded (mpigd/tables/encoding.py), empty for data that was not imported.
    """

    n: int
    rows: Array | RowNumbers
    X: Matrix
    y: Array | None
    c: Array | None = None
    offset: Array | None = None
    key: Array | None = None
    encoding: dict[str, Any] = field(default_factory=dict)
    files: tuple[tuple[str, int], ...] = ()
    origin: Callable[[int], str] | None = (
        None  # what messages call a global row, if not by file and place in it
    )

    @property
    def name(self) -> str:
        """What messages call the data set."""
        return self.files[0][0] if self.files else "the data"

    @property
    def feature_names(self) -> list[str] | None:
        names = self.encoding.get("feature_names")
        return None if names is None else [str(name) for name in names]

    @property
    def class_names(self) -> list[str] | None:
        names = (self.encoding.get("target") or {}).get("classes")
        return None if names is None else [str(name) for name in names]

    def where(self, row: int) -> str:
        """File and row, from 0, of a global row number, for messages."""
        if self.origin is not None:
            return self.origin(int(row))
        first = 0
        for path, count in self.files:
            if row < first + count:
                return f"{path} row {row - first}"
            first += count
        return f"row {row}"
