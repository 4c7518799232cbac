"""Encode blocks of raw columns as an Encoding says: rows of X and the vectors beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpigd.data.columns import absent, stable_hash, to_keys, to_text
from mpigd.data.encoding import Column, Encoding, listed
from mpigd.data.number_text import read_numbers
from mpigd.data.tables import Block
from mpigd.errors import DataError

Array = np.ndarray[Any, Any]


class Missing:
    """How many values each column misses, and where the first of them is."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, name: str, gone: Array, block: Block) -> None:
        """Count the rows `gone` (m,) bool of a block; blocks come in order."""
        if gone.any():
            count, first = self._found.get(name, (0, block.where(int(gone.argmax()))))
            self._found[name] = count + int(gone.sum()), first

    def join(self, other: Missing) -> None:
        """Take over the columns of another count."""
        self._found |= other._found

    def forget(self, names: Sequence[str]) -> None:
        """Drop what is known of these columns."""
        for name in names:
            self._found.pop(name, None)

    def count(self, name: str) -> int:
        return self._found.get(name, (0, ""))[0]

    def check(self, policy: str, required: Sequence[str]) -> None:
        """DataError for what `policy` does not cover; of the columns `required` (target, weight, ...) only drop does."""
        if policy == "drop":
            return
        self._refuse([name for name in self._found if name in required], "--missing drop leaves such rows out")
        if policy == "refuse":
            self._refuse(list(self._found), "use --missing mean, zero or drop, or leave columns out with --drop")

    def check_levels(self, policy: str, with_reference: Sequence[str]) -> None:
        """DataError if one of these columns misses values that `policy` would make its reference
        level."""
        if policy in ("mean", "zero"):
            why = "a missing category would be taken for the reference level"
            advice = f"{why}: use --missing drop, or keep that column's levels"
            self._refuse([name for name in self._found if name in with_reference], advice)

    def _refuse(self, names: Sequence[str], advice: str) -> None:
        if names:
            each = [f"column {name!r} {self._found[name][0]:,} (first: {self._found[name][1]})" for name in names]
            raise DataError(f"missing values: {listed(each)}: {advice}")


