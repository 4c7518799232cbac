"""Classification of columns of text by all their distinct values.

A column of text is a category, or it only seems to be one and needs an option: numbers with signs
around them, dates, numbers mixed with a few words, codes with leading zeros, and identifiers. As a
category, such a column would become one column of X for each of its values. So it is refused, and
the message names the column.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, product

from mpigd.tables.columns import WORDS
from mpigd.tables.number_text import CURRENCY

FEW = 6  # the maximal number of values for which a message suggests --na
# A column is like an identifier if it has at least SMALL values and a share of NEARLY_ALL of them
# is distinct, or if it has more than LARGE distinct values and these are more than HALF of all.
SMALL, NEARLY_ALL = 10, 0.9
# HALF is also the share of dates or numbers from which a column is reported as one of these.
LARGE, HALF = 1000, 0.5
SAMPLE = 1000  # the number of distinct values on which formats of dates are tried
NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII
)
GROUPS = r"\d{1,3}(,\d{3})+(\.\d*)?"
SIGN = rf"[{CURRENCY}]"
ADORNED = re.compile(
    rf"[+-]?{SIGN}?[ \u00a0]?({GROUPS}|\d+\.?\d*|\.\d+)[ \u00a0]?(%|{SIGN})?", re.ASCII
)
GROUPED = re.compile(rf"[+-]?{GROUPS}", re.ASCII)
COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d*),\d+", re.ASCII)
OTHER_DIGITS = re.compile(r"[+-]?\d+([.,\u066b]\d+)?")
# A number and a unit. Up to MANY_UNITS such values may be categories (36 months, 60 months).
UNIT = re.compile(r"[<>~]?[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? ?([^\W\d_]{1,8}|°[CF]?)", re.ASCII)
MANY_UNITS = 10
TIME = r"\d{1,2}:\d\d(:\d\d([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?"
MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
DATE = re.compile(
    rf"(\d{{1,4}}([/.-])\d{{1,2}}\2\d{{1,4}}|\d{{1,2}}[ -]{MONTH},?[ -]\d{{2,4}}|"
    rf"{MONTH} \d{{1,2}},? \d{{2,4}})([T ]{TIME}.*)?|{TIME}",
    re.IGNORECASE,
)
ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?|\d\d:\d\d(:\d\d(\.\d+)?)?")
DAYS = (
    "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y-%m-%d",
    "%m/%d/%y", "%d/%m/%y", "%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %B %Y",
    "%b %d, %Y", "%B %d, %Y",
)  # fmt: skip
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True)
class Look:
    """The classification of a column."""

    kind: str  # "number" or "category"
    problem: str = ""  # the reason why the column needs an option, with the options that settle it


def look(
    name: str,
    values: Mapping[str, int],
    *,
    typed: bool = False,
    hashed: bool = False,
    target: bool = False,
) -> Look:
    """Classify a column of text.

    Parameters
    ----------
    name : str
        The column, for the message.
    values : mapping of str to int
        Distinct text (stripped) -> number of rows; with `hashed`, perhaps not all of them.
    typed : bool
        Whether the file declares the column as text (Parquet), in contrast to CSV, where every
        value is text.
    hashed : bool
        Whether categories are hashed, so that many distinct ones are no mistake.
    target : bool
        Whether the column is the target, so that categories are classes.

    Returns
    -------
    Look
        The kind of the column, and its problem if it needs an option.
    """
    if not values:
        return Look("number")
    if set(map(str.lower, values)) <= set(WORDS):
        return Look("number")
    shown = shlex.quote(name)
    text = (
        f"--text {shown} if these are classes"
        if target
        else f"--text {shown} if these are categories, or --drop {shown}"
    )
    numbers = [value for value in values if NUMBER.fullmatch(value)]
    problem = (
        _signs(values, numbers, shown, typed)
        or _dates(values, shown, typed)
        or _mixed(values, numbers, typed)
        or _units(values)
    )
    if not problem and not hashed:
        problem = _identifier(values)
        problem += f": --id {shown} keeps it beside the data" if problem and not target else ""
    return Look("category", f"column {name!r} {problem}, {text}" if problem else "")


def _signs(values: Mapping[str, int], numbers: list[str], name: str, typed: bool) -> str:
    if len(numbers) == len(values) and not typed:
        return (
            f"has numbers with a decimal point ({_some(values)}), "
            "which --decimal says is another mark"
        )
    if len(numbers) == len(values):
        return (
            f"is text, but all its values are numbers ({_some(values)}): --number {name} reads them"
        )
    adorned = all(ADORNED.fullmatch(value) for value in values.keys() - set(numbers))
    comma = all(COMMA.fullmatch(value) for value in values.keys() - set(numbers))
    if not adorned and not comma:
        return ""
    other = _some([value for value in values if not NUMBER.fullmatch(value)])
    if comma:
        grouped = all(GROUPED.fullmatch(value) or NUMBER.fullmatch(value) for value in values)
        more = f"--number {name} if these are thousands, " if grouped else ""
        return f"has numbers with a comma ({other}): {more}--decimal , if these are decimals"
    return (
        f"has numbers with signs around them ({other}): "
        f"--number {name} reads them (12% is 12, 1,234 is 1234)"
    )


def _dates(values: Mapping[str, int], name: str, typed: bool) -> str:
    found = [value for value in values if DATE.fullmatch(value)]
    if len(found) < HALF * len(values):
        return ""
    if len(found) < len(values):
        other = [value for value in values if not DATE.fullmatch(value)]
        return f"has dates or times ({_some(found)}) and other values: {_na(other, typed)}"
    if all(ISO.fullmatch(value) for value in values):
        return f"has dates or times ({_some(values)}): --date {name} makes them features"
    options = [
        f"--date {shlex.quote(f'{shlex.split(name)[0]}={form}')}" for form in date_formats(values)
    ]
    if not options:
        return f"has dates or times ({_some(values)}) of an unknown form"
    return f"has dates or times ({_some(values)}): {' or '.join(options)} makes them features"


def date_formats(values: Mapping[str, int]) -> list[str]:
    """Return the formats (of strptime) in which all these texts are dates.

    values: distinct text -> number of rows. Only the first SAMPLE texts are tried.
    """
    texts = list(islice(values, SAMPLE))
    forms = [
        *(day + time for day, time in product(DAYS, TIMES)),
        *(time.strip() for time in TIMES[1:]),
    ]
    return [form for form in forms if all(_parses(text, form) for text in texts)]


def _parses(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)
        return True
    except ValueError:
        return False


def _mixed(values: Mapping[str, int], numbers: list[str], typed: bool) -> str:
    rows = sum(values[value] for value in numbers)
    if len(numbers) < HALF * len(values) and rows < HALF * sum(values.values()):
        return ""
    other = [value for value in values if not NUMBER.fullmatch(value)]
    return f"has numbers ({_some(numbers)}) and other values: {_na(other, typed)}" if other else ""


def _units(values: Mapping[str, int]) -> str:
    if all(OTHER_DIGITS.fullmatch(value) for value in values):
        return f"has numbers in other digits than 0 to 9 ({_some(values)}): write them in these"
    found = [UNIT.fullmatch(value) for value in values]
    units = {match[3] for match in found if match}
    if len(values) <= MANY_UNITS or len(units) != 1 or not all(found):
        return ""
    return f"has numbers with {min(units)!r} after them ({_some(values)}): write them without it"


def _na(other: list[str], typed: bool) -> str:
    if len(other) > FEW or not all(map(str.isprintable, other)):
        return f"{_some(other)}"
    if typed:  # --na is for CSV
        return f"{_some(other)}: write nulls if they are missing values"
    return f"{_some(other)}: --na {' '.join(map(shlex.quote, other))} if they are missing values"


def _identifier(values: Mapping[str, int]) -> str:
    rows = sum(values.values())
    many = len(values) > LARGE and len(values) > HALF * rows
    if not many and (rows < SMALL or len(values) < NEARLY_ALL * rows):
        return ""
    count = f"{len(values):,} different values in {rows:,} rows"
    return f"has {count}, like an identifier ({_some(values)})"


def _some(values: object) -> str:
    assert isinstance(values, (list, Mapping))
    shown = ", ".join(repr(value) for value in islice(values, 3))
    return shown + (", ..." if len(values) > 3 else "")


def alike(name: str, values: Mapping[str, int]) -> list[str]:
    """Return a note if categories differ only in blanks around them or in capital letters.

    name: the column. values: category -> number of rows.
    """
    seen, pairs = dict[str, str](), list[tuple[str, str]]()
    for value in values:
        first = seen.setdefault(value.strip().casefold(), value)
        if first != value:
            pairs.append((first, value))
    if not pairs:
        return []
    more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
    return [
        f"column {name!r} has both {pairs[0][0]!r} and {pairs[0][1]!r}{more}: "
        "they are different categories"
    ]
