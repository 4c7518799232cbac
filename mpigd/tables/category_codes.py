"""Find the codes of category values, for all columns of a block at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpigd.tables.columns import absent, to_text
from mpigd.tables.spelling import Meanings

Array = np.ndarray[Any, Any]
MOST_CELLS = 1 << 22  # the largest table of columns x texts; larger ones are searched instead
UNSEEN, GONE = -1, -2  # codes of unknown and of missing values


class Codes:
    """The known texts of C columns and their codes.

    One look-up finds the values of all columns among all known texts, and a second one their codes
    in a table. So thousands of columns need no call each. Texts that are not known are looked up by
    their meaning (spelling.py).
    """

    def __init__(self, positions: Sequence[Mapping[str, int]]) -> None:
        """Store the texts of each column and their codes, which must be at least 0."""
        import pyarrow as pa

        known, self._meanings = positions, [Meanings(one) for one in positions]
        texts = sorted({text for one in known for text in one})
        place = {text: i for i, text in enumerate(texts)}
        self._texts, self._width = pa.array(texts, pa.string()), len(texts) + 1
        # Each column has one more place than there are texts: the last means an unknown text.
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
        """Return the codes (C, m) int64 of C pyarrow arrays of m values.

        The code is UNSEEN for an unknown value and GONE for a missing one.
        """
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
        for j in map(int, np.flatnonzero(np.any(codes == UNSEEN, axis=1))):
            rows = np.flatnonzero(codes[j] == UNSEEN)
            codes[j, rows] = self._meanings[j].look_up(arrays[j], rows)
        return np.asarray(codes)
