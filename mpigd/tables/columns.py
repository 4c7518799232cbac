"""Convert the values of raw columns: categories to text, keys to integers.

The functions take pyarrow arrays (m,): the values of one column in one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WORDS = ("true", "false")
WHOLE = r"^[+-]?\d{1,18}$"


def stable_hash(texts: Iterable[str]) -> Array:
    """Return a 64-bit hash of each text, (m,) uint64, that is the same on every machine.

    It is the BLAKE2b digest of 8 bytes, read as a little-endian integer.
    """
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def absent(array: Any) -> Array:
    """Return whether each value of a pyarrow array is null, (m,) bool."""
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def to_text(array: Any) -> Any:
    """Return a pyarrow array as strings, with NaN as null.

    A whole number in a float column has no fraction: 1.0 becomes 1. So integers keep their text in
    columns that are float only because values are missing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array = plain(array)
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    return array if pa.types.is_string(array.type) else array.cast(pa.string())


def to_keys(array: Any) -> Array:
    """Return keys (m,) int64 of a pyarrow array.

    Whole numbers stay as they are. Any other text is replaced by its hash (`stable_hash`), and a
    missing value by 0.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array = plain(array)
    if pa.types.is_integer(array.type):
        return np.asarray(
            array.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
        )
    text = pc.utf8_trim_whitespace(to_text(array)).fill_null("0")
    whole = pc.match_substring_regex(text, WHOLE)
    keys = np.array(pc.if_else(whole, text, "0").cast(pa.int64()).to_numpy(zero_copy_only=False))
    other = ~whole.to_numpy(zero_copy_only=False)
    keys[other] = stable_hash(text.filter(pa.array(other)).to_pylist()).view(np.int64)
    return keys


def plain(array: Any) -> Any:
    """Return the values of a dictionary array; any other array is returned unchanged."""
    import pyarrow as pa

    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
