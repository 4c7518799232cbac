"""Raw tables as streams of small blocks of columns, through pyarrow: CSV (also packed), Parquet,
Arrow and ORC.

A CSV column is text here; what it means is decided over all its rows (schema.py), never by its
first block. Rows in messages are data rows of their file, from 0.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpigd.errors import DataError, UsageError
from mpigd.storage.file_order import check_once, natural
from mpigd.tables import csv_reader, file_contents, folders
from mpigd.tables.columns import WORDS, to_text
from mpigd.tables.compression import member, reading, unpacked_name
from mpigd.tables.encoding import listed
from mpigd.tables.folders import HIVE_NULL, parts
from mpigd.tables.lost_rows import Lost
from mpigd.tables.parquet_reader import FORMATS, Layout, Table

__all__ = ["Block", "Source", "expand", "format_of", "parts"]

SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow", ".orc": "orc",
    ".svm": "svmlight", ".svmlight": "svmlight", ".libsvm": "svmlight",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """`rows` consecutive rows of a file, the first of which is its data row `first`; name -> pyarrow array.

    index (m,): which data rows these are, if rows between them were left out; lost: what was wrong
    with those, and with those before the first.
    """

    path: str
    first: int
    rows: int
    columns: Mapping[str, Any]
    index: Any = None
    lost: Sequence[str] = ()

    def numbers(self) -> Any:
        """The data rows (m,) of the file that these are, int64."""
        return np.arange(self.first, self.first + self.rows) if self.index is None else self.index

    def first_rows(self, count: int) -> Block:
        """The first `count` rows, or all."""
        if count >= self.rows:
            return self
        columns = {name: array.slice(0, count) for name, array in self.columns.items()}
        return Block(self.path, self.first, count, columns)

    def where(self, row: int) -> str:
        return f"{self.path} row {self.first + row if self.index is None else self.index[row]}"


@dataclass(frozen=True)
class Source:
    """One file of a data set.

    constants: columns that Spark keeps in the names of folders. dialect: how CSV is written, and
    whether columns with the same name (also of Parquet) get new ones. notes: for the user. peers: all
    files of the data set, of which any may tell how long the lists of a column are.
    """

    path: str
    format: str
    constants: Mapping[str, str] = field(default_factory=dict)
    dialect: csv_reader.Dialect = csv_reader.USUAL
    notes: tuple[str, ...] = ()
    peers: list[Source] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def _table(self) -> Table:
        return Table(self.path, self.format, self.dialect.rename_duplicates)

    @cached_property
    def _own_lengths(self) -> dict[str, int]:
        return self._table.lengths() if self.format in FORMATS else {}

    @cached_property
    def _lengths(self) -> dict[str, int]:
        found = dict(self._own_lengths)
        # A part without rows knows no lengths.
        for peer in self.peers if self._table.lacks(found) else ():
            found = {**peer._own_lengths, **found}
            if not self._table.lacks(found):
                break
        return found

    @cached_property
    def _layout(self) -> Layout:
        return self._table.layout(self._lengths)

    @cached_property
    def _stored(self) -> dict[str, str]:
        return (
            dict(self._layout.kinds)
            if self.format in FORMATS
            else dict.fromkeys(self._header, "text")
        )

    @cached_property
    def _header(self) -> list[str]:
        return csv_reader.columns(self.path, self.dialect)

    def kinds(self) -> dict[str, str]:
        """Column -> "text" (CSV: to be found out), "string", "number", "category", "time", "null"
        or another type's name."""
        keys = {name: "text" for name in self.constants if name not in self._stored}
        return self._stored | keys

    def groups(self) -> dict[str, list[str]]:
        """Nested column -> the plain ones that it becomes."""
        if self.format not in FORMATS:
            return {}
        pairs = zip(self._table.names, self._layout.parts, strict=True)
        return {name: list(plain) for name, plain in pairs if list(plain) != [name]}

    def index(self) -> list[str]:
        """The columns that are row labels of pandas, and no features unless they are named."""
        return self._table.index if self.format in FORMATS else []

    def blocks(self, wanted: Sequence[str], skips: bool = False) -> Iterator[Block]:
        """The file's rows in order, of the columns `wanted` only. skips: leave out rows of CSV with too
        many or too few fields; the blocks have them as `lost`, and the last may have nothing else."""
        keys = [name for name in wanted if name in self.constants]
        lost = Lost() if skips else None
        first = 0
        for columns, rows in self._read(
            [name for name in wanted if name not in keys or name in self._stored], lost
        ):
            index, lines = lost.place(first, rows) if lost is not None else (None, [])
            block = Block(
                self.path, first, rows, columns, index, [f"{self.path} {line}" for line in lines]
            )
            for name in keys:
                self._add_key(block, columns, name)
            yield block
            first = first + rows if index is None else int(index[-1]) + 1
        if lost is not None and lost.rows:
            yield Block(
                self.path, first, 0, {}, None, [f"{self.path} {line}" for line in lost.rest()]
            )

    def _read(
        self, wanted: Sequence[str], lost: Lost | None
    ) -> Iterator[tuple[dict[str, Any], int]]:
        if self.format in FORMATS:
            yield from self._table.blocks(wanted, self._layout, self._lengths)
            return
        for batch in csv_reader.batches(self.path, self._header, wanted, self.dialect, lost):
            yield dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows

    def _add_key(self, block: Block, columns: dict[str, Any], name: str) -> None:
        """The column of a folder's name; DataError where the file has it too, with another value."""
        import pyarrow as pa

        value = None if self.constants[name] == HIVE_NULL else self.constants[name]
        if name not in columns:
            columns[name] = pa.array([value] * block.rows, pa.string())
            return
        text = to_text(columns[name])
        wrong = next(
            (found for found in text.unique().to_pylist() if not _is_same(found, value)), HIVE_NULL
        )
        if wrong != HIVE_NULL:
            row = text.to_pylist().index(wrong)
            folder = f"the folder {name}={self.constants[name]}"
            raise DataError(
                f"{block.where(row)}: column {name!r} is {wrong!r}, but the file is in {folder}: rename the folder"
            )


