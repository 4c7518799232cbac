"""HDF5 files as other programs write them, made by h5py alone, and the advice of messages.

The tests run the commands that a message advises, word for word.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from mpigd.__main__ import main

Array = np.ndarray[Any, Any]
NETCDF_FILL = 9.969209968386869e36


def rows(n: int = 40, d: int = 3, seed: int = 0) -> tuple[Array, Array]:
    """X (n, d) float32 and y (n,) of zeros and ones."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    return X, (X[:, 0] + rng.normal(size=n) > 0).astype(np.float64)


def plain(path: Path, X: Array, y: Array) -> Path:
    """Write the same rows in the layout that mpigd's documentation asks for.

    Other files are compared with this one.
    """
    with h5py.File(path, "w") as file:
        file["X"], file["y"] = X, y
    return path


def netcdf(
    path: Path, X: Array, y: Array, attributes: Mapping[str, Any] | None = None, **kinds: Any
) -> Path:
    """Write a file as netCDF4's library does.

    It has dimensions, a fill value in the dataset's properties, and attributes of one number.
    """
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs["_NCProperties"] = np.bytes_("version=2,netcdf=4.9.2,hdf5=1.14.2")
        given = dict(attributes or {})
        fill = given.get("_FillValue", NETCDF_FILL if X.dtype.kind == "f" else -32767)
        data = file.create_dataset("X", data=X, fillvalue=fill, **kinds)
        data.attrs["_Netcdf4Coordinates"] = np.array([0, 1], np.int32)
        for name, value in given.items():
            data.attrs[name] = value if isinstance(value, np.bytes_) else np.atleast_1d(value)
        file.create_dataset("y", data=y, fillvalue=NETCDF_FILL)
    return path


def matlab(path: Path, **variables: Array) -> Path:
    """Write a file as MATLAB's save -v7.3 does.

    It has a block of text in front, and every variable is a matrix stored column by column.
    """
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            values = np.atleast_2d(np.asarray(values).T).T
            data = file.create_dataset(name, data=values.T)
            names = {"float64": "double", "float32": "single", "bool": "logical", "uint16": "char"}
            data.attrs["MATLAB_class"] = np.bytes_(names.get(values.dtype.name, values.dtype.name))
    front(
        path,
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64, "
        b"Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 .",
    )
    return path


def jld2(path: Path, **variables: Array) -> Path:
    """As Julia's JLD2: its name in front, arrays stored column by column."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            file[name] = values.T
    front(path, b"Julia data file (HDF5), version 0.2.0\0 (Julia 1.10.0 64-bit LE)\0")
    return path


def front(path: Path, text: bytes) -> None:
    with open(path, "r+b") as raw:
        raw.write(text)


def texts(values: Sequence[str]) -> Array:
    return np.array(values, dtype=h5py.string_dtype())


def typed(item: Any, kind: str, version: str = "0.2.0") -> Any:
    """Mark an object as AnnData does."""
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version
    return item


def categorical(group: h5py.Group, name: str, codes: Array, categories: Any) -> None:
    """As AnnData writes a pandas.Categorical; categories are texts or numbers."""
    part = typed(group.create_group(name), "categorical")
    part.attrs["ordered"] = np.bool_(False)
    part["codes"] = np.asarray(codes, np.int8)
    words = categories if isinstance(categories, np.ndarray) else texts(categories)
    typed(part, "categorical").create_dataset("categories", data=words)


def compressed(group: h5py.Group, name: str, matrix: Any) -> None:
    """A sparse matrix of scipy as AnnData writes it, by rows or by columns."""
    part = typed(group.create_group(name), f"{matrix.format}_matrix", "0.1.0")
    part.attrs["shape"] = np.array(matrix.shape)
    for key in ("data", "indices", "indptr"):
        part.create_dataset(key, data=getattr(matrix, key), maxshape=(None,))


def anndata(path: Path, X: Array, y: Array, form: str = "csr") -> Path:
    """Write an AnnData file with X sparse or dense.

    obs/cell_type has categories in another order than its codes, and obs has more columns.
    """
    with h5py.File(path, "w") as file:
        typed(file, "anndata", "0.1.0")
        matrix = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}.get(form)
        if matrix is None:
            file["X"] = X
        else:
            compressed(file, "X", matrix(X))
        compressed(file.create_group("layers"), "counts", sparse.csr_matrix(X))
        file.create_group("obsm")["X_pca"] = X[:, :2]
        compressed(file.create_group("raw"), "X", sparse.csr_matrix(X))
        var = typed(file.create_group("var"), "dataframe")
        var.attrs["_index"] = "gene"
        var["gene"] = texts([f"gene{j}" for j in range(X.shape[1])])
        obs = typed(file.create_group("obs"), "dataframe")
        obs.attrs["_index"] = "_index"
        obs.attrs.create("column-order", texts(["cell_type"]))
        codes = y.astype(np.int8)
        categorical(obs, "cell_type", codes, ["T cell", "B cell"])
        categorical(obs, "number", codes, np.array([3, 7]))
        categorical(obs, "gap", np.where(np.arange(len(y)) == 5, -1, codes), ["no", "yes"])
        obs["flag"] = y > 0
        obs["name"] = texts(["T cell" if value == 0 else "B cell" for value in y])
        for name, gone in (("whole", -1), ("masked", 7)):
            part = typed(obs.create_group(name), "nullable-integer", "0.1.0")
            part["values"], part["mask"] = y.astype(np.int64), np.arange(len(y)) == gone
    return path


def commands(message: str) -> list[list[str]]:
    """The commands between backticks of a message."""
    return [shlex.split(command) for command in re.findall(r"`([^`]+)`", message)]


def follow(command: Sequence[str], folder: Path) -> None:
    """Run a command of a message in a folder.

    mpigd's commands run in this process, Python's in a process of their own.
    """
    if command[0] == "mpigd":
        assert main(command[1:]) == 0
    else:
        assert command[:2] == ["python", "-c"], command
        subprocess.run([sys.executable, *command[1:]], cwd=folder, check=True, timeout=120)