class Encoder:
    """Turns blocks of raw columns into rows of X and their vectors, and counts what they miss."""

    def __init__(self, encoding: Encoding, vectors: Sequence[str]) -> None:
        """vectors: which of y, sample_weight, offset and key to make."""
        self._encoding, self._vectors, self._missing = encoding, vectors, Missing()
        self.note = ""
        self._sets = {column.name: column.categories for column in encoding.columns if column.categories is not None}
        if encoding.target and encoding.target.classes is not None:
            self._sets[encoding.target.name] = encoding.target.classes
        self._starts: list[int] = []
        numbers = 0
        for column in encoding.columns:
            self._starts.append(numbers)
            numbers += len(column.feature_names()) if column.kind != "hash" else 0
        self._slots = numbers  # where the hashed slots begin

    def check(self) -> None:
        """DataError if the blocks so far miss values that the policy does not cover."""
        # Nothing can be filled in for a target, a weight, an offset or a key.
        self._missing.check(self._encoding.missing, [self._raw(vector) for vector in self._vectors])
        columns = self._encoding.columns
        with_reference = [column.name for column in columns if column.reference is not None]
        self._missing.check_levels(self._encoding.missing, with_reference)

    def encode(self, block: Block) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Non-zeros per row (m,), their columns and values row after row, and the vectors; rows may be dropped."""
        columns = self._encoding.columns
        fill = {"number": self._number, "category": self._category, "hash": self._hash}
        index = np.zeros((block.rows, len(columns)), dtype=np.int64)
        value = np.zeros(index.shape)
        gone = np.zeros(block.rows, dtype=bool)
        for c, column in enumerate(columns):
            missed = fill[column.kind](block, column, self._starts[c], index[:, c], value[:, c])
            self._missing.add(column.name, missed, block)
            gone |= missed
        vectors = {}
        for name in self._vectors:
            vectors[name], missed = self._vector(block, name)
            self._missing.add(self._raw(name), missed, block)
            gone |= missed
        if self._encoding.missing == "drop":
            index, value = index[~gone], value[~gone]
            vectors = {name: values[~gone] for name, values in vectors.items()}
        return *self._entries(index, value), vectors

    def _entries(self, index: Array, value: Array) -> tuple[Array, Array, Array]:
        value = value.astype(self._encoding.dtype)
        there = value != 0
        lengths, index, value = there.sum(axis=1), index[there], value[there]
        if self._slots == self._encoding.features:
            return lengths, index, value
        # Hashed categories come in no order and may share a slot: their signs are added.
        width = self._encoding.features
        places, which = np.unique(np.repeat(np.arange(lengths.size), lengths) * width + index, return_inverse=True)
        sums = np.bincount(which, weights=value, minlength=places.size)
        places, sums = places[sums != 0], sums[sums != 0]
        return np.bincount(places // width, minlength=lengths.size), places % width, sums

    def _number(self, block: Block, column: Column, start: int, index: Array, value: Array) -> Array:
        value[:] = read_numbers(block, column.name, self._encoding.dtype)
        missed = np.isnan(value)
        if self._encoding.missing == "mean" and column.mean is None and missed.any():
            raise DataError(f"column {column.name!r} has no value at all, so no mean: leave it out with --drop {column.name}")
        value[missed] = column.mean if self._encoding.missing == "mean" else 0.0
        index[:] = start
        return missed

    def _category(self, block: Block, column: Column, start: int, index: Array, value: Array) -> Array:
        codes, missed = self._codes(block, column.name)
        index[:], value[:] = start + codes, ~missed
        if column.reference is not None and column.categories is not None:
            left_out = column.categories.index(column.reference)
            index -= codes > left_out
            value[codes == left_out] = 0.0
        return missed

    def _hash(self, block: Block, column: Column, start: int, index: Array, value: Array) -> Array:
        text = to_text(block.columns[column.name])
        distinct = text.dictionary_encode()  # each different text is hashed once
        hashes = stable_hash(f"{column.name}={known}" for known in distinct.dictionary.to_pylist())
        missed = absent(text)
        bits = hashes[distinct.indices.drop_null().to_numpy()]
        index[~missed] = self._slots + (bits & np.uint64((1 << (self._encoding.hash_bits or 0)) - 1)).astype(np.int64)
        value[~missed] = np.where(bits >> np.uint64(63), -1.0, 1.0)
        return missed

    def _codes(self, block: Block, name: str) -> tuple[Array, Array]:
        """Positions (m,) of a column's texts among the known ones, 0 where missing; and where it is missing."""
        import pyarrow as pa
        import pyarrow.compute as pc

        known = self._sets[name]
        text = to_text(block.columns[name])
        codes = pc.index_in(text, value_set=pa.array(known, pa.string()))
        missed = absent(text)
        unseen = np.flatnonzero(absent(codes) & ~missed)
        if unseen.size:
            row = int(unseen[0])
            raise DataError(
                f"{block.where(row)}: column {name!r} is {text[row].as_py()!r}, which the training data did not have "
                f"(it had {listed(known)}): correct it, or train on data imported with --hash BITS"
            )
        return codes.fill_null(0).to_numpy(zero_copy_only=False), missed

    def _raw(self, vector: str) -> str:
        if vector != "y":
            return self._encoding.extras[vector]
        assert self._encoding.target is not None
        return self._encoding.target.name

    def _vector(self, block: Block, vector: str) -> tuple[Array, Array]:
        name = self._raw(vector)
        if vector == "key":
            return to_keys(block.columns[name]), absent(to_text(block.columns[name]))
        if name in self._sets and vector == "y":
            codes, missed = self._codes(block, name)
            return codes.astype(np.float64), missed
        values = read_numbers(block, name, "float64")
        if vector == "sample_weight" and np.any(values < 0):
            row = int(np.argmax(values < 0))
            raise DataError(f"{block.where(row)}: column {name!r} is {values[row]:g}: weights are at least 0")
        return values, np.isnan(values)
