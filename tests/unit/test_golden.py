"""Golden files: files of every release are read, and give the digests of their day.

`tests/golden/make.py` wrote the files; each folder's `golden.json` says what is expected of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mpigd
from mpigd.__main__ import main as command
from mpigd.config.schema import FIELDS, from_dict, resolve
from mpigd.parallel.comm import Comm
from mpigd.scoring.fitted_model import Model
from mpigd.training import checkpoint
from mpigd.training.callbacks.base import Callback, EarlyStop, History, Tolerance
from tests import threadcomm
from tests.golden.make import HERE, describe

TRUTHS: dict[Path, dict[str, Any]] = {
    path.parent: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(HERE.glob("*/golden.json"))
}  # fmt: skip


def each(part: str) -> Any:
    """A test for every folder and every name in a part of its golden.json."""
    pairs = [(folder, name) for folder, truth in TRUTHS.items() for name in truth[part]]
    names = [f"{folder.name}-{name}" for folder, name in pairs]
    return pytest.mark.parametrize(("folder", "name"), pairs, ids=names)


each_folder = pytest.mark.parametrize("folder", TRUTHS, ids=lambda folder: folder.name)


def train(folder: Path, name: str, ranks: int = 1, **options: Any) -> Model:
    """Make a run of golden.json on virtual ranks, whose models must be equal.

    Paths are absolute, unlike those in the checkpoint: it does not matter where files are.
    """
    run = TRUTHS[folder]["runs"][name]
    held_out = {"validation": str(folder / run["validation"])} if run["validation"] else {}
    options = run["options"] | held_out | options

    def on_a_rank(comm: Comm) -> Model:
        return mpigd.train(str(folder / run["data"]), comm=comm, **options)

    models = threadcomm.run(ranks, on_a_rank)
    assert len({model.digest for model in models}) == 1
    return models[0]


def check(model: Model, folder: Path, name: str) -> None:
    """The model, its summary and its history have the bits of the uninterrupted run."""
    expected = TRUTHS[folder]["runs"][name]
    assert model.digest == expected["digest"]
    assert {key: model.summary[key] for key in expected["summary"]} == expected["summary"]
    assert model.history == expected["history"]


def copied(folder: Path, name: str, place: Path) -> str:
    """A new checkpoint folder with the golden checkpoint of a run."""
    place.mkdir()
    step = TRUTHS[folder]["runs"][name]["step"]
    shutil.copy(folder / f"{name}-checkpoint.h5", place / f"step-{step:012d}.h5")
    return str(place)


def test_there_are_golden_files() -> None:
    assert "0.1" in {folder.name for folder in TRUTHS}


@each("runs")
def test_the_whole_run_still_has_its_bits(folder: Path, name: str) -> None:
    check(train(folder, name), folder, name)


@each("runs")
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_checkpoint_is_continued(folder: Path, name: str, ranks: int, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    saved = copied(folder, name, tmp_path / "moved")
    check(train(folder, name, ranks, checkpoint=saved, log=str(log)), folder, name)
    logged = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [record["step"] for record in logged if record["event"] in ("epoch", "validation")]
    assert steps, "nothing was done"
    assert min(steps) > TRUTHS[folder]["runs"][name]["step"], "the run began anew"


@pytest.fixture
def renamed_callbacks() -> Iterator[None]:
    """Give the callbacks that have a state other class names."""
    names = {callback: callback.__name__ for callback in (EarlyStop, History, Tolerance)}
    for callback, name in names.items():
        callback.__name__ = f"Renamed{name}"
    yield
    for callback, name in names.items():
        callback.__name__ = name


@each("runs")
@pytest.mark.usefixtures("renamed_callbacks")
def test_a_checkpoint_is_continued_after_a_renaming(
    folder: Path,
    name: str,
    tmp_path: Path,
) -> None:
    """The names in the file are those of `state_name`, which a new class name does not change."""
    saved = copied(folder, name, tmp_path / "moved")
    check(train(folder, name, checkpoint=saved), folder, name)


@each_folder
def test_callbacks_restore_their_state(folder: Path) -> None:
    """What a callback returns as its state after `restore` is what the checkpoint holds."""
    optimality: Any = SimpleNamespace(checked=(0.0, 0.0, 0.0))
    callbacks: dict[str, list[Callback]] = {
        "minibatch": [History(), EarlyStop(lambda w: {}, "auc", True, 1, 1, [])],
        "full": [History(), Tolerance(1e-6, optimality)],
    }
    for name, of_run in callbacks.items():
        parts = checkpoint.read(folder / f"{name}-checkpoint.h5").parts
        assert set(parts) == {"optimizer", "reducer", *(one.state_name for one in of_run)}
        assert name == "full" or parts["history"]["sum"].all(), "written in the middle of an epoch"
        for callback in of_run:
            saved = parts[callback.state_name]
            callback.restore(saved)
            restored = callback.state()
            assert restored.keys() == saved.keys()
            for key, array in saved.items():
                np.testing.assert_array_equal(restored[key], array)


@each("use")
def test_a_model_predicts_as_before(folder: Path, name: str, tmp_path: Path, capsys: Any) -> None:
    truth, use = TRUTHS[folder], TRUTHS[folder]["use"][name]
    model, data = folder / f"{name}-model.h5", str(folder / use["data"])
    assert mpigd.load(model).digest == truth["runs"][name]["digest"]
    policy = ["--unseen", "zero"] if data.endswith(".csv") else []
    assert not command(["evaluate", str(model), data, "--json", *policy])
    scores = json.loads(capsys.readouterr().out)
    assert {key: scores[key] for key in use["scores"]} == use["scores"]
    output, table = str(tmp_path / "predictions.h5"), tmp_path / "predictions.csv"
    assert not command(["predict", str(model), data, "-o", output, "--csv", str(table), *policy])
    assert table.read_bytes() == (folder / f"{name}-predictions.csv").read_bytes()


@each("runs")
def test_a_model_saved_again_is_the_same(folder: Path, name: str, tmp_path: Path) -> None:
    model = mpigd.load(folder / f"{name}-model.h5")
    model.save(str(tmp_path / "again.h5"))
    again = mpigd.load(tmp_path / "again.h5")
    assert again.digest == TRUTHS[folder]["runs"][name]["digest"]
    for part in ("config", "encoding", "summary", "history", "statistics"):
        assert getattr(again, part) == getattr(model, part), part


def test_there_are_encodings_of_all_versions() -> None:
    stored = TRUTHS[HERE / "0.1"]["data"].values()
    assert {data["encoding"] for data in stored} == {1, 2, 3}


@each("data")
def test_data_files_hold_the_numbers_of_before(folder: Path, name: str) -> None:
    assert describe(folder / f"{name}.h5") == TRUTHS[folder]["data"][name]


@each("imports")
def test_an_encoding_encodes_as_before(folder: Path, name: str, tmp_path: Path) -> None:
    new, like = tmp_path / "new.h5", str(folder / f"{name}.h5")
    mpigd.import_data(str(folder / "table.csv"), str(new), like=like)
    assert describe(new)["digest"] == TRUTHS[folder]["data"][name]["digest"]


@each("imports")
def test_an_import_has_the_same_bits(folder: Path, name: str, tmp_path: Path) -> None:
    new, options = tmp_path / "new.h5", TRUTHS[folder]["imports"][name]
    mpigd.import_data(str(folder / "table.csv"), str(new), **options)
    assert describe(new)["digest"] == TRUTHS[folder]["data"][name]["digest"]


@each_folder
def test_svmlight_is_imported_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.h5"
    mpigd.import_data(str(folder / "table.svm"), str(new))
    assert describe(new)["digest"] == TRUTHS[folder]["data"]["sparse"]["digest"]


@each_folder
def test_a_configuration_file_means_the_same(folder: Path) -> None:
    """After a renaming, TOML files and stored configurations must still take the old names."""
    found, places = resolve({}, str(folder / "train.toml"), {})
    assert found == from_dict(TRUTHS[folder]["toml"])
    assert places == {"data": ["dense.h5"], "output": "model.h5"}
    assert (found.batch_size, found.intercept, found.standardize) == (24, False, False)
    assert (found.learning_rate, found.class_weight) == (0.25, "yes=2.0,no=1.0")


@each_folder
def test_the_configuration_file_has_every_option(folder: Path) -> None:
    """Otherwise nothing would notice that an option was renamed without its old name."""
    text = (folder / "train.toml").read_text(encoding="utf-8").replace("-", "_")
    written = {line.partition(" = ")[0].removeprefix("no_") for line in text.splitlines()}
    for name in TRUTHS[folder]["toml"]:
        alias = FIELDS[name].metadata["alias"] if name in FIELDS else ""
        assert written & {name, alias}, name
