"""Read CSV files through pyarrow as streams of record batches of text columns.

The bytes pass through several steps: unpacking (compression.py), decoding to UTF-8, removal of
comments and of empty lines at the start, and pyarrow's parser. `columns` reads the names alone,
`batches` the rows.
"""

from __future__ import annotations

import codecs
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from mpigd.errors import DataError, UsageError
from mpigd.tables.byte_stream import Chunks
from mpigd.tables.compression import open_bytes, reading
from mpigd.tables.duplicate_names import rename_duplicates
from mpigd.tables.lost_rows import Lost

BLOCK_BYTES = 1 << 22  # bytes of a file in memory at once
ROW_BYTES, LINES = 1 << 30, 4  # longest first line; first lines that a block holds at least
# Texts that mean a missing value: the list of pandas. It is spelled out here so that it does not
# depend on the version of pyarrow.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
NAMED = {"tab": "\t", "\\t": "\t", "space": " ", "none": ""}
# First bytes of text with more than one byte per character, with a byte order mark or without.
WIDE = {
    b"\xff\xfe\0\0|\0\0\xfe\xff": "utf-32",
    b"\xff\xfe|\xfe\xff": "utf-16",
    b"[^\0]\0[^\0]\0": "utf-16-le",
    b"\0[^\0]\0[^\0]": "utf-16-be",
}
OTHER_DELIMITERS = {";": "';'", "\t": "tab", "|": "'|'"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The format of CSV files. A mark is one ASCII character.

    Attributes
    ----------
    delimiter : str
        The mark between values; "" is a comma, or a tab in files named .tsv.
    quote : str
        The mark around values; "" if nothing is quoted.
    escape : str
        The mark before a mark that is part of a value; "" if quotes are doubled instead.
    comment : str
        Lines that begin with this text are left out; "" for none.
    header : bool, optional
        True if the first line has names. False if there are none; the columns are then c0, c1, ...
        None takes the first line as names, but refuses a line that looks like data.
    encoding : str
        The encoding of the text, as Python names it.
    na : tuple of str
        Texts that mean a missing value.
    default_na : bool
        Whether those of MISSING do, too.
    decimal, thousands : str
        The decimal mark of numbers, and the mark between groups of three digits ("" for none).
    rename_duplicates : bool
        Whether a repeated name becomes NAME.1, NAME.2, ...; otherwise it is an error.
    """

    delimiter: str = ""
    quote: str = '"'
    escape: str = ""
    comment: str = ""
    header: bool | None = None
    encoding: str = "utf-8"
    na: tuple[str, ...] = ()
    default_na: bool = True
    decimal: str = "."
    thousands: str = ""
    rename_duplicates: bool = False

    def __post_init__(self) -> None:
        for name in ("delimiter", "quote", "escape", "decimal", "thousands"):
            mark = getattr(self, name)
            mark = NAMED.get(mark, mark)
            object.__setattr__(self, name, mark)
            empty = name not in ("decimal",)
            if len(mark.encode()) != 1 and not (empty and not mark):
                raise UsageError(f"--{name} {shlex.quote(mark)}: expected one ASCII character")
        if self.decimal == self.thousands:
            raise UsageError(f"--decimal and --thousands are both {self.decimal!r}")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            known = "expected one that Python knows, such as cp1252, latin-1 or utf-16"
            raise UsageError(f"--encoding {self.encoding}: {known}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, for JSON."""
        usual = asdict(Dialect())
        told = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return told | ({"na": list(self.na)} if self.na else {})

    @staticmethod
    def from_dict(stored: Any) -> Dialect:
        """Return the dialect that `to_dict` stored."""
        return Dialect(**{**stored, "na": tuple(stored.get("na", ()))})

    def mark(self, path: str) -> str:
        """Return the mark between the values of a file."""
        return self.delimiter or ("\t" if ".tsv" in Path(path.lower()).suffixes else ",")

    def missing(self) -> list[str]:
        """Return all texts that mean a missing value."""
        return [*(MISSING if self.default_na else ()), *self.na]


USUAL = Dialect()


def columns(path: str, dialect: Dialect = USUAL) -> list[str]:
    """Return the names of the columns of a file.

    Raises
    ------
    DataError
        If the names look like data, if one occurs twice (unless duplicates are renamed), or if the
        file cannot be read.
    """
    if dialect.header is False:
        return [f"c{j}" for j in range(len(_first_row(path, dialect)))]
    names = _first_row(path, dialect)
    _check_header(path, names, dialect)
    twice = (
        sorted({name for name in names if names.count(name) > 1})
        if len(set(names)) < len(names)
        else []
    )
    if twice and not dialect.rename_duplicates:
        advice = "--rename-duplicates calls the others NAME.1, NAME.2, ..."
        raise DataError(f"{path}: column {twice[0]!r} appears twice in the header: {advice}")
    return rename_duplicates(names)


def _check_header(path: str, names: Sequence[str], dialect: Dialect) -> None:
    if len(names) == 1 and not dialect.delimiter:
        if re.fullmatch("sep=.?", names[0]):
            mark = names[0][4:] or ","
            advice = f"--delimiter {OTHER_DELIMITERS.get(mark, mark)} --comment sep="
            raise DataError(f"{path}: the first line is {names[0]!r}, not a header: {advice}")
        for mark, shown in OTHER_DELIMITERS.items():
            if mark in names[0]:
                raise DataError(
                    f"{path}: the header is one column, {names[0][:60]!r}: --delimiter {shown}"
                )
    # pandas writes 0, 1, 2, ... as the header of a table without names.
    counted = [name.strip() for name in names] == [str(j) for j in range(len(names))]
    if (
        dialect.header is None
        and not counted
        and all(NUMBER.fullmatch(name.strip()) for name in names)
    ):
        line = dialect.mark(path).join(names)[:60]
        advice = "--no-header if it is data, --header if these are names"
        raise DataError(f"{path}: the header {line!r} consists of numbers: {advice}")


def _first_row(path: str, dialect: Dialect) -> list[str]:
    """Return the values of the first row. Other rows are not read and so cannot cause errors."""
    with reading(path), _texts(path, dialect) as (pieces, _):
        text = b""
        for piece in pieces:
            text += piece
            row = _whole_row(text, dialect)
            if row:
                break
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    with (
        reading(path),
        _stream(path, io.BytesIO(row or text), len(row or text) + 1, (), dialect, None) as stream,
    ):
        return [str(name) for name in stream.schema.names]


def _whole_row(text: bytes, dialect: Dialect) -> bytes:
    """Return the bytes of the first row that is not blank, or b"" if it is not complete."""
    quote, at = dialect.quote.encode(), 0
    start = len(text) - len(text.lstrip(b"\r\n"))
    while (at := text.find(b"\n", max(at, start)) + 1) > 0:
        if not quote or text.count(quote, start, at) % 2 == 0:
            return text[:at]
    return b""


def batches(
    path: str,
    names: list[str],
    wanted: Sequence[str],
    dialect: Dialect = USUAL,
    lost: Lost | None = None,
) -> Iterator[Any]:
    """Yield the rows in order as record batches of text columns, null if missing.

    Parameters
    ----------
    path : str
        The file.
    names : list of str
        The names of all columns, as `columns` returns them.
    wanted : sequence of str
        The columns to read.
    dialect : Dialect
        How the file is written.
    lost : Lost, optional
        Receives rows with too many or too few fields, which are then left out.

    Raises
    ------
    DataError
        If the file cannot be read, or a row has too many or too few fields and `lost` is None.
    """
    after = [0]
    with reading(path, after), _texts(path, dialect) as (pieces, size):
        # Buffering is needed because pyarrow takes a short read for a whole block.
        file = io.BufferedReader(Chunks(pieces), 1 << 20)
        with _stream(path, file, size, wanted, dialect, names, lost) as stream:
            for batch in stream:
                yield batch
                after[0] += batch.num_rows


@contextmanager
def _stream(
    path: str,
    file: Any,
    size: int,
    wanted: Sequence[str],
    dialect: Dialect,
    names: list[str] | None,
    lost: Lost | None = None,
) -> Iterator[Any]:
    """Open a stream of record batches of text columns.

    If `names` is None, the names are those of the first line.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    header = dialect.header is not False
    parse = pc.ParseOptions(
        delimiter=dialect.mark(path),
        quote_char=dialect.quote or False,
        escape_char=dialect.escape or False,
        newlines_in_values=True,
    )
    strings = dict.fromkeys(wanted, pa.string())
    convert = pc.ConvertOptions(
        column_types=strings,
        include_columns=list(wanted),
        null_values=dialect.missing(),
        strings_can_be_null=True,
    )

    def refuse(row: Any) -> str:
        # pyarrow counts rows from 1 and includes the header. Its reader swallows an exception
        # raised here, so the message is kept until the reader stops.
        number = row.number - 1 - header
        line = (
            f"row {number} has {row.actual_columns} fields, "
            f"expected {row.expected_columns}: {row.text[:60]!r}"
        )
        if lost is not None:
            lost.rows[number] = line
            return "skip"
        wrong.append(line)
        return "error"

    wrong: list[str] = []
    parse.invalid_row_handler = refuse
    try:
        with _undecodable_rows_ignored(refuse):
            # One thread is as fast here, and pyarrow reports the number of a bad row only without
            # threads.
            read = pc.ReadOptions(
                use_threads=False,
                block_size=size,
                column_names=names,
                skip_rows_after_names=int(header and names is not None),
                autogenerate_column_names=not header and names is None,
            )
            yield pc.open_csv(file, read_options=read, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        if wrong:
            raise DataError(f"{path}: {wrong[0]}") from error
        if "straddling" in str(error):
            raise DataError(
                f"{path}: a row is much longer than the first (an unclosed quotation mark?)"
            ) from error
        if "UTF8" in str(error):
            raise _other_encoding(path, "") from error
        raise


def _other_encoding(path: str, tried: str) -> DataError:
    if tried.lower() in ("", "utf-8", "utf8"):
        return DataError(
            f"{path}: the text is not UTF-8: say what it is, for example --encoding cp1252"
        )
    return DataError(f"{path}: the text is not {tried}: say what it is with --encoding")


@contextmanager
def _texts(path: str, dialect: Dialect) -> Iterator[tuple[Iterator[bytes], int]]:
    """Open the text of a file as pieces of UTF-8 without comments, with a block size in bytes.

    A block has room for LINES lines as long as the first, which is long if there are many columns.
    """
    try:
        with open_bytes(path) as file:
            start = file.read(4)
            wide = next(
                (name for mark, name in WIDE.items() if re.match(mark, start, re.DOTALL)), None
            )
            if wide and dialect.encoding == "utf-8":
                raise DataError(f"{path}: the text is not UTF-8: --encoding {wide}")
            pieces = _from_text(_filtered(_chunks(start, file), dialect))
            held: list[bytes] = []
            length = 0
            for piece in pieces:
                held.append(piece)
                end = piece.find(b"\n")
                length += len(piece) if end < 0 else end
                if end >= 0 or b"\r" in piece or length > ROW_BYTES:
                    break
            yield chain(held, pieces), max(BLOCK_BYTES, LINES * length)
    except UnicodeError as error:
        raise _other_encoding(path, dialect.encoding) from error


def _from_text(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces without empty lines at the start, which would be read as the header."""
    for piece in pieces:
        text = piece.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
        if text:
            yield text
            break
    yield from pieces


def _chunks(start: bytes, file: BinaryIO) -> Iterator[bytes]:
    while start:
        yield start
        start = file.read(1 << 20)


def _filtered(chunks: Iterator[bytes], dialect: Dialect) -> Iterator[bytes]:
    if codecs.lookup(dialect.encoding).name not in ("utf-8", "utf-8-sig"):
        decoder = codecs.getincrementaldecoder(dialect.encoding)()
        chunks = (text.encode() for text in _decoding(chunks, decoder))
    if not dialect.comment:
        yield from chunks
        return
    pattern = re.compile(rb"(?m)^" + re.escape(dialect.comment.encode()) + rb"[^\n]*(\n|\Z)")
    rest = b""
    for chunk in chunks:
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        yield pattern.sub(b"", whole + newline)
    yield pattern.sub(b"", rest)


def _decoding(chunks: Iterator[bytes], decoder: codecs.IncrementalDecoder) -> Iterator[str]:
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", True)


@contextmanager
def _undecodable_rows_ignored(handler: Any) -> Iterator[None]:
    """Suppress the traceback that pyarrow prints for a bad row that is not UTF-8.

    pyarrow decodes a row before it calls the handler, so the handler cannot catch that error.
    """
    usual = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.object is handler else usual(lost)
    try:
        yield
    finally:
        sys.unraisablehook = usual
