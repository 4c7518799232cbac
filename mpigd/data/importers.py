"""`mpigd import`: raw tables become HDF5 in two streaming passes, one to learn what the columns are, one to write.

New raw files are encoded like the first ones in a single pass, by the encoding stored with the data or the model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import h5py

from mpigd.data import hdf5, import_table, svmlight, tables
from mpigd.data.csv_file import Dialect
from mpigd.data.encoder import Encoder
from mpigd.data.encoding import Encoding, no_column
from mpigd.data.import_options import Options, options_of
from mpigd.data.survey import survey
from mpigd.data.tables import Source
from mpigd.data.writer import Writer
from mpigd.errors import DataError, UsageError

SVMLIGHT_OPTIONS = ("missing", "dtype", "features", "zero_based", "allow_duplicates")
SECONDS = 1.0  # between two calls of `progress`
Progress = Callable[[int], None]
Pass = tuple[Encoder | svmlight.Encoder, Iterable[tuple[int, Any]], list[str]]  # encoder, (rows, block), vectors


@dataclass(frozen=True)
class Summary:
    """What was written: rows x features, how many are not zero, rows left out, dense or csr.

    notes and table (of the columns) are for the user.
    """

    rows: int
    features: int
    nonzeros: int
    dropped: int
    layout: str
    path: str
    notes: tuple[str, ...] = ()
    table: str = ""


def import_data(
    sources: Sequence[str],
    output: str,
    *,
    like: str | None = None,
    format: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Turn raw tables into an HDF5 data set: X (n, d) dense or CSR, y (n,), the vectors asked for,
    and the encoding.

    sources: CSV (also packed), Parquet or svmlight files, folders, globs: one data set, in order.
    like: an imported file or a model whose encoding is used; options then come from there, except
    that `missing`, when not "refuse", replaces its policy.
    format: "csv", "parquet", "svmlight", by default from the names. progress: called about once a
    second with the rows read in this pass.

    options, each as of `mpigd import`: target, weight, offset, key, id: raw columns. drop: those to
    leave out. categorical, number, date: columns to be taken for that, whatever they look like; date as
    NAME or NAME=FORMAT, or a mapping. missing: "refuse", "mean", "zero" or "drop" (the row). infinite:
    "refuse" or "missing". hash_bits: hash categories into 2**hash_bits columns. drop_first, reference
    (column -> level): levels without a column. dtype of X: "auto" (float32, unless a column needs more),
    "float32" or "float64". And how CSV files are written: the fields of mpigd.data.csv_file.Dialect.
    Raises UsageError for options that do not fit, DataError for the data, StorageError for `output`.
    """
    told = options_of(options)
    ticker = Ticker(progress)
    if like is not None:
        told.refuse(("missing", "dialect", "allow_duplicates"), f"--like encodes as {like} was")
        policy = None if told.missing == "refuse" else told.missing
        return encode_like(sources, output, read_encoding(like), missing=policy, format=format, progress=progress,
                           allow_duplicates=told.allow_duplicates)  # fmt: skip
    found = tables.expand(sources, format, told.dialect, allow_duplicates=told.allow_duplicates)
    with _output(found, output) as file, tables.guarded(found):
        if found[0].format == "svmlight":
            told.refuse(SVMLIGHT_OPTIONS, "svmlight has no named columns")
            fitted = svmlight.fit(found, told.missing, told.dtype, ticker, told.features, told.zero_based)
            encoding, notes, table = fitted, [note for source in found for note in source.notes], ""
        else:
            _refuse_indices(found, told)
            seen = survey(found, told, ticker)
            encoding, notes = seen.encoding()
            table = import_table.text(seen, encoding)
        hdf5.write_json(file, "encoding", encoding.to_dict())
        return replace(_write(found, file, output, encoding, ticker, notes), table=table)


def _refuse_indices(found: Sequence[Source], told: Options) -> None:
    if told.features is not None or told.zero_based is not None:
        option = "--zero-based or --one-based" if told.features is None else "--features"
        raise UsageError(f"{option} is for svmlight, and {found[0].path} is {found[0].format}")


def preview(
    sources: Sequence[str], rows: int | None = None, *, format: str | None = None, **options: Any
) -> tuple[str, Exception | None]:
    """The table of what `import_data` would do, from all rows or the first `rows`; and the error that
    it would raise, if any."""
    told = options_of(options)
    found = tables.expand(sources, format, told.dialect, allow_duplicates=told.allow_duplicates)
    if found[0].format == "svmlight":
        raise UsageError("--dry-run is for CSV and Parquet: svmlight has no columns to be looked at")
    seen = survey(found, told, lambda _: None, rows)
    try:
        encoding, notes = seen.encoding()
    except (DataError, UsageError) as error:
        return import_table.text(seen, None), error
    return "\n".join([import_table.text(seen, encoding), *(f"note: {note}" for note in notes)]), None


