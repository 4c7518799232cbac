"""HDF5 files as other programs write them.

They are read as they are meant, or refused with one sentence whose advice works.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpigd
from mpigd.commands.info import describe
from mpigd.config.schema import from_mapping
from mpigd.data.loading import Layout, load
from mpigd.data.metadata import inspect
from mpigd.errors import DataError
from mpigd.parallel.comm import SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.scoring.predict import evaluate
from mpigd.storage import hdf5, text_datasets
from mpigd.training.plan import plan
from tests import foreign
from tests.faults.jobs import FULL
from tests.foreign import NETCDF_FILL, anndata, commands, follow, jld2, matlab, netcdf, plain, rows
from tests.launch import python
from tests.scenarios import fit
from tests.threadcomm import run

Array = np.ndarray[Any, Any]
TRAIN: dict[str, Any] = dict(loss="logistic", l2=0.1)


def truth_of(path: Path, **options: Any) -> Model:
    """The model of one rank."""
    return fit([str(path)], **{**TRAIN, **options})


def trained(path: Path | list[str], **options: Any) -> Model:
    """The model of a file, which must be the same on 1 and 3 ranks (with --full on 2 too).

    Dense data are also streamed, on 2 ranks.
    """
    paths = path if isinstance(path, list) else [str(path)]
    ways: list[tuple[int, dict[str, Any]]] = [(1, {}), *([(2, {})] if FULL else []), (3, {})]
    dense = (
        inspect(paths, options.get("x", "X"), options.get("y", "y"), SelfComm())[0].layout
        == "dense"
    )
    if dense and options.get("partition") != "hash":
        ways += [(2, {"max_memory": "100"})]
    models = [
        run(size, lambda comm, more=more: fit(paths, comm, **{**TRAIN, **options, **more}))[0]
        for size, more in ways
    ]
    gc.collect()  # streamed rows hold their files open, and tests go on to change them
    assert len({model.digest for model in models}) == 1
    return models[0]


def refusal(path: Path | str, **options: Any) -> str:
    """The one sentence by which a file is refused, the same in memory and streamed."""
    found = set()
    for extra in ({}, {"max_memory": "100"}):
        with pytest.raises(DataError) as caught:
            fit([str(path)], **{**TRAIN, **options, **extra})
        found.add(str(caught.value))
    del caught
    gc.collect()
    assert len(found) == 1
    message = found.pop()
    assert "\n" not in message and Path(path).name in message
    return message


def way_out(message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the only command of a message writes."""
    monkeypatch.chdir(folder)
    (command,) = commands(message)
    follow(command, folder)
    return folder / command[command.index("-o") + 1]


# netCDF


def test_netcdf_without_gaps(tmp_path: Path) -> None:
    X, y = rows()
    truth = truth_of(plain(tmp_path / "plain.h5", X, y)).digest
    assert trained(netcdf(tmp_path / "a.nc", X, y)).digest == truth
    neutral = {
        "_FillValue": np.float32(-999),
        "scale_factor": 1.0,
        "add_offset": 0.0,
        "valid_range": np.float32([-99, 99]),
    }
    assert (
        trained(netcdf(tmp_path / "b.nc", X, y, neutral, chunks=(7, 3), compression="gzip")).digest
        == truth
    )


FILLS: dict[str, tuple[dict[str, Any], float, str]] = {
    "netCDF's own": ({}, NETCDF_FILL, "netCDF's value for what was never written"),
    "_FillValue": ({"_FillValue": np.float32(-999)}, -999, "its _FillValue"),
    "missing_value": ({"missing_value": np.float64(1e20)}, 1e20, "its missing_value"),
    "two missing values": ({"missing_value": np.float32([-1e3, -2e3])}, -2e3, "its missing_value"),
    "valid_max": ({"valid_max": np.float32(100)}, 101, "outside the valid range"),
    "valid_min": ({"valid_min": np.float32(-100)}, -101, "outside the valid range"),
    "valid_range": ({"valid_range": np.float32([-9, 9])}, -10, "outside the valid range"),
}


