"""Parsing of text as numbers: number formats, and fast parsing of many columns at once.

All columns of a block are first converted in one call. If that fails, they are parsed again by a
slower way that accepts blanks around values, true and false, and what their NumberFormat allows
besides digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.errors import DataError
from mpigd.tables.columns import WORDS, plain

if TYPE_CHECKING:
    from mpigd.tables.readers import Block

Array = np.ndarray[Any, Any]
CURRENCY = "$€£¥₹"
NO_NUMBER = "?"
HEAD = 64  # the number of rows that are parsed first, to find columns of text early


@dataclass(frozen=True)
class NumberFormat:
    """The format of numbers in text.

    Attributes
    ----------
    decimal : str
        The decimal mark.
    thousands : str
        The separator of groups of three digits, or "".
    adorned : bool
        Ignore a currency sign before or after the number and a percent sign after it (12% is 12),
        and accept commas between groups of three digits.
    """

    decimal: str = "."
    thousands: str = ""
    adorned: bool = False

    def is_plain(self) -> bool:
        """Return whether this is Python's number format."""
        return self == PLAIN

    def simplify(self, text: Any) -> Any:
        """Rewrite trimmed text (a pyarrow array) in Python's number format.

        Texts that are not numbers become NO_NUMBER, "?".
        """
        import pyarrow.compute as pc

        if self.adorned:
            sign = rf"[{CURRENCY}]?[ \x{{a0}}]?"
            shape = rf"^([+-]?){sign}(.*?)[ \x{{a0}}]?[%{CURRENCY}]?$"
            text = pc.replace_substring_regex(text, shape, r"\1\2")
        thousands = self.thousands or ("," if self.adorned and self.decimal == "." else "")
        mark, rest = _escaped(self.decimal), r"([eE][+-]?\d+)?"
        shape = rf"\d+({mark}\d*)?{rest}|{mark}\d+{rest}"
        if thousands:
            shape += rf"|\d{{1,3}}({_escaped(thousands)}\d{{3}})+({mark}\d*)?"
        shape = rf"^[+-]?({shape}|nan(\(\w*\))?|inf|infinity)$"
        fits = pc.match_substring_regex(text, shape, ignore_case=True)
        if thousands:
            text = pc.replace_substring(text, thousands, "")
        if self.decimal != ".":
            text = pc.replace_substring(text, self.decimal, ".")
        return pc.if_else(fits, text, NO_NUMBER)


def _escaped(mark: str) -> str:
    return f"\\x{{{ord(mark):x}}}"


PLAIN = NumberFormat()
Forms = Sequence[NumberFormat]


def read_cells(block: Block, names: Sequence[str], forms: Forms) -> tuple[Array, Array | None]:
    """Convert columns of a block to numbers, cell by cell.

    Parameters
    ----------
    block : Block
        m rows.
    names : sequence of str
        The p columns.
    forms : sequence of NumberFormat
        The format of each column.

    Returns
    -------
    values : array (p, m) of float64
        NaN for missing values and for values that are not numbers.
    wrong : array (p, m) of bool, or None
        Marks the values that are not numbers; None if there are none.
    """
    values, wrong = np.empty((len(names), block.rows)), None
    arrays = [block.columns[name] for name in names]
    alike: dict[Any, list[int]] = {}
    for j, (array, form) in enumerate(zip(arrays, forms, strict=True)):
        alike.setdefault((array.type, form), []).append(j)
    for (_, form), which in alike.items():
        found, unread = _convert([arrays[j] for j in which], form)
        if len(which) == len(names):
            return found, unread
        values[which] = found
        if unread is not None:
            wrong = np.zeros(values.shape, dtype=bool) if wrong is None else wrong
            wrong[which] = unread
    return values, wrong


def read_matrix(block: Block, names: Sequence[str], forms: Forms) -> tuple[Array, dict[int, int]]:
    """Convert the columns of a block that have only numbers.

    Parameters
    ----------
    block, names, forms
        As of `read_cells`.

    Returns
    -------
    values : array (p, m) of float64
        NaN for missing values, and in all rows of columns that have a value that is not a number.
    misfits : dict of int to int
        The positions of these columns in `names`, ascending -> the first such row.
    """
    found: dict[int, int] = {}
    # Most columns of text have text in their first rows, and the slower way to parse takes long.
    if block.rows > 4 * HEAD:
        found = _misfits(read_cells(block.first_rows(HEAD), names, forms)[1])
    rest = [j for j in range(len(names)) if j not in found]
    values, wrong = read_cells(block, [names[j] for j in rest], [forms[j] for j in rest])
    later = {rest[i]: row for i, row in _misfits(wrong).items()}
    if found:
        every = np.full((len(names), block.rows), np.nan)
        every[rest] = values
        values = every
    values[list(later)] = np.nan
    return values, dict(sorted((found | later).items()))


def _misfits(wrong: Array | None) -> dict[int, int]:
    """Return the position of the first True of each row that has one."""
    if wrong is None:
        return {}
    return {int(j): int(wrong[j].argmax()) for j in np.flatnonzero(wrong.any(axis=1))}


def _convert(arrays: Sequence[Any], form: NumberFormat) -> tuple[Array, Array | None]:
    """Convert arrays of one type; the results are those of `read_cells`.

    They are converted in one call, since a call for each is slow if there are thousands.
    """
    import pyarrow as pa

    shape = len(arrays), len(arrays[0])
    coded = pa.types.is_dictionary(arrays[0].type)
    together = pa.concat_arrays([plain(array) for array in arrays] if coded else arrays)
    kind = together.type
    if pa.types.is_boolean(kind):
        together = together.cast(pa.uint8())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_text(together, form, shape)
    return _floats(together).reshape(shape), None


def _from_text(text: Any, form: NumberFormat, shape: tuple[int, int]) -> tuple[Array, Array | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if form.is_plain():
        with suppress(pa.ArrowInvalid):
            return _floats(text).reshape(shape), None
    text = pc.utf8_trim_whitespace(text)
    text = pc.if_else(pc.equal(text, ""), None, text)  # only blanks: a missing value
    simple = form.simplify(text)
    unread = pc.equal(simple, NO_NUMBER)
    if not pc.any(unread).as_py():
        return _floats(simple).reshape(shape), None
    for word, number in zip(WORDS, ("1", "0"), strict=True):
        there = pc.match_substring_regex(text, f"^{word}$", ignore_case=True)
        simple = pc.if_else(there, number, simple)
    unread = pc.equal(simple, NO_NUMBER).fill_null(False)
    values = _floats(pc.if_else(unread, None, simple)).reshape(shape)
    wrong = np.array(unread.to_numpy(zero_copy_only=False)).reshape(shape)
    return values, wrong if wrong.any() else None


def not_a_number(block: Block, name: str, row: int) -> DataError:
    """Return the error for a row of a column that must be a number."""
    text = block.columns[name][row].as_py()
    return DataError(f"{block.where(row)}: column {name!r} is {text!r}, expected a number")


def _floats(array: Any) -> Array:
    import pyarrow as pa

    values = array.cast(pa.float64(), safe=False)
    return np.array((values.fill_null(np.nan) if values.null_count else values).to_numpy())
