"""Files that cannot be used.

Every rank reports the fault with the same line, which names file, dataset and row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.data.loading import Layout, load, read, survey
from mpigd.errors import DataError
from mpigd.parallel.comm import Comm
from tests.scenarios import PLACES, fit, write
from tests.threadcomm import run
from tests.truths import Table, generate


def damaged(
    change: Callable[[h5py.File], None], folder: Path, as_csr: bool = False, files: int = 3
) -> list[str]:
    """Files of which the last, of 28 rows with no zeros, has been changed."""
    paths = write(generate("squared", n=60, weights=True, holes=0.0), folder, files, as_csr)
    with h5py.File(paths[-1], "r+") as file:
        change(file)
    return paths


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def spoil(name: str, index: Any, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][index] = value

    return change


def told(encoding: Any = "csr_matrix", shape: Any = (28, 4)) -> Callable[[h5py.File], None]:
    return lambda file: file["X"].attrs.update(
        {"encoding-type": encoding, "shape": np.array(shape)}
    )


FAULTS = {
    "nan": (spoil("X", (7, 2), np.nan), "part2.h5: 'X' row 7 column 2 is nan: not a finite number"),
    "infinity": (
        spoil("X", (0, 0), -np.inf),
        "part2.h5: 'X' row 0 column 0 is -inf: not a finite number",
    ),
    "nan in y": (spoil("y", 5, np.nan), "part2.h5: 'y' row 5 is nan: not a finite number"),
    "infinite weight": (
        spoil("sample_weight", 27, np.inf),
        "part2.h5: 'sample_weight' row 27 is inf: not a finite number",
    ),
    "negative weight": (
        spoil("sample_weight", 5, -2),
        "part2.h5: 'sample_weight' row 5 is -2.0: weights are at least 0",
    ),
    "text in one file": (put("y", np.array([b"yes"] * 28)), "part0.h5: 'y' holds numbers, but in "),
    "text": (
        put("sample_weight", np.array([b"yes"] * 28)),
        "part2.h5: 'sample_weight' holds text, expected numbers",
    ),
    "short y": (put("y", np.zeros(27)), "part2.h5: 'y' has shape (27,), expected (28,)"),
    "square y": (put("y", np.zeros((28, 2))), "part2.h5: 'y' has shape (28, 2), expected (28,)"),
    "flat X": (put("X", np.zeros(28)), "part2.h5: 'X' has shape (28,), expected (rows, columns)"),
    "complex X": (
        put("X", np.zeros((28, 4), complex)),
        "part2.h5: 'X' holds complex128, expected numbers",
    ),
    "columns": (put("X", np.zeros((28, 5))), "part2.h5: columns 5 do not match 4 of"),
    "no X": (
        lambda file: file.__delitem__("X"),
        "part2.h5: no dataset 'X'; it has sample_weight, y (name it with --x)",
    ),
    "no y": (lambda file: file.__delitem__("y"), "part2.h5: target False do not match True"),
    "no weights": (lambda file: file.__delitem__("sample_weight"), "part2.h5: extra datasets"),
}
SPARSE_FAULTS = {
    "nan": (spoil("X/data", 0, np.nan), "part2.h5: 'X' row 0 column 0 is nan: not a finite number"),
    "column outside": (
        spoil("X/indices", 0, 4),
        "part2.h5: 'X' row 0 has a column twice or outside 0..3",
    ),
    "column twice": (
        spoil("X/indices", 9, 0),
        "part2.h5: 'X' row 2 has a column twice or outside 0..3",
    ),
    "descending": (spoil("X/indptr", 3, 99), "part2.h5: 'X': indptr does not ascend"),
    "a difference that overflows": (
        put("X/indptr", np.append(np.arange(0, 112, 4), -(2**63))),
        "part2.h5: 'X': indptr does not ascend",
    ),
    "beyond the end": (spoil("X/indptr", 28, 10**9), "part2.h5: 'X': indptr"),
    "shape": (
        lambda file: file["X"].attrs.update({"shape": [29, 4]}),
        "part2.h5: 'X': shape [29, 4] does not fit indptr",
    ),
    "csc": (told(encoding=np.bytes_("csc_matrix")), "'csc_matrix', expected 'csr_matrix'"),
    "csc of four rows": (
        told(encoding="csc_matrix", shape=[4, 28]),
        "'csc_matrix', expected 'csr_matrix'",
    ),
    "square csc": (
        told(encoding="csc_matrix", shape=[28, 28]),
        "'csc_matrix', expected 'csr_matrix'",
    ),
    "real shape": (
        told(shape=[28.0, 4.0]),
        "part2.h5: 'X': shape [28.0, 4.0] is none of rows and columns",
    ),
    "no shape": (
        lambda file: file["X"].attrs.__delitem__("shape"),
        "part2.h5: group 'X' has no encoding-type and shape",
    ),
    "real indices": (
        put("X/indices", np.zeros(112)),
        "part2.h5: 'X': indices and indptr must be whole numbers",
    ),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, size: int, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    refused(damaged(change, tmp_path), size, message)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("fault", SPARSE_FAULTS)
def test_sparse_faults(fault: str, size: int, tmp_path: Path) -> None:
    change, message = SPARSE_FAULTS[fault]
    refused(damaged(change, tmp_path, as_csr=True), size, message)


def refused(paths: Sequence[str], size: int, message: str, **layout: Any) -> None:
    """Every rank raises the same one line, for every partition."""
    for partition in PLACES:

        def attempt(comm: Comm, partition: str = partition) -> DataError:
            with pytest.raises(DataError) as caught:
                load(paths, Layout(partition=partition, **layout), comm)
            return caught.value

        errors = run(size, attempt)
        assert all(error.agreed for error in errors)
        assert len({str(error) for error in errors}) == 1
        assert message in str(errors[0])
        assert "\n" not in str(errors[0])


@pytest.mark.parametrize("size", [1, 3])
def test_files_that_are_none(size: int, tmp_path: Path) -> None:
    good = write(generate("squared", n=20), tmp_path)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "folder").mkdir()
    refused([*good, str(tmp_path / "none.h5")], size, "none.h5: no such file")
    refused(
        [str(tmp_path / "table.csv"), *good],
        size,
        "table.csv: not an HDF5 file (raw tables become one with `mpigd import`)",
    )
    refused([*good, str(tmp_path / "folder")], size, "folder: is a folder; name the files in it")
    refused([str(tmp_path / "*.nothing")], size, "*.nothing: no file matches")
    refused([], size, "no data given")
    refused(good, size, "no target 'label' (name it with --y)", y="label")


@pytest.mark.parametrize("size", [1, 3])
def test_nothing_inside(size: int, tmp_path: Path) -> None:
    empty = write(Table(np.zeros((0, 4)), np.zeros(0)), tmp_path)
    refused(empty, size, "part0.h5: 'X' has no rows")
    thin = write(Table(np.zeros((5, 0)), np.zeros(5)), tmp_path, as_csr=True)
    refused(thin, size, "part0.h5: 'X' has no columns")


@pytest.mark.parametrize("size", [1, 2])
def test_half_a_file(size: int, tmp_path: Path) -> None:
    paths = write(generate("squared", n=500), tmp_path)
    raw = Path(paths[0]).read_bytes()
    Path(paths[0]).write_bytes(raw[: len(raw) * 2 // 3])
    refused(paths, size, "part0.h5: ")


def test_numbers_too_large_for_float32(tmp_path: Path) -> None:
    paths = damaged(spoil("X", (3, 1), 1e100), tmp_path)
    refused(
        paths,
        2,
        "part2.h5: 'X' row 3 column 1: 1e+100 does not fit float32 (use --dtype float64)",
        dtype="float32",
    )


KEPT: dict[str, dict[str, Any]] = {
    "in memory": {},
    "as float32": dict(dtype="float32"),
    "as halves": dict(dtype="float16"),
    "streamed": dict(max_memory=100),
    "streamed as halves": dict(max_memory=100, dtype="float16"),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", ["f2", ">f4", "f8"])
@pytest.mark.parametrize("kept", KEPT)
def test_numbers_that_are_not_finite_however_they_are_kept(
    kept: str, stored: str, value: float, tmp_path: Path
) -> None:
    """By file, dataset, row and column, on all ranks together, before anything is trained."""
    X = np.ones((28, 4), stored)
    X[19, 3] = value
    paths = damaged(put("X", X), tmp_path)
    message = f"part2.h5: 'X' row 19 column 3 is {value}: not a finite number"
    for size in (1, 3):

        def attempt(comm: Comm) -> DataError:
            with pytest.raises(DataError) as caught:
                load(paths, Layout(**KEPT[kept]), comm) if "halves" not in kept else read_as(
                    paths, KEPT[kept], comm
                )
            return caught.value

        errors = run(size, attempt)
        assert all(error.agreed and str(error).endswith(message) for error in errors), errors


def read_as(paths: Sequence[str], layout: dict[str, Any], comm: Comm) -> None:
    """load() keeps halves only for training, which reads in two steps."""
    wanted = Layout(**layout)
    read(survey(paths, wanted, comm), wanted, comm)


VECTORS = {"y": "f4", "sample_weight": "f2", "offset": "f8", "key": "f8"}


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", VECTORS)
def test_vectors_that_are_not_finite(name: str, value: float, as_csr: bool, tmp_path: Path) -> None:
    (path,) = write(generate("squared", n=30, weights=True), tmp_path, as_csr=as_csr)
    vector = np.ones(30, VECTORS[name])
    vector[23] = value
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        file[name] = vector
    refused([path], 3, f"part0.h5: '{name}' row 23 is {value}: not a finite number")


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("as_csr", [False, True])
def test_validation_data_that_are_not_finite(as_csr: bool, size: int, tmp_path: Path) -> None:
    """Before the first step, and not when they are scored."""
    table = generate("logistic", n=60)
    (tmp_path / "other").mkdir()
    (held_out,) = write(table, tmp_path / "other", as_csr=as_csr)
    with h5py.File(held_out, "r+") as file:
        file["X/data" if as_csr else "X"][(0,) if as_csr else (40, 1)] = np.nan

    def attempt(comm: Comm) -> DataError:
        with pytest.raises(DataError) as caught:
            fit(table, comm, loss="logistic", validation=(held_out,))
        return caught.value

    errors = run(size, attempt)
    assert len({str(error) for error in errors}) == 1 and all(error.agreed for error in errors)
    assert "part0.h5: 'X' row" in str(errors[0]) and "is nan: not a finite number" in str(errors[0])
