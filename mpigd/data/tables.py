"""Raw tables as streams of small blocks of columns, through pyarrow: CSV (zipped, gzipped) and Parquet.

A CSV column is text here; what it means is decided over all its rows (importers.py), never by its first block. Rows
in messages count the data rows of their file from 1.
"""

from __future__ import annotations

import glob
import gzip
import importlib.util
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from mpigd.errors import DataError, UsageError

BLOCK_BYTES = 1 << 22  # of a CSV file, or of decoded Parquet columns, held at once
SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".svm": "svmlight", ".svmlight": "svmlight", ".libsvm": "svmlight",
}  # fmt: skip
PACKED = (".gz", ".zip")
# What stands for a missing value in CSV: the list of pandas, spelled out so that it is the same with every pyarrow.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Block:
    """`rows` consecutive rows of a file, the first of which is its data row `first`; name -> pyarrow array."""

    path: str
    first: int
    rows: int
    columns: Mapping[str, Any]

    def where(self, row: int) -> str:
        return f"{self.path} row {self.first + row}"


@dataclass(frozen=True)
class Source:
    """One file of a data set; `constants` are columns that Spark keeps in the names of folders."""

    path: str
    format: str
    constants: Mapping[str, str] = field(default_factory=dict)

    def kinds(self) -> dict[str, str]:
        """Column -> "text" (CSV: to be found out), "number", "category", "time", "null" or another type's name."""
        found = _csv_kinds(self.path) if self.format == "csv" else _parquet_kinds(self.path)
        return found | dict.fromkeys(self.constants, "text")

    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """The file's rows in order, of the columns `wanted` only."""
        import pyarrow as pa

        stored = [name for name in wanted if name not in self.constants]
        first = 1
        for batch in (_csv_batches if self.format == "csv" else _parquet_batches)(self.path, stored):
            columns = {name: batch.column(name) for name in stored}
            for name in (name for name in wanted if name in self.constants):
                value = self.constants[name]
                columns[name] = pa.array([None if value == HIVE_NULL else value] * batch.num_rows, pa.string())
            yield Block(self.path, first, batch.num_rows, columns)
            first += batch.num_rows


def format_of(path: str) -> str | None:
    """csv, parquet or svmlight by the name of a file (or pattern), None for all others."""
    name = path.lower()
    packed = name.endswith(PACKED)
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    known = SUFFIXES.get(Path(name).suffix)
    if known is None and packed and zipfile.is_zipfile(path):
        with reading(path), zipfile.ZipFile(path) as archive:
            return SUFFIXES.get(Path(_member(path, archive).lower()).suffix)
    return None if packed and known == "parquet" else known


