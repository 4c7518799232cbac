"""Encode blocks of raw columns as an Encoding says: rows of X and the vectors beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mpigd.tables.encoding import Encoding
from mpigd.tables.features import NOWHERE, Categories, Dates, Hashes, Numbers
from mpigd.tables.missing_values import Missing as Missing
from mpigd.tables.policies import Policies
from mpigd.tables.readers import Block
from mpigd.tables.row_selection import Rows
from mpigd.tables.row_vectors import Vectors

Array = np.ndarray[Any, Any]
SLAB_BYTES = 1 << 22  # of dense rows made at once


@dataclass(frozen=True)
class Encoded:
    """m rows. numbers (P, m): values of the columns that each have a place of their own. places
    (C, m): the column that is 1, or NOWHERE. slots, signs (H, m): of hashed categories. vectors:
    name -> (m,)."""

    numbers: Array
    places: Array
    slots: Array
    signs: Array
    vectors: dict[str, Any]

    def only(self, kept: Array) -> Encoded:
        """The rows of a mask (m,)."""
        import pyarrow as pa

        vectors = {
            name: values[kept] if isinstance(values, np.ndarray) else values.filter(pa.array(kept))
            for name, values in self.vectors.items()
        }  # fmt: skip
        parts = (self.numbers, self.places, self.slots, self.signs)
        numbers, places, slots, signs = (part[:, kept] for part in parts)
        return Encoded(numbers, places, slots, signs, vectors)


class Encoder:
    """Turns blocks of raw columns into rows of X and their vectors, and counts what they miss."""

    def __init__(
        self, encoding: Encoding, vectors: Sequence[str], policies: Policies | None = None,
        sources: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """vectors: which of y, sample_weight, offset, key, id, source_file and source_row to make.
        policies: those that the encoding has been settled with. sources: paths, for source_file."""
        self._encoding, self.note = encoding, ""
        self._told = Policies(command="import") if policies is None else policies
        self._rows = Rows(encoding, self._told)
        self._vectors = Vectors(encoding, vectors, sources)
        starts, slots = encoding.starts()
        placed = list(zip(encoding.columns, starts, strict=True))
        of_kind = {
            kind: [(column, start) for column, start in placed if column.kind == kind]
            for kind in ("number", "date", "category", "hash")
        }  # fmt: skip
        self._numbers = Numbers(of_kind["number"], encoding)
        self._dates = Dates(of_kind["date"])
        self._categories = Categories(of_kind["category"], encoding.unseen)
        self._hashes = Hashes(of_kind["hash"], slots, encoding.hash_bits or 0)
        self._fixed = np.concatenate([self._numbers.fixed, self._dates.fixed])
        # The entries of a row ascend, but for the hashed ones, which are sorted later.
        places = np.concatenate([self._fixed, self._categories.first[:, 0]])
        order = np.argsort(places, kind="stable")
        rest = order.size + np.arange(len(of_kind["hash"]))
        self._order = np.concatenate([order, rest])

    @cached_property
    def _none(self) -> Encoded:
        counts = self._fixed.size, self._categories.first.size, self._order.size
        hashed = counts[2] - counts[0] - counts[1]
        places = np.empty((counts[1], 0), dtype=np.int64)
        slots = np.empty((hashed, 0), dtype=np.int64)
        numbers, signs = np.empty((counts[0], 0)), np.empty((hashed, 0))
        return Encoded(numbers, places, slots, signs, self._vectors.none())

    @property
    def bad(self) -> Any:
        """The rows left out because they could not be encoded (BadRows)."""
        return self._rows.bad

    def check(self) -> None:
        """DataError if the blocks so far miss values that the policy does not cover."""
        self._rows.check(self._vectors.raw())

    def read(self, block: Block) -> Encoded:
        """The rows of a block; some may be dropped, or left out because they are bad."""
        self._rows.begin(block)
        if not block.rows:  # nothing but lost ones
            return self._none
        numbers = self._numbers.read(block, self._rows)
        if self._dates.fixed.size:
            numbers = np.concatenate([numbers, self._dates.read(block, self._rows)])
        places = self._categories.read(block, self._rows)
        slots, signs = self._hashes.read(block, self._rows)
        vectors = self._vectors.read(block, self._rows)
        encoded = Encoded(numbers, places, slots, signs, vectors)
        kept = self._rows.end()
        return encoded if kept is None else encoded.only(kept)

    def encode(self, block: Block) -> tuple[Array, Array, Array, dict[str, Any]]:
        """The rows of a block as `pieces`, and their vectors."""
        encoded = self.read(block)
        return *self.pieces(encoded), encoded.vectors

    def dense(self, encoded: Encoded) -> Iterator[Array]:
        """The rows in order as slabs (r, d). Not for hashed categories."""
        d, kind = self._encoding.features, np.dtype(self._encoding.dtype)
        first = int(self._fixed.min(initial=d))
        where: slice | Array = slice(first, first + self._fixed.size)
        if not np.array_equal(self._fixed, first + np.arange(self._fixed.size)):
            where = self._fixed
        m = encoded.numbers.shape[1]
        step = max(1, SLAB_BYTES // (d * kind.itemsize))
        for start in range(0, m, step):
            rows = slice(start, min(m, start + step))
            slab = np.zeros((rows.stop - start, d), dtype=kind)
            slab[:, where] = encoded.numbers[:, rows].T
            places = encoded.places[:, rows]
            column, row = np.nonzero(places != NOWHERE)
            slab[row, places[column, row]] = 1
            slab += 0.0  # no zero has a sign
            yield slab

    def pieces(self, encoded: Encoded) -> tuple[Array, Array, Array]:
        """The rows as non-zeros per row (m,), and their columns and values row after row."""
        p, m = encoded.numbers.shape
        width = p + len(encoded.places) + len(encoded.slots)
        index, value = np.empty((m, width), dtype=np.int64), np.empty((m, width))
        index[:, :p], value[:, :p] = self._fixed, encoded.numbers.T
        index[:, p:] = np.concatenate([encoded.places, encoded.slots]).T
        value[:, p:] = np.concatenate([encoded.places != NOWHERE, encoded.signs]).T
        if not np.array_equal(self._order, np.arange(width)):
            index, value = index[:, self._order], value[:, self._order]
        value = value.astype(self._encoding.dtype)
        there = value != 0
        lengths, index, value = there.sum(axis=1), index[there], value[there]
        if encoded.slots.size:
            return self._sorted(lengths, index, value)
        return lengths, index, value

    def _sorted(self, lengths: Array, index: Array, value: Array) -> tuple[Array, Array, Array]:
        """Hashed categories come in no order and may share a slot: their signs are added."""
        width = self._encoding.features
        keys = np.repeat(np.arange(lengths.size), lengths) * width + index
        places, which = np.unique(keys, return_inverse=True)
        sums = np.bincount(which, weights=value, minlength=places.size)
        places, sums = places[sums != 0], sums[sums != 0]
        return np.bincount(places // width, minlength=lengths.size), places % width, sums