@pytest.mark.parametrize("kind", FILLS)
@pytest.mark.parametrize("name", ["X", "y"])
def test_fill_values(kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows()
    attributes, value, why = FILLS[kind]
    path = netcdf(tmp_path / "data.nc", X, y, attributes)
    with h5py.File(path, "r+") as file:
        for key, given in attributes.items():
            file["y"].attrs[key] = np.atleast_1d(given)
        file[name][(11, 1) if name == "X" else 11] = value
    message = refusal(path)
    place = f"'{name}' row 11" + (" column 1" if name == "X" else "")
    assert f"data.nc: {place} is {value:g}, {why}" in message
    told = ", ".join(describe(str(path))["read_as"])
    assert why in told or (kind.startswith("valid") and "than" in told)
    without = plain(tmp_path / "plain.h5", np.delete(X, 11, 0), np.delete(y, 11))
    assert trained(way_out(message, tmp_path, monkeypatch)).digest == truth_of(without).digest


@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "u2"])
def test_default_fill_values_of_whole_numbers(dtype: str, tmp_path: Path) -> None:
    fills = {"i2": -32767, "i4": -2147483647, "i8": -9223372036854775806, "u2": 65535}
    X, y = rows()
    X = np.abs(np.rint(X)).astype(dtype)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        data = file.create_dataset("X", data=X, fillvalue=fills[dtype])
        file["y"] = y
        data[3, 2] = fills[dtype]
    assert "row 3 column 2" in refusal(tmp_path / "a.nc") and "netCDF" in refusal(tmp_path / "a.nc")
    with h5py.File(
        tmp_path / "b.h5", "w"
    ) as file:  # the same number where nobody chose it as a fill value
        file.create_dataset("X", data=X)
        file["y"] = y
        file["X"][3, 2] = fills[dtype]
    assert load([str(tmp_path / "b.h5")], Layout(), SelfComm()).n == 40


def test_a_neighbour_of_the_fill_value_is_a_number(tmp_path: Path) -> None:
    """As float32 both are the same; what is stored decides."""
    X, y = rows()
    whole = np.rint(X).astype(np.int32)
    whole[3, 2] = -(2**31) + 1 + 8
    path = netcdf(tmp_path / "a.nc", whole, y, {"_FillValue": np.int32(-(2**31) + 1)})
    assert load([str(path)], Layout(dtype="float32"), SelfComm()).n == 40


def test_scaled_numbers(tmp_path: Path) -> None:
    X, y = rows()
    stored = np.rint(X * 1000).astype(np.int16)
    path = netcdf(
        tmp_path / "a.nc",
        stored,
        y,
        {"scale_factor": 0.001, "add_offset": 273.15, "_FillValue": np.int16(-32768)},
    )
    truth = truth_of(plain(tmp_path / "plain.h5", stored.astype(np.float64) * 0.001 + 273.15, y))
    assert trained(path).digest == truth.digest
    assert describe(str(path))["read_as"][0] == "times 0.001 plus 273.15"
    with h5py.File(path, "r+") as file:
        file["X"][9, 1] = -32768
    assert "'X' row 9 column 1 is -32768, its _FillValue" in refusal(path)


def test_a_scaled_target(tmp_path: Path) -> None:
    X, _ = rows()
    path = plain(tmp_path / "a.nc", X, np.arange(40, dtype=np.int16))
    with h5py.File(path, "r+") as file:
        file["y"].attrs["scale_factor"] = np.array([0.5])
    truth = truth_of(plain(tmp_path / "plain.h5", X, np.arange(40) * 0.5), loss="squared")
    assert trained(path, loss="squared").digest == truth.digest


def test_unsigned_numbers(tmp_path: Path) -> None:
    X, y = rows()
    stored = np.abs(np.rint(X * 100)).astype(np.uint8)
    marks = {"_Unsigned": np.bytes_("true"), "_FillValue": np.int8(-1)}
    path = netcdf(tmp_path / "a.nc", stored.view(np.int8), y, marks)
    assert trained(path).digest == truth_of(plain(tmp_path / "plain.h5", stored, y)).digest
    with h5py.File(path, "r+") as file:
        file["X"][9, 1] = -1
    assert "'X' row 9 column 1 is 255, its _FillValue" in refusal(path)