def _is_same(found: str | None, value: str | None) -> bool:
    """Whether two texts are the same value."""
    if found == value or found is None or value is None:
        return found == value
    try:
        return float(found) == float(value)
    except ValueError:
        return found.lower() == value.lower() and value.lower() in WORDS


def format_of(path: str) -> str | None:
    """csv, parquet, arrow, orc or svmlight by the name of a file (or pattern), None for all others."""
    name = unpacked_name(path.lower())
    packed = name != path.lower()
    known = SUFFIXES.get(Path(name).suffix)
    if known is None and path.lower().endswith(".zip") and zipfile.is_zipfile(path):
        with reading(path), zipfile.ZipFile(path) as archive:
            known = SUFFIXES.get(Path(member(path, archive).lower()).suffix)
    return None if packed and known in FORMATS else known


def expand(
    patterns: Sequence[str],
    format: str | None = None,
    dialect: csv_reader.Dialect = csv_reader.USUAL,
    *,
    allow_duplicates: bool = False,
) -> list[Source]:
    """The files that paths, globs and folders name: in the order given, a glob's or folder's in
    natural order (part-2 before part-10).

    dialect: how CSV files are written, and whether columns with the same name get names of their
    own. allow_duplicates: whether a file may be there twice.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError("reading raw tables needs pyarrow: pip install 'mpigd[import]'")
    if format not in (None, *SUFFIXES.values()):
        raise UsageError(
            f"--format {format}: expected {', '.join(dict.fromkeys(SUFFIXES.values()))}"
        )
    found: list[Source] = []
    for pattern in patterns:
        plain = os.path.exists(pattern) or not glob.has_magic(pattern)
        hits = [pattern] if plain else sorted(glob.glob(pattern), key=natural)
        if not hits:
            raise DataError(f"{pattern}: no file matches")
        for hit in hits:
            found += (
                _folder(hit, format, dialect)
                if os.path.isdir(hit)
                else [_file(hit, format, dialect)]
            )
    if not found:
        raise UsageError("no raw files given")
    kinds = {source.format: source.path for source in reversed(found)}
    if len(kinds) > 1:
        raise UsageError(
            "one data set has one format: "
            + ", ".join(f"{path} is {kind}" for kind, path in kinds.items())
        )
    if not allow_duplicates:
        check_once([source.path for source in found])
    peers: list[Source] = []
    peers += [replace(source, peers=peers) for source in found]
    return peers


@contextmanager
def guarded(sources: Sequence[Source]) -> Iterator[None]:
    """Turn what pyarrow raises over values that were read into one line that names the file."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        more = f" or one of {len(sources) - 1} more files" if len(sources) > 1 else ""
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{sources[0].path}{more}: cannot be read: {reason}") from error


def _file(path: str, format: str | None, dialect: csv_reader.Dialect) -> Source:
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file")
    known = format or format_of(path)
    if known is None:
        raise file_contents.unknown(path)
    file_contents.check(path, known, dialect.encoding)
    return Source(path, known, dialect=dialect, notes=_unused_keys(path))


def _unused_keys(path: str) -> tuple[str, ...]:
    """A note if folders above a file look like columns: they are, if their parent is imported."""
    above = Path(path).parts[:-1]
    first = next((i for i, name in enumerate(above) if folders.keys(os.path.join(name, "x"))), None)
    if first is None:
        return ()
    whole = os.path.join(*above[:first]) if first else "."
    return (
        f"{above[first]} in the name of a folder is no column here: it is one if {whole} is imported",
    )


def _folder(folder: str, format: str | None, dialect: csv_reader.Dialect) -> list[Source]:
    folders.check_finished(folder)
    found, others, empty = [], [], []
    for part in parts(folder):
        path = os.path.join(folder, part)
        known = format or format_of(path)
        if known is None:
            others.append(part)
        elif known in file_contents.TEXT and os.path.getsize(path) == 0:
            empty.append(part)  # a part without rows, and without a header
        else:
            file_contents.check(path, known, dialect.encoding)
            found.append(Source(path, known, folders.keys(part), dialect))
    if not found:
        if others:
            raise file_contents.unknown(os.path.join(folder, others[0]))
        raise DataError(f"{folder}: no CSV, Parquet or svmlight file in this folder")
    notes = [*_unused_keys(os.path.join(folder, "x"))]
    if found[0].format == "svmlight" and found[0].constants:
        notes.append(
            f"{folder}: svmlight has no named columns, so {listed(list(found[0].constants))} is left out"
        )
    for names, why in ((others, "their names tell no format"), (empty, "empty")):
        if names:
            notes.append(f"{folder}: files left out ({why}): {listed(names)}")
    found[0] = replace(found[0], notes=tuple(notes))
    return found
