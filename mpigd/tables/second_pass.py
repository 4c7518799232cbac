"""The second pass of an import, which encodes and writes all rows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from mpigd.errors import DataError
from mpigd.tables import svmlight
from mpigd.tables.encoder import Encoder
from mpigd.tables.encoding import Encoding, no_column
from mpigd.tables.kept_blocks import Kept
from mpigd.tables.policies import Policies
from mpigd.tables.read_ahead import ahead
from mpigd.tables.readers import Source
from mpigd.tables.row_vectors import SOURCE
from mpigd.tables.writer import Writer

SECONDS = 1.0  # the minimal time between two calls of `progress`
# The kinds of columns that can be read as numbers.
NUMERIC = ("text", "string", "number", "category", "null")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Summary:
    """Summary of a finished import."""

    rows: int  # rows of X
    features: int  # columns of X
    nonzeros: int  # values of X that are not zero
    dropped: int  # rows left out for missing values
    layout: str  # "dense" or "csr"
    path: str  # the file
    notes: tuple[str, ...] = ()  # for the user
    table: str = ""  # of the columns, for the user
    skipped: int = 0  # rows left out because they could not be encoded


class Ticker:
    """Reports the number of rows to `progress`, about once a second and at the end."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._next = progress, time.monotonic() + SECONDS

    def __call__(self, rows: int, last: bool = False) -> None:
        if self._progress is not None and (last or time.monotonic() >= self._next):
            self._progress(rows)
            self._next = time.monotonic() + SECONDS


@dataclass(frozen=True)
class Job:
    """The input of the second pass.

    Attributes
    ----------
    found : sequence of Source
        The files.
    encoding : Encoding
        The encoding, after `Policies.settle`.
    policies : Policies
        The policies of the command.
    kept : Kept or None
        The rows, if the first pass has kept them.
    """

    found: Sequence[Source]
    encoding: Encoding
    policies: Policies
    kept: Kept | None = None

    @property
    def traced(self) -> bool:
        """Whether the file and the data row of every row are written too."""
        return self.policies.command in ("evaluate", "predict")


def write_all(
    job: Job, file: h5py.File, output: str, ticker: Ticker, notes: Sequence[str]
) -> Summary:
    """Encode all rows and write them to a file.

    Parameters
    ----------
    job : Job
        The files and their encoding.
    file : h5py.File
        The open output file.
    output : str
        Its path. Temporary files are made in the same folder.
    ticker : Ticker
        Reports the number of rows.
    notes : sequence of str
        Notes for the user so far.

    Returns
    -------
    Summary
        The size of the data set, and all notes.

    Raises
    ------
    DataError
        If a row cannot be encoded, values are missing that the policy does not cover, or no rows
        are left.
    """
    encoding, found = job.encoding, job.found
    vectors, wanted, lacking = (["y"], [], []) if encoding.format == "svmlight" else _wanted(job)
    traces = [*SOURCE] if job.traced else []
    folder = os.path.dirname(os.path.abspath(output))
    made = [*vectors, *traces]
    writer = Writer(file, encoding.layout, encoding.features, encoding.dtype, made, folder)
    encoder: Encoder | svmlight.Encoder
    bad, left_out = 0, list[str]()
    if encoding.format == "svmlight":
        encoder, read = _lines(job, writer, ticker)
        left_out = [encoder.note] if encoder.note else []
    else:
        encoder, read = _blocks(job, made, wanted, writer, ticker)
        bad, left_out = encoder.bad.count, encoder.bad.notes()
    encoder.check()
    if writer.rows == 0:
        raise DataError(_nothing(found[0].path, read, bad, left_out))
    writer.close()
    ticker(read, last=True)
    notes = [*notes, *lacking, *left_out]
    dropped = read - bad - writer.rows
    return Summary(
        writer.rows, encoding.features, writer.nonzeros, dropped, encoding.layout, output,
        tuple(notes), skipped=bad,
    )  # fmt: skip


def _nothing(path: str, read: int, bad: int, left_out: Sequence[str]) -> str:
    """Return the message for an output without rows."""
    if bad:
        return f"no row can be encoded: {'; '.join(left_out)}"
    return f"{path}: no data rows" + (f" without missing values among {read:,}" if read else "")


def _lines(job: Job, writer: Writer, ticker: Ticker) -> tuple[svmlight.Encoder, int]:
    svmlight.refuse_means(job.encoding.missing, job.policies)
    encoder, read = svmlight.Encoder(job.encoding, job.policies), 0
    for i, source in enumerate(job.found):
        first = read
        for block in svmlight.read(source.path):
            lengths, index, values, vectors = encoder.encode(block)
            if job.traced:
                rows = read - first + vectors["kept"]
                vectors |= {"source_file": np.full(rows.size, i), "source_row": rows}
            writer.append(lengths, index, values, vectors)
            read += block.y.size
            ticker(read)
    return encoder, read


def _blocks(
    job: Job, vectors: Sequence[str], wanted: Sequence[str], writer: Writer, ticker: Ticker
) -> tuple[Encoder, int]:
    encoding, read = job.encoding, 0
    encoder = Encoder(encoding, vectors, job.policies, [source.path for source in job.found])
    in_place = encoding.layout == "dense" and not encoding.hashed
    lost = job.traced  # whether the blocks also report rows with a wrong number of fields
    again = (block for source in job.found for block in source.blocks(wanted, lost))
    for block in job.kept.blocks() if job.kept and job.kept.complete else ahead(again):
        encoded = encoder.read(block)
        if in_place:
            writer.append_dense(encoder.dense(encoded), encoded.vectors)
        else:
            writer.append(*encoder.pieces(encoded), encoded.vectors)
        read += block.rows + len(block.lost)
        ticker(read)
    return encoder, read


def _wanted(job: Job) -> tuple[list[str], list[str], list[str]]:
    """Return the row vectors that these files have, the raw columns to read, and notes.

    DataError for a column that is missing or has another type than in the training data.
    """
    found, encoding = job.found, job.encoding
    raw = {**({"y": encoding.target.name} if encoding.target else {}), **encoding.extras}
    if job.policies.command == "predict":  # it reads no other columns, which may hold anything
        raw = {vector: name for vector, name in raw.items() if vector in ("offset", "id")}
    kinds = found[0].kinds()
    labelled = "y" in raw and raw["y"] in kinds
    optional = ("key", "id") if labelled else ("y", "sample_weight", "key", "id")
    vectors = [vector for vector, name in raw.items() if name in kinds or vector not in optional]
    no_ids = "id" in raw and "id" not in vectors
    notes = [f"no column {raw['id']!r}, so there are no ids"] if no_ids else []
    wanted = [*(column.name for column in encoding.columns), *(raw[vector] for vector in vectors)]
    numbers = {column.name for column in encoding.columns if column.kind == "number"}
    for source in found:
        kinds = source.kinds()
        for name, parts in source.groups().items():
            known = encoding.lists.get(name, len(parts))
            if len(parts) != known:
                both = f"{len(parts)} parts, but {known} in the training data"
                raise DataError(f"{source.path}: column {name!r} has {both}")
        for name in wanted:
            if name not in kinds:
                # A note may explain it, for example that the column is in the name of a folder.
                said = "".join(f"; {note}" for note in source.notes)
                why = ", which the training data had"
                raise DataError(no_column(source.path, name, list(kinds), why) + said)
            if name in numbers and kinds[name] not in NUMERIC:
                both = f"{kinds[name]}, but numbers in the training data"
                raise DataError(f"{source.path}: column {name!r} holds {both}")
    return vectors, wanted, notes
