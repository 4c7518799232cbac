"""`mpigd convert`: the same rows in another file, or one sentence and no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mpigd.data.convert import convert
from mpigd.data.loading import Layout, load
from mpigd.data.shard import Shard
from mpigd.errors import DataError, UsageError
from mpigd.matrix.base import CSR, Dense
from mpigd.parallel.comm import SelfComm
from mpigd.storage.chunked_reads import Dataset
from tests.foreign import compressed, plain, rows
from tests.launch import python

Array = np.ndarray[Any, Any]


def read(path: Path) -> tuple[Shard, Array]:
    with h5py.File(path) as file:
        target = "y" in file
    shard = load([str(path)], Layout(need_y=target), SelfComm())
    if isinstance(shard.X, Dense):
        return shard, shard.X.values
    assert isinstance(shard.X, CSR)
    return shard, sparse.csr_matrix(
        (shard.X.data, shard.X.indices, shard.X.indptr), (shard.X.n, shard.X.d)
    ).toarray()


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("held", [1, 7, 1 << 24])
@settings(max_examples=15, deadline=None)
@given(drawn=st.data())
def test_sparse_matrices(
    form: str, transpose: bool, held: int, drawn: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Conversion of sparse matrices agrees with scipy's transpose.

    The matrices have empty rows and columns too, and the number of entries held at once varies.
    """
    n, d = drawn.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    X = np.where(
        rng.random((n, d)) < drawn.draw(st.sampled_from([0.0, 0.3, 1.0])),
        rng.normal(size=(n, d)),
        0.0,
    )
    folder = tmp_path_factory.mktemp("sparse")
    with h5py.File(folder / "in.h5", "w") as file:
        compressed(file, "X", sparse.csr_matrix(X) if form == "csr" else sparse.csc_matrix(X))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpigd.data.foreign_matrix.ENTRIES", held)
        patch.setattr("mpigd.data.foreign_matrix.SLAB_BYTES", 8 * 3)
        done = convert(str(folder / "in.h5"), str(folder / "out.h5"), "X", "y", transpose)
    truth = X.T if transpose else X
    np.testing.assert_array_equal(read(folder / "out.h5")[1], truth)
    assert (done.rows, done.columns, done.layout, done.dropped) == (*truth.shape, "csr", 0)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("chunks", [None, (3, 2)])
