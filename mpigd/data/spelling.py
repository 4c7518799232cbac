"""One value written in several ways: True and true, 1.0 and 1, 2013-01-01T00:00:00Z and 2013-01-01
00:00:00+00:00.

The same table comes as CSV from one program and as Parquet from another. A category is looked up as
it is written; only where that is unknown, by what it means, if one known category alone means that.
So categories that the training data told apart stay apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mpigd.data.columns import WORDS

WHOLE = re.compile(r"([+-]?\d+)\.0*")
FRACTION = re.compile(r"([+-]?\d+\.\d*[1-9])0+")
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|[+-]\d\d:?\d\d)?")


def meaning(text: str, number: bool = False) -> str:
    """A text that is equal for texts that mean the same. number: it comes from a column of numbers,
    where 1.50 is 1.5 (and no version, say)."""
    if text.lower() in WORDS:
        return text.lower()
    if found := WHOLE.fullmatch(text):
        return found[1]
    if number and (found := FRACTION.fullmatch(text)):
        return found[1]
    if found := TIME.fullmatch(text):
        day, minutes, seconds, fraction, zone = found.groups("")
        clock = minutes + (seconds or ":00") + fraction.rstrip("0").rstrip(".")
        zone = zone.replace(":", "").replace("+0000", "Z").replace("-0000", "Z")
        return day if clock == "00:00:00" and not zone else f"{day} {clock}{zone}"
    return text


def positions(text: Any, known: Sequence[str], number: bool = False) -> Any:
    """Where the values of a pyarrow array of text stand among the known ones: null where missing, and
    where the value is not known. number: as for `meaning`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    codes = pc.index_in(text, value_set=pa.array(known, pa.string()))
    unseen = pc.and_(codes.is_null(), text.is_valid())
    others = text.filter(unseen).unique()
    if not len(others):
        return codes
    meanings = [meaning(value, number) for value in known]
    count = Counter(meanings)
    place = {value: i for i, value in enumerate(meanings) if count[value] == 1}
    found = pa.array([place.get(meaning(value, number)) for value in others.to_pylist()], pa.int32())
    return pc.if_else(unseen, found.take(pc.index_in(text, value_set=others)), codes)


def merged(counts: Mapping[str, int]) -> dict[str, int]:
    """Texts and how often each comes; if all are true or false, these in small letters."""
    if not {text.lower() for text in counts} <= set(WORDS):
        return dict(counts)
    found = dict[str, int]()
    for text, count in counts.items():
        found[text.lower()] = found.get(text.lower(), 0) + count
    return found
