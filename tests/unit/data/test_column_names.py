"""Columns are compared by name if a file has names.

Otherwise a note says that their order is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mpigd
from mpigd.commands.info import describe
from mpigd.config.schema import Config
from mpigd.data import column_names
from mpigd.data.loading import Layout, load
from mpigd.errors import DataError
from mpigd.parallel.comm import SelfComm
from mpigd.scoring.predict import evaluate, predict
from mpigd.scoring.prediction_files import Targets
from mpigd.storage import attribute_text, hdf5
from tests.scenarios import fit
from tests.threadcomm import run

N = 60
Array = np.ndarray[Any, Any]
Put = Callable[[h5py.File, list[str]], None]
COLUMNS = {
    name: np.random.default_rng(k).standard_normal(N)
    for k, name in enumerate(("age", "größe", "c"))
}
Y = COLUMNS["age"] + 2 * COLUMNS["größe"] - COLUMNS["c"] + np.arange(N) % 2


def in_var(key: str, attribute: Any) -> Put:
    def put(file: h5py.File, columns: list[str]) -> None:
        group = file.create_group("var")
        group[key] = columns
        if attribute is not None:
            group.attrs["_index"] = attribute

    return put


def fixed(file: h5py.File, columns: list[str]) -> None:
    file["X"].attrs["feature_names"] = hdf5.texts(columns)


WAYS: dict[str, Put] = {
    "a dataset": lambda file, columns: file.__setitem__("feature_names", columns),
    "a dataset of fixed length": lambda file, columns: file.__setitem__(
        "columns", hdf5.texts(columns)
    ),
    "an attribute": lambda file, columns: file.attrs.__setitem__("feature_names", columns),
    "an attribute of X": lambda file, columns: file["X"].attrs.__setitem__("column_names", columns),
    "an attribute of fixed length": fixed,
    "AnnData": in_var("_index", "_index"),
    "AnnData with a named index": in_var("gene_ids", "gene_ids"),
    "AnnData with a name of fixed length": in_var("gene_ids", np.bytes_(b"gene_ids")),
}


def write(path: Path, put: Put | None = None, order: str = "age größe c") -> Path:
    columns = order.split()
    with h5py.File(path, "w") as file:
        file["X"], file["y"] = np.column_stack([COLUMNS[name] for name in columns]), Y
        if put:
            put(file, columns)
    return path


def refusal(paths: list[Path], **layout: Any) -> str:
    found = set()
    for size in (1, 2):
        with pytest.raises(DataError) as caught:
            run(size, lambda comm: load([str(path) for path in paths], Layout(**layout), comm))
        found.add(str(caught.value))
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("way", WAYS)
def test_names_are_found_kept_and_compared(way: str, tmp_path: Path) -> None:
    path, turned = (
        write(tmp_path / "a.h5", WAYS[way]),
        write(tmp_path / "b.h5", WAYS[way], "age c größe"),
    )
    model = fit([str(path)])
    assert (
        model.encoding["feature_names"]
        == ["age", "größe", "c"]
        == describe(str(path))["feature_names"]
    )
    assert model.digest == fit([str(write(tmp_path / "none.h5"))]).digest
    message = refusal([path, turned])
    assert message == (
        f"{turned}: column 1 is 'c', but in {path} it is 'größe' "
        "(the same columns in another order)"
    )
    for use in (
        lambda: evaluate(model, [str(turned)], Config(), SelfComm()),
        lambda: fit([str(path)], validation=[str(turned)]),
        lambda: fit([str(turned)], start=str(tmp_path / "model.h5")),
    ):
        model.save(str(tmp_path / "model.h5"))
        with pytest.raises(
            DataError,
            match=r"b\.h5: column 1 is 'c', but .* 'größe' \(the same columns in another order\)",
        ):
            use()


def test_names_of_different_places_are_the_same_names(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{k}.h5", put) for k, put in enumerate(WAYS.values())]
    assert load([str(path) for path in paths], Layout(), SelfComm()).feature_names == [
        "age",
        "größe",
        "c",
    ]


def test_names_of_some_files_only(tmp_path: Path) -> None:
    """Nothing tells whether the columns are the same; what the message advises is right."""
    named, bare = write(tmp_path / "a.h5", WAYS["AnnData"]), write(tmp_path / "b.h5")
    for paths in ([named, bare], [bare, named]):
        message = refusal(paths)
        assert message.startswith(f"{bare} has no names of columns, and {named} has: ")
        assert message.endswith("(store them in it as 'feature_names')")
    with h5py.File(bare, "r+") as file:
        file["feature_names"] = ["age", "größe", "c"]
    assert load([str(named), str(bare)], Layout(), SelfComm()).n == 2 * N


def test_a_wrong_number_of_names(tmp_path: Path) -> None:
    def put(file: h5py.File, columns: list[str]) -> None:
        file["feature_names"] = columns[:2]

    assert "'feature_names' has 2 names, but 'X' has 3 columns" in refusal(
        [write(tmp_path / "a.h5", put)]
    )


def test_what_only_looks_like_names(tmp_path: Path) -> None:
    def put(file: h5py.File, columns: list[str]) -> None:
        file["columns"], file.attrs["feature_names"] = np.arange(3), 7
        file["column_names"] = ["too", "few"]
        file.create_group("var").attrs["_index"] = "none"

    assert load([str(write(tmp_path / "a.h5", put))], Layout(), SelfComm()).feature_names is None


def imported(folder: Path, name: str, header: str, rows: str, **options: Any) -> str:
    (folder / f"{name}.csv").write_text(header + "\n" + rows)
    mpigd.import_data(str(folder / f"{name}.csv"), folder / f"{name}.h5", target="y", **options)
    return str(folder / f"{name}.h5")


def test_files_that_were_imported_otherwise(tmp_path: Path) -> None:
    """The message names the first column that differs, not two hashes.

    If all columns are there, it names what else is different.
    """
    numbers = "".join(f"{k},{k * k % 7},{k % 3}\n" for k in range(20))
    first, turned = (
        imported(tmp_path, "a", "u,v,y", numbers),
        imported(tmp_path, "b", "v,u,y", numbers),
    )
    message = refusal([Path(first), Path(turned)])
    assert message == (
        f"{turned}: column 0 is 'v', but in {first} it is 'u' (the same columns in another order)"
    )
    gaps = imported(tmp_path, "c", "u,v,y", numbers + ",,1\n", missing="zero")
    message = refusal([Path(first), Path(gaps)])
    assert "column 'u' was imported with another" in message or "missing is not as in" in message
    assert first in message and gaps in message and "`mpigd import --like`" in message
    mpigd.import_data(str(tmp_path / "b.csv"), tmp_path / "like.h5", like=first)
    assert load([first, str(tmp_path / "like.h5")], Layout(), SelfComm()).n == 40
    bare = write(tmp_path / "bare.h5")
    with h5py.File(bare, "r+") as file:
        del file["X"]
        file["X"] = np.ones((N, 2), "f4")
    assert "bare.h5 has no encoding, and" in refusal([Path(first), bare])


def test_an_encoding_without_a_reason(tmp_path: Path) -> None:
    one, two = (
        {"feature_names": ["a"], "dtype": "float32"},
        {"feature_names": ["a"], "dtype": "float64"},
    )
    with pytest.raises(DataError, match=r"b\.h5: dtype is not as in a\.h5"):
        column_names.check_same_encoding("b.h5", two, "a.h5", one)
    with pytest.raises(
        DataError, match=r"b\.h5: column 'a' was imported with another kind than in a\.h5"
    ):
        column_names.check_same_encoding(
            "b.h5",
            {"columns": [{"name": "a", "kind": "number"}]},
            "a.h5",
            {"columns": [{"name": "a", "kind": "text"}]},
        )
    with pytest.raises(DataError, match=r"b\.h5: has 1 names of columns, but in a\.h5 2"):
        column_names.check_same("b.h5", ["a"], "in a.h5", ["a", "b"])


def test_a_note_where_the_order_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, bare = str(write(tmp_path / "a.h5", WAYS["a dataset"])), str(write(tmp_path / "b.h5"))
    model, note = (
        fit([named]),
        "{} has no names of columns: they are taken in the order that the model was trained on",
    )
    told: list[str] = []

    def uses(data: str) -> list[Callable[..., Any]]:
        return [
            lambda comm: evaluate(model, [data], Config(), comm, note=told.append),
            lambda comm: predict(
                model, [data], Targets(str(tmp_path / "out.h5")), Config(), comm, note=told.append
            ),
        ]

    for use in uses(bare):
        for size in (1, 2):
            told.clear()
            run(size, use)
            assert told == [note.format(bare)]
    told.clear()
    for use in uses(named):
        use(SelfComm())
    model = fit([bare])
    for use in (*uses(named), *uses(bare)):
        use(SelfComm())
    assert not told
    capsys.readouterr()
    fit([named], validation=[bare], quiet=False)
    assert capsys.readouterr().err == f"note: {note.format(bare)}\n"
    fit([named], validation=[bare], quiet=True)
    assert capsys.readouterr().err == ""


def test_raw_tables_need_a_model_of_imported_data(tmp_path: Path) -> None:
    """Names alone do not tell how a table is encoded."""
    model = fit([str(write(tmp_path / "a.h5", WAYS["a dataset"]))])
    (tmp_path / "new.csv").write_text("age,größe,c\n1,2,3\n")
    with pytest.raises(DataError, match="was not trained on imported data"):
        evaluate(model, [str(tmp_path / "new.csv")], Config(), SelfComm())


# Attributes of variable length, which are read without HDF5


@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
@pytest.mark.parametrize("others", [0, 4, 30])
@pytest.mark.parametrize("userblock", [0, 512])
def test_attributes_are_read_from_the_header(
    libver: str, others: int, userblock: int, tmp_path: Path
) -> None:
    """Attributes are read from every version of the header, and from its later blocks too.

    New files store many attributes outside the header; these are not read.
    """
    path, columns = tmp_path / "a.h5", ["age", "größe", "", "a longer name " * 20]
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        file["X"] = np.ones((3, 4))
        for item in (file, file["X"]):
            for number in range(others):
                item.attrs[f"other{number}"] = ["some", "texts"]
            item.attrs["columns"] = columns
            item.attrs["one"] = "größe"
            item.attrs["none"] = np.array([], dtype=h5py.string_dtype())
    expected = {
        "columns": [name.encode() for name in columns],
        "one": ["größe".encode()],
        "none": [],
    }
    with hdf5.open_read(path) as file:
        for item in (file, file.raw("X")):
            for key, texts in expected.items():
                found = attribute_text.texts(item, key, "here")
                assert found == (None if others > 6 and libver != "earliest" else texts)


def test_damage_of_a_heap_is_an_error_and_no_loop(tmp_path: Path) -> None:
    """Each bit of heap and header is flipped: the result is names, mpigd's error, or nothing.

    HDF5 itself would loop for ever on some of these files.
    """
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["X"], file.attrs["feature_names"] = np.ones((5, 3)), ["a", "bb", "ccc"]
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")
    found = set()
    for bit in range(8 * 96):
        damaged = bytearray(whole)
        damaged[heap + bit // 8] ^= 1 << bit % 8
        path.with_name(f"{bit}.h5").write_bytes(damaged)
        with hdf5.open_read(path.with_name(f"{bit}.h5")) as file:
            try:
                found.add(str(column_names.columns(file, "X", 3)))
            except DataError as error:
                assert "attribute 'feature_names' is damaged: " in str(error)
                found.add("damaged")
    assert {"damaged", "['a', 'bb', 'ccc']"} < found


def test_a_header_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["X"] = np.ones((5, 3))
        for number in range(6):
            file.attrs[f"other{number}"] = ["text"] * 20
        file.attrs["feature_names"] = ["a", "b", "c"]
    raw = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        start = h5py.h5o.get_info(file.id).addr + 16
    at = start
    while raw[at] != attribute_text.CONTINUATION:
        at += 8 + int.from_bytes(raw[at + 2 : at + 4], "little")
    with hdf5.open_read(path) as file:
        raw[at + 8 : at + 24] = start.to_bytes(8, "little") + (at + 24 - start).to_bytes(
            8, "little"
        )
        path.write_bytes(raw)  # HDF5 has read it before
        with pytest.raises(DataError, match="is damaged: the header of its object has no end"):
            attribute_text.texts(file, "feature_names", "a.h5")
