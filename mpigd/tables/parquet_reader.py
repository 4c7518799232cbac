"""Readers of typed columnar files (Parquet, Arrow or Feather, ORC), through pyarrow.

They yield blocks of plain columns. Nested columns are flattened (nested_columns.py). If several
columns have the same name, each is read on its own.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mpigd.errors import DataError
from mpigd.tables import arrow_types, nested_columns
from mpigd.tables.compression import reading
from mpigd.tables.duplicate_names import rename_duplicates

BLOCK_BYTES = 1 << 22  # of the decoded columns of a block
# Each block costs a fixed time for every column. So blocks of wide files have at least FEWEST_ROWS
# rows, as long as these take at most WIDE_BYTES.
FEWEST_ROWS, WIDE_BYTES = 512, 1 << 26
FORMATS = ("parquet", "arrow", "orc")
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The plain columns of a file.

    kinds: name -> kind of a plain column. parts: for each stored column, the names of the plain
    columns that it becomes.
    """

    kinds: Mapping[str, str]
    parts: Sequence[Sequence[str]]


class Table:
    """A columnar file: its schema and its rows.

    Parameters
    ----------
    path : str
        The file.
    format : str
        "parquet", "arrow" or "orc".
    rename : bool
        Give columns with the same name new names.
    """

    def __init__(self, path: str, format: str = "parquet", rename: bool = False) -> None:
        self.path, self._format, self._rename = path, format, rename
        with reading(path), _opened(path, format) as file:
            self._schema = file.schema
            self._index = _pandas_index(self._schema)
        self._stored = list(self._schema.names)
        self.names = rename_duplicates(self._stored) if rename else self._stored

    @property
    def index(self) -> list[str]:
        """The columns that pandas wrote as row labels."""
        return [
            name
            for name, stored in zip(self.names, self._stored, strict=True)
            if stored in self._index
        ]

    def lengths(self) -> dict[str, int]:
        """Return the lengths of lists without a fixed size, as nested_columns.measure finds them.

        Columns that have no list in any row are left out.
        """
        found: dict[str, int] = {}
        columns = [
            (j, name, field.type)
            for j, (name, field) in enumerate(zip(self.names, self._schema, strict=True))
        ]
        unknown = [column for column in columns if nested_columns.unmeasured(*column[1:], found)]
        for arrays, _ in self._batches([j for j, _, _ in unknown], 100) if unknown else ():
            for (_, name, type), array in zip(unknown, arrays, strict=True):
                nested_columns.measure(name, type, array, found)
            if not any(nested_columns.unmeasured(name, type, found) for _, name, type in unknown):
                break
        return found

    def lacks(self, lengths: Mapping[str, int]) -> bool:
        """Return whether the length of some list is not in `lengths`."""
        return any(
            nested_columns.unmeasured(name, field.type, lengths)
            for name, field in zip(self.names, self._schema, strict=True)
        )

    def layout(self, lengths: Mapping[str, int]) -> Layout:
        """Return the plain columns of the file, given the lengths of its lists.

        DataError if several have the same name, unless they are to be renamed.
        """
        leaves = [
            nested_columns.leaves(name, field.type, lengths, arrow_types.extension_of(field))
            for name, field in zip(self.names, self._schema, strict=True)
        ]
        names = [name for column in leaves for name, _ in column]
        if self._rename:
            names = rename_duplicates(names)
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            same = rename_duplicates([name for name in names if name == twice])
            more = ", ..." if len(same) > 3 else ""
            renamed = f"--rename-duplicates calls them {', '.join(same[:3])}{more}"
            raise DataError(f"{self.path}: {len(same)} columns are named {twice!r}: {renamed}")
        rest = iter(names)
        parts = [[next(rest) for _ in column] for column in leaves]
        return Layout(
            dict(zip(names, (kind for column in leaves for _, kind in column), strict=True)), parts
        )

    def blocks(
        self, wanted: Sequence[str], layout: Layout, lengths: Mapping[str, int]
    ) -> Iterator[tuple[Arrays, int]]:
        """Read the file in blocks.

        Parameters
        ----------
        wanted : sequence of str
            The plain columns to read.
        layout : Layout
            The plain columns of the file.
        lengths : mapping of str to int
            The lengths of its lists.

        Yields
        ------
        columns : dict of str to pyarrow.Array
            Plain column -> its values.
        rows : int
            The number of rows of this block.

        Raises
        ------
        DataError
            If the file is damaged, or a row has a list of another length.
        """
        which = set(wanted)
        columns = [j for j, parts in enumerate(layout.parts) if which.intersection(parts)]
        width = sum(len(layout.parts[j]) for j in columns)
        ready = {j for j in columns if arrow_types.is_ready(self._schema.field(j))}
        first = 0
        for arrays, rows in self._batches(columns, _rows_of_a_block(width)):
            found: Arrays = {}
            for j, array in zip(columns, arrays, strict=True):
                if j in ready:
                    found[layout.parts[j][0]] = array
                    continue
                try:
                    plain = nested_columns.arrays(self.names[j], array, lengths)
                except nested_columns.Misfit as error:
                    where = f"{self.path} row {first + error.row}: column {self.names[j]!r}"
                    raise DataError(
                        f"{where} {error.reason}: leave it out with --drop "
                        f"{shlex.quote(self.names[j])}"
                    ) from None
                found.update(
                    (name, part)
                    for name, part in zip(layout.parts[j], plain, strict=True)
                    if name in which
                )
            yield found, rows
            first += rows

    def _batches(self, columns: Sequence[int], rows: int) -> Iterator[tuple[list[Any], int]]:
        """Yield the stored columns at these positions and their number of rows, at most `rows`."""
        names = self._stored
        nth = (
            [names[:j].count(names[j]) for j in columns]
            if len(set(names)) < len(names)
            else [0] * len(columns)
        )
        asked = list(dict.fromkeys(names[j] for j in columns))
        after = [0]
        with reading(self.path, after), _opened(self.path, self._format) as file:
            for batch in file.batches(asked, rows):
                self._validate(batch)
                places: dict[str, list[int]] = {}
                for place, name in enumerate(batch.schema.names):
                    places.setdefault(name, []).append(place)
                yield (
                    [batch.column(places[names[j]][n]) for j, n in zip(columns, nth, strict=True)],
                    batch.num_rows,
                )
                after[0] += batch.num_rows

    def _validate(self, batch: Any) -> None:
        """DataError for values that do not fit their type.

        They would fail later too, but in code that cannot name the file.
        """
        import pyarrow as pa

        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as whole:
            for name, array in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    array.validate(full=True)
                except pa.ArrowInvalid as error:
                    reason = " ".join(str(error).split())[:200]
                    advice = f"leave it out with --drop {shlex.quote(name)}"
                    raise DataError(
                        f"{self.path}: cannot be read: column {name!r}: {reason}: {advice}"
                    ) from whole
            raise