@pytest.mark.parametrize("name", ["missing_value", "scale_factor", "_Unsigned"])
def test_attributes_that_are_no_numbers(name: str, tmp_path: Path) -> None:
    X, y = rows()
    path = plain(tmp_path / "a.h5", np.rint(X).astype(np.int16), y)
    with h5py.File(path, "r+") as file:
        file["X"].attrs[name] = "1.0"  # a text of variable length
    message = refusal(path)
    assert f"its attribute {name} is no " in message
    (command,) = commands(message)
    follow(command, tmp_path)
    assert load([str(path)], Layout(), SelfComm()).n == 40


# MATLAB, Julia and R


@pytest.mark.parametrize("n", [40, 3])
@pytest.mark.parametrize("write", [matlab, jld2])
def test_matrices_that_are_stored_by_columns(write: Any, n: int, tmp_path: Path) -> None:
    """A square one, too, which nothing but the program's mark tells from its transpose."""
    X, y = rows(n)
    y[:2] = 0, 1
    path = write(tmp_path / "data.mat", X=X.astype(np.float64), y=y)
    assert (
        trained(path).digest
        == truth_of(plain(tmp_path / "plain.h5", X.astype(np.float64), y)).digest
    )
    about = describe(str(path))
    assert about["rows"] == n and about["read_as"] == [
        f"transposed, as {'MATLAB' if write is matlab else 'Julia'} stores it"
    ]


def test_matlab_in_compressed_chunks(tmp_path: Path) -> None:
    X, y = rows()
    path = matlab(tmp_path / "data.mat", X=X.astype(np.float64), y=y > 0)
    with h5py.File(path, "r+") as file:
        stored = file["X"][...]
        del file["X"]
        file.create_dataset("X", data=stored, chunks=(2, 7), compression="gzip").attrs[
            "MATLAB_class"
        ] = np.bytes_("double")
    assert (
        trained(path).digest
        == truth_of(plain(tmp_path / "plain.h5", X.astype(np.float64), y)).digest
    )


