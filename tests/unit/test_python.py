"""The package as a library: what may be passed, and that mistakes are errors of the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpigd
from mpigd.config.schema import Config
from mpigd.errors import DataError, StorageError, UsageError
from tests.scenarios import write
from tests.truths import generate

TABLE = generate("squared", n=40)
ROWS = (TABLE.X, TABLE.y)


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    files = [Path(path) for path in write(TABLE, tmp_path, 2)]
    digests = {
        mpigd.train(paths).digest for paths in (files, tuple(files), [str(path) for path in files])
    }
    model = mpigd.train(files)
    model.save(str(tmp_path / "model.h5"))
    assert digests == {mpigd.load(tmp_path / "model.h5").digest}


def test_import_takes_path_objects(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,2\n3,4\n")
    assert mpigd.import_data(tmp_path / "table.csv", tmp_path / "table.h5", target="b").rows == 2
    with pytest.raises(
        UsageError, match="--format xls: expected csv, parquet, arrow, orc, svmlight"
    ):
        mpigd.import_data(tmp_path / "table.csv", tmp_path / "table.h5", target="b", format="xls")


def test_options_beside_a_config_are_those_of_the_command() -> None:
    config = Config(l2=0.1, quiet=True)
    assert mpigd.train(ROWS, config, lr=0.01, epochs=2).config.learning_rate == 0.01
    assert not mpigd.train(ROWS, config, no_intercept=True).config.intercept
    with pytest.raises(UsageError, match="unknown option 'epocs': did you mean 'epochs'"):
        mpigd.train(ROWS, config, epocs=3)
    with pytest.raises(
        DataError, match=r"none\.h5: no such file"
    ):  # one path, not a sequence of letters
        mpigd.train(ROWS, config, validation="none.h5")


@pytest.mark.parametrize(
    "data", [TABLE.X, list(ROWS), 3, [1, 2]], ids=["array", "list", "number", "numbers"]
)
def test_what_is_no_data(data: Any) -> None:
    with pytest.raises(UsageError, match="data are paths, or a tuple of this rank's arrays"):
        mpigd.train(data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of an imported table, and raw tables to use it on."""
    counts = np.random.default_rng(0).poisson(2.0, 30)
    (tmp_path / "train.csv").write_text(
        "a,count\n" + "".join(f"{i / 7},{c}\n" for i, c in enumerate(counts))
    )
    (tmp_path / "bare.csv").write_text("a\n1\n2\n")
    (tmp_path / "minus.csv").write_text("a,count\n1,2\n2,-1\n")
    monkeypatch.chdir(tmp_path)
    mpigd.import_data("train.csv", "train.h5", target="count")
    mpigd.train("train.h5", loss="poisson").save("model.h5")
    return tmp_path


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("bare.csv", "^bare.csv: no column 'count', the target of the training data"),
        ("minus.csv", "^minus.csv row 1: y is -1: the poisson loss"),
    ],
)
def test_messages_on_raw_tables_name_the_users_file(table: str, words: str, folder: Path) -> None:
    from mpigd.parallel.comm import SelfComm
    from mpigd.scoring.predict import evaluate

    before = sorted(folder.iterdir())
    with pytest.raises(DataError, match=words):
        evaluate(mpigd.load("model.h5"), [table], Config(), SelfComm())
    assert sorted(folder.iterdir()) == before, "no temporary folder stays"


def test_a_temporary_folder_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpigd.parallel.comm import SelfComm
    from mpigd.scoring.predict import evaluate

    monkeypatch.setenv("MPIGD_TMPDIR", str(folder / "none"))
    with pytest.raises(StorageError, match=r"none: no folder .*No such file"):
        evaluate(mpigd.load("model.h5"), ["train.csv"], Config(), SelfComm())


def test_plan_and_info_under_a_launcher_speak_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mpigd.__main__ import main

    monkeypatch.setenv("PMI_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("PMI_RANK", str(rank))
        for command in ("plan", "info"):
            assert main([command, "train.h5"]) == 0
            assert bool(capsys.readouterr().out) == (rank == 0)


def test_info_names_a_target_only_where_there_is_one(folder: Path) -> None:
    from mpigd.commands.info import describe

    mpigd.import_data("bare.csv", "bare.h5", like="train.h5")
    assert [describe(name)["target"] for name in ("train.h5", "bare.h5")] == ["count", None]


def test_a_file_that_a_notebook_has_open(folder: Path) -> None:
    import h5py

    with h5py.File("train.h5"):
        assert mpigd.train("train.h5", loss="poisson").digest == mpigd.load("model.h5").digest
