"""Messages about objects of other programs that are neither a matrix nor a vector, with a way out.

Each message says in one sentence what the object is, and which command makes it readable.
"""

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
    """Return a line of Python quoted for a shell, in double quotes if they do not change it."""
    return shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'


def through_parquet(read: str, modules: str, name: str) -> str:
    """Return the two commands that bring a table into mpigd through a Parquet file.

    Parameters
    ----------
    read : str
        The Python expression that makes a pandas DataFrame.
    modules : str
        The modules that it needs, as an import statement names them.
    name : str
        The name of the table in its file.
    """
    table = f"{name.strip('/').rpartition('/')[2] or 'table'}.parquet"
    line = quoted(f"import {modules}; {read}.to_parquet({table!r}, index=False)")
    data = table.replace(".parquet", ".h5")
    return (
        f"`python -c {line}` and `mpigd import {shlex.quote(table)} "
        f"-o {shlex.quote(data)} --target COLUMN`"
    )


def _pandas(group: h5py.Group, path: str) -> str:
    """Return what to say of a DataFrame or a Series of pandas; empty for other groups.

    The text names a way out.
    """
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
    return (
        f"is a pandas DataFrame ({kind}): {advice}, "
        f"if you trust the file (pandas may unpickle parts of it){also}"
    )


def check_records(data: h5py.Dataset) -> None:
    """Raise DataError for a table of records, and for a MATLAB matrix without numbers."""
    kind = attribute(data, "MATLAB_class")
    if isinstance(kind, str) and (kind not in MATLAB_NUMBERS or "MATLAB_empty" in Attributes(data)):
        what = "an empty matrix" if kind in MATLAB_NUMBERS else f"a {kind}"
        advice = (
            "in MATLAB, save numbers: y = double(categorical(labels)); "
            "save('data.mat', 'X', 'y', '-v7.3')"
        )
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
    """Raise the DataError that says what a group is that is neither a sparse matrix nor a vector.

    Parameters
    ----------
    group : hdf5.Group
        The group.
    place : str
        What the message calls it.
    expected : str
        What was expected, for the message.
    """
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
