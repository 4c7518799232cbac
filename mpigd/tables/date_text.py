"""Read dates from text: regular expressions for their formats, and times from the matches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpigd.errors import UsageError

Array = np.ndarray[Any, Any]
UNIT = "datetime64[us]"

_CLOCK = r"(?P<H>\d\d?):(?P<M>\d\d)(?::(?P<S>\d\d)(?:[.,](?P<f>\d{1,9}))?)?"
_ZONE = r"(?P<z>[Zz]|[+-]\d\d(?::?\d\d)?)"
CLOCK = rf"^{_CLOCK}$"
ISO = rf"^(?P<Y>\d{{4}})-(?P<m>\d\d?)-(?P<d>\d\d?)(?:[Tt ](?:(?P<h>\d\d)|{_CLOCK}) ?{_ZONE}?)?$"
_MONTHS = "january february march april may june july august september october november december"
_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
CLOCK_UNNAMED = re.sub(r"\?P<\w>", "?:", CLOCK)
# The pattern of each directive of strptime, as in Python: leading zeros are optional, and names are
# English in upper or lower case. Weekdays are matched but not used.
DIRECTIVES = {
    "Y": r"(?P<Y>\d{4})", "y": r"(?P<y>\d\d)", "m": r"(?P<m>\d\d?)", "d": r"(?P<d>\d\d?)",
    "H": r"(?P<H>\d\d?)", "I": r"(?P<I>\d\d?)", "M": r"(?P<M>\d\d?)", "S": r"(?P<S>\d\d?)",
    "f": r"(?P<f>\d{1,9})", "p": r"(?P<p>[AaPp][Mm])", "j": r"(?P<j>\d{1,3})", "z": _ZONE,
    "b": rf"(?P<b>{'|'.join(name[:3] for name in _MONTHS.split())})",
    "B": rf"(?P<b>{_MONTHS.replace(' ', '|')})",
    "a": "(?:" + "|".join(name[:3] for name in _DAYS.split("|")) + ")", "A": f"(?:{_DAYS})",
    "%": "%",
}  # fmt: skip
_LONG = {"F": "%Y-%m-%d", "T": "%H:%M:%S", "R": "%H:%M", "D": "%m/%d/%y", "h": "%b", "e": "%d"}


def pattern_of(format: str) -> str:
    """Return the regular expression for texts that are written as `format` says.

    Raises
    ------
    UsageError
        If a directive is unknown, a part occurs twice, or there is no directive.
    """
    spelled = re.sub("%([FTRDhe])", lambda found: _LONG[found[1]], format)
    pattern, used = "", []
    for literal, directive in re.findall(r"([^%]+)|%(.?)", spelled):
        if literal:
            pattern += re.sub(r"(\\ |\s)+", r"\\s+", re.escape(literal))
            continue
        if directive not in DIRECTIVES:
            known = " ".join(f"%{one}" for one in DIRECTIVES)
            raise UsageError(f"date format {format!r}: %{directive} is unknown; there are {known}")
        pattern += DIRECTIVES[directive]
        used += re.findall(r"\?P<(\w)>", DIRECTIVES[directive])
    if len(set(used)) < len(used):
        raise UsageError(f"date format {format!r}: the same part stands twice")
    if not used:
        raise UsageError(f"date format {format!r}: it has no directive such as %Y")
    return f"(?i)^{pattern}$"


def trimmed(array: Any) -> Any:
    """Return text without blanks around it; blanks alone become a missing value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), None, text)


def read_text(array: Any, pattern: str) -> tuple[Array, Array]:
    """Read times by a regular expression; each distinct text is read once.

    Parameters
    ----------
    array : pyarrow.Array
        Text or integers (m,).
    pattern : str
        The expression, with a named group for each part, as `pattern_of` returns it.

    Returns
    -------
    values : (m,) datetime64[us]
        The times; NaT if a text is missing or not a date.
    wrong : (m,) bool
        Whether each text is present but not a date.
    """
    import pyarrow.compute as pc

    coded = trimmed(array).dictionary_encode()
    missed = np.asarray(coded.indices.is_null().to_numpy(zero_copy_only=False))
    if len(coded.dictionary) == 0:
        return np.full(len(array), "NaT", UNIT), ~missed
    fields = pc.extract_regex(coded.dictionary, pattern)
    names = [fields.type.field(i).name for i in range(fields.type.num_fields)]
    fit = np.array(fields.is_valid().to_numpy(zero_copy_only=False))
    distinct = _assemble({name: fields.field(name) for name in names}, fit)
    which = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    values = np.where(missed, np.datetime64("NaT", "us"), distinct[which])
    return values, np.isnat(values) & ~missed