def _rows_of_a_block(width: int) -> int:
    row = 8 * max(1, width)
    return max(BLOCK_BYTES // row, min(FEWEST_ROWS, WIDE_BYTES // row), 1)


@dataclass(frozen=True)
class _File:
    """An open file: its schema, and a function that yields record batches.

    The function takes the names of stored columns and the maximal number of rows of a batch.
    """

    schema: Any
    batches: Callable[[Sequence[str], int], Iterator[Any]]


@contextmanager
def _opened(path: str, format: str) -> Iterator[_File]:
    with {"parquet": _parquet, "arrow": _arrow, "orc": _orc}[format](path) as file:
        yield file


@contextmanager
def _parquet(path: str) -> Iterator[_File]:
    import pyarrow.parquet as pq

    # pre_buffer would read a whole row group ahead, and those of Spark have 128 MB compressed.
    # Checksums are verified for pages that have one, as Spark writes them.
    checked = dict(page_checksum_verification=True)
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, **checked) as file:
        yield _File(
            file.schema_arrow,
            lambda names, rows: file.iter_batches(
                batch_size=rows, columns=list(names), use_threads=False
            ),
        )


@contextmanager
def _arrow(path: str) -> Iterator[_File]:
    """Open an Arrow IPC file (Feather is one) or stream."""
    import pyarrow as pa

    with pa.memory_map(path) as raw:
        is_file = raw.read(6) == b"ARROW1"
        raw.seek(0)
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(raw) as file:

            def batches(names: Sequence[str], rows: int) -> Iterator[Any]:
                wanted = [j for j, name in enumerate(file.schema.names) if name in set(names)]
                stored = (
                    (file.get_batch(i) for i in range(file.num_record_batches)) if is_file else file
                )
                for batch in stored:
                    yield from _pieces(batch.select(wanted), rows)

            yield _File(file.schema, batches)


@contextmanager
def _orc(path: str) -> Iterator[_File]:
    from pyarrow import orc

    file = orc.ORCFile(path)

    def batches(names: Sequence[str], rows: int) -> Iterator[Any]:
        for stripe in range(file.nstripes):
            yield from _pieces(file.read_stripe(stripe, columns=list(names)), rows)

    yield _File(file.schema, batches)


def _pieces(batch: Any, rows: int) -> Iterator[Any]:
    return (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


def _pandas_index(schema: Any) -> list[str]:
    """Return the stored columns that are row labels according to the metadata of pandas.

    Row labels that are only numbers in order are not stored as a column.
    """
    try:
        labels = (schema.pandas_metadata or {}).get("index_columns", [])
        found = [label for label in labels if isinstance(label, str)]
    except (ValueError, AttributeError, TypeError):  # metadata in another form than pandas writes
        found = []
    return found + [
        name for name in schema.names if name.startswith("__index_level_") and name not in found
    ]
