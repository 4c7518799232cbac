"""The names of the columns of X in a file, and the check that two files have the same columns.

mpigd's own files hold the names in `encoding`. Other files may have a dataset or an attribute
`feature_names` (or `column_names`, or `columns`) beside X or on it, or AnnData's `var`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mpigd.errors import DataError
from mpigd.storage import attribute_text, hdf5, text_datasets
from mpigd.storage.safe_open import Attributes

if TYPE_CHECKING:
    from mpigd.data.shard import Shard
    from mpigd.parallel.comm import Comm

KEYS = ("feature_names", "column_names", "columns")
LONGEST = 1000  # bytes of a name, at most


def columns(file: hdf5.Group, x: str, d: int) -> list[str] | None:
    """Return the names of the columns of a matrix, or None if the file has none.

    Parameters
    ----------
    file : hdf5.Group
        The open file.
    x : str
        The name of the matrix.
    d : int
        Its number of columns.

    Raises
    ------
    DataError
        If `feature_names` does not hold d texts, or a name is longer than LONGEST bytes. Names
        under the other keys are ignored if their number is wrong.
    """
    if "encoding" in file:
        found = hdf5.read_json(file, "encoding").get("feature_names")
        return None if found is None else [str(name) for name in found]
    matrix = file.raw(x)
    for key in KEYS:
        names = _stored(file, key)
        for item in (file, matrix):
            names = _attribute(item, key) if names is None else names
        if names is not None and len(names) == d:
            return names
        if names is not None and key == KEYS[0]:
            raise DataError(
                f"{file.filename}: {key!r} has {len(names)} names, but {x!r} has {d} columns"
            )
    names = None if x.startswith(("obsm/", "obsp/", "raw/")) else _of_annotations(file)
    return names if names is not None and len(names) == d else None


def _stored(group: hdf5.Group, key: str) -> list[str] | None:
    found = group.raw(key)
    if (
        not isinstance(found, h5py.Dataset)
        or found.ndim != 1
        or not text_datasets.holds_text(found)
    ):
        return None
    return [
        _name(text, group) for slab in text_datasets.slabs(found, 0, len(found)) for text in slab
    ]


def _name(text: bytes, group: h5py.Group) -> str:
    if len(text) > LONGEST:
        raise DataError(
            f"{group.file.filename}: a text of {len(text)} bytes is no name of a column"
        )
    return text.decode(errors="replace")


def _attribute(item: Any, key: str) -> list[str] | None:
    """Return the texts of an attribute, or None."""
    attributes, place = Attributes(item), f"{item.file.filename}: attribute {key!r}"
    if key not in attributes:
        return None
    if attributes.varies(key):  # h5py writes a list of str in this way
        found = attribute_text.texts(item, key, place)
        return None if found is None else [_name(text, item) for text in found]
    kind = attributes.get_id(key).get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID):
        return None
    return [_name(bytes(value), item) for value in np.atleast_1d(attributes[key]).tolist()]


def _of_annotations(file: hdf5.Group) -> list[str] | None:
    """Return AnnData's names of variables: the dataset in `var` that its attribute _index names."""
    var = file.raw("var")
    if not isinstance(var, hdf5.Group):
        return None
    key = "_index"
    if var.raw(key) is None and (told := _attribute(var, key)):
        key = told[0]
    return _stored(var, key)


def digest(names: Sequence[str] | None) -> str:
    """Return a digest of the names in their order; empty if there are none."""
    return "" if names is None else hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def check_same(
    path: str, names: Sequence[str] | None, other: str, known: Sequence[str] | None
) -> None:
    """Raise DataError unless the names of columns of two data sets are equal, if both have names.

    The message names the first column that differs.

    Parameters
    ----------
    path : str
        The file that is checked.
    names : sequence of str or None
        Its names of columns.
    other : str
        The data set, or the model, to compare with, as the message begins its part.
    known : sequence of str or None
        The names of columns of that.
    """
    if names is None or known is None:
        return
    for j, (here, there) in enumerate(zip(names, known, strict=False)):
        if here != there:
            how = " (the same columns in another order)" if sorted(names) == sorted(known) else ""
            raise DataError(f"{path}: column {j} is {here!r}, but {other} {there!r}{how}")
    if len(names) != len(known):
        raise DataError(f"{path}: has {len(names)} names of columns, but {other} {len(known)}")


def check_columns(shard: Shard, d: int, known: Sequence[str] | None) -> str:
    """Raise DataError, agreed, unless the data's columns are those that a model was trained on.

    Parameters
    ----------
    shard : Shard
        This rank's rows.
    d : int
        The number of columns that the model was trained on.
    known : sequence of str or None
        Their names.

    Returns
    -------
    str
        A note for the user if the data have no names, so that only the order identifies the
        columns; else empty.
    """
    here = shard.feature_names
    try:
        if shard.X.d != d:
            raise DataError(f"{shard.name}: {shard.X.d} columns, but the model was trained on {d}")
        check_same(shard.name, here, "the model was trained on", known)
    except DataError as error:
        error.agreed = True
        raise
    if known is None or here is not None:
        return ""
    return (
        f"{shard.name} has no names of columns: "
        "they are taken in the order that the model was trained on"
    )


def tell(text: str, note: Callable[[str], None], comm: Comm) -> None:
    """Give the text to `note` on rank 0, unless it is empty."""
    if text and comm.rank == 0:
        note(text)


def check_same_encoding(
    path: str, encoding: Mapping[str, Any], other: str, known: Mapping[str, Any]
) -> None:
    """Raise the DataError that says how the encodings of two files differ.

    It is called for encodings that differ, so it always raises.

    Parameters
    ----------
    path : str
        The file that is checked.
    encoding : mapping
        Its encoding.
    other : str
        The file to compare with.
    known : mapping
        The encoding of that.
    """
    check_same(
        path,
        encoding.get("feature_names") or (),
        f"in {other} it is",
        known.get("feature_names") or (),
    )
    for here, there in zip(encoding.get("columns") or (), known.get("columns") or (), strict=False):
        for key in sorted(set(here) | set(there)):
            if here.get(key) != there.get(key):
                raise DataError(
                    f"{path}: column {here.get('name')!r} was imported with "
                    f"another {key} than in {other} ({ADVICE})"
                )
    for key in sorted(set(encoding) | set(known)):
        if encoding.get(key) != known.get(key):
            raise DataError(f"{path}: {key} is not as in {other} ({ADVICE})")
    raise DataError(f"{path}: its encoding is not that of {other} ({ADVICE})")


ADVICE = "`mpigd import --like` encodes one file as another"
