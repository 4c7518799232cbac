"""The values of raw columns: text read as numbers, categories as text, keys, and sums that no order changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WORDS = ("true", "false")
# ISO 8601, and day and month with slashes or dots.
TIME = r"^(\d{4}-\d\d?-\d\d?([T ]\d\d?:\d\d.*)?|\d\d?:\d\d(:\d\d(\.\d+)?)?|\d\d?[/.]\d\d?[/.]\d{4}( .*)?)$"
WHOLE = r"^[+-]?\d{1,18}$"


class ExactSum:
    """The sum of float64 values without any rounding, and so in any order and any blocks: one big integer.

    A value is m 2^e with a whole m of 53 bits. The halves of m are added per exponent in float64, which is exact for
    blocks of up to 2^26 values, and then as Python integers in units of 2^-UNIT.
    """

    UNIT = 1200

    def __init__(self) -> None:
        self._total = self._count = 0

    def add(self, values: Array) -> None:
        """Add finite values (m,), m at most 2^26."""
        fraction, exponent = np.frexp(values)
        whole = np.ldexp(fraction, 53).astype(np.int64)
        self._count += values.size
        for half, shift in ((whole >> 26, 26), (whole & (1 << 26) - 1, 0)):
            sums = np.bincount(exponent + (self.UNIT - 53), weights=half)
            for place in np.flatnonzero(sums):
                self._total += int(sums[place]) << int(place) + shift

    def mean(self) -> float | None:
        """The mean, rounded once; None without values."""
        return float(Fraction(self._total, self._count << self.UNIT)) if self._count else None


def stable_hash(texts: Iterable[str]) -> Array:
    """A 64-bit hash (uint64) of each text, the same everywhere: the 8 bytes, little-endian, of BLAKE2b with that length."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def absent(array: Any) -> Array:
    """Where a pyarrow array is null, (m,) bool."""
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def to_text(array: Any) -> Any:
    """A pyarrow array as strings, NaN as null. Whole floats have no fraction: 1.0, where missing values made floats, is 1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = plain(array)
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    return array if pa.types.is_string(array.type) else array.cast(pa.string())


def to_keys(array: Any) -> Array:
    """Keys (m,) int64: whole numbers as they are, any other text by its hash; 0 where missing."""
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
    """The values of a dictionary array; any other array as it is."""
    import pyarrow as pa

    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def first_misfit(kind: str, array: Any) -> int:
    """The first row of a text array that does not read as a number, boolean or time; -1 if all do, or are missing."""
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
    """Where `attempt` first fails, by halving: pyarrow says that a cast fails, not where."""
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
