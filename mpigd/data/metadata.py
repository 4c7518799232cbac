"""Metadata of the data files: shape, layout, types and extras, read before any row.

One rank looks at each file, and all ranks get the results as `Info` records. `inspect` checks that
the files fit together. An error that every rank raises from the same facts is marked as agreed, see
`agreed`.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import h5py
import numpy as np

from mpigd.data import column_names, file_vectors, foreign, foreign_marks, unwritten
from mpigd.data.partition import Extent
from mpigd.errors import DataError, MpigdError
from mpigd.parallel.comm import Comm, bcast_bytes, together
from mpigd.storage import dataset_checks, file_order, hdf5
from mpigd.storage.chunked_reads import reading_bytes
from mpigd.storage.safe_open import Attributes

Failure = TypeVar("Failure", bound=MpigdError)
FLOATS = ("float64", "float32")
EXTRAS = ("sample_weight", "offset", "key")


@dataclass(frozen=True)
class Info:
    """The metadata of one file.

    Attributes
    ----------
    path : str
        The path of the file.
    n, d : int
        The numbers of rows and columns of X.
    layout : str
        "dense" or "csr".
    dtype : str
        The training type of X, see `stored_type`.
    chunk : int
        Rows per chunk; 1 if X is not chunked.
    nonzeros : int or None
        The number of stored values of a CSR matrix; None for a dense one.
    has_y : bool
        Whether the file has the target `y`.
    extras : tuple of str
        Those of `EXTRAS` that the file has.
    names, halves, links, x, y, classes, columns, reading
        See the comments at the fields.
    """

    path: str
    n: int
    d: int
    layout: str
    dtype: str
    chunk: int
    nonzeros: int | None
    has_y: bool
    extras: tuple[str, ...]
    # Digest of the encoding, so that files encoded differently are not mixed.
    names: str
    halves: bool = False  # X is stored as float16
    links: tuple[str, ...] = ()  # folders into which links in the file may lead
    x: str = "X"  # names of the matrix and of the target, as given by the user
    y: str = "y"
    # The class names in y, over all files, ascending; None if y holds numbers.
    classes: tuple[str, ...] | None = None
    columns: str = ""  # digest of the column names, empty if there are none
    reading: int = 0  # bytes that HDF5 needs besides the numbers while it reads them

    def extent(self) -> Extent:
        return Extent(self.n, self.chunk, self.nonzeros)


def expand(patterns: Sequence[str], comm: Comm, duplicates: bool = False) -> list[str]:
    """Return the files that paths and globs name. Collective.

    Rank 0 looks at the file system and broadcasts the result.

    Parameters
    ----------
    patterns : sequence of str
        Paths and globs. Their order is kept; the files of one glob come in natural order.
    comm : Comm
    duplicates : bool
        Whether a file may be named more than once.

    Returns
    -------
    list of str
        The paths, the same on all ranks.

    Raises
    ------
    DataError
        On all ranks, if a pattern matches no file, no file is named, or one is named twice without
        `duplicates`.
    """
    found: list[str] = []
    with together(comm):
        if comm.rank == 0:
            for pattern in patterns:
                hits = (
                    sorted(glob.glob(pattern), key=file_order.natural)
                    if glob.has_magic(pattern)
                    else [pattern]
                )
                if not hits:
                    raise DataError(f"{pattern}: no file matches")
                found += hits
            if not found:
                raise DataError("no data given")
            if not duplicates:
                file_order.check_once(found)
    return list(share_json(comm, found))


def share_json(comm: Comm, value: Any) -> Any:
    """Return rank 0's value on all ranks, through JSON. Collective."""
    return json.loads(bcast_bytes(comm, json.dumps(value).encode()))


