"""Make the features of one block: numbers, parts of dates, categories and hashed categories.

There is one class for each kind of column. Its `read` takes a block of raw columns and returns
values for m rows; it reports missing values and faults to `Rows`, which decides about the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpigd.errors import DataError
from mpigd.tables import dates
from mpigd.tables.category_codes import GONE, UNSEEN, Codes
from mpigd.tables.columns import absent, stable_hash, to_text
from mpigd.tables.encoding import Column, Encoding, listed
from mpigd.tables.number_text import NumberFormat, read_cells
from mpigd.tables.readers import Block
from mpigd.tables.row_selection import Rows
from mpigd.tables.spelling import meaning

Array = np.ndarray[Any, Any]
Placed = Sequence[tuple[Column, int]]  # columns of one kind, each with its first feature
NOWHERE = -1  # the place of a value without a feature: a missing one or a reference level
REFUSED = -3  # in place of a position: an unseen level is an error


def number_format(encoding: Encoding, adorned: bool = False) -> NumberFormat:
    """Return how the numbers of the encoding's CSV files are written.

    `adorned` is whether currency or percent signs around them are removed.
    """
    csv = encoding.csv
    return NumberFormat(csv.get("decimal", "."), csv.get("thousands", ""), adorned)


class Numbers:
    """Columns of numbers; `fixed` (p,) int64 holds the feature of each."""

    def __init__(self, placed: Placed, encoding: Encoding) -> None:
        self.fixed = np.array([start for _, start in placed], dtype=np.int64)
        self._columns = [column for column, _ in placed]
        self._names = [column.name for column in self._columns]
        formats = number_format(encoding), number_format(encoding, True)
        self._forms = [formats[column.adorned] for column in self._columns]
        self._dtype, self._infinite = encoding.dtype, encoding.infinite

    def read(self, block: Block, rows: Rows) -> Array:
        """Return the values (p, m) float64 of a block.

        A missing value is reported to `rows` and replaced by the mean or by zero.
        """
        if not self._names:
            return np.empty((0, block.rows))
        values = read_numbers(block, self._names, self._forms, self._dtype, self._infinite, rows)
        gone = np.isnan(values)
        for j in np.flatnonzero(gone.any(axis=1)):
            column = self._columns[j]
            rows.missing(column.name, gone[j])
            values[j, gone[j]] = self._mean(column, rows) if rows.fills_means else 0.0
        return values

    def _mean(self, column: Column, rows: Rows) -> float:
        if column.mean is not None:
            return column.mean
        first = rows.told.command == "import"
        advice = f"leave it out with --drop {column.name}" if first else "use --missing zero"
        raise DataError(f"column {column.name!r} has no value at all, so no mean: {advice}")


def read_numbers(
    block: Block,
    names: Sequence[str],
    forms: Sequence[NumberFormat],
    dtype: str,
    infinite: bool,
    rows: Rows,
) -> Array:
    """Read columns of numbers from a block.

    Parameters
    ----------
    block : Block
        m rows of raw columns.
    names : sequence of str, length p
        The columns to read.
    forms : sequence of NumberFormat, length p
        How their numbers are written.
    dtype : str
        "float32" or "float64": values that are too large for it are faults.
    infinite : bool
        Whether infinities are missing values; otherwise they are faults.
    rows : Rows
        Receives the faults.

    Returns
    -------
    (p, m) float64
        The values; NaN if missing, 0 if the value is a fault of its row.
    """
    values, wrong = read_cells(block, names, forms)
    if wrong is not None:
        for j in map(int, np.flatnonzero(wrong.any(axis=1))):
            rows.fault(names[j], wrong[j], misread(block.columns[names[j]], "a number"))
        values[wrong] = 0.0
    over = np.abs(values) > np.finfo(dtype).max
    if over.any():
        if infinite:
            values[np.isinf(values)] = np.nan
            over &= ~np.isnan(values)
        for j in map(int, np.flatnonzero(over.any(axis=1))):
            _refuse_large(rows, names[j], over[j], values[j].copy(), dtype)
        values[over] = 0.0
    return values


def misread(array: Any, expected: str) -> Callable[[int], str]:
    """Return a function from a row of a raw column to what is wrong with its value."""
    return lambda row: f"{array[row].as_py()!r}, expected {expected}"


def _refuse_large(rows: Rows, name: str, over: Array, values: Array, dtype: str) -> None:
    def describe(row: int) -> str:
        value = float(values[row])
        why = "not a finite number" if np.isinf(value) else f"too large for {dtype}"
        return f"{value:g}, {why}"

    if rows.told.command == "import" and not np.isinf(values[over]).any():
        rows.fault(name, over, describe, "--dtype float64")
    else:
        rows.fault(name, over, describe)


class Dates:
    """Columns of dates; `fixed` holds the feature of each part, column after column."""

    def __init__(self, placed: Placed) -> None:
        self._columns = [column for column, _ in placed]
        starts = [start + i for column, start in placed for i in range(len(column.parts or ()))]
        self.fixed = np.array(starts, dtype=np.int64)

    def read(self, block: Block, rows: Rows) -> Array:
        """Return the parts (p, m) float64 of a block; those of a missing date are 0."""
        found = []
        for column in self._columns:
            array = block.columns[column.name]
            values, wrong = dates.read_cells(array, column.format)
            if wrong is not None:
                form = column.format or "as in 2013-12-31"
                rows.fault(column.name, wrong, misread(array, f"a date {form}"))
            gone = np.isnat(values)
            gone = gone if wrong is None else gone & ~wrong
            rows.missing(column.name, gone, not rows.fills_means)
            found.append(np.nan_to_num(dates.parts(values, column.parts or ()), nan=0.0))
        return np.concatenate(found)


class Categories:
    """Columns of categories; `first` (c, 1) int64 holds the feature of the first level of each."""

    def __init__(self, placed: Placed, unseen: str) -> None:
        self._columns = [column for column, _ in placed]
        self.first = _column([start for _, start in placed])
        # A reference level has no feature, so the levels after it move up by one.
        self._left_out = _column([_position(column) for column in self._columns])
        self._unseen = _column([_for_unseen(column, unseen) for column in self._columns])
        self._codes = Codes([_positions(column) for column in self._columns])

    def read(self, block: Block, rows: Rows) -> Array:
        """Return the feature that is 1 for each column and row, (c, m) int64, or NOWHERE."""
        if not self._columns:
            return np.empty((0, block.rows), dtype=np.int64)
        codes = self._codes.find([block.columns[column.name] for column in self._columns])
        lowest = codes.min(axis=1, initial=0)
        for j in map(int, np.flatnonzero(lowest < 0)):
            column = self._columns[j]
            rows.missing(column.name, codes[j] == GONE, column.reference is None)
            unseen = codes[j] == UNSEEN
            if self._unseen[j, 0] == REFUSED:
                self._refuse(block, column, unseen, rows)
            codes[j, unseen] = self._unseen[j, 0]
        nowhere = (codes < 0) | (codes == self._left_out)
        return np.where(nowhere, NOWHERE, self.first + codes - (codes > self._left_out))

    def _refuse(self, block: Block, column: Column, unseen: Array, rows: Rows) -> None:
        array, known = to_text(block.columns[column.name]), column.categories or ()
        options = []
        if rows.told.command != "import":
            # Zeros would mean the reference level.
            options += ["--unseen zero"] if column.reference is None else []
            options += ["--unseen other"] if column.rare is not None else []

        why = f"which the training data did not have (it had {listed(known)})"
        rows.fault(column.name, unseen, lambda row: f"{array[row].as_py()!r}, {why}", *options)


def _column(values: Sequence[int]) -> Array:
    return np.array(values, dtype=np.int64).reshape(-1, 1)


def _positions(column: Column) -> dict[str, int]:
    """Return the position of each category; all rare ones share the last position."""
    known = column.categories or ()
    return {text: i for i, text in enumerate(known)} | dict.fromkeys(column.rare or (), len(known))


def _position(column: Column) -> int:
    positions = _positions(column)
    return len(positions) + 1 if column.reference is None else positions[column.reference]


def _for_unseen(column: Column, unseen: str) -> int:
    """Return the position of an unseen level: that of rare levels, NOWHERE or REFUSED."""
    if unseen == "other" and column.rare is not None:
        return len(column.categories or ())
    return NOWHERE if unseen == "zero" and column.reference is None else REFUSED


class Hashes:
    """Columns of hashed categories: a sign in one of 2**bits slots that begin at `first`."""

    def __init__(self, placed: Placed, first: int, bits: int) -> None:
        self._names = [column.name for column, _ in placed]
        self._by_meaning = [column.by_meaning for column, _ in placed]
        self._first, self._mask = first, np.uint64((1 << bits) - 1)

    def read(self, block: Block, rows: Rows) -> tuple[Array, Array]:
        """Return slots (h, m) int64 and signs (h, m) float64; the sign is 0 if a value is missing.

        The hash is that of the text NAME=VALUE. Its lowest `bits` bits choose the slot, and its
        highest bit the sign.
        """
        slots = np.zeros((len(self._names), block.rows), dtype=np.int64)
        signs = np.zeros(slots.shape)
        for j, name in enumerate(self._names):
            text = to_text(block.columns[name])
            distinct = text.dictionary_encode()  # each different text is hashed once
            known = distinct.dictionary.to_pylist()
            if self._by_meaning[j]:
                known = [meaning(text) for text in known]
            hashes = stable_hash(f"{name}={text}" for text in known)
            gone = absent(text)
            rows.missing(name, gone)
            bits = hashes[distinct.indices.drop_null().to_numpy()]
            slots[j, ~gone] = self._first + (bits & self._mask).astype(np.int64)
            signs[j, ~gone] = np.where(bits >> np.uint64(63), -1.0, 1.0)
        return slots, signs
