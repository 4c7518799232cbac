"""Convert the values of raw columns (categories to text, keys to integers), and sum them exactly.

The functions take pyarrow arrays (m,): the values of one column in one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WORDS = ("true", "false")
# Times: ISO 8601, or day and month with slashes or dots.
TIME = (
    r"^(\d{4}-\d\d?-\d\d?([T ]\d\d?:\d\d.*)?|\d\d?:\d\d(:\d\d(\.\d+)?)?"
    r"|\d\d?[/.]\d\d?[/.]\d{4}( .*)?)$"
)
WHOLE = r"^[+-]?\d{1,18}$"


class ExactSum:
    """The sum of float64 values without rounding errors, so that order and blocks do not matter.

    A value is m 2^e with an integer m of 53 bits. The two halves of m are added per exponent in
    float64, which is exact for blocks of up to 2^26 values. These sums are then added as Python
    integers in units of 2^-UNIT.
    """

    UNIT = 1200

    def __init__(self) -> None:
        self._total = self._count = 0

    def add(self, values: Array) -> None:
        """Add finite values (m,) float64, with m at most 2^26."""
        fraction, exponent = np.frexp(values)
        whole = np.ldexp(fraction, 53).astype(np.int64)
        self._count += values.size
        for half, shift in ((whole >> 26, 26), (whole & (1 << 26) - 1, 0)):
            sums = np.bincount(exponent + (self.UNIT - 53), weights=half)
            for place in np.flatnonzero(sums):
                self._total += int(sums[place]) << int(place) + shift

    def mean(self) -> float | None:
        """Return the mean, rounded once; None without values."""
        return float(Fraction(self._total, self._count << self.UNIT)) if self._count else None


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


def first_misfit(kind: str, array: Any) -> int:
    """Return the first row of a text array that cannot be read as `kind`, or -1 if there is none.

    Parameters
    ----------
    kind : str
        "number" or "boolean"; anything else means a time.
    array : pyarrow.Array
        Text (m,); missing values fit every kind.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(array)
    if kind == "number":
        return _first_failing(trimmed, lambda piece: piece.cast(pa.float64()))
    if kind == "boolean":
        fits = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(WORDS, trimmed.type))
    else:
        fits = pc.match_substring_regex(trimmed, TIME)
    wrong = pc.and_(pc.is_valid(array), pc.invert(fits.fill_null(True)))
    return int(pc.index(wrong, True).as_py())


def _first_failing(array: Any, attempt: Callable[[Any], Any]) -> int:
    """Return the first row at which `attempt` fails, or -1, by bisection.

    pyarrow reports that a cast fails, but not at which row.
    """
    import pyarrow as pa

    try:
        attempt(array)
        return -1
    except pa.ArrowInvalid:
        if len(array) == 1:
            return 0
    half = len(array) // 2
    bad = _first_failing(array.slice(0, half), attempt)
    return bad if bad >= 0 else half + _first_failing(array.slice(half), attempt)
