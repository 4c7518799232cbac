"""Raw tables as streams of small blocks of columns, through pyarrow: CSV (zipped, gzipped) and Parquet.

A CSV column is text here; what it means is decided over all its rows (importers.py), never by its first block. Rows
in messages are data rows of their file, from 0.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from mpigd.data import csv_file, parquet_file
from mpigd.data.compressed import PACKED, member, reading
from mpigd.errors import DataError, UsageError

SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".svm": "svmlight", ".svmlight": "svmlight", ".libsvm": "svmlight",
}  # fmt: skip
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Block:
    """`rows` consecutive rows of a file, the first of which is its data row `first`; name -> pyarrow array."""

    path: str
    first: int
    rows: int
    columns: Mapping[str, Any]

    def numbers(self) -> Any:
        """The data rows (m,) of the file that these are, int64."""
        return np.arange(self.first, self.first + self.rows)

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
        found = csv_file.kinds(self.path) if self.format == "csv" else parquet_file.kinds(self.path)
        return found | dict.fromkeys(self.constants, "text")

    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """The file's rows in order, of the columns `wanted` only."""
        import pyarrow as pa

        stored = [name for name in wanted if name not in self.constants]
        first = 0
        for batch in (csv_file if self.format == "csv" else parquet_file).batches(self.path, stored):
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
            return SUFFIXES.get(Path(member(path, archive).lower()).suffix)
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