def expand(patterns: Sequence[str], format: str | None = None) -> list[Source]:
    """The files that paths, globs and folders name: in the order given, a glob's or folder's by name."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError("reading raw tables needs pyarrow: pip install 'mpigd[import]'")
    if format not in (None, *SUFFIXES.values()):
        raise UsageError(f"--format {format}: expected csv, parquet or svmlight")
    found: list[Source] = []
    for pattern in patterns:
        plain = os.path.exists(pattern) or not glob.has_magic(pattern)
        hits = [pattern] if plain else sorted(glob.glob(pattern))
        if not hits:
            raise DataError(f"{pattern}: no file matches")
        for hit in hits:
            found += _folder(hit, format) if os.path.isdir(hit) else [_file(hit, format)]
    if not found:
        raise UsageError("no raw files given")
    kinds = {source.format: source.path for source in reversed(found)}
    if len(kinds) > 1:
        raise UsageError("one data set has one format: " + ", ".join(f"{path} is {kind}" for kind, path in kinds.items()))
    return found


def _file(path: str, format: str | None, constants: Mapping[str, str] | None = None) -> Source:
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file")
    known = format or format_of(path)
    if known is None:
        raise UsageError(f"{path}: the name does not tell the format: say --format csv, parquet or svmlight")
    return Source(path, known, constants or {})


def parts(folder: str) -> list[str]:
    """The files below a folder, relative to it, by name; not those that Spark hides (_SUCCESS, .part-0.crc)."""
    hits: list[str] = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(("_", "."))]
        hits += [os.path.relpath(os.path.join(top, name), folder) for name in files if not name.startswith(("_", "."))]
    return sorted(hits)


def _folder(folder: str, format: str | None) -> list[Source]:
    found = []
    for part in parts(folder):
        path = os.path.join(folder, part)
        if format or format_of(path):
            pairs = (name.split("=", 1) for name in Path(part).parts[:-1] if "=" in name)
            found.append(_file(path, format, {unquote(key): unquote(value) for key, value in pairs}))
    if not found:
        raise DataError(f"{folder}: no CSV, Parquet or svmlight file in this folder")
    return found


@contextmanager
def reading(path: str, after: Sequence[int] = ()) -> Iterator[None]:
    """Turn whatever a reader raises into one line that names the file and, from `after`, the rows read before it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, EOFError, UnicodeError, zlib.error, zipfile.BadZipFile, NotImplementedError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        place = f"after row {after[0]}: " if after and after[0] else ""
        raise DataError(f"{path}: cannot be read: {place}{reason[:300]}") from error


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if its name ends in .gz or .zip."""
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive, archive.open(_member(path, archive)) as member:
            yield io.BufferedReader(member)  # type: ignore[type-var]
        return
    with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
        yield file  # type: ignore[misc]


def _member(path: str, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise DataError(f"{path}: holds {len(names)} files, expected one: unpack it and name them")
    return names[0]


@contextmanager
def _csv(path: str, wanted: Sequence[str]) -> Iterator[Any]:
    """A stream of record batches of text columns."""
    import pyarrow as pa
    import pyarrow.csv as pc

    # One thread is as fast here, and only then does pyarrow know the row of what it refuses.
    read = pc.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    parse = pc.ParseOptions(delimiter="\t" if ".tsv" in Path(path.lower()).suffixes else ",", newlines_in_values=True)
    strings = dict.fromkeys(wanted, pa.string())
    convert = pc.ConvertOptions(
        column_types=strings, include_columns=list(wanted), null_values=list(MISSING), strings_can_be_null=True
    )

    def refuse(row: Any) -> str:
        # pyarrow counts the header; `raise` would be lost inside its reader, so the message is kept for later.
        wrong.append(f"row {row.number - 1} has {row.actual_columns} fields, expected {row.expected_columns}: {row.text[:60]!r}")
        return "error"

    wrong: list[str] = []
    parse.invalid_row_handler = refuse
    try:
        with open_bytes(path) as file, _undecodable_rows_ignored(refuse):
            yield pc.open_csv(file, read_options=read, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        if wrong:
            raise DataError(f"{path}: {wrong[0]}") from error
        if "straddling" in str(error):
            raise DataError(f"{path}: a row is longer than {BLOCK_BYTES} bytes (an unclosed quotation mark?)") from error
        raise


@contextmanager
def _undecodable_rows_ignored(handler: Any) -> Iterator[None]:
    """pyarrow decodes a row before it calls the handler, and would print a traceback for one that is not UTF-8."""
    usual = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.object is handler else usual(lost)
    try:
        yield
    finally:
        sys.unraisablehook = usual


def _csv_kinds(path: str) -> dict[str, str]:
    with reading(path), _csv(path, ()) as stream:
        names = stream.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} appears twice in the header")
    return dict.fromkeys(names, "text")


def _csv_batches(path: str, wanted: Sequence[str]) -> Iterator[Any]:
    after = [0]
    with reading(path, after), _csv(path, wanted) as stream:
        for batch in stream:
            yield batch
            after[0] += batch.num_rows


def _parquet_kinds(path: str) -> dict[str, str]:
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    names = [name for name in schema.names if not name.startswith("__index_level_")]  # pandas' row labels
    return {name: _kind(schema.field(name).type) for name in names}


def _kind(type: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(type):
        type = type.value_type
    if types.is_integer(type) or types.is_floating(type) or types.is_decimal(type) or types.is_boolean(type):
        return "number"
    if str(type) in ("string", "large_string", "string_view"):
        return "category"
    if types.is_temporal(type):
        return "time"
    return str(type)


def _parquet_batches(path: str, wanted: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    after = [0]
    rows = max(1, BLOCK_BYTES // (8 * max(1, len(wanted))))
    # pre_buffer would fetch a whole row group ahead, and Spark's are 128 MB packed.
    with reading(path, after), pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=rows, columns=list(wanted), use_threads=False):
            yield batch
            after[0] += batch.num_rows
