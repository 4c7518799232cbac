"""Flattening of nested columns (lists, vectors, structs) into plain columns.

The names of the plain columns say where they come from. A list of two numbers named v becomes v[0]
and v[1], a struct named s with a field x becomes s.x, and so on for lists of structs (v[0].x) and
lists of lists (v[0][1]). Lists whose type has no fixed size must all have the length of the first
one. Spark's vectors, dense and sparse, are treated like lists of numbers.

A `path` names a list inside a column: it is like the name of a plain column, but with [] for every
index (v[].x). The mapping `lengths` goes from such paths to the lengths of lists without a fixed
size.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

from mpigd.tables import arrow_types
from mpigd.tables.arrow_types import TRANSPARENT, extension_of

Array = np.ndarray[Any, Any]
MOST_ITEMS = 1 << 16  # plain columns that one nested column may become
VECTOR = ("type", "size", "indices", "values")  # the fields of Spark's VectorUDT


class Misfit(Exception):
    """Raised for a row that does not fit the others. The caller adds the name of the file."""

    def __init__(self, row: int, reason: str) -> None:
        self.row, self.reason = row, reason


def leaves(
    name: str, type: Any, lengths: Mapping[str, int], extension: str = ""
) -> list[tuple[str, str]]:
    """Return the plain columns that a column becomes.

    Parameters
    ----------
    name : str
        The name of the column.
    type : pyarrow.DataType
        Its type.
    lengths : mapping of str to int
        The lengths of lists without a fixed size, as found by `measure`. A list of unknown length
        counts as all missing.
    extension : str
        The name of an extension type that pyarrow does not know.

    Returns
    -------
    list of (str, str)
        Names, which begin with `name`, and kinds: "number", "string", "category", "time", "null",
        or a description of a type that cannot be read.
    """
    try:
        return _leaves(name, name, type, lengths, extension)
    except _TooManyError as error:
        return [(name, str(error))]


class _TooManyError(Exception):
    """Raised for a column that would become more than MOST_ITEMS plain ones."""


def _leaves(
    name: str, path: str, type: Any, lengths: Mapping[str, int], extension: str = ""
) -> list[tuple[str, str]]:
    storage, extension = arrow_types.storage(type, extension)
    if extension and extension not in TRANSPARENT:
        return [(name, extension)]
    if is_vector(storage) or is_list(storage):
        length = storage.list_size if _is_fixed(storage) else lengths.get(path)
        if length is None:
            return [(name, "null")]
        if length == 0:
            return [(name, "empty lists")]
        item = _item(storage)
        if _is_unreadable(item):
            return [(name, str(storage))]
        width = len(_leaves("", f"{path}[]", item, lengths))
        if length * width > MOST_ITEMS:
            raise _TooManyError(
                f"lists of {length * width:,} numbers, more than {MOST_ITEMS:,} "
                "(svmlight files can hold so many)"
            )
        return [
            leaf
            for i in range(length)
            for leaf in _leaves(f"{name}[{i}]", f"{path}[]", item, lengths)
        ]
    if _is_struct(storage):
        fields = [storage.field(i) for i in range(storage.num_fields)]
        inner = [
            _leaves(f"{name}.{f.name}", f"{path}.{f.name}", f.type, lengths, extension_of(f))
            for f in fields
        ]
        return [leaf for part in inner for leaf in part]
    return [(name, arrow_types.kind(storage))]


def _is_unreadable(type: Any) -> bool:
    """Return whether a type has a part that is neither a number nor text nor a time."""
    storage, extension = arrow_types.storage(type)
    if extension and extension not in TRANSPARENT:
        return True
    if is_vector(storage) or is_list(storage):
        return _is_unreadable(_item(storage))
    if _is_struct(storage):
        return any(
            extension_of(f) not in ("", *TRANSPARENT) or _is_unreadable(f.type) for f in storage
        )
    return arrow_types.kind(storage) not in ("number", "string", "category", "time", "null")


def measure(name: str, type: Any, array: Any, lengths: MutableMapping[str, int]) -> None:
    """Add the lengths of lists without a fixed size to `lengths`.

    Parameters
    ----------
    name : str
        The path of the column.
    type : pyarrow.DataType
        Its type.
    array : pyarrow.Array
        Some of its values. The first list that is not null gives the length.
    lengths : mutable mapping of str to int
        Path -> length. Lengths that are known already stay.
    """
    storage, extension = arrow_types.storage(type)
    if extension and extension not in TRANSPARENT:
        return
    array = arrow_types.stored(array)
    if is_vector(storage):
        there = array.filter(array.is_valid()).slice(0, 1)
        if name not in lengths and len(there):
            vector = there[0].as_py()
            lengths[name] = (
                int(vector["size"]) if vector["type"] == 0 else len(vector["values"] or ())
            )
    elif is_list(storage):
        there = array.filter(array.is_valid())
        if not _is_fixed(storage) and name not in lengths and len(there):
            lengths[name] = len(there[0])
        measure(f"{name}[]", _item(storage), there.flatten(), lengths)
    elif _is_struct(storage):
        for field, part in zip(storage, array.flatten(), strict=True):
            measure(f"{name}.{field.name}", field.type, part, lengths)


def unmeasured(name: str, type: Any, lengths: Mapping[str, int]) -> bool:
    """Return whether a column has lists whose length is not in `lengths`.

    name: the path of the column; type: its pyarrow type; lengths: path -> length.
    """
    storage, extension = arrow_types.storage(type)
    if extension and extension not in TRANSPARENT:
        return False
    if is_vector(storage):
        return name not in lengths
    if is_list(storage):
        unknown = not _is_fixed(storage) and name not in lengths
        return unknown or unmeasured(f"{name}[]", _item(storage), lengths)
    if _is_struct(storage):
        return any(unmeasured(f"{name}.{field.name}", field.type, lengths) for field in storage)
    return False


def arrays(path: str, array: Any, lengths: Mapping[str, int]) -> list[Any]:
    """Flatten the values of a column.

    Parameters
    ----------
    path : str
        The path of the column.
    array : pyarrow.Array
        Its values (m,).
    lengths : mapping of str to int
        As of `leaves`.

    Returns
    -------
    list of pyarrow.Array
        The plain columns, each (m,), in the order of `leaves`.

    Raises
    ------
    Misfit
        If a row has a list of another length.
    """
    import pyarrow as pa

    if getattr(array.type, "extension_name", TRANSPARENT[0]) not in TRANSPARENT:
        return [array]
    array = arrow_types.stored(array)
    if is_vector(array.type) or is_list(array.type):
        length = array.type.list_size if _is_fixed(array.type) else lengths.get(path)
        if length and _is_unreadable(_item(array.type)):
            return [pa.nulls(len(array))]
        if not length:
            return [_nulls(array)] if length is None else [pa.nulls(len(array))]
        items = (_vectors if is_vector(array.type) else _items)(array, length)
        rows = len(array)
        inner = arrays(f"{path}[]", items, lengths)
        return [part.slice(i * rows, rows) for i in range(length) for part in inner]
    if _is_struct(array.type):
        inner = []
        for field, part in zip(array.type, array.flatten(), strict=True):
            known = extension_of(field) in ("", *TRANSPARENT)
            inner += arrays(f"{path}.{field.name}", part, lengths) if known else [part]
        return inner
    return [arrow_types.plain(array)]


def _nulls(array: Any) -> Any:
    import pyarrow as pa

    if array.null_count < len(array):
        row = int(np.argmax(array.is_valid().to_numpy(zero_copy_only=False)))
        raise Misfit(row, "has a list, but the rows looked at first had none")
    return pa.nulls(len(array))


def _items(array: Any, length: int) -> Any:
    """Return the items of lists (m,) as one array (length m,): item 0 of all rows, then item 1."""
    import pyarrow as pa

    rows = len(array)
    gone = array.is_null().to_numpy(zero_copy_only=False)
    if _is_fixed(array.type):
        starts = (array.offset + np.arange(rows)) * length
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
        _check_lengths(np.diff(offsets), gone, length)
        starts = offsets[:-1]
    positions = (starts + np.arange(length)[:, None]).ravel()
    mask = np.tile(gone, length) if gone.any() else None
    return array.values.take(pa.array(positions, mask=mask))


def _check_lengths(found: Array, gone: Array, length: int) -> None:
    wrong = np.flatnonzero((found != length) & ~gone)
    if wrong.size:
        row = int(wrong[0])
        raise Misfit(row, f"is a list of {found[row]}, but lists before it have {length}")


def _vectors(array: Any, length: int) -> Any:
    """Return the numbers of Spark's vectors (m,) as one array (length m,), ordered as by _items."""
    import pyarrow as pa

    type, size, indices, values = array.flatten()
    gone = array.is_null().to_numpy(zero_copy_only=False)
    sparse = ~gone & (type.fill_null(1).to_numpy(zero_copy_only=False) == 0)
    spans = [np.diff(part.offsets.to_numpy().astype(np.int64)) for part in (indices, values)]
    sizes = np.where(sparse, size.fill_null(0).to_numpy(zero_copy_only=False), spans[1])
    _check_lengths(sizes, gone, length)
    if np.any(spans[0][sparse] != spans[1][sparse]):
        raise Misfit(int(np.flatnonzero(sparse & (spans[0] != spans[1]))[0]), "is a damaged vector")
    numbers = values.flatten().to_numpy(zero_copy_only=False)
    lengths = np.where(values.is_null().to_numpy(zero_copy_only=False), 0, spans[1])
    row = np.repeat(np.arange(len(array)), lengths)
    position = np.arange(numbers.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if sparse.any():
        position[sparse[row]] = (
            indices.filter(pa.array(sparse)).flatten().to_numpy(zero_copy_only=False)
        )
    kept = ~gone[row]
    outside = np.flatnonzero(kept & ((position < 0) | (position >= length)))
    if outside.size:
        raise Misfit(
            int(row[outside[0]]), f"is a vector with index {position[outside[0]]} of {length}"
        )
    out = np.zeros((length, len(array)))
    out[position[kept], row[kept]] = numbers[kept]
    return pa.array(out.ravel(), mask=np.tile(gone, length) if gone.any() else None)


def is_vector(type: Any) -> bool:
    """Return whether a type is the storage type of Spark's VectorUDT."""
    from pyarrow import types

    if not types.is_struct(type) or tuple(field.name for field in type) != VECTOR:
        return False
    kinds = [field.type for field in type]
    whole = types.is_integer(kinds[0]) and types.is_integer(kinds[1])
    return whole and all(is_list(kind) for kind in kinds[2:]) and types.is_floating(_item(kinds[3]))


def is_list(type: Any) -> bool:
    from pyarrow import types

    return types.is_list(type) or types.is_large_list(type) or _is_fixed(type)


def _is_fixed(type: Any) -> bool:
    from pyarrow import types

    return bool(types.is_fixed_size_list(type))


def _is_struct(type: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(type))


def _item(type: Any) -> Any:
    import pyarrow as pa

    return pa.float64() if is_vector(type) else type.value_type
