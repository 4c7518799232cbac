"""What lies in the files: looked at once per file, by one rank each, before any row is read."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import h5py
import numpy as np

from mpigd.data import column_names, file_vectors, foreign, foreign_marks, unwritten
from mpigd.data.partition import Extent
from mpigd.errors import DataError
from mpigd.parallel.comm import Comm, bcast_bytes, together
from mpigd.storage import dataset_checks, file_order, hdf5
from mpigd.storage.chunked_reads import reading_bytes
from mpigd.storage.safe_open import Attributes

FLOATS = ("float64", "float32")
EXTRAS = ("sample_weight", "offset", "key")


@dataclass(frozen=True)
class Info:
    """One file: path, rows n, columns d, layout, dtype of X, rows per chunk, non-zeros, and which extras it has."""

    path: str
    n: int
    d: int
    layout: str
    dtype: str
    chunk: int
    nonzeros: int | None
    has_y: bool
    extras: tuple[str, ...]
    names: str  # digest of the encoding, so that files encoded differently are not mixed
    halves: bool = False  # X is stored as float16
    links: tuple[str, ...] = ()  # folders into which the file's links may lead
    x: str = "X"  # the names that were given
    y: str = "y"
    classes: tuple[str, ...] | None = None  # the texts that y holds, of all files, ascending
    columns: str = ""  # digest of the columns' names, empty where there are none
    reading: int = 0  # bytes that HDF5 takes besides the numbers while it reads them

    def extent(self) -> Extent:
        return Extent(self.n, self.chunk, self.nonzeros)


def expand(patterns: Sequence[str], comm: Comm, duplicates: bool = False) -> list[str]:
    """The files that the paths and globs name, in the order given (a glob's in natural order): rank 0 looks, all know.

    duplicates: a file may be named more than once.
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
    return list(_share_json(comm, found))


def _share_json(comm: Comm, value: Any) -> Any:
    return json.loads(bcast_bytes(comm, json.dumps(value).encode()))


def inspect(
    paths: Sequence[str],
    x: str,
    y: str,
    comm: Comm,
    links: Sequence[str] = (),
    allow_unwritten: bool = False,
) -> list[Info]:
    """Look at every file, each rank at its share of them; DataError on all ranks if they do not fit together."""
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


def agreed(error: DataError) -> DataError:
    """Mark an error that every rank raises from the same facts."""
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
    """DataError for files with other columns, or columns that were encoded otherwise."""
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
                f"{lacks} has no {what}, and {has} has: nothing tells whether their columns are the same ({way})"
            )
    (names_of_first, encoding_of_first), (names_of_other, encoding) = (
        _told(info) for info in (first, other)
    )
    column_names.check_same(other.path, names_of_other, f"in {first.path} it is", names_of_first)
    column_names.check_same_encoding(other.path, encoding, first.path, encoding_of_first)


def _told(info: Info) -> tuple[list[str], dict[str, Any]]:
    """The names of a file's columns, and its encoding."""
    with hdf5.open_read(info.path, info.links) as file:
        encoding = hdf5.read_json(file, "encoding") if "encoding" in file else {}
        return column_names.columns(file, info.x, info.d) or [], encoding


def with_classes(infos: list[Info]) -> list[Info]:
    """The same, each with the texts of all files' y: their positions are the same numbers in every file then."""
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
    """The Info of an open file, or a DataError that names file and dataset."""
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
            f"{path}: no dataset {x!r}; it has {', '.join(sorted(file)) or 'nothing'} (name it with --x)"
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
    """DataError unless a vector is one of n rows: (n,), or (n, 1) or (1, n), as programs store it that know only matrices."""
    n, d = shape
    if vector.shape in ((n,), (n, 1), (1, n)):
        return
    advice = ""
    if d != n and vector.shape in ((d,), (d, 1), (1, d)):
        turn = foreign_marks.command(path, x, y, "--transpose")
        advice = f": {x!r} {n, d} looks transposed, as MATLAB, R and Julia store matrices: {turn} turns it"
    elif len(vector.shape) == 2 and vector.shape[0] == n:
        advice = ": one column for each class or output is not read, store one number, or one label, a row"
    raise DataError(f"{path}: {name!r} has shape {vector.shape}, expected ({n},){advice}")


def _check_turned(data: h5py.Dataset, shape: tuple[int, int], path: str, x: str, y: str) -> None:
    """DataError for a square matrix of R: nothing tells whether its rows are those of the data."""
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
    """The training type of a stored type: floats stay, all else becomes float64 where float32 would lose digits."""
    if dtype.name in FLOATS:
        return str(dtype.name)
    return "float32" if dtype.itemsize <= 2 else "float64"


def _look_csr(
    group: hdf5.Group, path: str, x: str, y: str
) -> tuple[int, int, int, int, np.dtype[Any]]:
    if "MATLAB_sparse" in group.attrs:
        raise DataError(
            f"{path}: group {x!r} is a sparse matrix of MATLAB, by columns: {foreign_marks.command(path, x, y)} turns it"
        )
    if not {"data", "indices", "indptr"} & set(group):
        foreign.refuse_group(group, f"{path}: {x!r}", "a matrix of numbers")
    if sparse_shape(group) is None:
        raise DataError(
            f"{path}: group {x!r} has no encoding-type and shape, expected 'csr_matrix' with a shape"
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
    """The rows and columns that a sparse matrix says it has, or None if it says nothing; its name before AnnData 0.7 too."""
    name = next((name for name in ("shape", "h5sparse_shape") if name in group.attrs), None)
    told = "encoding-type" in group.attrs or "h5sparse_format" in group.attrs
    return group.attrs[name] if name and told else None


def sparse_encoding(group: hdf5.Group, shape: list[int], indptr: tuple[int, ...]) -> Any:
    """AnnData's encoding-type. It is a text of variable length, which nobody should read from a damaged file: the length of
    indptr says it as well, unless the matrix is square.
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