def test_what_matlab_has_besides_numbers(tmp_path: Path) -> None:
    X, _ = rows()
    path = matlab(tmp_path / "data.mat", X=X, y=np.full((40, 1), 65, np.uint16))
    assert "'y' is a char of MATLAB: in MATLAB, save numbers" in refusal(path)
    path = matlab(tmp_path / "cell.mat", X=X)
    with h5py.File(path, "r+") as file:
        file.create_dataset("y", (1, 40), h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")
    assert "'y' is a cell of MATLAB" in refusal(path)


def test_a_sparse_matrix_of_matlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows()
    X[X < 0] = 0
    path = matlab(tmp_path / "data.mat", y=y)
    with h5py.File(path, "r+") as file:
        group, S = file.create_group("X"), foreign.sparse.csc_matrix(X.astype(np.float64))
        group.attrs["MATLAB_class"], group.attrs["MATLAB_sparse"] = (
            np.bytes_("double"),
            np.uint64(40),
        )
        group["data"], group["ir"], group["jc"] = (
            S.data,
            S.indices.astype(np.uint64),
            S.indptr.astype(np.uint64),
        )
    truth = anndata(tmp_path / "truth.h5ad", X.astype(np.float64), y)
    assert (
        trained(way_out(refusal(path), tmp_path, monkeypatch)).digest
        == truth_of(truth, y="obs/flag").digest
    )


def test_matrices_that_look_transposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As hdf5r and HDF5.jl write them, without a mark."""
    X, y = rows()
    path = plain(tmp_path / "data.h5", X.T, y)
    message = refusal(path)
    assert "'X' (3, 40) looks transposed, as MATLAB, R and Julia store matrices" in message
    assert (
        trained(way_out(message, tmp_path, monkeypatch)).digest
        == truth_of(plain(tmp_path / "plain.h5", X, y)).digest
    )


@pytest.mark.parametrize("which", [0, 1])
def test_a_square_matrix_of_r(which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows(3)
    y[:2] = 0, 1
    path = plain(tmp_path / "data.h5", X, y)
    with h5py.File(path, "r+") as file:
        file["X"].attrs["rhdf5-NA.OK"] = np.int32([1])
    message = refusal(path)
    assert "'X' is square, and R stores matrices transposed" in message
    monkeypatch.chdir(tmp_path)
    command = commands(message)[which]
    follow(command, tmp_path)
    truth = plain(tmp_path / "plain.h5", X if which else np.ascontiguousarray(X.T), y)
    assert trained(tmp_path / command[command.index("-o") + 1]).digest == truth_of(truth).digest


def test_missing_whole_numbers_of_r(tmp_path: Path) -> None:
    X, y = rows()
    whole = np.rint(X).astype(np.int32)
    whole[4, 0] = -(2**31)
    path = plain(tmp_path / "data.h5", whole, y)
    assert load([str(path)], Layout(), SelfComm()).n == 40
    with h5py.File(path, "r+") as file:
        file["X"].attrs["rhdf5-NA.OK"] = np.int32([1])
    assert "'X' row 4 column 0 is -2.14748e+09, NA in R" in refusal(path)


# AnnData


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_targets_of_anndata(form: str, tmp_path: Path) -> None:
    X, y = rows()
    path = anndata(tmp_path / "data.h5ad", X, y, form)
    truth = truth_of(path, y="obs/flag")
    assert truth.labels() == [0, 1]
    for name, labels in (
        ("cell_type", ["B cell", "T cell"]),
        ("name", ["B cell", "T cell"]),
        ("number", [3, 7]),
    ):
        model = trained(path, y=f"obs/{name}")
        assert model.labels() == labels, name
        turned = (
            -1.0 if name in ("cell_type", "name") else 1.0
        )  # the first label is the one of ones
        np.testing.assert_allclose(model.coef, turned * truth.coef, rtol=1e-4)
        assert describe(str(path), y=f"obs/{name}")["classes"] == (labels if turned < 0 else None)
    assert trained(path, y="obs/whole").digest == truth.digest


def test_matrices_of_anndata(tmp_path: Path) -> None:
    X, y = rows()
    path, options = anndata(tmp_path / "data.h5ad", X, y), dict(y="obs/cell_type")
    truth = truth_of(path, **options)
    assert trained(path, x="layers/counts", **options).digest == truth.digest
    assert trained(path, x="raw/X", **options).digest == truth.digest
    assert trained(path, x="obsm/X_pca", **options).coef.shape == (1, 2)
    assert "'obs' is a data frame of AnnData, expected a matrix" in refusal(path, x="obs")
    assert "'obs' is a data frame of AnnData, expected a vector" in refusal(path, y="obs")


@pytest.mark.parametrize("name", ["gap", "masked"])
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_missing_targets_of_anndata(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = rows()
    path = anndata(tmp_path / "data.h5ad", X, y, form)
    row, why = {"gap": (5, "has no category (code -1)"), "masked": (7, "is masked")}[name]
    if form != "csc":
        message = refusal(path, y=f"obs/{name}")
        assert f"'obs/{name}' row {row} {why}: a missing value" in message
    else:
        message = f"`mpigd convert {path} -o data.h5 --y obs/{name} --missing drop`"
    kept = np.arange(40) != row
    truth = anndata(
        tmp_path / "truth.h5ad", X[kept], y[kept], "dense" if form == "dense" else "csr"
    )
    assert (
        trained(way_out(message, tmp_path, monkeypatch)).digest
        == truth_of(truth, y="obs/flag").digest
    )


def test_a_sparse_matrix_by_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows(60, 7)
    X[X < 0.2] = 0
    csr = anndata(tmp_path / "csr.h5ad", X, y)
    truth = truth_of(csr, y="obs/cell_type")
    message = refusal(anndata(tmp_path / "data.h5ad", X, y, "csc"), y="obs/cell_type")
    assert "'csc_matrix', expected 'csr_matrix'" in message
    monkeypatch.setattr("mpigd.data.foreign_matrix.ENTRIES", 50)  # several passes
    monkeypatch.setattr("mpigd.data.foreign_matrix.SLAB_BYTES", 8 * 30)
    path = way_out(message, tmp_path, monkeypatch)
    model = trained(path)
    assert model.digest == truth.digest and model.labels() == ["B cell", "T cell"]
    assert model.encoding["feature_names"] == [f"gene{j}" for j in range(7)]
    scores = [
        evaluate(model, [str(data)], from_mapping({"y": y}), SelfComm())
        for data, y in ((path, "y"), (csr, "obs/cell_type"))
    ]
    assert scores[0] == scores[1]


def test_files_of_old_anndata(tmp_path: Path) -> None:
    """Before 0.7: h5sparse_format; with 0.7 obs/NAME are codes, and their categories are beside."""
    X, y = rows()
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        foreign.compressed(file, "X", foreign.sparse.csr_matrix(X))
        attributes = file["X"].attrs
        attributes["h5sparse_format"], attributes["h5sparse_shape"] = "csr", np.array(X.shape)
        del attributes["encoding-type"], attributes["shape"]
        codes = file.create_dataset("obs/cell_type", data=y.astype(np.int8))
        categories = file.create_dataset(
            "obs/__categories/cell_type", data=foreign.texts(["T cell", "B cell"])
        )
        codes.attrs["categories"] = categories.ref
    truth = truth_of(anndata(tmp_path / "new.h5ad", X, y), y="obs/cell_type")
    model = trained(tmp_path / "old.h5ad", y="obs/cell_type")
    assert (model.digest, model.labels()) == (truth.digest, truth.labels())


def test_categories_of_several_files(tmp_path: Path) -> None:
    """Each numbers its own; the names decide, when scoring too."""
    X, y = rows()
    anndata(tmp_path / "whole.h5ad", X, y, "dense")
    truth = truth_of(tmp_path / "whole.h5ad", y="obs/cell_type")
    parts = []
    for number, (part, order) in enumerate(
        ((slice(0, 15), ["T cell", "B cell", "C cell"]), (slice(15, 40), ["B cell", "T cell"]))
    ):
        parts.append(plain(tmp_path / f"part{number}.h5", X[part], y[part]))
        with h5py.File(parts[-1], "r+") as file:
            del file["y"]
            names = np.where(y[part] == 0, "T cell", "B cell")
            foreign.categorical(file, "y", np.array([order.index(name) for name in names]), order)
    model = trained([str(part) for part in parts])
    assert (model.digest, model.labels()) == (truth.digest, truth.labels())
    only = plain(tmp_path / "only.h5", X[y == 0], y[y == 0])
    with h5py.File(only, "r+") as file:
        del file["y"]
        foreign.categorical(file, "y", np.zeros(int((y == 0).sum())), ["T cell"])
    config = from_mapping({})
    numbers = plain(tmp_path / "numbers.h5", X[y == 0], np.full(int((y == 0).sum()), 2.0))
    assert evaluate(model, [str(only)], config, SelfComm()) == evaluate(
        model, [str(numbers)], config, SelfComm()
    )
    with h5py.File(only, "r+") as file:
        del file["y"]
        file["y"] = np.array([b"D cell"] * int((y == 0).sum()))
    known = r"none of the model's classes \(B cell, C cell, T cell\)"
    with pytest.raises(DataError, match=rf"only.h5 row 0: label 'D cell' is {known}"):
        evaluate(model, [str(only)], config, SelfComm())
    with pytest.raises(DataError, match=r"holds texts .*, but the model was trained on numbers"):
        evaluate(trained(plain(tmp_path / "two.h5", X, y)), [str(only)], config, SelfComm())


def test_predictions_have_the_names(tmp_path: Path) -> None:
    X, y = rows()
    path = anndata(tmp_path / "data.h5ad", X, y)
    trained(path, y="obs/cell_type").save(str(tmp_path / "model.h5"))
    done = python("-m", "mpigd", "predict", tmp_path / "model.h5", path, "-o", tmp_path / "p.h5")
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "p.h5") as file:
        found = file["prediction"].asstr()[...]
    assert set(found) == {"B cell", "T cell"}
    assert np.mean((found == "B cell") == (y == 1)) > 0.7
    for name, labels in (
        ("texts", np.array([b""] * 40)),
        ("numbers", np.full(40, np.nan)),
    ):  # which nobody knows yet
        rows_without = plain(tmp_path / f"{name}.h5", X, labels)
        done = python(
            "-m",
            "mpigd",
            "predict",
            tmp_path / "model.h5",
            rows_without,
            "-o",
            tmp_path / f"p-{name}.h5",
        )
        assert done.returncode == 0, done.stderr
        with h5py.File(tmp_path / f"p-{name}.h5") as file:
            np.testing.assert_array_equal(file["prediction"].asstr()[...], found)


def test_a_plan_counts_the_classes(tmp_path: Path) -> None:
    X, y = rows()
    path = anndata(tmp_path / "data.h5ad", X, y)
    infos = inspect([str(path)], "X", "obs/cell_type", SelfComm())
    assert infos[0].classes == ("B cell", "T cell")
    config = from_mapping({"loss": "softmax", "y": "obs/cell_type"})
    assert plan(infos, config, 2).rows == 40
    for name in ("number", "whole"):
        infos = inspect([str(path)], "X", f"obs/{name}", SelfComm())
        assert plan(infos, from_mapping({"loss": "softmax", "y": f"obs/{name}"}), 2).rows == 40


# Vectors of every kind


@pytest.mark.parametrize("shape", [(40, 1), (1, 40)])
def test_vectors_that_are_matrices(shape: tuple[int, int], tmp_path: Path) -> None:
    X, y = rows()
    rng = np.random.default_rng(3)
    beside = {"sample_weight": rng.random(40), "offset": rng.random(40), "key": np.arange(40)}
    paths = [plain(tmp_path / name, X, y) for name in ("flat.h5", "thin.h5")]
    for path, form in zip(paths, ((40,), shape), strict=True):
        with h5py.File(path, "r+") as file:
            del file["y"]
            for name, vector in {**beside, "y": y}.items():
                file[name] = vector.reshape(form)
    assert trained(paths[0]).digest == trained(paths[1]).digest
    assert trained(paths[0], partition="hash").digest == trained(paths[1], partition="hash").digest


def test_a_target_of_several_columns(tmp_path: Path) -> None:
    X, y = rows()
    message = refusal(plain(tmp_path / "a.h5", X, np.column_stack([y, 1 - y])))
    assert (
        "'y' has shape (40, 2), expected (40,): one column for each class or output is not read"
        in message
    )


def letters(labels: Array) -> Array:
    """Texts as netCDF's classic model has them: (n, k) letters."""
    fixed = np.char.encode(labels, "utf-8")
    return fixed.view("S1").reshape(len(fixed), -1)


LABELS = ["öl", "b", "a and b", "10", "9"]
TEXTS: dict[str, Any] = {
    "fixed": lambda file, labels: file.create_dataset("y", data=np.char.encode(labels, "utf-8")),
    "fixed in a column": lambda file, labels: file.create_dataset(
        "y", data=np.char.encode(labels, "utf-8").reshape(-1, 1)
    ),
    "letters": lambda file, labels: file.create_dataset("y", data=letters(labels)),
    "variable": lambda file, labels: file.create_dataset(
        "y", data=labels.astype(object), dtype=h5py.string_dtype()
    ),
    "variable in a column": lambda file, labels: file.create_dataset(
        "y", data=labels.astype(object).reshape(-1, 1), dtype=h5py.string_dtype()
    ),
    "chunks": lambda file, labels: file.create_dataset(
        "y",
        data=labels.astype(object),
        dtype=h5py.string_dtype(),
        chunks=(7,),
        compression="gzip",
        shuffle=True,
    ),
    "growing": lambda file, labels: file.create_dataset(
        "y", data=labels.astype(object), dtype=h5py.string_dtype(), maxshape=(None,)
    ),
}


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("kind", TEXTS)
def test_targets_of_text(kind: str, userblock: int, tmp_path: Path) -> None:
    X, _ = rows(100)
    codes = np.random.default_rng(1).integers(0, 5, 100)
    with h5py.File(tmp_path / "text.h5", "w", userblock_size=userblock) as file:
        file["X"] = X
        TEXTS[kind](file, np.array(LABELS)[codes])
    order = sorted(LABELS)
    truth = plain(
        tmp_path / "codes.h5", X, np.array([order.index(LABELS[code]) for code in codes], float)
    )
    model = trained(tmp_path / "text.h5", loss="softmax")
    assert model.digest == truth_of(truth, loss="softmax").digest
    assert model.labels() == order and describe(str(tmp_path / "text.h5"))["classes"] == order


@pytest.mark.parametrize("kind", ["fixed", "variable", "chunks"])
def test_empty_texts_are_missing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = rows()
    labels = np.where(y > 0, "yes", "no")
    labels[3] = ""
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["X"] = X
        TEXTS[kind](file, labels)
    message = refusal(tmp_path / "text.h5")
    assert "'y' row 3 is an empty text: a missing value" in message
    truth = plain(tmp_path / "plain.h5", np.delete(X, 3, 0), np.delete(y, 3))
    assert trained(way_out(message, tmp_path, monkeypatch)).digest == truth_of(truth).digest


def test_texts_padded_with_spaces(tmp_path: Path) -> None:
    """As Fortran writes them."""
    X, y = rows()
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(4)
    kind.set_strpad(h5py.h5t.STR_SPACEPAD)
    path = plain(tmp_path / "text.h5", X, y)
    with h5py.File(path, "r+") as file:
        del file["y"]
        data = h5py.h5d.create(file.id, b"y", kind, h5py.h5s.create_simple((40,)))
        data.write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.where(y > 0, b"yes ", b"no  ").astype("S4"), mtype=kind
        )
    assert trained(path).labels() == ["no", "yes"]


