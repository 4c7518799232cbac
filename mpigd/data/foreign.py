"""What other programs store that is neither a matrix nor a vector: one sentence that says what it is, and the way out."""

from __future__ import annotations

import shlex
from typing import NoReturn

import h5py

from mpigd.data.foreign_marks import MATLAB_NUMBERS, attribute
from mpigd.errors import DataError
from mpigd.storage import hdf5
from mpigd.storage.dataset_checks import named
from mpigd.storage.safe_open import Attributes

SHOWN = 6  # names listed in a message


def listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)})" if len(names) > SHOWN else "")


def quoted(code: str) -> str:
    """A line of Python as a shell takes it, between double quotes where that is the same."""
    return shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'


def through_parquet(read: str, modules: str, name: str) -> str:
    """The way out for tables: two commands. `read` is the expression that makes a pandas DataFrame."""
    table = f"{name.strip('/').rpartition('/')[2] or 'table'}.parquet"
    line = quoted(f"import {modules}; {read}.to_parquet({table!r}, index=False)")
    data = table.replace(".parquet", ".h5")
    return f"`python -c {line}` and `mpigd import {shlex.quote(table)} -o {shlex.quote(data)} --target COLUMN`"


def _pandas(group: h5py.Group, path: str) -> str:
    """Empty, or that a group is a DataFrame or a Series of pandas, and the way out."""
    kind = attribute(group, "pandas_type")
    if not isinstance(kind, str):
        return ""
    name = str(group.name).strip("/")
    parts = [f"{name}/{part}" for part in sorted(group)]
    if kind.startswith("series"):
        values = f"{name}/values"
        return f"is a pandas Series ({kind}): " + (
            f"name its values, {values}" if values in parts else "store a DataFrame with it"
        )
    advice = through_parquet(
        f"pandas.read_hdf({path!r}, {name!r}).rename(columns=str)", "pandas", name
    )
    blocks = [
        part
        for part in parts
        if part.rpartition("/")[2].startswith("block") and part.endswith("_values")
    ]
    also = f", or name one block of its columns, --x {blocks[0]}" if blocks else ""
    return f"is a pandas DataFrame ({kind}): {advice}, if you trust the file (pandas may unpickle parts of it){also}"


def check_records(data: h5py.Dataset) -> None:
    """DataError for a table of records, for a matrix of something else, and for a matrix that has no numbers."""
    kind = attribute(data, "MATLAB_class")
    if isinstance(kind, str) and (kind not in MATLAB_NUMBERS or "MATLAB_empty" in Attributes(data)):
        what = "an empty matrix" if kind in MATLAB_NUMBERS else f"a {kind}"
        advice = "in MATLAB, save numbers: y = double(categorical(labels)); save('data.mat', 'X', 'y', '-v7.3')"
        raise DataError(f"{named(data)} is {what} of MATLAB: {advice}")
    if data.dtype.names is None:
        return
    path, name = str(data.file.filename), str(data.name)
    if why := _pandas(data.parent, path):
        raise DataError(f"{path}: {str(data.parent.name).strip('/')!r} {why}")
    fields = listed([str(field) for field in data.dtype.names])
    read = f"pandas.DataFrame(h5py.File({path!r})[{name!r}][()])"
    kind = "a PyTables table" if attribute(data, "CLASS") == "TABLE" else "a table of records"
    raise DataError(
        f"{named(data)} is {kind} (fields {fields}): {through_parquet(read, 'h5py, pandas', name)}"
    )


def refuse_group(group: hdf5.Group, place: str, expected: str) -> NoReturn:
    """DataError that says what a group is, which is neither a sparse matrix nor a vector."""
    if why := _pandas(group, group.filename):
        raise DataError(f"{place} {why}")
    inside = listed(sorted(group))
    if "column-order" in Attributes(group):
        raise DataError(
            f"{place} is a data frame of AnnData, expected {expected}; its columns are {inside}"
        )
    if isinstance(kind := attribute(group, "MATLAB_class"), str):
        raise DataError(
            f"{place} is a {kind} of MATLAB, expected {expected}: save it as a variable of its own"
        )
    raise DataError(f"{place} is a group, expected {expected}; it has {inside or 'nothing'}")


def looks_transposed(shape: tuple[int, ...], rows: int) -> bool:
    """Whether a matrix with so many rows beside it has as many columns instead."""
    return len(shape) == 2 and shape[0] != rows and shape[1] == rows
