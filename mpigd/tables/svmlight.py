"""Streaming reader and encoder of svmlight / libsvm files.

A line is `label index:value ... # comment`, with ascending indices. Indices count from 1 unless
some file has an index 0, as for scikit-learn's load_svmlight_file(zero_based="auto").

A block of well-formed lines is converted at once. Any other block is parsed line by line, which
yields the error messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mpigd.errors import DataError, UsageError
from mpigd.tables.compression import open_bytes, reading
from mpigd.tables.encoding import Encoding
from mpigd.tables.float32_check import EntrySpread, type_of
from mpigd.tables.import_options import MOST_FEATURES
from mpigd.tables.policies import Policies
from mpigd.tables.readers import Source
from mpigd.tables.schema import choose_layout

Array = np.ndarray[Any, Any]
IMPORT = Policies(command="import")
BLOCK_BYTES = 1 << 20
MOST_LINE = 1 << 28  # the maximal number of bytes of a line
BOM = b"\xef\xbb\xbf"
# The quantifiers are possessive (they never give characters back), so that a block that does not
# match is recognised in one pass.
NUMBER, SPACE = rb"[-+.\dA-Za-z]++", rb"[ \t]++"
PLAIN = re.compile(rb"(?:" + NUMBER + rb"(?:" + SPACE + rb"\d++:" + NUMBER + rb")*+[ \t]*+\r?\n)*+")


@dataclass(frozen=True)
class Lines:
    """Consecutive rows of one file, as parts of CSR.

    Attributes
    ----------
    path : str
        The file.
    y : array (m,) of float64
        Labels.
    lengths : array (m,) of int64
        The number of entries of each row.
    indices : array (e,) of int64
        The indices of all entries, row after row, as in the file.
    values : array (e,) of float64
        Their values.
    lines : array (m,) of int64
        The line of each row, counted from 1.
    query : bool
        Whether there was a qid. It is left out.
    """

    path: str
    y: Array
    lengths: Array
    indices: Array
    values: Array
    lines: Array
    query: bool = False

    def where(self, entry: int) -> str:
        """Return file and line of an entry, for a message."""
        return (
            f"{self.path} line "
            f"{self.lines[np.searchsorted(np.cumsum(self.lengths), entry, 'right')]}"
        )


def read(path: str) -> Iterator[Lines]:
    """Yield the rows of a file in blocks of about 1 MiB of text.

    DataError for lines that are wrong; it names file and line.
    """
    line = 1
    with reading(path), open_bytes(path) as file:
        for texts in _texts(path, file):
            if line == 1:
                texts[0] = texts[0].removeprefix(BOM)
            block = _plain(path, line, texts) or _careful(path, line, texts)
            _check(block)
            yield block
            line += len(texts)


def _texts(path: str, file: BinaryIO) -> Iterator[list[bytes]]:
    """Yield lists of the lines of a file, each line with its newline."""
    held: list[bytes] = []
    while chunk := file.read(BLOCK_BYTES):
        end = chunk.rfind(b"\n") + 1
        if end:
            yield [text + b"\n" for text in b"".join([*held, chunk[: end - 1]]).split(b"\n")]
            held.clear()
        held.append(chunk[end:])
        if sum(map(len, held)) > MOST_LINE:
            raise DataError(f"{path}: a line is longer than {MOST_LINE:,} bytes: is this svmlight?")
    last = b"".join(held)
    if last:
        yield [last + b"\n"]


def _plain(path: str, line: int, texts: Sequence[bytes]) -> Lines | None:
    """Parse a block at once; None if it has comments, qid, empty lines or mistakes.

    line: the number of its first line.
    """
    text = b"".join(texts)
    if not PLAIN.fullmatch(text):
        return None
    lengths = np.array([one.count(b":") for one in texts], dtype=np.int64)
    try:
        tokens = np.array(text.replace(b":", b" ").split(), dtype=np.float64)
    except ValueError:
        return None
    ends = np.cumsum(2 * lengths + 1)
    label = np.zeros(tokens.size, dtype=bool)
    label[ends - 2 * lengths - 1] = True
    pairs = tokens[~label]
    if np.any(pairs[::2] >= MOST_FEATURES):
        return None
    return Lines(
        path,
        tokens[label],
        lengths,
        pairs[::2].astype(np.int64),
        pairs[1::2],
        np.arange(line, line + len(texts)),
    )


def _careful(path: str, line: int, texts: Sequence[bytes]) -> Lines:
    y: list[float] = []
    rows: list[int] = []
    lengths: list[int] = []
    indices: list[int] = []
    values: list[float] = []
    for number, text in enumerate(texts, line):
        words = text.split(b"#", 1)[0].split()
        if not words:
            continue
        where = f"{path} line {number}"
        y.append(_label(words[0], where))
        pairs = [_pair(word, where) for word in words[1:] if not word.startswith(b"qid:")]
        rows.append(number)
        lengths.append(len(pairs))
        indices += [pair[0] for pair in pairs]
        values += [pair[1] for pair in pairs]
    whole = [np.array(part, dtype=np.int64) for part in (lengths, indices, rows)]
    query = any(b"qid:" in text for text in texts)
    return Lines(
        path,
        np.array(y, dtype=np.float64),
        whole[0],
        whole[1],
        np.array(values, dtype=np.float64),
        whole[2],
        query,
    )


def _number(word: bytes, what: str, advice: str = "") -> float:
    try:
        if b"_" in word:  # Python's float would accept 1_000
            raise ValueError
        return float(word)
    except ValueError:
        raise DataError(f"{what} {_shown(word)} is not a number{advice}") from None


def _label(word: bytes, where: str) -> float:
    if b"," in word:
        raise DataError(
            f"{where}: label {_shown(word)} names several classes: a row has one number for a label"
        )
    return _number(word, f"{where}: label", ": number the classes 0, 1, 2, ... or -1 and 1")


def _pair(word: bytes, where: str) -> tuple[int, float]:
    index, colon, value = word.partition(b":")
    if not colon or not index.isdigit():
        raise DataError(f"{where}: {_shown(word)} is not index:value with a whole index from 0")
    if int(index) >= MOST_FEATURES:
        raise DataError(f"{where}: index {int(index)} is too large")
    return int(index), _number(value, f"{where}: value")


def _shown(word: bytes) -> str:
    return repr(word[:40].decode(errors="replace"))


def _check(block: Lines) -> None:
    """Check the order of indices, and that labels are finite and values not infinite.

    DataError names the first entry or label that is wrong. Values may be NaN, which is missing.
    """
    first = np.zeros(block.indices.size, dtype=bool)
    starts = np.cumsum(block.lengths) - block.lengths
    first[starts[block.lengths > 0]] = True
    falling = np.flatnonzero((np.diff(block.indices, prepend=-1) <= 0) & ~first)
    if falling.size:
        entry = int(falling[0])
        pair = f"index {block.indices[entry]} after {block.indices[entry - 1]}"
        raise DataError(f"{block.where(entry)}: {pair}: indices must ascend within a line")
    bad = np.flatnonzero(~np.isfinite(block.y))
    if bad.size:
        raise DataError(
            f"{block.path} line {block.lines[bad[0]]}: the label is {block.y[bad[0]]:g}, "
            "expected a finite number"
        )
    bad = np.flatnonzero(np.isinf(block.values))
    if bad.size:
        raise DataError(
            f"{block.where(int(bad[0]))}: index {block.indices[bad[0]]} is not a finite number"
        )


def fit(
    sources: Sequence[Source],
    missing: str,
    dtype: str,
    tick: Callable[[int], None],
    features: int | None = None,
    zero_based: bool | None = None,
) -> tuple[Encoding, list[str]]:
    """Determine the encoding of svmlight files in one pass.

    Parameters
    ----------
    sources : sequence of Source
        The files.
    missing : str
        The policy for missing values (NaN).
    dtype : str
        "auto", "float32" or "float64".
    tick : function
        Called with the number of rows read so far.
    features : int, optional
        The number of features; by default it follows from the highest index.
    zero_based : bool, optional
        Whether indices count from 0 (True) or 1 (False); by default from 1 unless some index is 0.

    Returns
    -------
    encoding : Encoding
        The number of features, the first index, the layout and the dtype.
    notes : list of str
        Notes for the user.

    Raises
    ------
    DataError
        If a line is wrong, there are no rows or no features, or an index contradicts `features` or
        `zero_based`.
    UsageError
        If `missing` is "mean".
    """
    refuse_means(missing, IMPORT)
    rows = nonzeros = 0
    low, high = MOST_FEATURES, -1
    spread = EntrySpread()
    most = MOST_FEATURES if features is None else features - (zero_based is True)
    for source in sources:
        for block in read(source.path):
            rows += block.y.size
            nonzeros += int(np.count_nonzero(block.values))
            _check_told(block, zero_based, features, most)
            spread.add_entries(block.indices, block.values)
            if block.indices.size:
                low, high = min(low, int(block.indices.min())), max(high, int(block.indices.max()))
            tick(rows)
    if rows == 0 or (high < 0 and features is None):
        raise DataError(f"{sources[0].path}: no {'features' if rows else 'rows'}")
    if zero_based is None:
        zero_based = low == 0
    width = features or (high + 1 if zero_based else high)
    # It has turned out only now that indices count from 0, so that the highest index is too high.
    # Another pass finds its line.
    if high >= width + (not zero_based):
        for source in sources:
            for block in read(source.path):
                _check_told(block, zero_based, features, width - 1)
    damaged = {f"index {j}": spread.why(j) for j in np.flatnonzero(spread.damaged()).tolist()}
    dtype, told = type_of(damaged, dtype)
    notes = [note for source in sources for note in source.notes] + told
    layout = choose_layout(nonzeros, rows, width)
    return Encoding(
        format="svmlight",
        features=width,
        missing=missing,
        dtype=dtype,
        zero_based=zero_based,
        layout=layout,
    ), notes


def refuse_means(missing: str, policies: Policies) -> None:
    """Raise UsageError if missing values are to be replaced by means: svmlight has none."""
    if missing == "mean":
        raise UsageError(f"--missing mean is not for svmlight: {_advice(policies)}")


def _advice(policies: Policies) -> str:
    """Return the advice about missing values; `Policies.of_missing` is that for tables."""
    return "use --missing zero" + ("" if policies.command == "predict" else " or --missing drop")


def _check_told(block: Lines, zero_based: bool | None, features: int | None, most: int) -> None:
    """DataError at the first index that --one-based or --features exclude; most: the highest."""
    if zero_based is False and np.any(block.indices == 0):
        where = block.where(int(np.argmax(block.indices == 0)))
        raise DataError(
            f"{where}: index 0, but --one-based says that indices count from 1: use --zero-based"
        )
    beyond = np.flatnonzero(block.indices > most)
    if beyond.size:
        index = int(block.indices[beyond[0]])
        need = index + bool(zero_based)
        raise DataError(
            f"{block.where(int(beyond[0]))}: index {index} is beyond --features {features}: "
            f"use --features {need}"
        )


class Encoder:
    """Encodes rows of svmlight files as rows of X and y."""

    def __init__(self, encoding: Encoding, told: Policies = IMPORT) -> None:
        self._encoding, self._told = encoding, told
        self._missing, self._first = 0, ""
        self.note = ""

    def encode(self, block: Lines) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Encode a block of m rows.

        Returns
        -------
        lengths : array (k,) of int64
            The number of non-zeros of each row that is kept.
        indices : array (e,) of int64
            The columns of the non-zeros, row after row, counted from 0.
        values : array (e,)
            Their values, in the dtype of the encoding.
        vectors : dict of str to array
            "y" (k,), and "kept" (k,), the positions of the kept rows in the block. Rows with a
            missing value (NaN) are left out if the policy is "drop".

        Raises
        ------
        DataError
            At an index that the training data do not have, or a value too large for the dtype.
        """
        if block.query:
            self.note = self.note or f"{block.path}: qid is ignored"
        index = block.indices - (not self._encoding.zero_based)
        self._check_range(block, index)
        gone = np.isnan(block.values)
        row = np.repeat(np.arange(block.y.size), block.lengths)
        keep = np.ones(block.y.size, dtype=bool)
        if gone.any():
            self._first = (
                self._first
                or f"{block.where(int(gone.argmax()))} index {block.indices[gone.argmax()]}"
            )
            self._missing += int(gone.sum())
            if self._encoding.missing == "drop":
                keep[row[gone]] = False
        there = ~gone & keep[row]
        values = np.where(there, block.values, 0.0).astype(self._encoding.dtype)
        there &= values != 0
        lengths = np.bincount(row[there], minlength=block.y.size)
        return (
            lengths[keep],
            index[there],
            values[there],
            {"y": block.y[keep], "kept": np.flatnonzero(keep)},
        )

    def _check_range(self, block: Lines, index: Array) -> None:
        wrong = np.flatnonzero((index < 0) | (index >= self._encoding.features))
        if wrong.size:
            low = 0 if self._encoding.zero_based else 1
            found = int(block.indices[wrong[0]])
            option = "--zero-based" if found == 0 else f"--features {found + 1 - low}"
            raise DataError(
                f"{block.where(int(wrong[0]))}: index {found} is outside "
                f"{low} to {self._encoding.features - 1 + low}, "
                f"the indices of the training data: import those with {option}"
            )
        large = np.flatnonzero(np.abs(block.values) > np.finfo(self._encoding.dtype).max)
        if large.size:
            entry = (
                f"{block.where(int(large[0]))}: index {block.indices[large[0]]} "
                f"is {block.values[large[0]]:g}"
            )
            advice = " (use --dtype float64)" if self._told.command == "import" else ""
            raise DataError(f"{entry}, too large for {self._encoding.dtype}{advice}")

    def check(self) -> None:
        """DataError if values are missing and the policy is "refuse". Call it after all blocks."""
        if self._missing and self._encoding.missing == "refuse":
            count = f"{self._missing:,} (first: {self._first})"
            raise DataError(f"missing values: {count}: {_advice(self._told)}")
