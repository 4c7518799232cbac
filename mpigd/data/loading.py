"""Load a rank's rows: each rank opens the files read-only and reads its own rows, each chunk once.

`load` surveys the files (metadata.py), assigns row ranges to ranks (partition.py) and reads them
(reader.py). Rows that exceed `max_memory` stay in the files (streamed.py). A hash partition
redistributes rows after they are read (redistribute.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.data import column_names, partition
from mpigd.data.metadata import Info, agreed, expand, inspect, share_json
from mpigd.data.partition import Segment
from mpigd.data.reader import matrices, read_csr, read_vector, reading, slabs, wide
from mpigd.data.redistribute import exchange
from mpigd.data.shard import RowNumbers, Shard
from mpigd.data.streamed import Streamed
from mpigd.errors import DataError, UsageError
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.matrix.half import Half, Narrowing
from mpigd.parallel.comm import Comm, together
from mpigd.storage import hdf5, resource_limits
from mpigd_kernels import dense, sampling
from mpigd_kernels.host import aligned

Array = np.ndarray[Any, Any]
# Bytes of the rows that are hashed at once: hashing takes copies of them.
FINGERPRINT_BYTES = 4 << 20
# A rank without rows reads this empty segment, to get vectors with the right names and types.
NOTHING = Segment(0, 0, 0, 0)


@dataclass(frozen=True)
class Layout:
    """The datasets to read, and the form in which the matrix is kept in memory.

    Attributes
    ----------
    x, y : str
        The names of the matrix and of the target in the files.
    dtype : str or None
        The type of X in memory; None for the widest of the files'.
    partition : str
        "range", "file" or "hash".
    need_y : bool
        Whether a missing target is an error.
    max_memory : int or None
        Bytes of X that a rank may hold. If its rows need more, they are read again at every pass.
    block : int or None
        If given, streamed rows are read in pieces of `block` consecutive global rows.
    unstreamed : str
        Why this run cannot stream its rows; empty if it can.
    links : tuple of str
        Folders into which links in the files may lead.
    unwritten : bool
        Whether numbers that were never written are read as HDF5's fill value.
    duplicates : bool
        Whether a file may be named twice.
    """

    x: str = "X"
    y: str = "y"
    dtype: str | None = None
    partition: str = "range"
    need_y: bool = True
    max_memory: int | None = None
    block: int | None = None
    unstreamed: str = ""
    links: tuple[str, ...] = ()
    unwritten: bool = False
    duplicates: bool = False


def load(patterns: Sequence[str], layout: Layout, comm: Comm) -> Shard:
    """Read this rank's rows of the data set that the files make up. Collective.

    Parameters
    ----------
    patterns : sequence of str
        Paths and globs of the files.
    layout : Layout
        What to read and how to keep it.
    comm : Comm

    Returns
    -------
    Shard

    Raises
    ------
    DataError
        On all ranks, if any rank finds an error in its part.
    """
    layout = _as_stored(layout)
    return read(survey(patterns, layout, comm), layout, comm)


def _as_stored(layout: Layout) -> Layout:
    """Return the layout without dtype float16.

    Halves are a way to hold training data; data to be scored keep the file's type.
    """
    return dataclasses.replace(layout, dtype=None) if layout.dtype == "float16" else layout


def passing(
    patterns: Sequence[str], layout: Layout, comm: Comm
) -> tuple[Shard, Iterator[tuple[slice, Matrix]]]:
    """Return this rank's rows without X, and an iterator over X in slabs. Collective.

    This is for callers that need every row once. The hash partition, which moves rows, is replaced
    by a range partition.

    Parameters
    ----------
    patterns : sequence of str
        Paths and globs of the files.
    layout : Layout
    comm : Comm

    Returns
    -------
    Shard
        The rows, with an empty X of shape (0, d).
    iterator of (slice, Matrix)
        The local rows of each slab and their matrix. Slabs are read when they are asked for, so a
        DataError may come on some ranks only. All slabs share one buffer: each is valid until the
        next is asked for.

    Raises
    ------
    DataError
        On all ranks, if the files or the vectors are unusable.
    """
    layout = _as_stored(layout)
    infos = survey(patterns, layout, comm)
    dtype, encoding = kept_as(infos, layout.dtype), shared_encoding(infos[0], comm)
    with together(comm):
        segments = _segments(infos, layout, comm)
        parts = [
            _read_part(infos[segment.file], segment, layout)[0] for segment in segments or [NOTHING]
        ]
        shard = _join(parts, segments, Dense(np.empty((0, infos[0].d))), infos, encoding)
    return shard, matrices(infos, segments, layout.x, dtype)


def survey(patterns: Sequence[str], layout: Layout, comm: Comm) -> list[Info]:
    """Return the metadata of the files that make up the data set. Collective.

    Raises
    ------
    DataError
        On all ranks, if the files do not fit together, or the target is missing and needed.
    """
    paths = expand(patterns, comm, layout.duplicates)
    infos = inspect(paths, layout.x, layout.y, comm, layout.links, layout.unwritten)
    if layout.need_y and not infos[0].has_y:
        raise agreed(DataError(f"{infos[0].path}: no target {layout.y!r} (name it with --y)"))
    return infos


def read(infos: Sequence[Info], layout: Layout, comm: Comm) -> Shard:
    """Read this rank's rows of the surveyed files. Collective.

    Parameters
    ----------
    infos : sequence of Info
        The metadata of the files, from `survey`.
    layout : Layout
    comm : Comm

    Raises
    ------
    DataError
        On all ranks together.
    """
    dtype, encoding = kept_as(infos, layout.dtype), shared_encoding(infos[0], comm)
    kind = dtype if infos[0].layout == "csr" else None
    with together(comm):
        segments = _segments(infos, layout, comm)
        held = [_read_part(infos[part.file], part, layout, kind) for part in segments or [NOTHING]]
        parts, sparse = [part for part, _ in held], [X for _, X in held if X is not None]
    streams = _streams(infos, segments, layout, dtype, comm)
    X: Matrix = (
        _stack(sparse, infos[0].d)
        if sparse
        else read_dense(infos, segments, layout, dtype, streams, comm)
    )
    with together(comm), resource_limits.named(infos[0].path):
        shard = _join(parts, segments, X, infos, encoding)
    return exchange(shard, comm) if layout.partition == "hash" else shard


def kept_as(infos: Sequence[Info], asked: str | None) -> np.dtype[Any]:
    """Return the type of X in memory: the type asked for, or the widest of the files' types.

    Raises
    ------
    UsageError
        Agreed, if float16 is asked for and the data are sparse.
    """
    dtype = (
        np.dtype(asked)
        if asked
        else max((np.dtype(info.dtype) for info in infos), key=lambda kind: kind.itemsize)
    )
    if dtype == np.float16 and infos[0].layout == "csr":
        raise agreed(
            UsageError(
                f"{infos[0].path}: --dtype float16 is for dense data, and these are sparse: "
                "use float32"
            )
        )
    return dtype


def _segments(infos: Sequence[Info], layout: Layout, comm: Comm) -> list[Segment]:
    extents = [info.extent() for info in infos]
    if layout.partition == "file":
        return partition.by_file(extents, comm.rank, comm.size)
    search = (
        None
        if infos[0].layout == "dense"
        else lambda file, wanted: _row_at(infos[file], layout.x, wanted)
    )
    return partition.by_range(extents, comm.rank, comm.size, search)


def _row_at(info: Info, x: str, wanted: int) -> int:
    """Return the first row of a CSR file with at least `wanted` non-zeros before it.

    A binary search in the file's indptr finds it, without reading the whole of it.
    """
    with hdf5.open_read(info.path, info.links) as file:
        indptr = file[x]["indptr"]
        low, high = 0, info.n
        while low < high:
            middle = (low + high) // 2
            if int(indptr[middle]) < wanted:
                low = middle + 1
            else:
                high = middle
    return low


def _read_part(
    info: Info, segment: Segment, layout: Layout, dtype: np.dtype[Any] | None = None
) -> tuple[dict[str, Array], CSR | None]:
    """Read the vectors of a segment and, if a dtype is given, its rows of a CSR matrix.

    The target is read only if it is needed: rows to be predicted may have none.
    """
    wanted = [*info.extras, *([layout.y] if info.has_y and layout.need_y else [])]
    with reading(info, segment) as file:
        X = None if dtype is None else read_csr(file, layout.x, segment, dtype)
        vectors = {name: read_vector(file, name, segment, info) for name in wanted}
    if layout.y != "y" and layout.y in vectors:
        vectors["y"] = vectors.pop(layout.y)
    return vectors, X


def _streams(
    infos: Sequence[Info],
    segments: Sequence[Segment],
    layout: Layout,
    dtype: np.dtype[Any],
    comm: Comm,
) -> bool:
    """Return whether the rows of at least one rank exceed the memory limit. Collective.

    Raises
    ------
    UsageError
        Agreed, if they do and cannot be streamed either.
    """
    if layout.max_memory is None:
        return False
    need = np.array(
        [sum(len(segment) for segment in segments) * infos[0].d * dtype.itemsize], dtype=np.int64
    )
    if infos[0].layout == "csr":
        need[0] = sum(info.nonzeros or 0 for info in infos) * (dtype.itemsize + 4) // comm.size
    comm.allreduce(need, "max")
    if need[0] <= layout.max_memory:
        return False
    why = "sparse data cannot be streamed" if infos[0].layout == "csr" else layout.unstreamed
    if why:
        raise agreed(
            UsageError(
                f"a rank's rows take {need[0] / 1e9:.3g} GB, "
                f"more than --max-memory, and {why}: use more ranks"
            )
        )
    return True


def read_dense(
    infos: Sequence[Info],
    segments: Sequence[Segment],
    layout: Layout,
    dtype: np.dtype[Any],
    streams: bool,
    comm: Comm,
) -> Dense | Half | Streamed:
    """Read this rank's rows of dense files into one array, or leave them in the files. Collective.

    Parameters
    ----------
    infos : sequence of Info
        The metadata of all files.
    segments : sequence of Segment
        This rank's rows.
    layout : Layout
    dtype : dtype
        The type of X in memory, from `kept_as`.
    streams : bool
        Whether the rows stay in the files; the same on all ranks.
    comm : Comm

    Returns
    -------
    Dense, Half or Streamed
        The matrix (m, d) of this rank's rows.

    Notes
    -----
    If X becomes float16 and the files hold other types, the rows are read twice: the first pass
    finds the units of the columns.
    """
    d, narrowing = infos[0].d, None
    if dtype == np.float16 and not all(info.halves for info in infos):
        low, high = np.full(d, np.inf), np.full(d, -np.inf)
        with together(comm):
            for _, slab in slabs(infos, segments, layout.x, wide(infos)):
                dense.column_range(slab, low, high)
        narrowing = Narrowing(low, high, comm)
    X: Dense | Half | Streamed
    with together(comm), resource_limits.named(infos[0].path):
        if streams:
            X = Streamed(
                infos, segments, layout.x, dtype, narrowing, layout.max_memory or 0, layout.block
            )
            X.check()
        else:
            values = aligned(
                (sum(len(segment) for segment in segments), d),
                np.uint16 if dtype == np.float16 else dtype,
            )
            kind, out = (dtype, values) if narrowing is None else (wide(infos), None)
            for rows, slab in slabs(infos, segments, layout.x, kind, out):
                if narrowing is not None:
                    narrowing.narrow(slab, values[rows])
            X = (
                Half(values, np.ones(d) if narrowing is None else narrowing.unit)
                if dtype == np.float16
                else Dense(values)
            )
    if narrowing is not None:
        names = shared_encoding(infos[0], comm).get("feature_names")
        narrowing.check(infos[0].path, names and [str(name) for name in names], comm)
    return X


def _join(
    parts: Sequence[dict[str, Array]],
    segments: Sequence[Segment],
    X: Matrix,
    infos: Sequence[Info],
    encoding: dict[str, Any],
) -> Shard:
    def joined(name: str) -> Array | None:
        if name not in parts[0]:
            return None
        return parts[0][name] if len(parts) == 1 else np.concatenate([part[name] for part in parts])

    return Shard(
        n=sum(info.n for info in infos),
        rows=RowNumbers([(segment.first, len(segment)) for segment in segments]),
        X=X,
        y=joined("y"),
        c=joined("sample_weight"),
        offset=joined("offset"),
        key=joined("key"),
        encoding=encoding,
        files=tuple((info.path, info.n) for info in infos),
    )


def shared_encoding(info: Info, comm: Comm) -> dict[str, Any]:
    """Return the encoding of a file on all ranks; rank 0 alone opens the file. Collective.

    Parameters
    ----------
    info : Info
        The metadata of the file.
    comm : Comm

    Returns
    -------
    dict
        See `encoding_of`.

    Raises
    ------
    DataError
        On all ranks, if the encoding or the names of the columns are damaged.
    """
    found: dict[str, Any] = {}
    with together(comm):
        if comm.rank == 0:
            found = encoding_of(info)
    return dict(share_json(comm, found))


def encoding_of(info: Info) -> dict[str, Any]:
    """Return how the file's raw columns were encoded, and the known names of columns and classes.

    A file that was not imported has no encoding; the result is empty if it has no names either.
    """
    with hdf5.open_read(info.path, info.links) as file:
        encoding = dict(hdf5.read_json(file, "encoding")) if "encoding" in file else {}
        if not encoding and (known := column_names.columns(file, info.x, info.d)) is not None:
            encoding = {"feature_names": known}
    if info.classes is None:
        return encoding
    return encoding | {
        "target": {**(encoding.get("target") or {"name": info.y}), "classes": list(info.classes)}
    }


def _stack(sparse: Sequence[CSR], d: int) -> CSR:
    if len(sparse) == 1:
        return sparse[0]
    lengths = np.concatenate([np.diff(matrix.indptr) for matrix in sparse])
    return CSR(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([matrix.indices for matrix in sparse]),
        np.concatenate([matrix.data for matrix in sparse]),
        d,
    )


def fingerprint(shard: Shard, comm: Comm) -> str:
    """Return a hash of the data set's rows, independent of the partition. Collective.

    It covers the row numbers, X, targets, weights and offsets.

    Parameters
    ----------
    shard : Shard
        This rank's rows.
    comm : Comm

    Returns
    -------
    str
        "{n}x{d}-{hash}", with the sum of the rows' hashes modulo 2**64 in hexadecimal digits.
    """
    mine = 0
    step = max(1, FINGERPRINT_BYTES // max(1, shard.X.row_bytes))
    for start in range(0, shard.X.n, step):
        rows = slice(start, min(start + step, shard.X.n))
        hashes = np.asarray(shard.rows[rows]).astype(np.uint64)
        shard.X.rows(rows).absorb(hashes)
        for vector in (shard.y, shard.c, shard.offset):
            if vector is not None:
                sampling.absorb(hashes, vector[rows].view(np.uint64).reshape(-1, 1))
        mine = (mine + int(sampling.wrapping_sum(hashes))) % 2**64
    total = np.array([mine], dtype=np.uint64).view(np.int64)
    comm.allreduce(total)
    return f"{shard.n}x{shard.X.d}-{int(total.view(np.uint64)[0]):016x}"
