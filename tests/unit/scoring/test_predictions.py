"""Predictions in HDF5, CSV and Parquet files have the same contents.

This holds for any class names and any distribution of rows over ranks.
"""

from __future__ import annotations

import csv
import shlex
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpigd.__main__ import main
from mpigd.config.schema import Config
from mpigd.errors import DataError, UsageError
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring import predict as predicting
from mpigd.scoring import prediction_files
from mpigd.scoring.fitted_model import Model
from mpigd.scoring.predict import evaluate, predict
from mpigd.scoring.prediction_files import Targets
from mpigd.storage import hdf5
from tests.scenarios import fit, write
from tests.threadcomm import run
from tests.truths import generate

Array = np.ndarray[Any, Any]
ODD = (
    "Smith, John",
    'the "best"',
    "two\nlines",
    "cr\rhere",
    "",
    " blanks ",
    "Ünïcode 🙂",
    "1",
    "=1+1",
    "a;b\tc",
)


def named(model: Model, names: Sequence[str]) -> Model:
    """The model, as if its target had been text."""
    model.encoding["target"] = {"name": "label", "classes": list(names)}
    return model


def softmax(folder: Path, names: Sequence[str] = ODD) -> tuple[Model, list[str]]:
    """A model of so many classes and its data set, in three files of different length."""
    k = len(names)
    rng = np.random.default_rng(4)
    table = generate("squared", n=157, d=3)
    table.y[:] = rng.permutation(np.arange(157) % k)
    files = write(table, folder, files=3)
    return named(fit(files, loss="softmax", epochs=4), names), files


def read_hdf5(path: str) -> dict[str, list[Any]]:
    with h5py.File(path) as file:
        found: dict[str, list[Any]] = {}
        for name in file:
            data = file[name]
            values = data.asstr()[...] if h5py.check_string_dtype(data.dtype) else data[...]
            if values.ndim == 2:
                found |= {f"{name}{q}": values[:, q].tolist() for q in range(values.shape[1])}
            else:
                found[name] = values.tolist()
    return found