@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "?"])
def test_dense_matrices(
    kind: str, chunks: Any, transpose: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpigd.data.foreign_matrix.SLAB_BYTES", 100)
    X = (rows(20, 5)[0] * 3).astype(kind)
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("X", data=X, chunks=chunks)
    convert(str(tmp_path / "in.h5"), str(tmp_path / "out.h5"), "X", "y", transpose)
    values = read(tmp_path / "out.h5")[1]
    np.testing.assert_array_equal(values, X.T if transpose else X)
    assert values.dtype == ("f8" if kind == "f8" else "f4")


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_rows_that_miss_something(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpigd.data.foreign_matrix.SLAB_BYTES", 200)
    monkeypatch.setattr("mpigd.data.foreign_matrix.ENTRIES", 20)
    X, y = rows()
    c, key = np.arange(40.0), np.arange(40) * 7
    path = plain(tmp_path / "in.h5", X, y)
    with h5py.File(path, "r+") as file:
        X[4, 1] = y[9] = np.nan
        del file["X"]
        if form == "csr":
            compressed(file, "X", sparse.csr_matrix(X))
        else:
            file["X"] = X
        file["y"][9], file["key"], file["sample_weight"] = np.nan, key, c
        file["id"] = np.array([f"row {i}" for i in range(40)], object)
        file["source_row"] = np.arange(40)
    with pytest.raises(
        DataError, match=r"'X' row 4: a value is missing: --missing drop leaves such rows out"
    ):
        convert(str(path), str(tmp_path / "out.h5"), "X", "y")
    assert not (tmp_path / "out.h5").exists()
    done = convert(str(path), str(tmp_path / "out.h5"), "X", "y", missing="drop")
    kept = np.delete(np.arange(40), [4, 9])
    shard, values = read(tmp_path / "out.h5")
    np.testing.assert_array_equal(values, X[kept])
    for found, truth in ((shard.y, y), (shard.c, c), (shard.key, key)):
        np.testing.assert_array_equal(found, truth[kept])
    assert (done.rows, done.dropped) == (38, 2)
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file["id"].asstr()) == [f"row {i}" for i in kept]
        np.testing.assert_array_equal(file["source_row"], kept)


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    X, y = rows()
    path = plain(tmp_path / "in.h5", X, y)
    out = str(tmp_path / "out.h5")
    with pytest.raises(UsageError, match="would replace a file that is read"):
        convert(str(path), str(path), "X", "y")
    with pytest.raises(UsageError, match="--missing zero: expected refuse or drop"):
        convert(str(path), out, "X", "y", missing="zero")
    with pytest.raises(DataError, match=r"in.h5: no dataset 'Z'; it has X, y"):
        convert(str(path), out, "Z", "y")
    with pytest.raises(DataError, match=r"in.h5: no dataset 'late'; it has X, y"):
        convert(str(path), out, "X", "late")
    with pytest.raises(DataError, match=r"'y' has shape \(40,\), expected \(3,\)"):
        convert(str(path), out, "X", "y", transpose=True)
    with pytest.raises(DataError, match=r"'y' has shape \(40,\), expected \(rows, columns\)"):
        convert(str(path), out, "y", "y")
    every = plain(tmp_path / "gaps.h5", X * np.nan, y)
    with pytest.raises(DataError, match=r"gaps.h5: no row is left"):
        convert(str(every), out, "X", "y", missing="drop")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["gaps.h5", "in.h5"]


SPARSE: dict[str, tuple[str, Any, str]] = {
    "outside": ("indices", [0, 9], "an index is outside 0..3"),
    "negative": ("indices", [0, -1], "an index is outside 0..3"),
    "descending": ("indptr", [0, 2, 1, 2], "indptr does not ascend"),
    "beyond": ("indptr", [0, 2, 2, 9], "indptr does not ascend"),
    "short": ("indptr", [0, 2], "does not fit"),
    "real": ("indices", [0.0, 1.0], "does not fit"),
}


@pytest.mark.parametrize("fault", SPARSE)
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_damaged_sparse_matrices(form: str, fault: str, tmp_path: Path) -> None:
    part, value, message = SPARSE[fault]
    with h5py.File(tmp_path / "in.h5", "w") as file:
        matrix: Any = sparse.csr_matrix([[1.0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
        compressed(file, "X", matrix if form == "csr" else matrix.T.tocsc())
        del file["X"][part]
        file["X"][part] = value
    with pytest.raises(DataError, match=message):
        convert(str(tmp_path / "in.h5"), str(tmp_path / "out.h5"), "X", "y")
    assert not (tmp_path / "out.h5").exists()


def test_the_command(tmp_path: Path) -> None:
    X, y = rows()
    plain(tmp_path / "in.h5", X.T, y)
    done = python(
        "-m", "mpigd", "convert", tmp_path / "in.h5", "-o", tmp_path / "out.h5", "--transpose"
    )
    assert (done.returncode, done.stderr) == (
        0,
        f"{tmp_path / 'out.h5'}: 40 rows x 3 columns, dense\n",
    )
    failed = python("-m", "mpigd", "convert", tmp_path / "none.h5", "-o", tmp_path / "out.h5")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (65, 1)


def test_ids_of_variable_length_are_not_read_by_hdf5_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit in its heap of texts would send HDF5's own reader into an endless loop."""
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["X"], file["y"] = np.arange(12.0).reshape(6, 2), np.arange(6.0)
        file["id"] = np.array([f"row {i}" for i in range(6)], object)
    original = Dataset.__getitem__

    def numbers_only(data: Dataset, *place: Any) -> Any:
        assert data.dtype != object, f"{data.name} is read by HDF5"
        return original(data, *place)

    monkeypatch.setattr(Dataset, "__getitem__", numbers_only)
    convert(str(tmp_path / "in.h5"), str(tmp_path / "out.h5"), "X", "y")
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file["id"].asstr()) == [f"row {i}" for i in range(6)]
