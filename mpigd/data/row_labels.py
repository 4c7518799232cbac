"""Labels of rows that are copied into predictions: ids, file names and row numbers.

A file may have `id` (n,): integers, or UTF-8 texts of fixed or variable length. A file made from
raw tables has `source_file` (n,) int32, positions in the JSON list `sources`, and `source_row` (n,)
int64, the data row of that table, from 0. Rows that were left out in the import are absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpigd.data.shard import Shard
from mpigd.errors import DataError
from mpigd.parallel.comm import Comm, together
from mpigd.storage import hdf5, text_datasets

Array = np.ndarray[Any, Any]
Take = Callable[[int], tuple[Array | None, Array, Array]]
ID_BYTES = 1 << 10  # bytes of an id, at most
INDEX, NUMBER = np.dtype(np.int32), np.dtype(np.int64)
ID, FILE, ROW, SOURCES, SKIPPED = "id", "source_file", "source_row", "sources", "skipped"


@dataclass(frozen=True)
class Beside:
    """Ids and origins of the rows of some files, for the one rank that reads them.

    Attributes
    ----------
    files : tuple of (str, int)
        Path and number of rows of each file, in order.
    links : tuple of str
        Folders into which links in the files may lead.
    ids : dtype or None
        The type of the ids: int64, uint64 or texts of fixed length; None if there are none.
    names : tuple of str
        The files that the rows come from.
    derived : bool
        Whether the files say where their rows come from.
    note : str
        A note for the user; empty if there is none.
    skipped : int
        The number of rows that were left out of the files.
    """

    files: tuple[tuple[str, int], ...]
    links: tuple[str, ...]
    ids: np.dtype[Any] | None
    names: tuple[str, ...]
    derived: bool
    note: str = ""
    skipped: int = 0

    @contextmanager
    def reading(self) -> Iterator[Take]:
        """Yield a function that takes a number of rows and returns the labels of the next rows.

        It returns ids (or None), the positions of the rows' files in `names`, and the rows' numbers
        there.
        """
        file = at = 0  # where the next row to be read lies
        with ExitStack() as opened:
            source = self._open(0, opened)

            def take(count: int) -> tuple[Array | None, Array, Array]:
                nonlocal file, at, source
                pieces: list[tuple[Array | None, Array, Array]] = []
                while count:
                    while at == self.files[file][1]:
                        opened.close()
                        file, at = file + 1, 0
                        source = self._open(file, opened)
                    some = min(count, self.files[file][1] - at)
                    pieces.append(self._read(source, file, slice(at, at + some)))
                    count, at = count - some, at + some
                ids = (
                    None if self.ids is None else _joined([piece[0] for piece in pieces], self.ids)
                )
                return (
                    ids,
                    _joined([piece[1] for piece in pieces], INDEX),
                    _joined([piece[2] for piece in pieces], NUMBER),
                )

            yield take

    def _open(self, file: int, opened: ExitStack) -> hdf5.Group | None:
        if self.ids is None and not self.derived:
            return None
        return opened.enter_context(hdf5.open_read(self.files[file][0], self.links))

    def _read(
        self, source: hdf5.Group | None, file: int, rows: slice
    ) -> tuple[Array | None, Array, Array]:
        ids = None if self.ids is None or source is None else _ids(source, rows, self.ids)
        if self.derived and source is not None:
            return ids, source[FILE][rows], source[ROW][rows]
        return (
            ids,
            np.full(rows.stop - rows.start, file, dtype=np.int32),
            np.arange(rows.start, rows.stop),
        )


def _joined(parts: Sequence[Any], kind: np.dtype[Any]) -> Array:
    return np.concatenate([part.astype(kind) for part in parts]) if parts else np.empty(0, kind)


def _ids(source: hdf5.Group, rows: slice, kind: np.dtype[Any]) -> Array:
    found = source.raw(ID)
    if kind.kind != "S":
        return np.asarray(found[rows])
    values = [text for some in text_datasets.slabs(found, rows.start, rows.stop) for text in some]
    for place, value in enumerate(values):
        try:
            value.decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{source.filename}: {ID!r} row {rows.start + place} is {value!r}: not UTF-8"
            ) from None
    return np.array(values, dtype=kind)


def beside(shard: Shard, links: Sequence[str], comm: Comm) -> Beside | None:
    """Return the labels of the rows on rank 0, None on the others. Collective.

    Parameters
    ----------
    shard : Shard
        The data set, of which only the files are used.
    links : sequence of str
        Folders into which links in the files may lead.
    comm : Comm

    Raises
    ------
    DataError
        On all ranks, if the files do not fit together.
    """
    found = None
    with together(comm):
        if comm.rank == 0:
            found = _look(shard.files, tuple(links))
    return found


def _look(files: tuple[tuple[str, int], ...], links: tuple[str, ...]) -> Beside:
    names, derived = tuple(path for path, _ in files), False
    kinds: list[np.dtype[Any] | None] = []
    note, skipped = "", 0
    for path, n in files:
        with hdf5.open_read(path, links) as file:
            kind, why = _kind(file, n)
            note = note or (f"{path}: {why}" if why else "")
            kinds.append(kind)
            if len(files) == 1 and _derived(file):
                names, derived = (
                    tuple(str(name) for name in hdf5.read_json(file, SOURCES, list)),
                    True,
                )
                if SKIPPED in file:
                    skipped = int(hdf5.read_json(file, SKIPPED)["rows"])
    ids = None if note else _common(kinds, files)
    return Beside(files, links, ids, names, derived, note, skipped)


def _derived(file: hdf5.Group) -> bool:
    """Return whether a file says which row of which table each of its rows comes from."""
    return FILE in file and ROW in file and SOURCES in file


def _kind(file: hdf5.Group, n: int) -> tuple[np.dtype[Any] | None, str]:
    """Return the type of a file's ids, and why existing ones cannot be copied.

    The type is None if there are no ids to copy.
    """
    left = "it is not copied to the predictions"
    try:
        found = file.raw(ID)
    except DataError as error:
        return None, f"{ID!r} cannot be read ({error}): {left}"
    if found is None:
        return None, ""
    if isinstance(found, hdf5.Group) or found.shape != (n,):
        shape = "of a group" if isinstance(found, hdf5.Group) else found.shape
        return None, f"{ID!r} has shape {shape}, expected ({n},): {left}"
    if found.dtype.kind in "iu":
        return found.dtype, ""
    if not text_datasets.holds_text(found):
        return None, f"{ID!r} holds {found.dtype}, but ids are whole numbers or texts: {left}"
    longest = max(
        (len(text) for some in text_datasets.slabs(found, 0, n) for text in some), default=1
    )
    if longest > ID_BYTES:
        return (
            None,
            f"{ID!r} holds texts of up to {longest:,} bytes, more than {ID_BYTES:,}: {left}",
        )
    return np.dtype(f"S{max(1, longest)}"), ""


def _common(
    kinds: Sequence[np.dtype[Any] | None], files: Sequence[tuple[str, int]]
) -> np.dtype[Any] | None:
    """Return one type for the ids of all files. DataError if there is none."""
    groups = [
        "none" if kind is None else "texts" if kind.kind == "S" else "numbers" for kind in kinds
    ]
    for group, (path, _) in zip(groups, files, strict=True):
        if group != groups[0]:
            raise DataError(f"{path}: {ID!r} holds {group}, but {groups[0]} in {files[0][0]}")
    there = [kind for kind in kinds if kind is not None]
    if not there:
        return None
    if there[0].kind == "S":
        return np.dtype(f"S{max(kind.itemsize for kind in there)}")
    common = np.result_type(*there)
    if common.kind not in "iu":
        raise DataError(
            f"{files[0][0]}: {ID!r} holds {there[0]}, "
            "and another file's larger numbers: use one type in all files"
        )
    return (
        np.dtype(np.uint64) if common.kind == "u" and common.itemsize == 8 else np.dtype(np.int64)
    )


def named(shard: Shard, comm: Comm) -> Shard:
    """Return the shard with messages that name the origin of rows, if it is known. Collective.

    In messages, a row of a file made from raw tables is then called by its table and its row there.
    """
    path = shard.files[0][0]
    derived = np.zeros(1, dtype=np.int64)
    with together(comm):
        if comm.rank == 0:
            with hdf5.open_read(path) as file:
                derived[0] = _derived(file)
    comm.bcast(derived)
    return replace(shard, origin=_origin(path)) if derived[0] else shard


def _origin(path: str) -> Callable[[int], str]:
    """Return the function that names the table and row of a row of the file."""

    def place(row: int) -> str:
        with hdf5.open_read(path) as file:
            names = hdf5.read_json(file, SOURCES, list)
            return f"{names[int(file[FILE][row])]} row {int(file[ROW][row])}"

    return place