def read_csv(path: str) -> dict[str, list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert {len(row) for row in rows} <= {len(header)}, "no value is in another column"
    return {name: [row[j] for row in rows] for j, name in enumerate(header)}


def read_parquet(path: str) -> dict[str, list[Any]]:
    table = pq.read_table(path)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def agree(targets: Targets, n: int) -> dict[str, list[Any]]:
    """The columns of Parquet, which CSV and HDF5 must have too, to the last bit."""
    assert targets.csv is not None and targets.parquet is not None
    stored, lines, columns = (
        read_hdf5(targets.hdf5),
        read_csv(targets.csv),
        read_parquet(targets.parquet),
    )
    assert list(lines) == list(columns)
    assert {len(values) for values in columns.values()} == {n}
    for name, values in columns.items():
        texts = [repr(value) if isinstance(value, float) else str(value) for value in values]
        assert texts == lines[name], name
    beside = [name for name in columns if not name.startswith("probability_")]
    for name in beside:
        assert stored[name] == columns[name], name
    rest = [name for name in columns if name not in beside]
    for q, name in enumerate(rest):
        assert stored[f"probability{q}"] == columns[name], name
    assert len(stored) == len(columns)
    return columns


def in_folder(folder: Path) -> Targets:
    return Targets(str(folder / "p.h5"), str(folder / "p.csv"), str(folder / "p.parquet"))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("source", [False, True])
def test_classes_of_any_name(
    source: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commas, quotes, line ends and an empty name: nothing moves into another column."""
    monkeypatch.setattr(predicting, "SLAB", 20)  # some slabs cross files
    monkeypatch.setattr(prediction_files, "SLAB", 20)
    model, files = softmax(tmp_path)
    targets = in_folder(tmp_path)
    assert set(run(size, lambda comm: predict(model, files, targets, Config(), comm, source))) == {
        157
    }
    columns = agree(targets, 157)
    assert list(columns) == ["file", "row"] * source + [
        "prediction",
        *(f"probability_{name}" for name in ODD),
    ]
    X = np.concatenate([h5py.File(path)["X"][...] for path in files])
    assert columns["prediction"] == model.predict(X).tolist()
    probabilities = model.predict_proba(X)
    assert np.array_equal(
        np.column_stack([columns[f"probability_{name}"] for name in ODD]), probabilities
    )
    if source:
        lengths = [h5py.File(path)["X"].shape[0] for path in files]
        assert columns["file"] == [
            path for path, n in zip(files, lengths, strict=True) for _ in range(n)
        ]
        assert columns["row"] == [row for n in lengths for row in range(n)]


def test_files_do_not_depend_on_the_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; row groups have SLAB rows, however few a rank has."""
    monkeypatch.setattr(predicting, "SLAB", 20)
    model, files = softmax(tmp_path)
    seen = set()
    for size in (1, 2, 7):
        targets = in_folder(tmp_path)
        run(
            size, lambda comm, targets=targets: predict(model, files, targets, Config(), comm, True)
        )
        assert targets.csv and targets.parquet
        seen.add((Path(targets.csv).read_bytes(), Path(targets.parquet).read_bytes()))
        groups = pq.ParquetFile(targets.parquet).metadata
        assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [20] * 7 + [
            17
        ]
    assert len(seen) == 1


@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge", "softmax", "poisson"])
def test_numbers(loss: str, tmp_path: Path) -> None:
    table = generate(loss, n=60)
    (path,) = write(table, tmp_path)
    model, targets = fit([path], loss=loss, epochs=5), in_folder(tmp_path)
    predict(model, [path], targets, Config(), SelfComm())
    assert targets.parquet is not None
    stored, columns = read_hdf5(targets.hdf5), read_parquet(targets.parquet)
    assert columns["prediction"] == stored["prediction"] == model.predict(table.X).tolist()
    schema = pq.read_schema(targets.parquet)
    assert schema.field("prediction").type == (
        pa.int64() if model.classes is not None else pa.float64()
    )
    if loss != "softmax":
        agree_on = [name for name in columns if name != "prediction"]
        assert all(columns[name] == stored[name] for name in agree_on)
        assert agree_on == {"logistic": ["probability"], "hinge": ["margin"]}.get(loss, [])


def test_labels_that_are_fractions(tmp_path: Path) -> None:
    table = generate("logistic", n=60)
    table.y[:] = np.where(table.y == 1, 2.5, 1.0)
    (path,) = write(table, tmp_path)
    model, targets = fit([path], loss="logistic", epochs=5), in_folder(tmp_path)
    predict(model, [path], targets, Config(), SelfComm())
    assert targets.csv and targets.parquet
    assert set(read_csv(targets.csv)["prediction"]) == {"1", "2.5"}
    assert set(read_parquet(targets.parquet)["prediction"]) == {1.0, 2.5}


# Ids.


def with_ids(files: Sequence[str], ids: Array, varying: bool = False) -> None:
    start = 0
    for path in files:
        with h5py.File(path, "r+") as file:
            n = file["X"].shape[0]
            part = ids[start : start + n]
            if varying:
                file["id"] = [text.decode() for text in part.tolist()]
            elif part.dtype.kind == "S":
                width = max(
                    1, max(map(len, part.tolist()))
                )  # each file has texts of a length of its own
                file["id"] = part.astype(h5py.string_dtype("utf-8", width))
            else:
                file["id"] = part
            start += n


IDS = {
    "whole": np.arange(157, dtype=np.int64) * 10**15 - 7,
    "small": (np.arange(157) % 100).astype(np.int8),
    "large": np.uint64(2**64 - 1) - np.arange(157, dtype=np.uint64),
    "texts": np.array([f'id, {i} "ü"\n'.encode() * (1 + i % 3) for i in range(157)]),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", [*IDS, "varying texts"])
def test_ids(kind: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "SLAB", 20)
    model, files = softmax(tmp_path, ("a", "b"))
    with_ids(files, IDS[kind.removeprefix("varying ")], kind.startswith("varying"))
    targets = in_folder(tmp_path)
    run(size, lambda comm: predict(model, files, targets, Config(), comm, True))
    columns = agree(targets, 157)
    assert list(columns)[:4] == ["id", "file", "row", "prediction"]
    expected = (
        IDS[kind].tolist()
        if "texts" not in kind
        else [text.decode() for text in IDS["texts"].tolist()]
    )
    assert columns["id"] == expected


def test_ids_that_do_not_fit(tmp_path: Path) -> None:
    model, files = softmax(tmp_path, ("a", "b"))
    out = Targets(str(tmp_path / "p.h5"))
    with_ids(files[:1], IDS["whole"])

    def attempt(comm: Comm) -> str:
        with pytest.raises(DataError) as caught:
            predict(model, files, out, Config(), comm)
        return str(caught.value)

    assert set(run(2, attempt)) == {f"{files[1]}: 'id' holds none, but numbers in {files[0]}"}
    with_ids(files[1:], IDS["texts"])
    with pytest.raises(DataError, match=r"part1\.h5: 'id' holds texts, but numbers in .*part0\.h5"):
        predict(model, files, out, Config(), SelfComm())
    with h5py.File(files[1], "r+") as file:
        del file["id"]
        file["id"] = np.full(file["X"].shape[0], 2**63, dtype=np.uint64)
    with pytest.raises(DataError, match="use one type in all files"):
        predict(model, files[:2], out, Config(), SelfComm())
    with h5py.File(files[2], "r+") as file:
        file["id"][5] = b"\xff\xfe"
    with pytest.raises(DataError, match=r"part2\.h5: 'id' row 5 is b'\\xff\\xfe': not UTF-8"):
        predict(model, files[2:], out, Config(), SelfComm())


@pytest.mark.parametrize("ids", [np.arange(157.0), np.arange(3), [["x"]] * 157, ["x" * 1025] * 157])
def test_ids_that_cannot_be_copied_are_said(ids: Any, tmp_path: Path) -> None:
    """Nothing is left out silently; the predictions come all the same."""
    model, files = softmax(tmp_path, ("a", "b"))
    with h5py.File(files[0], "r+") as file:
        n = file["X"].shape[0]
        file["id"] = ids[:n] if len(ids) > n else ids
    said: list[str] = []
    assert (
        predict(
            model,
            files[:1],
            Targets(str(tmp_path / "p.h5")),
            Config(),
            SelfComm(),
            note=said.append,
        )
        == n
    )
    assert (
        len(said) == 1
        and said[0].startswith(f"{files[0]}: 'id' ")
        and said[0].endswith("not copied to the predictions")
    )
    assert "id" not in read_hdf5(str(tmp_path / "p.h5"))


# Raw tables.


def test_rows_that_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file made of raw tables, of which rows were left out, says where the others come from."""
    monkeypatch.setattr(predicting, "SLAB", 20)
    model, files = softmax(tmp_path, ("a", "b"))
    rows = np.concatenate([np.delete(np.arange(60), [0, 7, 59]), np.arange(3, 103)])
    tables = np.repeat([0, 1], [57, 100])
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["X"] = np.concatenate([h5py.File(path)["X"][...] for path in files])
        file["source_file"], file["source_row"] = tables.astype(np.int32), rows
        hdf5.write_json(file, "sources", ["a, b.csv", "dir/part-1.csv"])
    targets = in_folder(tmp_path)
    run(3, lambda comm: predict(model, [str(tmp_path / "data.h5")], targets, Config(), comm, True))
    columns = agree(targets, 157)
    assert columns["row"] == rows.tolist()
    assert columns["file"] == ["a, b.csv"] * 57 + ["dir/part-1.csv"] * 100


# What is refused, and what is said.


def test_files_that_would_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, files = softmax(tmp_path, ("a", "b"))
    model.save("model.h5")
    before = Path(files[0]).read_bytes()
    for words, option in (
        (["-o", "part0.h5"], "-o part0.h5 would replace a file that is read"),
        (["-o", "model.h5"], "-o model.h5 would replace a file that is read"),
        (["--csv", "part0.h5"], "--csv part0.h5 would replace a file that is read"),
        (["--csv", "x", "--parquet", "./x"], "--parquet ./x is the file of --csv as well"),
        (["-o", "part0.h5", "--csv"], "-o part0.h5 would replace"),
    ):
        with pytest.raises(UsageError, match=option):
            given = main_arguments(["predict", "model.h5", "part0.h5", *words])
            predict(
                model,
                given.data,
                prediction_files.targets_of(given.output, given.csv, given.parquet),
                Config(),
                SelfComm(),
                models=["model.h5"],
            )
        assert main(["predict", "model.h5", "part0.h5", *words]) == 2
        assert main(["predict", "model.h5", "part*.h5", *words]) == 2
    assert Path(files[0]).read_bytes() == before


def main_arguments(words: list[str]) -> Any:
    from mpigd.commands.parser import parser

    return parser().parse_args(words)


@pytest.mark.parametrize("folder", [False, True])
def test_a_raw_table_is_not_replaced(
    folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-o test.h5 --csv` would have written predictions over test.csv."""
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("d/test.csv").write_text(
        "x,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(40)), encoding="utf-8"
    )
    before = Path("d/test.csv").read_bytes()
    assert main(["import", "d/test.csv", "-o", "train.h5", "--target", "y"]) == 0
    assert main(["train", "train.h5", "-o", "model.h5", "--loss", "logistic", "--l2", "1"]) == 0
    assert (
        main(["predict", "model.h5", "d" if folder else "d/test.csv", "-o", "d/test.h5", "--csv"])
        == 2
    )
    assert Path("d/test.csv").read_bytes() == before
    assert (
        main(["predict", "model.h5", "d" if folder else "d/test.csv", "-o", "d/p.h5", "--csv"]) == 0
    )
    assert len(read_csv("d/p.csv")["prediction"]) == 40


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_hdf5_by_another_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """-o out.csv was an HDF5 file. The advice is taken as it stands."""
    monkeypatch.chdir(tmp_path)
    model, _ = softmax(tmp_path, ("a", "b"))
    model.save("model.h5")
    words = ["predict", "model.h5", "part0.h5"]
    assert main([*words, "-o", f"my out.{kind}"]) == 2
    assert (
        main([*words, *shlex.split(capsys.readouterr().err.partition("HDF5 file: use ")[2])]) == 0
    )
    assert Path(f"my out.{kind}").read_bytes()[:4] == (b"PAR1" if kind == "parquet" else b"pred")


def test_names_of_files_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, _ = softmax(tmp_path, ("a", "b"))
    model.save("model.h5")
    assert (
        main(
            [
                "predict",
                "model.h5",
                "part*.h5",
                "-o",
                "out.h5",
                "--csv",
                "--parquet",
                "--with-source",
            ]
        )
        == 0
    )
    columns = agree(Targets("out.h5", "out.csv", "out.parquet"), 157)
    assert sorted(set(columns["file"])) == ["part0.h5", "part1.h5", "part2.h5"]


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, files = softmax(tmp_path, ("a", "b"))
    with pytest.raises(UsageError, match=r"^--parquet needs pyarrow: pip install pyarrow$"):
        predict(model, files, in_folder(tmp_path), Config(), SelfComm())
    assert not Path(in_folder(tmp_path).hdf5).exists()


def elsewhere() -> bool:
    return threading.current_thread().name == "rank 1"


def test_only_the_rank_that_writes_needs_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, files = softmax(tmp_path, ("a", "b"))
    monkeypatch.setattr(
        "mpigd.scoring.prediction_files.importlib.util.find_spec",
        lambda name: None if elsewhere() else name,
    )
    targets = in_folder(tmp_path)
    assert run(2, lambda comm: predict(model, files, targets, Config(), comm)) == [157, 157]
    agree(targets, 157)


def test_a_folder_that_another_rank_sees_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the data are raw tables is decided by rank 0."""
    model, files = softmax(tmp_path, ("a", "b"))
    alone = evaluate(model, files, Config(), SelfComm())
    monkeypatch.setattr("mpigd.tables.importer.is_raw", lambda path: elsewhere())
    assert run(2, lambda comm: evaluate(model, files, Config(), comm)) == [alone, alone]

    def unreadable(path: str) -> bool:
        raise DataError(f"{path}: cannot be listed")

    monkeypatch.setattr("mpigd.tables.importer.is_raw", unreadable)
    with pytest.raises(DataError, match="cannot be listed") as caught:
        run(2, lambda comm: evaluate(model, files, Config(), comm))
    assert caught.value.agreed


def test_predictions_that_are_not_finite_are_said(tmp_path: Path) -> None:
    table = generate("poisson", n=40)
    (path,) = write(table, tmp_path)
    model = fit([path], loss="poisson")
    with h5py.File(path, "r+") as file:
        file["X"][17] = file["X"][31] = 1e4 * np.sign(model.coef[0])
    said: list[str] = []
    targets = in_folder(tmp_path)
    predict(model, [path], targets, Config(), SelfComm(), note=said.append)
    (told,) = said
    assert told.startswith(f"predictions of 2 rows are not finite (first: {path} row 17)")
    assert agree(targets, 40)["prediction"][17] == float("inf")


def test_a_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, files = softmax(tmp_path, ("a", "b"))
    targets = in_folder(tmp_path)

    def fail(self: Any, slab: Any) -> None:
        raise DataError("in the middle")

    monkeypatch.setattr(prediction_files.Arrow, "append", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="in the middle"):
        predict(model, files, targets, Config(), SelfComm())
    assert sorted(tmp_path.iterdir()) == before
