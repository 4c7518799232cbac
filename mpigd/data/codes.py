"""Categories as positions among the known ones, for all columns of a block at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpigd.data.columns import WORDS, absent, to_text

Array = np.ndarray[Any, Any]
MOST_CELLS = 1 << 22  # of a table of columns x texts
UNSEEN, GONE = -1, -2


def with_spellings(positions: Mapping[str, int]) -> dict[str, int]:
    """The same, and true and false as other programs spell them (true, True, TRUE), where a column
    has them in one way only: they are one value in CSV and in Parquet."""
    found = dict(positions)
    for word in WORDS:
        spellings = (word, word.capitalize(), word.upper())
        known = {positions[text] for text in spellings if text in positions}
        if len(known) == 1:
            found |= dict.fromkeys(spellings, known.pop())
    return found


class Codes:
    """The known texts of C columns. One look-up of every value among the texts of all columns, and one
    of its column in a table: thousands of columns cost no call each."""

    def __init__(self, positions: Sequence[Mapping[str, int]]) -> None:
        """positions: each column's texts and what they stand for, at least 0."""
        import pyarrow as pa

        known = [with_spellings(one) for one in positions]
        texts = sorted({text for one in known for text in one})
        place = {text: i for i, text in enumerate(texts)}
        self._texts, self._width = pa.array(texts, pa.string()), len(texts) + 1
        # The last text of a column is none of them.
        keys = [j * self._width + place[text] for j, one in enumerate(known) for text in one]
        codes = [code for one in known for code in one.values()]
        order = np.argsort(np.array(keys, dtype=np.int64), kind="stable")
        self._keys = np.array(keys, dtype=np.int64)[order]
        self._codes = np.array(codes, dtype=np.int64)[order]
        self._table: Array | None = None
        if len(known) * self._width <= MOST_CELLS:
            self._table = np.full(len(known) * self._width, UNSEEN, dtype=np.int64)
            self._table[self._keys] = self._codes

    def find(self, arrays: Sequence[Any]) -> Array:
        """What values stand for, (C, m) int64: UNSEEN for those not known, GONE for missing ones."""
        import pyarrow as pa
        import pyarrow.compute as pc

        text = pa.concat_arrays([to_text(array) for array in arrays])
        place = pc.index_in(text, value_set=self._texts).fill_null(self._width - 1)
        keys = place.to_numpy(zero_copy_only=False).reshape(len(arrays), -1).astype(np.int64)
        keys += np.arange(len(arrays))[:, None] * self._width
        if self._table is not None:
            codes = self._table[keys]
        else:
            at = np.minimum(np.searchsorted(self._keys, keys), self._keys.size - 1)
            codes = np.where(self._keys[at] == keys, self._codes[at], UNSEEN)
        if text.null_count:
            codes[absent(text).reshape(codes.shape)] = GONE
        return np.asarray(codes)
