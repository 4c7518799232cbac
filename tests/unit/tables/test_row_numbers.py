"""A row number is that of the data row in its own file, counted from 0.

This holds in every message and beside every prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import mpigd
from mpigd.config.schema import Config
from mpigd.errors import DataError
from mpigd.parallel.comm import Comm
from mpigd.scoring.fitted_model import Model
from mpigd.scoring.predict import evaluate, predict
from mpigd.scoring.prediction_files import Targets
from tests.scenarios import fit
from tests.threadcomm import run

KINDS = ("csv", "parquet", "h5")
FIRST, SECOND = 30, 50  # rows of the two files
ROW = 17  # of the second one, where something is wrong


def frames() -> list[pd.DataFrame]:
    rng = np.random.default_rng(2)
    found = []
    for n in (FIRST, SECOND):
        found.append(
            pd.DataFrame(
                {
                    "x": rng.standard_normal(n),
                    "g": ["u", "v"] * (n // 2),
                    "y": rng.integers(0, 5, n),
                }
            )
        )
    return found


def files(folder: Path, kind: str, tables: list[pd.DataFrame]) -> list[str]:
    """The tables in files of a kind."""
    paths = []
    for name, table in zip(("one", "two"), tables, strict=True):
        path = folder / f"{name}.{kind}"
        if kind == "parquet":
            table.to_parquet(path, index=False)
        elif kind == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_csv(folder / "raw.csv", index=False)
            mpigd.import_data(folder / "raw.csv", path, like=str(folder / "train.h5"))
        paths.append(str(path))
    return paths


@pytest.fixture
def model(tmp_path: Path) -> Model:
    pd.concat(frames()).to_csv(tmp_path / "train.csv", index=False)
    mpigd.import_data(tmp_path / "train.csv", tmp_path / "train.h5", target="y", dtype="float64")
    return mpigd.train(tmp_path / "train.h5", loss="poisson", l2=1e-2)


def refused(size: int, work: Any) -> str:
    def attempt(comm: Comm) -> str:
        with pytest.raises(DataError) as caught:
            work(comm)
        return str(caught.value)

    (message,) = set(run(size, attempt))
    return message


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_outside_the_domain(kind: str, size: int, model: Model, tmp_path: Path) -> None:
    tables = frames()
    tables[1].loc[ROW, "y"] = -2
    paths = files(tmp_path, kind, tables)
    wanted = f"{paths[1]} row {ROW}: y is -2: the poisson loss needs numbers of at least 0"
    assert refused(size, lambda comm: evaluate(model, paths, Config(), comm)) == wanted
    if kind == "h5":
        assert refused(size, lambda comm: fit(paths, comm, loss="poisson")) == wanted
        assert (
            refused(
                size,
                lambda comm: fit(
                    [str(tmp_path / "train.h5")], comm, loss="poisson", validation=paths
                ),
            )
            == wanted
        )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_values_that_cannot_be_encoded(kind: str, model: Model, tmp_path: Path) -> None:
    tables = frames()
    tables[1].loc[ROW, "g"] = "w"
    paths = files(tmp_path, kind, tables)
    targets = Targets(str(tmp_path / "p.h5"))
    assert refused(1, lambda comm: predict(model, paths, targets, Config(), comm)).startswith(
        f"{paths[1]} row {ROW}: "
    )


def test_values_that_are_not_finite(model: Model, tmp_path: Path) -> None:
    paths = files(tmp_path, "h5", frames())
    with h5py.File(paths[1], "r+") as file:
        file["X"][ROW, 0] = np.nan
    assert refused(1, lambda comm: evaluate(model, paths, Config(), comm)).startswith(
        f"{paths[1]}: 'X' row {ROW} column 0 "
    )


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_beside_predictions(kind: str, size: int, model: Model, tmp_path: Path) -> None:
    paths = files(tmp_path, kind, frames())
    targets = Targets(str(tmp_path / "p.h5"), str(tmp_path / "p.csv"), str(tmp_path / "p.parquet"))
    run(size, lambda comm: predict(model, paths, targets, Config(), comm, True))
    wanted = {
        "file": [paths[0]] * FIRST + [paths[1]] * SECOND,
        "row": [*range(FIRST), *range(SECOND)],
    }
    with h5py.File(targets.hdf5) as file:
        assert {
            "file": file["file"].asstr()[...].tolist(),
            "row": file["row"][...].tolist(),
        } == wanted
    assert targets.csv and targets.parquet
    assert pd.read_csv(targets.csv)[["file", "row"]].to_dict("list") == wanted
    assert pq.read_table(targets.parquet, columns=["file", "row"]).to_pydict() == wanted


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_parts_of_a_folder(kind: str, model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    paths = files(folder, kind, frames())
    targets = Targets(str(tmp_path / "p.h5"), str(tmp_path / "p.csv"))
    run(1, lambda comm: predict(model, [str(folder)], targets, Config(), comm, True))
    assert targets.csv
    assert pd.read_csv(targets.csv)["file"].drop_duplicates().tolist() == paths