def test_identifiers_are_no_labels(tmp_path: Path) -> None:
    path = plain(
        tmp_path / "a.h5",
        np.zeros((10_100, 1)),
        np.array([f"id{i}".encode() for i in range(10_100)]),
    )
    assert "'y' holds more than 10000 different texts" in refusal(path, loss="softmax")
    path = plain(tmp_path / "b.h5", np.zeros((2, 1)), np.array([b"x" * 2000, b"y"]))
    assert "'y' holds a text of 2000 bytes: no label of a class" in refusal(path)
    path = plain(tmp_path / "c.h5", np.zeros((2, 1)), np.array([b"\xff", b"y"]))
    assert "which is not UTF-8" in refusal(path)


def test_texts_and_numbers_in_one_data_set(tmp_path: Path) -> None:
    X, y = rows()
    paths = [
        plain(tmp_path / "a.h5", X, y),
        plain(tmp_path / "b.h5", X, np.where(y > 0, b"a", b"b")),
    ]
    with pytest.raises(DataError, match=r"a.h5: 'y' holds numbers, but in .*b.h5 it holds texts"):
        fit([str(path) for path in paths], **TRAIN)


@settings(max_examples=150, deadline=None)
@given(drawn=st.data())
def test_damaged_texts(drawn: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One damaged byte in heap or dataset gives texts or one sentence, no endless loop or crash."""
    path = tmp_path_factory.getbasetemp() / "damaged.h5"
    with h5py.File(path, "w") as file:
        words = [f"word {i % 7}" for i in range(300)]
        file.create_dataset("y", data=np.array(words, object), dtype=h5py.string_dtype())
        place = file["y"].id.get_offset()
    raw = bytearray(path.read_bytes())
    heap = raw.index(b"GCOL")
    ranges = [range(place, place + 300 * 16), range(heap, min(len(raw), heap + 8192))]
    at = drawn.draw(st.sampled_from(ranges[drawn.draw(st.integers(0, 1))]))
    raw[at] ^= drawn.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with hdf5.open_read(path) as file:
        try:
            found = [text for slab in text_datasets.slabs(file.raw("y"), 0, 300) for text in slab]
        except DataError as error:
            assert "'y' is damaged" in str(error)
        else:
            assert len(found) == 300


# Tables


def test_tables_of_pytables_and_r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    X, y = rows()
    table = np.zeros(40, [("a", "f4"), ("b", "f4"), ("c", "f4"), ("late", "f8"), ("name", "S3")])
    for name, column in zip("abc", X.T, strict=True):
        table[name] = column
    table["late"], table["name"] = y, b"one"
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["frame"] = table
        file["frame"].attrs["CLASS"], file["frame"].attrs["VERSION"] = (
            np.bytes_("TABLE"),
            np.bytes_("2.7"),
        )
    message = refusal(tmp_path / "data.h5", x="frame")
    assert "'frame' is a PyTables table (fields a, b, c, late, name)" in message
    monkeypatch.chdir(tmp_path)
    for command in commands(message):
        follow(
            ["late" if word == "COLUMN" else word for word in command]
            + (["--drop", "name"] if command[0] == "mpigd" else []),
            tmp_path,
        )
    assert (
        trained(tmp_path / "frame.h5").digest == truth_of(plain(tmp_path / "plain.h5", X, y)).digest
    )
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        file["X"] = X
    assert "'frame' is a PyTables table" in refusal(tmp_path / "data.h5", y="frame")


PANDAS: dict[str, dict[str, Any]] = {"fixed": {"format": "fixed"}, "table": {"format": "table"}}


@pytest.mark.parametrize("form", PANDAS)
def test_data_frames_of_pandas(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data frames are written and read by pandas itself if its HDF5 library is installed.

    A test below checks the message without that library.
    """
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    pytest.importorskip("pyarrow")
    X, y = rows()
    frame = pandas.DataFrame(X, columns=list("abc")).assign(late=y)
    frame.index = frame.index + 5
    frame.to_hdf(tmp_path / "data.h5", key="df", **PANDAS[form])
    monkeypatch.chdir(tmp_path)
    message = refusal("data.h5", x="df")
    for command in commands(message):
        follow(["late" if word == "COLUMN" else word for word in command], tmp_path)
    assert trained(tmp_path / "df.h5").digest == truth_of(plain(tmp_path / "plain.h5", X, y)).digest


def test_a_data_frame_in_blocks(tmp_path: Path) -> None:
    X, y = rows()
    with h5py.File(tmp_path / "data.h5", "w") as file:
        group = file.create_group("df")
        for name, value in (
            ("CLASS", "GROUP"),
            ("pandas_type", "frame"),
            ("pandas_version", "0.15.2"),
        ):
            group.attrs[name] = np.bytes_(value)
        group["axis0"], group["block0_items"] = (
            np.array([b"a", b"b", b"c"]),
            np.array([b"a", b"b", b"c"]),
        )
        group["axis1"], group["block0_values"], file["y"] = np.arange(40), X, y
    message = refusal(tmp_path / "data.h5", x="df")
    assert (
        "'df' is a pandas DataFrame (frame): `python -c " in message
        and "if you trust the file" in message
    )
    named = message.rpartition("--x ")[2]
    truth = truth_of(plain(tmp_path / "plain.h5", X, y))
    assert (
        named == "df/block0_values"
        and trained(tmp_path / "data.h5", x=named).digest == truth.digest
    )
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        series = file.create_group("target")
        series.attrs["pandas_type"] = np.bytes_("series")
        series["index"], series["values"] = np.arange(40), y
    message = refusal(tmp_path / "data.h5", x=named, y="target")
    assert message.endswith("'target' is a pandas Series (series): name its values, target/values")
    assert trained(tmp_path / "data.h5", x=named, y="target/values").digest == truth.digest


# Types


@pytest.mark.parametrize(
    "kind", [">f8", ">f4", "<f2", ">f2", "<i8", ">i8", ">i4", ">u2", "u1", "i1", "?"]
)
def test_numbers_of_every_type(kind: str, tmp_path: Path) -> None:
    X, y = rows()
    X = X > 0
    truth = truth_of(plain(tmp_path / "plain.h5", X.astype(np.float32), y))
    model = trained(plain(tmp_path / "data.h5", X.astype(kind), y.astype(kind)), dtype="float32")
    assert model.digest == truth.digest


def test_python_reads_the_same(tmp_path: Path) -> None:
    X, y = rows()
    path = anndata(tmp_path / "data.h5ad", X, y)
    model = mpigd.train(str(path), y="obs/cell_type", quiet=True, **TRAIN)
    assert model.digest == trained(path, y="obs/cell_type").digest and model.labels() == [
        "B cell",
        "T cell",
    ]
