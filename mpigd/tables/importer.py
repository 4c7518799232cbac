"""`mpigd import`: convert raw tables to HDF5 data sets in two streaming passes.

The first pass (schema.py) infers the types of the columns, the second (second_pass.py) encodes and
writes the rows. The result of the first pass, an Encoding, is stored with the data and with models
trained on them. New raw files are encoded in a single pass by a stored encoding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import h5py

from mpigd.errors import DataError, UsageError
from mpigd.storage import hdf5
from mpigd.tables import import_table, readers, svmlight
from mpigd.tables.csv_reader import Dialect
from mpigd.tables.encoding import Encoding, listed, no_column
from mpigd.tables.import_options import Options, flag, options_of
from mpigd.tables.kept_blocks import Kept
from mpigd.tables.policies import Policies
from mpigd.tables.readers import Source
from mpigd.tables.schema import survey
from mpigd.tables.second_pass import Job, Progress, Ticker, write_all
from mpigd.tables.second_pass import Summary as Summary

SVMLIGHT_OPTIONS = ("missing", "dtype", "features", "zero_based", "allow_duplicates")
# Fields of Dialect that have a meaning in all tables, not in CSV alone.
ANY_FORMAT = ("decimal", "thousands", "rename_duplicates")


def import_data(
    sources: Sequence[str],
    output: str,
    *,
    like: str | None = None,
    format: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Summary:
    """Convert raw tables to an HDF5 data set.

    The data set has X (n, d), dense or CSR, y (n,), the row vectors that options name, and the
    encoding.

    Parameters
    ----------
    sources : sequence of str
        CSV (also compressed), Parquet, Arrow, ORC or svmlight files, folders and glob patterns.
        They form one data set, in this order.
    output : str
        The HDF5 file that is written.
    like : str, optional
        An imported data set or a model whose encoding is used. The options then come from there;
        but `missing`, `unseen` and the format of CSV files replace those of the encoding if they
        are given.
    format : str, optional
        "csv", "parquet", "arrow", "orc" or "svmlight"; by default it follows from the file names.
    progress : function, optional
        Called about once a second with the number of rows read in this pass.
    **options
        The options of `mpigd import`:

        target, weight, offset, key, id : str
            Raw columns that become y, sample weights, offsets, partition keys and row ids.
        drop : sequence of str
            Columns to leave out.
        categorical, number, date : sequence of str
            Columns that are read as this type, whatever their values look like. date: NAME or
            NAME=FORMAT, or a mapping from NAME to FORMAT.
        missing : str
            The treatment of missing values: "refuse", "mean", "zero" or "drop" (drop the row).
        infinite : str
            The treatment of infinities: "refuse" or "missing" (take them for missing values).
        hash_bits : int
            Hash categories into 2**hash_bits columns.
        drop_first : bool
            Make the first level of each category its reference level, which gets no column.
        reference : mapping or sequence of str
            Reference levels: column -> level, or texts COLUMN=LEVEL.
        min_count : int
            Levels with fewer rows share one column, NAME=<other>.
        unseen : str
            The treatment of levels that only later data have: "error", "zero" or "other".
        dtype : str
            The dtype of X: "auto" (float32, unless a column needs float64), "float32" or "float64".
        features, zero_based, allow_duplicates
            As of `svmlight.fit` and `readers.expand`.
        others
            The format of CSV files: the fields of mpigd.tables.csv_reader.Dialect.

    Returns
    -------
    Summary
        The size of the data set, and notes for the user.

    Raises
    ------
    UsageError
        If options are wrong or do not go together.
    DataError
        If the data cannot be read or encoded.
    StorageError
        If `output` cannot be written.
    """
    told = options_of(options)
    ticker = Ticker(progress)
    if like is not None:
        told.refuse(
            ("missing", "unseen", "dialect", "allow_duplicates"), f"--like encodes as {like} was"
        )
        policies = Policies(options.get("missing"), options.get("unseen"))
        given = {name: value for name, value in vars(told.dialect).items() if name in options}
        return encode_like(
            sources, output, read_encoding(like), policies, format=format, progress=progress,
            allow_duplicates=told.allow_duplicates, dialect=given,
        )  # fmt: skip
    found = readers.expand(sources, format, told.dialect, allow_duplicates=told.allow_duplicates)
    _refuse_others(found[0], told)
    with _output(found, output) as file, readers.guarded(found):
        if found[0].format == "svmlight":
            encoding, notes = svmlight.fit(
                found, told.missing, told.dtype, ticker, told.features, told.zero_based
            )
            table, kept = "", None
        else:
            kept = Kept()
            seen = survey(found, told, ticker, kept=kept)
            encoding, notes = seen.encoding()
            table = import_table.text(seen, encoding)
        hdf5.write_json(file, "encoding", encoding.to_dict())
        job = Job(found, encoding, Policies(command="import"), kept)
        return replace(write_all(job, file, output, ticker, notes), table=table)


def _refuse_others(source: Source, told: Options) -> None:
    """Raise UsageError for options that belong to another format than that of the files."""
    if source.format == "svmlight":
        told.refuse(SVMLIGHT_OPTIONS, "svmlight has no named columns")
        return
    if told.features is not None or told.zero_based is not None:
        option = "--zero-based or --one-based" if told.features is None else "--features"
        raise UsageError(f"{option} is for svmlight, and {source.path} is {source.format}")
    _refuse_marks(source, told.dialect.to_dict())


def _refuse_marks(source: Source, names: Iterable[str]) -> None:
    """Raise UsageError for fields of Dialect that have no meaning in the format of the files."""
    marks = [flag(name) for name in names if name not in ANY_FORMAT or source.format == "svmlight"]
    if marks and source.format != "csv":
        raise UsageError(f"{listed(marks)} is for CSV, and {source.path} is {source.format}")


def preview(
    sources: Sequence[str], rows: int | None = None, *, format: str | None = None, **options: Any
) -> tuple[str, Exception | None]:
    """Describe what `import_data` would do (`--dry-run`), without writing anything.

    Parameters
    ----------
    sources, format, **options
        As of `import_data`.
    rows : int, optional
        Read only this number of rows; by default all.

    Returns
    -------
    text : str
        A table of the columns, with notes.
    error : Exception or None
        The error that `import_data` would raise.

    Raises
    ------
    UsageError
        If options are wrong, or the files are svmlight.
    DataError
        If the files cannot be read.
    """
    told = options_of(options)
    found = readers.expand(sources, format, told.dialect, allow_duplicates=told.allow_duplicates)
    if found[0].format == "svmlight":
        raise UsageError(
            "--dry-run is for CSV and Parquet: svmlight has no columns to be looked at"
        )
    _refuse_others(found[0], told)
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
    dialect: Mapping[str, Any] | None = None,
) -> Summary:
    """Encode new raw files by a stored encoding, in one pass.

    Columns that the encoding does not use are ignored.

    Parameters
    ----------
    sources, output, format, progress
        As of `import_data`.
    encoding : Encoding
        The encoding of the training data.
    policies : Policies, optional
        Policies that replace those of the encoding. `policies.command` is the command that runs.
    need_y : bool
        Refuse files without the target column. Without need_y, the output of such files has no y,
        and the weight column may be absent too. The command "predict" reads neither column.
    allow_duplicates : bool
        Whether a file may occur twice in `sources`.
    dialect : mapping, optional
        Fields of Dialect that replace those of the encoding, also in the output.

    Returns
    -------
    Summary
        The size of the data set, and notes for the user.

    Raises
    ------
    DataError
        If a column is missing, or a row cannot be encoded; the message names the column and the
        first such row, or all rows if none can be encoded.
    UsageError
        If policies or fields of `dialect` do not go with the format of the files.

    Notes
    -----
    For the commands "evaluate" and "predict" the output also says where each row comes from:
    `source_file` is a position in the JSON list `sources`, `source_row` the data row in that file,
    counted from 0. The JSON value `skipped` holds the number of rows that were left out.
    """
    policies = policies or Policies()
    written = Dialect.from_dict({**encoding.csv, **(dialect or {})})
    encoding = replace(encoding, csv=written.to_dict())
    found = readers.expand(sources, format, written, allow_duplicates=allow_duplicates)
    _refuse_marks(found[0], dialect or {})
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
    """Return whether a path or glob pattern names raw tables, judged by its suffix.

    A folder is raw if it holds such files.
    """
    if os.path.isdir(path):
        return any(readers.format_of(os.path.join(path, part)) for part in readers.parts(path))
    return readers.format_of(path) is not None


def read_encoding(path: str) -> Encoding:
    """Read the encoding stored in an imported data set or a model. DataError if there is none."""
    with hdf5.open_read(path) as file:
        stored = hdf5.read_json(file, "encoding") if "encoding" in file else None
    if not stored:
        raise DataError(f"{path}: holds no encoding: it was not made by `mpigd import`")
    return Encoding.from_dict(stored)


@contextmanager
def _output(sources: Sequence[Source], output: str) -> Iterator[h5py.File]:
    """Create the output file.

    This happens before any other work, so that a folder without write permission is reported at
    once.
    """
    if any(os.path.exists(output) and os.path.samefile(source.path, output) for source in sources):
        raise UsageError(f"-o {output} would replace a file that is read")
    with hdf5.create(output) as file:
        yield file