def inspect(
    paths: Sequence[str],
    x: str,
    y: str,
    comm: Comm,
    links: Sequence[str] = (),
    allow_unwritten: bool = False,
) -> list[Info]:
    """Read the metadata of all files, each rank those of its share of the files. Collective.

    Parameters
    ----------
    paths : sequence of str
        The files, in the same order on all ranks.
    x, y : str
        The names of the matrix and of the target in the files.
    comm : Comm
    links : sequence of str
        Folders into which links in the files may lead.
    allow_unwritten : bool
        Accept numbers that were never written, for which HDF5 reads its fill value.

    Returns
    -------
    list of Info
        One for each path, in their order, the same on all ranks.

    Raises
    ------
    DataError
        On all ranks, if a file is unusable, if the files do not fit together, or if there are no
        rows or no columns.
    """
    mine: list[dict[str, Any]] = []
    with together(comm):
        for path in paths[comm.rank :: comm.size]:
            with hdf5.open_read(path, links) as file:
                info = look(file, str(path), x, y, links)
                if not allow_unwritten:
                    unwritten.check(file, [x, *([y] if info.has_y else []), *info.extras])
                columns = column_names.digest(column_names.columns(file, x, info.d))
                mine.append(
                    asdict(replace(info, columns=columns, reading=reading_bytes(file.raw(x))))
                )
    text = json.dumps(mine).encode()
    longest = np.array([len(text)], dtype=np.int64)
    comm.allreduce(longest, "max")
    texts = comm.allgather(np.frombuffer(text.ljust(int(longest[0])), dtype=np.uint8))
    shares = [json.loads(bytes(row)) for row in texts]
    infos = [shares[i % comm.size][i // comm.size] for i in range(len(paths))]
    result = [
        Info(**{**info, "extras": tuple(info["extras"]), "links": tuple(info["links"])})
        for info in infos
    ]
    for info in result[1:]:
        _same(result[0], info, comm)
    result = with_classes(result)
    if sum(info.n for info in result) == 0:
        raise agreed(DataError(f"{result[0].path}: {x!r} has no rows"))
    if result[0].d == 0:
        raise agreed(DataError(f"{result[0].path}: {x!r} has no columns"))
    return result


def agreed(error: Failure) -> Failure:
    """Mark an error as raised on every rank from the same facts, and return it."""
    error.agreed = True
    return error


def _same(first: Info, other: Info, comm: Comm) -> None:
    """Raise DataError, agreed, unless the rows of two files have the same form. Collective."""
    for what, here, there in (
        ("columns", first.d, other.d),
        ("layout", first.layout, other.layout),
        ("extra datasets", first.extras, other.extras),
        ("target", first.has_y, other.has_y),
    ):
        if here != there:
            raise agreed(
                DataError(f"{other.path}: {what} {there} do not match {here} of {first.path}")
            )
    if (first.names, first.columns) != (other.names, other.columns):
        with together(comm):
            if comm.rank == 0:
                _explain(first, other)


def _explain(first: Info, other: Info) -> None:
    """Raise the DataError for two files whose columns, or whose encodings of columns, differ."""
    for what, here, there in (
        ("encoding", first.names, other.names),
        ("names of columns", first.columns, other.columns),
    ):
        if bool(here) != bool(there):
            has, lacks = (first.path, other.path) if here else (other.path, first.path)
            way = (
                "import it with `mpigd import --like`"
                if what == "encoding"
                else "store them in it as 'feature_names'"
            )
            raise DataError(
                f"{lacks} has no {what}, and {has} has: "
                f"nothing tells whether their columns are the same ({way})"
            )
    (names_of_first, encoding_of_first), (names_of_other, encoding) = (
        _told(info) for info in (first, other)
    )
    column_names.check_same(other.path, names_of_other, f"in {first.path} it is", names_of_first)
    column_names.check_same_encoding(other.path, encoding, first.path, encoding_of_first)


def _told(info: Info) -> tuple[list[str], dict[str, Any]]:
    """Return the names of a file's columns and its encoding; both are empty if there are none."""
    with hdf5.open_read(info.path, info.links) as file:
        encoding = hdf5.read_json(file, "encoding") if "encoding" in file else {}
        return column_names.columns(file, info.x, info.d) or [], encoding


def with_classes(infos: list[Info]) -> list[Info]:
    """Return the infos, each with the class names of all files' y.

    The class names are sorted over all files, so that the position of a name is the same number in
    every file.

    Raises
    ------
    DataError
        Agreed, if some files hold class names in y and others numbers.
    """
    told = [None if info.classes is None else set(info.classes) for info in infos]
    if all(classes is None for classes in told):
        return infos
    for info, classes in zip(infos, told, strict=True):
        if classes is None:
            other = next(
                info.path for info, classes in zip(infos, told, strict=True) if classes is not None
            )
            raise agreed(
                DataError(f"{info.path}: {info.y!r} holds numbers, but in {other} it holds texts")
            )
    union = tuple(sorted(set[str]().union(*(classes or () for classes in told))))
    return [replace(info, classes=union) for info in infos]


def look(file: hdf5.Group, path: str, x: str, y: str, links: Sequence[str] = ()) -> Info:
    """Return the Info of an open file.

    Parameters
    ----------
    file : hdf5.Group
        The open file.
    path : str
        Its path, for messages.
    x, y : str
        The names of the matrix and of the target.
    links : sequence of str
        Folders into which links in the file may lead; kept in the Info.

    Raises
    ------
    DataError
        If the file is unusable. The message names the file and the dataset.
    """
    found = file.raw(x)
    if isinstance(found, hdf5.Group):
        n, d, chunk, nonzeros, dtype = _look_csr(found, path, x, y)
        layout = "csr"
    elif isinstance(found, h5py.Dataset):
        matrix = _look_dense(found, path, x, y)
        (n, d), nonzeros, layout = matrix.shape, None, "dense"
        dtype, chunk = matrix.dtype, matrix.chunks[0] if matrix.chunks else 1
    else:
        raise DataError(
            f"{path}: no dataset {x!r}; "
            f"it has {', '.join(sorted(file)) or 'nothing'} (name it with --x)"
        )
    extras = tuple(name for name in EXTRAS if file_vectors.there(file, name))
    has_y, classes = file_vectors.there(file, y), None
    for name in (*extras, *([y] if has_y else [])):
        vector = file_vectors.find(file, name)
        _check_length(vector, name, (n, d), path, x, y)
        if name == y:
            classes = vector.classes()
        elif not isinstance(vector, file_vectors.Numbers):
            raise DataError(f"{path}: {name!r} holds text, expected numbers")
    if has_y and layout == "dense":
        _check_turned(found, (n, d), path, x, y)
    encoding = hdf5.content_digest(file, "encoding") if "encoding" in file else ""
    halves = dtype.name == "float16"
    kind = stored_type(dtype)
    return Info(
        path,
        int(n),
        int(d),
        layout,
        kind,
        int(chunk),
        nonzeros,
        has_y,
        extras,
        encoding,
        halves,
        tuple(links),
        x,
        y,
        classes,
    )


def _look_dense(data: h5py.Dataset, path: str, x: str, y: str) -> Any:
    foreign.check_records(data)
    dataset_checks.check_type(data)
    if data.ndim != 2:
        raise DataError(f"{path}: {x!r} has shape {data.shape}, expected (rows, columns)")
    return foreign_marks.matrix(data, x, y)


def _check_length(
    vector: file_vectors.Vector, name: str, shape: tuple[int, int], path: str, x: str, y: str
) -> None:
    """Raise DataError unless a vector has one element for each of the n rows.

    The shape (n,) is accepted, and so are (n, 1) and (1, n), which programs write that have only
    matrices.
    """
    n, d = shape
    if vector.shape in ((n,), (n, 1), (1, n)):
        return
    advice = ""
    if d != n and vector.shape in ((d,), (d, 1), (1, d)):
        turn = foreign_marks.command(path, x, y, "--transpose")
        advice = (
            f": {x!r} {n, d} looks transposed, as MATLAB, "
            f"R and Julia store matrices: {turn} turns it"
        )
    elif len(vector.shape) == 2 and vector.shape[0] == n:
        advice = (
            ": one column for each class or output is not read, "
            "store one number, or one label, a row"
        )
    raise DataError(f"{path}: {name!r} has shape {vector.shape}, expected ({n},){advice}")


def _check_turned(data: h5py.Dataset, shape: tuple[int, int], path: str, x: str, y: str) -> None:
    """Raise DataError for a square matrix written by R (rhdf5).

    R stores matrices transposed; in a square one nothing shows which axis holds the rows of the
    data.
    """
    if foreign_marks.RHDF5 in Attributes(data) and shape[0] == shape[1] > 1:
        turned, plain = (
            foreign_marks.command(path, x, y, "--transpose"),
            foreign_marks.command(path, x, y),
        )
        raise DataError(
            f"{path}: {x!r} is square, and R stores matrices transposed: {turned} "
            f"if a row of it in R is a row of the data, {plain} if a column is"
        )


def stored_type(dtype: np.dtype[Any]) -> str:
    """Return the training type of a stored dtype.

    float32 and float64 stay. Every other type becomes float32 if it has at most 2 bytes, so that no
    digits are lost, and float64 otherwise.
    """
    if dtype.name in FLOATS:
        return str(dtype.name)
    return "float32" if dtype.itemsize <= 2 else "float64"


def _look_csr(
    group: hdf5.Group, path: str, x: str, y: str
) -> tuple[int, int, int, int, np.dtype[Any]]:
    if "MATLAB_sparse" in group.attrs:
        raise DataError(
            f"{path}: group {x!r} is a sparse matrix of MATLAB, by columns: "
            f"{foreign_marks.command(path, x, y)} turns it"
        )
    if not {"data", "indices", "indptr"} & set(group):
        foreign.refuse_group(group, f"{path}: {x!r}", "a matrix of numbers")
    if sparse_shape(group) is None:
        raise DataError(
            f"{path}: group {x!r} has no encoding-type and shape, "
            "expected 'csr_matrix' with a shape"
        )
    parts = {name: hdf5.dataset(group, name) for name in ("data", "indices", "indptr")}
    stored = np.asarray(sparse_shape(group))
    shape = stored.tolist()
    if stored.dtype.kind not in "iu" or stored.shape != (2,) or shape[1] < 0:
        raise DataError(f"{path}: {x!r}: shape {shape} is none of rows and columns")
    encoding = sparse_encoding(group, shape, parts["indptr"].shape)
    if encoding != "csr_matrix":
        advice = (
            f": {foreign_marks.command(path, x, y)} turns it"
            if encoding == "csc_matrix"
            else " with a shape"
        )
        raise DataError(
            f"{path}: group {x!r} has encoding-type {encoding!r}, expected 'csr_matrix'{advice}"
        )
    if parts["indptr"].shape != (shape[0] + 1,):
        raise DataError(f"{path}: {x!r}: shape {shape} does not fit indptr {parts['indptr'].shape}")
    if parts["data"].ndim != 1 or parts["data"].shape != parts["indices"].shape:
        raise DataError(
            f"{path}: {x!r}: data {parts['data'].shape} do not fit indices {parts['indices'].shape}"
        )
    dataset_checks.check_columns(group.filename, shape[1], f"{path}: {x!r}")
    if parts["indices"].dtype.kind not in "iu" or parts["indptr"].dtype.kind not in "iu":
        raise DataError(f"{path}: {x!r}: indices and indptr must be whole numbers")
    return shape[0], shape[1], 1, int(parts["data"].shape[0]), parts["data"].dtype


def sparse_shape(group: hdf5.Group) -> Any:
    """Return the declared shape (rows, columns) of a sparse matrix.

    None if the group has no attribute for the shape or none for the encoding. The names of the
    attributes before AnnData 0.7 (h5sparse_shape, h5sparse_format) are accepted too.
    """
    name = next((name for name in ("shape", "h5sparse_shape") if name in group.attrs), None)
    told = "encoding-type" in group.attrs or "h5sparse_format" in group.attrs
    return group.attrs[name] if name and told else None


def sparse_encoding(group: hdf5.Group, shape: list[int], indptr: tuple[int, ...]) -> Any:
    """Return the encoding of a sparse matrix as AnnData names it: "csr_matrix" or "csc_matrix".

    The attribute encoding-type is usually a text of variable length, which should not be read from
    a damaged file. The length of indptr gives the same answer unless the matrix is square, so a
    text of variable length is read for square matrices only.

    Parameters
    ----------
    group : hdf5.Group
        The group of the sparse matrix.
    shape : list of int
        The numbers of rows and columns.
    indptr : tuple of int
        The shape of the dataset indptr.
    """
    name = "encoding-type" if "encoding-type" in group.attrs else "h5sparse_format"
    if not group.attrs.varies(name):
        told = group.attrs[name]
        told = told.decode(errors="replace") if isinstance(told, bytes) else told
    elif shape[0] == shape[1]:
        told = group.attrs.varying(name)
    else:
        told = "csc_matrix" if indptr == (shape[1] + 1,) else "csr_matrix"
    return f"{told}_matrix" if name == "h5sparse_format" and told in ("csr", "csc") else told
