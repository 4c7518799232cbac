"""Shard: a rank's rows of a data set, with targets, weights and other values per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpigd.matrix.base import Matrix, Selection

Array = np.ndarray[Any, Any]


class RowNumbers:
    """Ascending global row numbers that form a few consecutive ranges.

    It answers like an int64 array of the numbers, but stores only the ranges.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Make it from the first number and the length of each range, ascending."""
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
            ):  # the selection lies in one range, as nearly always
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
        """Return the position of each global number, and whether it is held at all.

        Parameters
        ----------
        numbers : ndarray
            Global row numbers, of any shape.

        Returns
        -------
        ndarray of int64
            Local positions, of the shape of `numbers`; meaningless for numbers that are not held.
        ndarray of bool
            Whether each number is held.
        """
        if not self.size:
            return np.zeros(numbers.shape, dtype=np.int64), np.zeros(numbers.shape, dtype=bool)
        piece = np.maximum(np.searchsorted(self._firsts, numbers, "right") - 1, 0)
        within = numbers - self._firsts[piece]
        return self._starts[piece] + within, (within >= 0) & (within < np.diff(self._starts)[piece])


def locate(rows: Array | RowNumbers, numbers: Array) -> tuple[Array, Array]:
    """Return the positions of global row numbers, and whether they are held at all.

    Parameters
    ----------
    rows : ndarray (m,) or RowNumbers
        The row numbers held, ascending.
    numbers : ndarray
        Global row numbers, of any shape.

    Returns
    -------
    ndarray of int64
        Local positions, of the shape of `numbers`; meaningless for numbers that are not held.
    ndarray of bool
        Whether each number is held.
    """
    if isinstance(rows, RowNumbers):
        return rows.locate(numbers)
    at = np.minimum(np.searchsorted(rows, numbers), max(0, rows.size - 1))
    return at, rows[at] == numbers if rows.size else np.zeros(numbers.shape, dtype=bool)


@dataclass(frozen=True)
class Shard:
    """A rank's m rows of a data set of n rows.

    Attributes
    ----------
    n : int
        The number of rows on all ranks.
    rows : ndarray (m,) or RowNumbers
        The global row numbers, ascending, int64.
    X : Matrix (m, d)
    y, c, offset : ndarray (m,) or None
        Target, sample weights and offset, float64.
    key : ndarray (m,) or None
        Keys, int64, whose hash decides on the owner in a hash partition.
    encoding : dict
        How raw columns were encoded, see mpigd/tables/encoding.py; empty for data that was not
        imported.
    files : tuple of (str, int)
        Path and number of rows of every file, in order.
    origin : callable, optional
        Returns what messages call a global row, if that is not its file and its row in the file.
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
    origin: Callable[[int], str] | None = None

    @property
    def name(self) -> str:
        """The name of the data set in messages: its first file."""
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
        """Return file and row (from 0) of a global row number, for messages."""
        if self.origin is not None:
            return self.origin(int(row))
        first = 0
        for path, count in self.files:
            if row < first + count:
                return f"{path} row {row - first}"
            first += count
        return f"row {row}"
