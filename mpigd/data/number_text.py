"""Text becomes numbers: how numbers are written, and reading many columns of a block at once.

A column that cannot be read as it stands is read once more with care: blanks around values, true
and false, and what its NumberFormat allows besides digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.data.columns import WORDS, first_misfit, plain
from mpigd.errors import DataError

if TYPE_CHECKING:
    from mpigd.data.tables import Block

Array = np.ndarray[Any, Any]
CURRENCY = "$€£¥₹"


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
            text = pc.replace_substring_regex(text, rf"^([+-]?){sign}(.*?)[ \x{{a0}}]?[%{CURRENCY}]?$", r"\1\2")
        thousands = self.thousands or ("," if self.adorned and self.decimal == "." else "")
        mark, rest = _escaped(self.decimal), r"([eE][+-]?\d+)?"
        shape = rf"\d+({mark}\d*)?{rest}|{mark}\d+{rest}"
        if thousands:
            shape += rf"|\d{{1,3}}({_escaped(thousands)}\d{{3}})+({mark}\d*)?"
        fits = pc.match_substring_regex(text, rf"^[+-]?({shape}|nan|inf|infinity)$", ignore_case=True)
        if thousands:
            text = pc.replace_substring(text, thousands, "")
        if self.decimal != ".":
            text = pc.replace_substring(text, self.decimal, ".")
        return pc.if_else(fits, text, "?")


def _escaped(mark: str) -> str:
    return f"\\x{{{ord(mark):x}}}"


PLAIN = NumberFormat()


def to_numbers(array: Any, form: NumberFormat = PLAIN) -> tuple[Array, int]:
    """float64 values (m,) of a pyarrow array, NaN where missing, true and false as 1 and 0; and the
    first row that is no number, or -1 (then there are no values)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = plain(array)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return _floats(array), -1
    array = pc.utf8_trim_whitespace(array)
    array = pc.if_else(pc.equal(array, ""), None, array)  # blanks alone are a missing value
    if not form.is_plain():
        array = form.simplify(array)
    if first_misfit("number", array) >= 0:
        small = pc.utf8_lower(array)
        true, false = pc.equal(small, WORDS[0]), pc.equal(small, WORDS[1])
        array = pc.if_else(true, "1", pc.if_else(false, "0", array))
        bad = first_misfit("number", array)
        if bad >= 0:
            return np.empty(0), bad
    return _floats(array), -1


def read_matrix(block: Block, names: Sequence[str], forms: Sequence[NumberFormat]) -> tuple[Array, dict[int, int]]:
    """Columns as float64 (p, m), NaN where missing; and, of columns that are no numbers (they are NaN),
    position -> first such row."""
    values = np.empty((len(names), block.rows))
    misfits: dict[int, int] = {}
    arrays = [block.columns[name] for name in names]
    fast: dict[Any, list[int]] = {}
    for j, array in enumerate(arrays):
        fast.setdefault(array.type if forms[j].is_plain() else j, []).append(j)
    for which in fast.values():
        _fill(arrays, forms, which, values, misfits)
    return values, misfits


def _fill(
    arrays: Sequence[Any], forms: Sequence[NumberFormat], which: list[int], values: Array,
    misfits: dict[int, int],
) -> None:  # fmt: skip
    """Columns of one type at once; where that fails, by halves: a call for each is slow for many."""
    import pyarrow as pa

    if len(which) > 1:
        try:
            together = pa.chunked_array([arrays[j] for j in which]).cast(pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            half = len(which) // 2
            _fill(arrays, forms, which[:half], values, misfits)
            _fill(arrays, forms, which[half:], values, misfits)
            return
        values[which] = together.to_numpy().reshape(len(which), -1)
        return
    found, bad = to_numbers(arrays[which[0]], forms[which[0]])
    if bad >= 0:
        misfits[which[0]] = bad
    values[which[0]] = found if bad < 0 else np.nan


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

    values = array.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.asarray(values.to_numpy(zero_copy_only=False))
