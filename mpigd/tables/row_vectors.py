"""Row vectors: the datasets beside X that have one value for each row.

These are the target, sample weights, offsets, partition keys and ids, and for predictions the file
and the data row that a row of X comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpigd.tables.category_codes import GONE, UNSEEN, Codes
from mpigd.tables.columns import absent, to_keys, to_text
from mpigd.tables.encoding import Encoding, listed
from mpigd.tables.features import number_format, read_numbers
from mpigd.tables.readers import Block
from mpigd.tables.row_selection import Rows

Array = np.ndarray[Any, Any]
SOURCE = ("source_file", "source_row")
ID_BYTES = 1 << 10  # the maximal size of an id


class Vectors:
    """Reads the row vectors of blocks.

    Parameters
    ----------
    encoding : Encoding
        It says which raw column each vector is read from.
    names : sequence of str
        The vectors.
    sources : sequence of str
        The paths of all files, in order; `source_file` holds positions in it.
    """

    def __init__(self, encoding: Encoding, names: Sequence[str], sources: Sequence[str]) -> None:
        self._encoding, self._names = encoding, names
        self._form = number_format(encoding)
        self._files = {path: i for i, path in enumerate(sources)}
        self._classes: Codes | None = None
        if encoding.target is not None and encoding.target.classes is not None:
            self._classes = Codes([{text: i for i, text in enumerate(encoding.target.classes)}])

    def raw(self) -> list[str]:
        """Return the raw columns that the vectors are read from."""
        return [self._raw(name) for name in self._names if name not in SOURCE]

    def none(self) -> dict[str, Any]:
        """Return the vectors for zero rows."""
        import pyarrow as pa

        none = {"id": pa.array([], pa.string())}
        return {name: none.get(name, np.empty(0)) for name in self._names}

    def read(self, block: Block, rows: Rows) -> dict[str, Any]:
        """Read the vectors of a block; `rows` collects missing values and faults.

        Return vector -> its values (m,): a numpy array, or for ids a pyarrow array of text.
        """
        return {name: self._vector(name, block, rows) for name in self._names}

    def _raw(self, vector: str) -> str:
        if vector != "y":
            return self._encoding.extras[vector]
        assert self._encoding.target is not None
        return self._encoding.target.name

    def _vector(self, vector: str, block: Block, rows: Rows) -> Any:
        if vector == "source_file":
            return np.full(block.rows, self._files[block.path], dtype=np.int32)
        if vector == "source_row":
            return block.numbers()
        name = self._raw(vector)
        array = block.columns[name]
        if vector in ("key", "id"):
            text = to_text(array)
            rows.missing(name, absent(text), False)
            return to_keys(array) if vector == "key" else self._id(name, text, rows)
        if vector == "y" and self._classes is not None:
            return self._class(name, block, rows)
        infinite = self._encoding.infinite
        values = read_numbers(block, [name], [self._form], "float64", infinite, rows)[0]
        rows.missing(name, np.isnan(values), False)
        if vector == "sample_weight":
            rows.fault(name, values < 0, lambda row: f"{values[row]:g}: weights are at least 0")
        return values

    def _class(self, name: str, block: Block, rows: Rows) -> Array:
        """Return the position of each row's class among the classes of the training data, (m,)."""
        assert self._classes is not None and self._encoding.target is not None
        array, known = to_text(block.columns[name]), self._encoding.target.classes or ()
        codes = self._classes.find([array])[0]
        rows.missing(name, codes == GONE, False)
        why = f"which the training data did not have (it had {listed(known)})"
        rows.fault(name, codes == UNSEEN, lambda row: f"{array[row].as_py()!r}, {why}")
        return np.asarray(np.maximum(codes, 0), dtype=np.float64)

    def _id(self, name: str, text: Any, rows: Rows) -> Any:
        import pyarrow.compute as pc

        long = pc.greater(pc.binary_length(text), ID_BYTES).fill_null(False)
        where = np.asarray(long.to_numpy(zero_copy_only=False))
        why = f"an id has at most {ID_BYTES:,} bytes"
        rows.fault(name, where, lambda row: f"{text[row].as_py()[:40]!r}...: {why}")
        return text
