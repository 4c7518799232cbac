"""Categories as positions among the known ones, for all columns of a block at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpigd.data.columns import absent, is_number, to_text
from mpigd.data.spelling import meaning

Array = np.ndarray[Any, Any]
MOST_CELLS = 1 << 22  # of a table of columns x texts
UNSEEN, GONE = -1, -2


class Codes:
    """The known texts of C columns. One look-up of every value among the texts of all columns, and one
    of its column in a table: thousands of columns cost no call each. What is not known as it is
    written is looked up by what it means (spelling.py)."""

    def __init__(self, positions: Sequence[Mapping[str, int]]) -> None:
        """positions: each column's texts and what they stand for, at least 0."""
        import pyarrow as pa

        known = self._known = [dict(one) for one in positions]
        self._meanings: dict[tuple[int, bool], dict[str, int]] = {}
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

        texts = [to_text(array) for array in arrays]
        text = pa.concat_arrays(texts)
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
        for j in map(int, np.flatnonzero((codes == UNSEEN).any(axis=1))):
            codes[j] = self._by_meaning(j, codes[j], texts[j], is_number(arrays[j]))
        return np.asarray(codes)

    def _by_meaning(self, j: int, codes: Array, text: Any, number: bool) -> Array:
        """The codes (m,) of a column, with those that no text has as it is written."""
        import pyarrow as pa
        import pyarrow.compute as pc

        others = text.filter(pa.array(codes == UNSEEN)).unique()
        if (j, number) not in self._meanings:
            self._meanings[j, number] = _meanings(self._known[j], number)
        known = self._meanings[j, number]
        found = np.array([known.get(meaning(one, number), UNSEEN) for one in others.to_pylist()])
        place = pc.index_in(text, value_set=others).fill_null(0).to_numpy(zero_copy_only=False)
        return np.where(codes == UNSEEN, found[place], codes)


def _meanings(positions: Mapping[str, int], number: bool) -> dict[str, int]:
    """What the known texts mean, if one of them alone means that."""
    found = [(meaning(text, number), code) for text, code in positions.items()]
    count = Counter(one for one, _ in found)
    return {one: code for one, code in found if count[one] == 1}
