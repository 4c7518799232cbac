"""Readers of raw tables (CSV, Parquet, Arrow, ORC) as streams of small blocks of columns.

They use pyarrow; CSV files may be compressed. A column of CSV is text here. Its type is inferred
from all its rows (schema.py), never from the first block. Row numbers in messages are data rows of
the file, counted from 0.
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
    """Consecutive rows of a file.

    Attributes
    ----------
    path : str
        The file.
    first : int
        The data row of the first row.
    rows : int
        The number of rows m.
    columns : mapping of str to pyarrow.Array
        Column -> its values (m,).
    index : array (m,) of int64, or None
        The data rows, if rows between them were left out.
    lost : sequence of str
        The faults of the rows that were left out before and among these.
    """

    path: str
    first: int
    rows: int
    columns: Mapping[str, Any]
    index: Any = None
    lost: Sequence[str] = ()

    def numbers(self) -> Any:
        """Return the data row numbers (m,) of the rows, int64."""
        return np.arange(self.first, self.first + self.rows) if self.index is None else self.index

    def first_rows(self, count: int) -> Block:
        """Return a block of the first `count` rows, or of all if there are fewer."""
        if count >= self.rows:
            return self
        columns = {name: array.slice(0, count) for name, array in self.columns.items()}
        return Block(self.path, self.first, count, columns)

    def where(self, row: int) -> str:
        """Return file and data row of a row of this block, for a message."""
        return f"{self.path} row {self.first + row if self.index is None else self.index[row]}"


@dataclass(frozen=True)
class Source:
    """One file of a data set.

    Attributes
    ----------
    path, format : str
        The file, and its format: "csv", "parquet", "arrow", "orc" or "svmlight".
    constants : mapping of str to str
        Columns whose value is in the name of a folder (NAME=VALUE), as Spark writes them.
    dialect : Dialect
        The format of CSV; also whether columns with the same name are renamed (in any format).
    notes : tuple of str
        Notes for the user.
    peers : list of Source
        All files of the data set. The lengths of lists may be found in any of them.
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
        # A file without rows has no lists, so the lengths come from another file.
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
        """Return column -> kind.

        The kind is "text" for CSV, where the type must be inferred, else "string", "number",
        "category", "time", "null" or the name of a type that cannot be read.
        """
        keys = {name: "text" for name in self.constants if name not in self._stored}
        return self._stored | keys

    def groups(self) -> dict[str, list[str]]:
        """Return nested column -> the plain columns that it becomes."""
        if self.format not in FORMATS:
            return {}
        pairs = zip(self._table.names, self._layout.parts, strict=True)
        return {name: list(plain) for name, plain in pairs if list(plain) != [name]}

    def index(self) -> list[str]:
        """Return the row labels of pandas, which are no features unless an option names them."""
        return self._table.index if self.format in FORMATS else []

    def blocks(self, wanted: Sequence[str], skips: bool = False) -> Iterator[Block]:
        """Read the file in blocks.

        Parameters
        ----------
        wanted : sequence of str
            The columns to read.
        skips : bool
            Leave out rows of CSV with too many or too few fields. The blocks then report them as
            `lost`, and the last block may have no rows but these reports.

        Yields
        ------
        Block
            The next rows, in the order of the file.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
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
        """Add a column whose value is in the name of a folder.

        DataError if the file has this column too, with another value.
        """
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
                f"{block.where(row)}: column {name!r} is {wrong!r}, but the file is in {folder}: "
                "rename the folder"
            )


def _is_same(found: str | None, value: str | None) -> bool:
    """Return whether two texts are the same number, boolean or text."""
    if found == value or found is None or value is None:
        return found == value
    try:
        return float(found) == float(value)
    except ValueError:
        return found.lower() == value.lower() and value.lower() in WORDS


def format_of(path: str) -> str | None:
    """Return the format that the name of a file or pattern indicates.

    It is "csv", "parquet", "arrow", "orc" or "svmlight", or None for any other name. A zip file
    counts as its member.
    """
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
    """Find the files of a data set.

    Parameters
    ----------
    patterns : sequence of str
        Paths, glob patterns and folders.
    format : str, optional
        The format of all files; by default it follows from their names.
    dialect : Dialect
        The format of CSV, and whether columns with the same name are renamed.
    allow_duplicates : bool
        Whether a file may occur twice.

    Returns
    -------
    list of Source
        The files in the order given; those of a glob pattern or folder in natural order (part-2
        before part-10).

    Raises
    ------
    DataError
        If a path does not exist, or a file has no known format or occurs twice.
    UsageError
        If pyarrow is missing, `format` is unknown, or the files have several formats.
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
    """Turn pyarrow's errors about values that were read into a DataError that names the file."""
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
    """Return a note if folders above a file look like columns (NAME=VALUE).

    They would become columns if their parent folder was imported.
    """
    above = Path(path).parts[:-1]
    first = next((i for i, name in enumerate(above) if folders.keys(os.path.join(name, "x"))), None)
    if first is None:
        return ()
    whole = os.path.join(*above[:first]) if first else "."
    return (
        f"{above[first]} in the name of a folder is no column here: "
        f"it is one if {whole} is imported",
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
            empty.append(part)  # a file without rows and without a header
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
            f"{folder}: svmlight has no named columns, "
            f"so {listed(list(found[0].constants))} is left out"
        )
    for names, why in ((others, "their names tell no format"), (empty, "empty")):
        if names:
            notes.append(f"{folder}: files left out ({why}): {listed(names)}")
    found[0] = replace(found[0], notes=tuple(notes))
    return found
