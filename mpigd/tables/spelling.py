"""Recognition of values that are written in several ways.

Examples are True and true, 1.0 and 1, 2013-01-01T00:00:00Z and 2013-01-01 00:00:00+00:00: the same
table may come as CSV from one program and as Parquet from another. A category is first looked up by
its text. If that text is unknown, it is looked up by its meaning, if exactly one known category has
that meaning. So categories that were different in the training data remain different.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpigd.tables.columns import WORDS, to_text

Array = np.ndarray[Any, Any]
WHOLE = re.compile(r"([+-]?\d+)\.0*")
FRACTION = re.compile(r"([+-]?\d+\.\d*[1-9])0+")
# A number with an exponent, in the form that programs write; 12e4 may be a code.
POWER = re.compile(r"[+-]?\d(\.\d+)?e[+-]\d+", re.IGNORECASE)
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|[+-]\d\d:?\d\d)?")


def meaning(text: str, number: bool = False) -> str:
    """Return a canonical text, which is equal for texts with the same meaning.

    number: whether the text comes from a column of numbers, where 1.50 equals 1.5. In other columns
    1.50 might be a version, for example.
    """
    if len(text) in (4, 5) and text.lower() in WORDS:
        return text.lower()
    if "." in text and (found := WHOLE.fullmatch(text)):
        return found[1]
    if number and (found := FRACTION.fullmatch(text)):
        return found[1]
    if ("e" in text or "E" in text) and POWER.fullmatch(text):
        value = float(text)
        return str(int(value)) if value.is_integer() else repr(value)
    if ":" in text and (found := TIME.fullmatch(text)):
        day, minutes, seconds, fraction, zone = found.groups("")
        clock = minutes + (seconds or ":00") + fraction.rstrip("0").rstrip(".")
        zone = zone.replace(":", "").replace("+0000", "Z").replace("-0000", "Z")
        return day if clock == "00:00:00" and not zone else f"{day} {clock}{zone}"
    return text


class Meanings:
    """Looks up categories by their meaning.

    codes: known text -> code. A meaning has a code if all known texts with that meaning have the
    same code.
    """

    def __init__(self, codes: Mapping[str, int]) -> None:
        self._codes = codes
        self._tables: dict[bool, dict[str, int]] = {}

    def look_up(self, array: Any, rows: Array) -> Array:
        """Return codes (k,) int64 of the values in some rows, -1 for unknown meanings.

        array: the values, a pyarrow array. rows: positions (k,) in it.
        """
        import pyarrow as pa

        number = not (pa.types.is_string(array.type) or pa.types.is_dictionary(array.type))
        distinct = to_text(array.take(pa.array(rows))).dictionary_encode()
        table = self._table(number)
        codes = [table.get(meaning(text, number), -1) for text in distinct.dictionary.to_pylist()]
        found = np.array(codes, dtype=np.int64)
        return np.asarray(found[distinct.indices.to_numpy(zero_copy_only=False)])

    def _table(self, number: bool) -> dict[str, int]:
        if number not in self._tables:
            found: dict[str, set[int]] = {}
            for text, code in self._codes.items():
                found.setdefault(meaning(text, number), set()).add(code)
            self._tables[number] = {
                text: codes.pop() for text, codes in found.items() if len(codes) == 1
            }
        return self._tables[number]


def merged(counts: Mapping[str, int]) -> dict[str, int]:
    """Merge the counts of booleans that differ in capital letters only.

    counts: text -> number of rows. If all texts are true or false, they are returned in lower case
    with their counts added up, else unchanged.
    """
    if not {text.lower() for text in counts} <= set(WORDS):
        return dict(counts)
    found = dict[str, int]()
    for text, count in counts.items():
        found[text.lower()] = found.get(text.lower(), 0) + count
    return found
