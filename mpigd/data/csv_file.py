"""CSV files as streams of record batches of text columns, through pyarrow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpigd.data.compressed import open_bytes, reading
from mpigd.errors import DataError

BLOCK_BYTES = 1 << 22  # of a file held at once
# What stands for a missing value in CSV: the list of pandas, spelled out so that it is the same with every pyarrow.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip


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
        # pyarrow counts from 1, and the header; `raise` would be lost inside its reader, so the message is kept for later.
        wrong.append(f"row {row.number - 2} has {row.actual_columns} fields, expected {row.expected_columns}: {row.text[:60]!r}")
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


def kinds(path: str) -> dict[str, str]:
    with reading(path), _csv(path, ()) as stream:
        names = stream.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} appears twice in the header")
    return dict.fromkeys(names, "text")


def batches(path: str, wanted: Sequence[str]) -> Iterator[Any]:
    after = [0]
    with reading(path, after), _csv(path, wanted) as stream:
        for batch in stream:
            yield batch
            after[0] += batch.num_rows
