"""`mpigd import`: raw tables become HDF5 in two streaming passes, one to learn what the columns are, one to write.

New raw files are encoded like the first ones in a single pass, by the encoding stored with the data or the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import h5py

from mpigd.errors import DataError, UsageError
from mpigd.storage import hdf5
from mpigd.tables import import_table, readers, svmlight
from mpigd.tables.csv_reader import Dialect
from mpigd.tables.encoding import Encoding, no_column
from mpigd.tables.import_options import Options, options_of
from mpigd.tables.policies import Policies
from mpigd.tables.readers import Source
from mpigd.tables.schema import survey
from mpigd.tables.second_pass import Job, Progress, Ticker, write_all
from mpigd.tables.second_pass import Summary as Summary

SVMLIGHT_OPTIONS = ("missing", "dtype", "features", "zero_based", "allow_duplicates")


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
    that `missing`, when not "refuse", and `unseen`, when not "error", replace its policies.
    format: "csv", "parquet", "svmlight", by default from the names. progress: called about once a
    second with the rows read in this pass.

    options, each as of `mpigd import`: target, weight, offset, key, id: raw columns. drop: those to
    leave out. categorical, number, date: columns to be taken for that, whatever they look like; date
    as NAME or NAME=FORMAT, or a mapping. missing: "refuse", "mean", "zero" or "drop" (the row).
    infinite: "refuse" or "missing". hash_bits: hash categories into 2**hash_bits columns.
    drop_first, reference (column -> level): levels without a column. min_count: levels of fewer
    rows share a column, NAME=<other>; unseen: "error", "zero" or "other", what becomes of levels of
    later data. dtype of X: "auto" (float32, unless a column needs more), "float32" or "float64".
    And how CSV files are written: the fields of mpigd.tables.csv_reader.Dialect.
    Raises UsageError for options that do not fit, DataError for the data, StorageError for `output`.
    """
    told = options_of(options)
    ticker = Ticker(progress)
    if like is not None:
        told.refuse(
            ("missing", "unseen", "dialect", "allow_duplicates"), f"--like encodes as {like} was"
        )
        given = {"missing": told.missing, "unseen": told.unseen}
        policies = Policies(
            **{name: value for name, value in given.items() if value not in ("refuse", "error")}
        )
        return encode_like(sources, output, read_encoding(like), policies, format=format, progress=progress,
                           allow_duplicates=told.allow_duplicates)  # fmt: skip
    found = readers.expand(sources, format, told.dialect, allow_duplicates=told.allow_duplicates)
    with _output(found, output) as file, readers.guarded(found):
        if found[0].format == "svmlight":
            told.refuse(SVMLIGHT_OPTIONS, "svmlight has no named columns")
            encoding, notes = svmlight.fit(
                found, told.missing, told.dtype, ticker, told.features, told.zero_based
            )
            table, kept = "", None
        else:
            _refuse_indices(found, told)
            seen = survey(found, told, ticker)
            encoding, notes = seen.encoding()
            table, kept = import_table.text(seen, encoding), seen.kept
        hdf5.write_json(file, "encoding", encoding.to_dict())
        job = Job(found, encoding, Policies(command="import"), kept)
        return replace(write_all(job, file, output, ticker, notes), table=table)


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
    found = readers.expand(sources, format, told.dialect, allow_duplicates=told.allow_duplicates)
    if found[0].format == "svmlight":
        raise UsageError(
            "--dry-run is for CSV and Parquet: svmlight has no columns to be looked at"
        )
    seen = survey(found, told, lambda _: None, rows)
    try:
        encoding, notes = seen.encoding()
    except (DataError, UsageError) as error:
        return import_table.text(seen, None), error
    return "\n".join(
        [import_table.text(seen, encoding), *(f"note: {note}" for note in notes)]
    ), None


def encode_like(
    sources: Sequence[str],
    output: str,
    encoding: Encoding,
    policies: Policies | None = None,
    *,
    format: str | None = None,
    progress: Progress | None = None,
    need_y: bool = False,
    allow_duplicates: bool = False,
) -> Summary:
    """Encode new raw files as `encoding` says, in one pass; `policies` replace its own.

    Where the files have no target column there is no y, unless need_y refuses that, and then a weight
    column may be absent too; for predictions ("predict") neither is read. For these, and "evaluate",
    the file says where its rows come from (`source_file`, a position in the JSON list `sources`, and
    `source_row`, the data row there from 0), and, in the JSON `skipped`, how many were left out.
    Other columns that the encoding does not use are ignored. DataError names a column that is missing,
    and the first row that cannot be encoded, or all rows if none can.
    """
    policies = policies or Policies()
    found = readers.expand(
        sources, format, Dialect.from_dict(encoding.csv), allow_duplicates=allow_duplicates
    )
    if (found[0].format == "svmlight") != (encoding.format == "svmlight"):
        raise DataError(f"{found[0].path} is {found[0].format}, but the training data was not")
    if policies.skips and encoding.format == "svmlight":
        raise UsageError(f"--on-bad-row skip is not for svmlight, as {found[0].path} is")
    if need_y and encoding.target is not None:
        _require(found, encoding.target.name)
    labelled = encoding.target is None or encoding.target.name in found[0].kinds()
    job = Job(found, policies.settle(encoding, labelled), policies)
    with _output(found, output) as file, readers.guarded(found):
        hdf5.write_json(file, "encoding", encoding.to_dict())
        notes = [note for source in found for note in source.notes]
        done = write_all(job, file, output, Ticker(progress), notes)
        if job.traced:
            hdf5.write_json(file, "sources", [source.path for source in found])
            hdf5.write_json(file, "skipped", {"rows": done.skipped})
    return done


def _require(found: Sequence[Source], column: str) -> None:
    for source in found:
        kinds = source.kinds()
        if column not in kinds:
            raise DataError(
                no_column(source.path, column, list(kinds), ", the target of the training data")
            )


def is_raw(path: str) -> bool:
    """Whether a path (or glob) names CSV, Parquet or svmlight, by its name; a folder, whether it has such files."""
    if os.path.isdir(path):
        return any(readers.format_of(os.path.join(path, part)) for part in readers.parts(path))
    return readers.format_of(path) is not None


def read_encoding(path: str) -> Encoding:
    """The encoding stored in an imported data set or a model. DataError if there is none."""
    with hdf5.open_read(path) as file:
        stored = hdf5.read_json(file, "encoding") if "encoding" in file else None
    if not stored:
        raise DataError(f"{path}: holds no encoding: it was not made by `mpigd import`")
    return Encoding.from_dict(stored)


@contextmanager
def _output(sources: Sequence[Source], output: str) -> Iterator[h5py.File]:
    """The new file, opened before any work: a folder that cannot be written to shows at once."""
    if any(os.path.exists(output) and os.path.samefile(source.path, output) for source in sources):
        raise UsageError(f"-o {output} would replace a file that is read")
    with hdf5.create(output) as file:
        yield file
