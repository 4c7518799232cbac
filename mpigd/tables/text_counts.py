"""Counts of distinct texts in many columns of a block.

Small blocks are counted for all columns together, without a call for each column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mpigd.tables.columns import absent, to_text

Array = np.ndarray[Any, Any]
# Up to this number of rows, a call for each column costs more than the work on its values.
FEW_ROWS = 1 << 10


def counted(arrays: Sequence[Any]) -> Iterator[tuple[Array, list[str], list[int]]]:
    """Count the distinct texts of each column.

    Parameters
    ----------
    arrays : sequence of pyarrow.Array
        The columns, all with m rows.

    Yields
    ------
    missing : array (m,) of bool
        Marks the missing values of the column.
    texts : list of str
        Its distinct texts, in the order of their first rows.
    counts : list of int
        The number of rows of each text.
    """
    if len(arrays) > 1 and 0 < len(arrays[0]) <= FEW_ROWS:
        yield from _together(arrays)
        return
    for array in arrays:
        text = to_text(array)
        counts = text.drop_null().value_counts()
        yield absent(text), counts.field(0).to_pylist(), counts.field(1).to_pylist()


def _together(arrays: Sequence[Any]) -> Iterator[tuple[Array, list[str], list[int]]]:
    import pyarrow as pa

    m = len(arrays[0])
    coded = pa.concat_arrays([to_text(array) for array in arrays]).dictionary_encode()
    gone = absent(coded.indices).reshape(-1, m)
    none = len(coded.dictionary)
    codes = coded.indices.fill_null(none).to_numpy(zero_copy_only=False).reshape(-1, m)
    keys = codes + np.arange(len(arrays))[:, None] * (none + 1)
    found, first, counts = np.unique(keys, return_index=True, return_counts=True)
    known = found % (none + 1) < none
    order = np.flatnonzero(known)[np.argsort(first[known])]  # by column, then by row
    column = found[order] // (none + 1)
    texts = coded.dictionary.take(pa.array(found[order] % (none + 1))).to_pylist()
    times = counts[order].tolist()
    ends = np.searchsorted(column, np.arange(len(arrays) + 1)).tolist()
    for j, (start, end) in enumerate(pairwise(ends)):
        yield gone[j], texts[start:end], times[start:end]
