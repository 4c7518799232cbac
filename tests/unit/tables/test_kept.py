"""Rows that the first pass keeps give the same files as rows that are read again."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from mpigd.tables import csv_reader, kept_blocks
from mpigd.tables.importer import import_data
from scripts import flights


def contents(path):
    """Every dataset of a file, as bytes."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("late", [False, True])
def test_the_same_bytes(tmp_path, monkeypatch, kind, late):
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 9999)
    names = ["dep_delay", "distance", "carrier", "origin", "time_hour", "tailnum", "arr_delay"]
    table = flights.raw("flights").head(3000)[names].copy()
    table["flag"] = np.where(table["distance"] > 1000, "True", "FALSE")
    if late:  # a column that shows to be text after many rows that look like numbers
        table["code"] = [f"{1 + i % 2}.0" if i < 1000 else f"k{i % 5}" for i in range(3000)]
    path = tmp_path / f"t.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    options = dict(target="arr_delay", missing="drop", date=["time_hour"], id="tailnum")
    found = []
    for most in (kept_blocks.KEPT_BYTES, 0):
        monkeypatch.setattr(kept_blocks, "KEPT_BYTES", most)
        done = import_data([str(path)], str(tmp_path / "o.h5"), **options)
        found.append((contents(tmp_path / "o.h5"), done))
    with h5py.File(tmp_path / "o.h5") as file:
        assert not late or b"code=1.0" in file["encoding"][()].tobytes()
    assert found[0] == found[1] and found[0][1].rows == len(table.dropna())
