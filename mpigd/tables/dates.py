"""Read dates and times from text and Arrow arrays, and split them into numeric parts.

All values are times in UTC, to the microsecond. A value with a time zone is converted; a value
without one is taken as it is written. A time of day alone becomes that time on 1970-01-01.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpigd.tables import date_text
from mpigd.tables.columns import absent, plain

Array = np.ndarray[Any, Any]
OF_DATE = ("year", "month", "day", "weekday")
OF_TIME = ("hour", "minute", "second")
PARTS = (*OF_DATE, *OF_TIME)


class Seen:
    """Records block by block which kinds of values a column of dates has."""

    def __init__(self) -> None:
        self.dates = self.clocks = self.times = False

    def add(self, array: Any, values: Array) -> None:
        """Add a block: the column as it was read, and the times (m,) that `read` made of it."""
        there = ~np.isnat(values)
        if there.any():
            of_day = are_clocks(array)
            self.clocks, self.dates = self.clocks or of_day, self.dates or not of_day
            self.times = self.times or has_times(values)

    @property
    def mixed(self) -> bool:
        """Whether there are both dates and times of day alone, which have no parts in common."""
        return self.dates and self.clocks

    def parts(self) -> tuple[str, ...]:
        """Return the names of the parts that the column becomes."""
        return parts_of(self.times, self.dates or not self.clocks)


def parts_of(seen_times: bool, seen_dates: bool = True) -> tuple[str, ...]:
    """Return the names of the parts of dates, of dates with times, or of times of day alone.

    Parameters
    ----------
    seen_times : bool
        Whether some value has another time than midnight.
    seen_dates : bool
        Whether there are dates; False for times of day alone.
    """
    if not seen_dates:
        return OF_TIME
    return PARTS if seen_times else OF_DATE


def has_times(values: Array) -> bool:
    """Return whether any of the values (m,) has another time than midnight."""
    known = values[~np.isnat(values)]
    return bool(np.any(known != known.astype("datetime64[D]")))


def are_clocks(array: Any) -> bool:
    """Return whether an array holds times of day alone; for text, the first value decides."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = plain(array)
    if not _is_text(array):
        return bool(pa.types.is_time(array.type))
    first = pc.utf8_trim_whitespace(array.slice(_first_known(array), 1))
    return bool(pc.any(pc.match_substring_regex(first, date_text.CLOCK_UNNAMED)).as_py())


def read(array: Any, format: str | None = None) -> tuple[Array, int]:
    """Return times (m,) as `read_cells` does, and the first row that is not a date, or -1."""
    values, wrong = read_cells(array, format)
    return values, int(wrong.argmax()) if wrong is not None else -1


def read_cells(array: Any, format: str | None = None) -> tuple[Array, Array | None]:
    """Read the dates and times of an Arrow array.

    Text is read as ISO 8601: a date, or a date and a time after T or a blank, with or without a
    time zone. If the first value is a time of day alone, all values must be.

    Parameters
    ----------
    array : pyarrow.Array
        Text, dates, times, timestamps or integers (m,); values of other types are not dates.
    format : str, optional
        How text is written, in the directives of strptime, instead of ISO 8601. With a format,
        integers are read as their text.

    Returns
    -------
    values : (m,) datetime64[us]
        The times; NaT if a value is missing or not a date.
    wrong : (m,) bool or None
        Whether each value is present but not a date; None if there is no such value.

    Raises
    ------
    UsageError
        If `format` has an unknown directive.
    """
    import pyarrow as pa

    array = plain(array)
    values, wrong = np.full(len(array), "NaT", date_text.UNIT), None
    if format is not None and (_is_text(array) or pa.types.is_integer(array.type)):
        values, wrong = date_text.read_text(array, date_text.pattern_of(format))
    elif _is_text(array):
        values, wrong = _from_iso(array)
    elif pa.types.is_time(array.type):
        whole = pa.int32() if pa.types.is_time32(array.type) else pa.int64()
        stored = array.cast(whole).cast(pa.int64()).view(pa.timestamp(array.type.unit))
        values = _from_stored(stored)
    elif pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        values = _from_stored(array)
    elif not pa.types.is_null(array.type):
        wrong = ~absent(array)
    return values, wrong if wrong is not None and wrong.any() else None


def parts(values: Array, names: Sequence[str]) -> Array:
    """Return the parts of times as numbers.

    Parameters
    ----------
    values : (m,) datetime64[us]
        The times.
    names : sequence of str, length p
        Names from PARTS.

    Returns
    -------
    (p, m) float64
        A row for each name; NaN for NaT. Month and day count from 1, weekday from 0 (Monday);
        second keeps its fraction.
    """
    known = ~np.isnat(values)
    times = values if known.all() else np.where(known, values, np.datetime64(0, "us"))
    days = times.astype("datetime64[D]")
    clock = (times - days).astype(np.int64)
    found = np.empty((len(names), values.size))
    for row, name in enumerate(names):
        found[row] = _part(name, days, clock)
    found[:, ~known] = np.nan
    return found


def _part(name: str, days: Array, clock: Array) -> Array:
    """Return one part of dates (m,) datetime64[D] and times of day (m,) int64 in microseconds."""
    if name == "year":
        return np.asarray(days.astype("datetime64[Y]").astype(np.int64) + 1970)
    if name == "month":
        return np.asarray(days.astype("datetime64[M]").astype(np.int64) % 12 + 1)
    if name == "day":
        return np.asarray((days - days.astype("datetime64[M]")).astype(np.int64) + 1)
    if name == "weekday":
        return np.asarray((days.astype(np.int64) + 3) % 7)  # 1970-01-01 was a Thursday
    if name == "hour":
        return np.asarray(clock // 3_600_000_000)
    if name == "minute":
        return np.asarray(clock // 60_000_000 % 60)
    return np.asarray(clock % 60_000_000 / 1e6)


def _from_stored(array: Any) -> Array:
    """Convert dates and timestamps of Arrow; numpy rounds down to whole microseconds."""
    import pyarrow as pa

    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        array = array.cast(pa.timestamp(array.type.unit))  # the stored values are in UTC
    return np.asarray(array.to_numpy(zero_copy_only=False)).astype(date_text.UNIT)


def _from_iso(text: Any) -> tuple[Array, Array | None]:
    """Read ISO 8601: try fast casts of the whole array first, then regular expressions."""
    import pyarrow as pa

    for tidy in (False, True):
        text = date_text.trimmed(text) if tidy else text
        for type in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
            try:
                return _from_stored(text.cast(type)), None
            except pa.ArrowInvalid:
                pass
    return date_text.read_text(text, date_text.CLOCK if are_clocks(text) else date_text.ISO)


def _first_known(array: Any) -> int:
    """Return the first row that is not null, or the length if there is none."""
    import pyarrow.compute as pc

    row = int(pc.index(pc.is_valid(array), True).as_py())
    return len(array) if row < 0 else row


def _is_text(array: Any) -> bool:
    import pyarrow as pa

    kind = array.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
