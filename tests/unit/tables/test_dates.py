"""Dates of raw columns against pandas and the datetime of Python."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpigd.errors import UsageError
from mpigd.tables import dates

TEXTS = ["1999-12-31", "2000-02-29", "1970-01-01", "2024-12-30", "1969-07-20", "1900-03-01"]
moments = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31))


def texts(values):
    return pa.array(values, pa.string())


def known(array, format=None):
    values, bad = dates.read(array, format)
    assert bad == -1 and values.dtype == "datetime64[us]"
    return values


@pytest.mark.parametrize(
    "kind", ["text", "T", "blank", "date32", "date64", "ns", "s", "dictionary"]
)
def test_the_parts_are_those_of_pandas(kind):
    times = pd.Series(pd.to_datetime(TEXTS))
    if kind not in ("text", "date32", "date64"):
        times += pd.to_timedelta([0, 1, 3599, 86399, 12 * 3600, 60], unit="s")
    if kind in ("text", "T", "blank", "dictionary"):
        form = {"text": "%Y-%m-%d", "T": "%Y-%m-%dT%H:%M:%S"}.get(kind, "%Y-%m-%d %H:%M:%S")
        array = texts(times.dt.strftime(form).to_list())
    else:
        types = {"date32": pa.date32(), "date64": pa.date64()}
        array = pa.array(times).cast(types.get(kind) or pa.timestamp(kind))
    if kind == "dictionary":
        array = array.dictionary_encode()
    values = known(array)
    found = dates.parts(values, dates.PARTS)
    assert found.shape == (7, 6) and found.dtype == np.float64
    for name, row in zip(dates.PARTS, found, strict=True):
        expected = getattr(times.dt, "day_of_week" if name == "weekday" else name)
        np.testing.assert_array_equal(row, expected)
    assert dates.has_times(values) == (kind not in ("text", "date32", "date64"))


@settings(deadline=None)
@given(st.lists(moments, min_size=1, max_size=20))
def test_any_moment(values):
    array = texts([value.isoformat(" ") for value in values])
    found = dates.parts(known(array), dates.PARTS)
    for j, value in enumerate(values):
        second = float(Fraction(value.second * 10**6 + value.microsecond, 10**6))
        date = [value.year, value.month, value.day, value.weekday()]
        assert found[:, j].tolist() == [*date, value.hour, value.minute, second]


ZONED = [
    "2020-03-01T00:30:00Z", "2020-03-01 00:30:00+01:00", "2020-03-01T00:30:00-0530",
    "2020-03-01 00:30+05", "2020-03-01T00:30:00.25Z", "2020-03-01T00:30:00.123456789+00:00",
    "2020-03-01T00:30:00", "2020-03-01",
]  # fmt: skip


@pytest.mark.parametrize("which", [slice(0, 3), slice(0, 6), slice(6, 8), slice(0, 8)])
def test_time_zones_become_utc(which):
    expected = []
    for text in ZONED[which]:
        stamp = pd.Timestamp(text)
        stamp = stamp.tz_convert("UTC").tz_localize(None) if stamp.tz else stamp
        expected.append(stamp.floor("us").to_datetime64())
    np.testing.assert_array_equal(known(texts(ZONED[which])), np.array(expected, "M8[us]"))


def test_zoned_timestamps_of_arrow_become_utc():
    stamps = pd.Series(pd.to_datetime(["2020-03-01 00:30", "2020-07-01 23:00"])).dt.tz_localize(
        "Europe/Berlin"
    )
    expected = stamps.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    np.testing.assert_array_equal(known(pa.array(stamps)), expected.astype("M8[us]"))


def test_missing_values_blanks_and_spellings():
    values = known(texts([None, " 2013-1-2 ", "", "2013-01-02t3:04", "  "]))
    expected = np.array(["NaT", "2013-01-02", "NaT", "2013-01-02T03:04", "NaT"], "M8[us]")
    np.testing.assert_array_equal(values, expected)
    found = dates.parts(values, ("hour", "year"))
    expected = [[np.nan, 0, np.nan, 3, np.nan], [np.nan, 2013, np.nan, 2013, np.nan]]
    np.testing.assert_array_equal(found, expected)
    for array in (texts([None, None]), pa.nulls(2), texts([" ", None]), texts([]), pa.nulls(0)):
        assert np.isnat(known(array)).all()


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (["2020-01-01", "x", "y"], 1), (["2020-02-30"], 0), (["2020-01-01", None, "2020-13-01"], 2),
        (["2020-01-01", "10:30"], 1), (["10:30", "2020-01-01"], 1), (["12:60"], 0), (["24:00"], 0),
        (["1/2/2020"], 0), ([None, "20200101"], 1), (["2020-01-01x"], 0),
    ],
)  # fmt: skip
def test_the_first_row_that_is_no_date(values, row):
    assert dates.read(texts(values))[1] == row


def test_every_cell_that_is_no_date():
    array = texts(["2020-01-01", "x", None, "", "2020-02-30", " 2021-01-01"])
    values, wrong = dates.read_cells(array)
    assert wrong.tolist() == [False, True, False, False, True, False]
    assert np.isnat(values).tolist() == [False, True, True, True, True, False]
    assert dates.read_cells(texts(["2020-01-01", None]))[1] is None


@pytest.mark.parametrize(
    "array", [pa.array([None, 3]), pa.array([None, 1.5]), pa.array([None, True])]
)
def test_numbers_are_no_dates(array):
    assert dates.read(array)[1] == 1


def test_a_block_reads_alike_whatever_stands_beside_it():
    odd = ["2020-01-01 10", "2020-01-01T10Z", "2020-01-01 10:30", "2020-01-01 10:30:01.123456Z"]
    for text in odd:
        alone, beside = known(texts([text])), known(texts([text, " 2020-1-1"]))
        assert alone[0] == beside[0]


def test_times_of_day():
    clocks = ["00:00:00", "23:59:59.5", None, "9:05"]
    found = dates.parts(known(texts(clocks)), dates.parts_of(True, False))
    np.testing.assert_array_equal(
        found, [[0, 23, np.nan, 9], [0, 59, np.nan, 5], [0, 59.5, np.nan, 0]]
    )
    stored = [dt.time(0, 0), dt.time(23, 59, 59, 500000), None, dt.time(9, 5)]
    for kind in (pa.time64("us"), pa.time64("ns"), pa.time32("ms")):
        array = pa.array(stored, pa.time64("us")).cast(kind)
        np.testing.assert_array_equal(known(array), known(texts(clocks)))
        assert dates.are_clocks(array)


FORMATS = [
    "%m/%d/%Y", "%d.%m.%Y %H:%M:%S", "%Y%m%d", "%b %d, %Y %I:%M %p", "%d %B %Y", "%y-%j",
    "%Y-%m-%dT%H:%M:%S.%f%z",
    "%A, %d %b %Y", "100%% %Y [%m] (%d)", "%H:%M", "%F %T", "%D %R", "%d/%b/%Y:%H:%M:%S %z",
]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_those_of_python(format):
    long = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%D": "%m/%d/%y", "%R": "%H:%M"}
    python = format
    for short, spelled in long.items():
        python = python.replace(short, spelled)
    zone = dt.timezone(dt.timedelta(hours=-3, minutes=-30))
    moments = [
        dt.datetime(2001 + 3 * i, 1 + 2 * i % 12, 9 + 4 * i, 5 * i, 7 + i, 59, 250000, zone)
        for i in range(5)
    ]  # fmt: skip
    written = [moment.strftime(python) for moment in moments]
    expected = []
    for text in written:
        parsed = dt.datetime.strptime(text, python)
        parsed = parsed.astimezone(dt.UTC).replace(tzinfo=None) if parsed.tzinfo else parsed
        expected.append(parsed.replace(year=1970) if format == "%H:%M" else parsed)
    values = known(texts([*written, None]), format)
    np.testing.assert_array_equal(values[:-1], np.array(expected, "M8[us]"))
    assert np.isnat(values[-1])
    assert dates.read(texts([written[0], "31.02x"]), format)[1] == 1


def test_impossible_dates_of_a_format_are_none():
    assert dates.read(texts(["28/02/2021", "29/02/2021"]), "%d/%m/%Y")[1] == 1
    assert dates.read(texts(["2021 366"]), "%Y %j")[1] == 0
    assert dates.read(texts(["13:00 PM"]), "%I:%M %p")[1] == 0
    values = known(pa.array([20200229, None]), "%Y%m%d")
    np.testing.assert_array_equal(values, np.array(["2020-02-29", "NaT"], "M8[us]"))


@pytest.mark.parametrize("format", ["%Q", "%", "date", "%d %d", "%Y %F", ""])
def test_formats_that_are_none(format):
    with pytest.raises(UsageError, match="date format"):
        dates.read(texts(["2020-01-01"]), format)


def test_which_parts_a_column_has():
    def parts(*blocks):
        seen = dates.Seen()
        for block in blocks:
            seen.add(texts(block), known(texts(block)))
        return seen.parts(), seen.mixed

    assert parts(["2020-01-01", None], ["2020-01-02 00:00"]) == (
        ("year", "month", "day", "weekday"),
        False,
    )
    assert parts([None], ["2020-01-01"], ["2020-01-01 00:01"]) == (dates.PARTS, False)
    assert parts([None, "10:30"]) == (("hour", "minute", "second"), False)
    assert parts(["10:30"], ["2020-01-01"])[1]
    assert dates.parts_of(False) == dates.OF_DATE and dates.parts_of(True) == dates.PARTS