def encode_like(
    sources: Sequence[str],
    output: str,
    encoding: Encoding,
    *,
    missing: str | None = None,
    format: str | None = None,
    progress: Progress | None = None,
    need_y: bool = False,
    allow_duplicates: bool = False,
) -> Summary:
    """Encode new raw files as `encoding` says, in one pass; `missing` replaces its policy for missing values.

    Where the files have no target column there is no y, unless need_y refuses that, and then a weight column may be absent
    too. Other columns that the encoding does not use are ignored. DataError names a column that is missing, or a category
    that is new.
    """
    found = tables.expand(sources, format, Dialect.from_dict(encoding.csv), allow_duplicates=allow_duplicates)
    if (found[0].format == "svmlight") != (encoding.format == "svmlight"):
        raise DataError(f"{found[0].path} is {found[0].format}, but the training data was not")
    policy = missing or encoding.missing
    if need_y and encoding.target is not None:
        _require(found, encoding.target.name)
    unlabelled = encoding.target is not None and encoding.target.name not in found[0].kinds()
    if missing is None and policy == "drop" and unlabelled:
        policy = "refuse"  # predictions would no longer stand beside their rows
    with _output(found, output) as file, tables.guarded(found):
        hdf5.write_json(file, "encoding", encoding.to_dict())
        return _write(found, file, output, replace(encoding, missing=policy), Ticker(progress), [])


def _write(
    found: Sequence[Source], file: h5py.File, output: str, encoding: Encoding, ticker: Ticker, notes: Sequence[str]
) -> Summary:
    """Encode and append all rows."""
    encoder, blocks, vectors = (_lines if encoding.format == "svmlight" else _blocks)(found, encoding)
    writer = Writer(file, encoding.layout, encoding.features, encoding.dtype, vectors)
    read = 0
    for rows, block in blocks:
        if isinstance(encoder, Encoder) and encoding.layout == "dense" and not encoding.hashed:
            encoded = encoder.read(block)
            writer.append_dense(encoder.dense(encoded), encoded.vectors)
        else:
            writer.append(*encoder.encode(block))
        read += rows
        ticker(read)
    encoder.check()
    if writer.rows == 0:
        raise DataError(f"{found[0].path}: no data rows" + (f" without missing values among {read:,}" if read else ""))
    writer.close()
    ticker(read, last=True)
    notes = [*notes, encoder.note] if encoder.note else notes
    return Summary(writer.rows, encoding.features, writer.nonzeros, read - writer.rows, encoding.layout, output, tuple(notes))


def _lines(found: Sequence[Source], encoding: Encoding) -> Pass:
    if encoding.missing == "mean":
        raise UsageError("--missing mean is not for svmlight: use zero or drop")
    return svmlight.Encoder(encoding), ((block.y.size, block) for source in found for block in svmlight.read(source.path)), ["y"]


def _blocks(found: Sequence[Source], encoding: Encoding) -> Pass:
    vectors, wanted = _wanted(found, encoding)
    return Encoder(encoding, vectors), ((block.rows, block) for source in found for block in source.blocks(wanted)), vectors


def _wanted(found: Sequence[Source], encoding: Encoding) -> tuple[list[str], list[str]]:
    """The vectors that these files allow to be written, and the raw columns to be read. DataError for a column not there."""
    raw = {**({"y": encoding.target.name} if encoding.target else {}), **encoding.extras}
    kinds = found[0].kinds()
    labelled = "y" in raw and raw["y"] in kinds
    optional = ("key",) if labelled else ("y", "sample_weight", "key")
    vectors = [vector for vector, name in raw.items() if name in kinds or vector not in optional]
    wanted = [*(column.name for column in encoding.columns), *(raw[vector] for vector in vectors)]
    numbers = {column.name for column in encoding.columns if column.kind == "number"}
    for source in found:
        kinds = source.kinds()
        for name, parts in source.groups().items():
            known = encoding.lists.get(name, len(parts))
            if len(parts) != known:
                raise DataError(f"{source.path}: column {name!r} has {len(parts)} parts, but {known} in the training data")
        for name in wanted:
            if name not in kinds:
                raise DataError(no_column(source.path, name, list(kinds), ", which the training data had"))
            if name in numbers and kinds[name] not in ("text", "string", "number", "category", "null"):
                raise DataError(f"{source.path}: column {name!r} holds {kinds[name]}, but numbers in the training data")
    return vectors, wanted


def _require(found: Sequence[Source], column: str) -> None:
    for source in found:
        kinds = source.kinds()
        if column not in kinds:
            raise DataError(no_column(source.path, column, list(kinds), ", the target of the training data"))


def is_raw(path: str) -> bool:
    """Whether a path (or glob) names CSV, Parquet or svmlight, by its name; a folder, whether it has such files."""
    if os.path.isdir(path):
        return any(tables.format_of(os.path.join(path, part)) for part in tables.parts(path))
    return tables.format_of(path) is not None


def read_encoding(path: str) -> Encoding:
    """The encoding stored in an imported data set or a model. DataError if there is none."""
    with hdf5.open_read(path) as file:
        stored = hdf5.read_json(file, "encoding") if "encoding" in file else None
    if not stored:
        raise DataError(f"{path}: holds no encoding: it was not made by `mpigd import`")
    return Encoding.from_dict(stored)


class Ticker:
    """Passes rows on to `progress`, about once a second."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._next = progress, time.monotonic() + SECONDS

    def __call__(self, rows: int, last: bool = False) -> None:
        if self._progress is not None and (last or time.monotonic() >= self._next):
            self._progress(rows)
            self._next = time.monotonic() + SECONDS


@contextmanager
def _output(sources: Sequence[Source], output: str) -> Iterator[h5py.File]:
    """The new file, opened before any work: a folder that cannot be written to shows at once."""
    if any(os.path.exists(output) and os.path.samefile(source.path, output) for source in sources):
        raise UsageError(f"-o {output} would replace a file that is read")
    with hdf5.create(output) as file:
        yield file
