"""Text becomes numbers: how numbers are written, and reading many columns of a block at once.

Columns that cannot be read as they stand are read once more with care: blanks around values, true
and false, and what their NumberFormat allows besides digits.
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
HEAD = 64  # rows that are looked at first


@dataclass(frozen=True)
class NumberFormat:
    """How numbers are written in text.

    decimal: the decimal mark. thousands: what separates groups of three digits, or "". adorned: a
    currency sign before or after the number and a percent sign after it are left out (12% is 12),
    and groups of three digits may have a comma.
    """

    decimal: str = "."
    thousands: str = ""
    adorned: bool = False

    def is_plain(self) -> bool:
        return self == NumberFormat()

    def simplify(self, text: Any) -> Any:
        """Trimmed text (pyarrow) as numbers of Python; what is written otherwise becomes "?"."""
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


def to_numbers(array: Any, form: NumberFormat = PLAIN) -> tuple[Array, int]:
    """float64 values (m,) of a pyarrow array, NaN where missing, true and false as 1 and 0; and the
    first row that is no number, or -1 (then there are no values)."""
    values, wrong = _convert([array], form)
    if wrong is None:
        return values[0], -1
    return np.empty(0), int(wrong[0].argmax())


def read_cells(block: Block, names: Sequence[str], forms: Forms) -> tuple[Array, Array | None]:
    """Columns as float64 (p, m), NaN where missing and where a value is no number; and where that
    is, (p, m) bool, or None if it is nowhere."""
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
    """Columns as float64 (p, m), NaN where missing; and, of columns that are no numbers (they are
    NaN), position -> first such row."""
    found: dict[int, int] = {}
    if block.rows > 4 * HEAD:  # text shows soon, and reading all of it with care takes long
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
    """The first True of each row that has one."""
    if wrong is None:
        return {}
    return {int(j): int(wrong[j].argmax()) for j in np.flatnonzero(wrong.any(axis=1))}


def _convert(arrays: Sequence[Any], form: NumberFormat) -> tuple[Array, Array | None]:
    """Arrays of one type as float64 (p, m), NaN where missing or no number, and where that is, or
    None. All at once, since a call for each is slow for thousands."""
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
    text = pc.if_else(pc.equal(text, ""), None, text)  # blanks alone are a missing value
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


def read_numbers(block: Block, name: str, dtype: str, form: NumberFormat = PLAIN) -> Array:
    """A column (m,) float64, NaN where missing. DataError at text, infinities, and what does not
    fit `dtype`."""
    values, bad = to_numbers(block.columns[name], form)
    if bad >= 0:
        raise not_a_number(block, name, bad)
    check_range(block, name, values, dtype)
    return values


def not_a_number(block: Block, name: str, row: int) -> DataError:
    text = block.columns[name][row].as_py()
    return DataError(f"{block.where(row)}: column {name!r} is {text!r}, expected a number")


def check_range(block: Block, name: str, values: Array, dtype: str) -> None:
    """DataError at the first of the values (m,) that is infinite or too large for `dtype`."""
    over = np.flatnonzero(np.abs(values) > np.finfo(dtype).max)
    if over.size:
        value = float(values[over[0]])
        too_large = f"too large for {dtype} (use --dtype float64)"
        reason = "not a finite number" if np.isinf(value) else too_large
        place = block.where(int(over[0]))
        raise DataError(f"{place}: column {name!r} is {value:g}, {reason}")


def _floats(array: Any) -> Array:
    import pyarrow as pa

    values = array.cast(pa.float64(), safe=False)
    return np.array((values.fill_null(np.nan) if values.null_count else values).to_numpy())