def _assemble(groups: Mapping[str, Any], fit: Array) -> Array:
    """Return times (m,) from the groups of a pattern.

    A time is NaT if the pattern does not match (`fit` (m,) bool) or there is no such date.
    """
    m = fit.size

    def number(name: str, default: int, low: int, high: int) -> Array:
        if name not in groups:
            return np.full(m, default, dtype=np.int64)
        found = _whole(groups[name], default)
        np.logical_and(fit, (found >= low) & (found <= high), out=fit)
        return found

    year = number("Y", 1970, 1, 9999)
    if "y" in groups:  # two digits as in POSIX: 69 to 99 are 1969 to 1999
        short = number("y", 70, 0, 99)
        year = short + np.where(short < 69, 2000, 1900)
    month = _month(groups["b"]) if "b" in groups else number("m", 1, 1, 12)
    day = number("d", 1, 1, 31)
    # h: hours without minutes, which Arrow reads, too.
    hour = number("H", 0, 0, 23) + number("h", 0, 0, 23)
    if "I" in groups:
        hour = number("I", 12, 1, 12) % 12 + (12 * _is(groups["p"], "pm") if "p" in groups else 0)
    months = (year - 1970) * 12 + month - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]") + (day - 1)
    fit &= days.astype("datetime64[M]").astype(np.int64) == months  # excludes 30 February
    if "j" in groups:
        days = (year - 1970).astype("datetime64[Y]").astype("datetime64[D]")
        days = days + (number("j", 1, 1, 366) - 1)
        fit &= days.astype("datetime64[Y]").astype(np.int64) == year - 1970
    minutes = hour * 60 + number("M", 0, 0, 59) - (_zone(groups["z"]) if "z" in groups else 0)
    seconds = minutes * 60 + number("S", 0, 0, 59)
    fraction = _fraction(groups["f"]) if "f" in groups else 0
    values = days.astype(UNIT) + (seconds * 1_000_000 + fraction)
    values[~fit] = np.datetime64("NaT")
    return np.asarray(values)


def _whole(text: Any, default: int) -> Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pc.if_else(pc.equal(text, ""), None, text).cast(pa.int64())
    return np.array(known.fill_null(default).to_numpy(zero_copy_only=False))


def _is(text: Any, word: str) -> Array:
    import pyarrow.compute as pc

    same = pc.equal(pc.utf8_lower(text), word).fill_null(False)
    return np.asarray(same.to_numpy(zero_copy_only=False))


def _month(text: Any) -> Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pa.array([name[:3] for name in _MONTHS.split()])
    found = pc.index_in(pc.utf8_slice_codeunits(pc.utf8_lower(text), 0, 3), value_set=known)
    return np.asarray(found.fill_null(0).to_numpy(zero_copy_only=False)).astype(np.int64) + 1


def _fraction(text: Any) -> Array:
    """Return microseconds from the digits after the decimal mark; further digits are cut off."""
    import pyarrow.compute as pc

    return _whole(pc.utf8_slice_codeunits(pc.utf8_rpad(text, 6, "0"), 0, 6), 0)


def _zone(text: Any) -> Array:
    """Return minutes east of UTC; 0 for Z and for no time zone."""
    import pyarrow.compute as pc

    digits = pc.replace_substring(text, ":", "")
    hours = _whole(pc.utf8_slice_codeunits(_digits(digits), 1, 3), 0)
    minutes = _whole(pc.utf8_slice_codeunits(_digits(digits), 3, 5), 0)
    east = hours * 60 + minutes
    negative = pc.starts_with(digits, "-").fill_null(False).to_numpy(zero_copy_only=False)
    return np.asarray(np.where(negative, -east, east))


def _digits(text: Any) -> Any:
    import pyarrow.compute as pc

    return pc.if_else(pc.match_substring_regex(text, "^[Zz]$"), "", text)
