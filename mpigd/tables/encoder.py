"""Encode blocks of raw columns as rows of X and the vectors beside it, following an Encoding.

`Encoder.read` keeps the values of one block in compact form (`Encoded`). `Encoder.dense` and
`Encoder.pieces` turn that form into dense or CSR rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mpigd.tables.encoding import Encoding
from mpigd.tables.features import NOWHERE, Categories, Dates, Hashes, Numbers
from mpigd.tables.policies import Policies
from mpigd.tables.readers import Block
from mpigd.tables.row_selection import Rows
from mpigd.tables.row_vectors import Vectors

Array = np.ndarray[Any, Any]
SLAB_BYTES = 1 << 22  # bytes of dense rows that are made at once


@dataclass(frozen=True)
class Encoded:
    """The encoded values of m rows.

    Attributes
    ----------
    numbers : (P, m) float64
        The values of numbers and parts of dates, each of which has a feature of its own.
    places : (C, m) int64
        For each category, the feature that is 1, or NOWHERE.
    slots, signs : (H, m) int64, (H, m) float64
        For each hashed category, the feature (slot) and its value: 1, -1, or 0 if missing.
    vectors : dict
        The vectors of the rows, each (m,), by name.
    """

    numbers: Array
    places: Array
    slots: Array
    signs: Array
    vectors: dict[str, Any]

    def only(self, kept: Array) -> Encoded:
        """Return the rows that a mask (m,) bool selects."""
        import pyarrow as pa

        vectors = {
            name: values[kept] if isinstance(values, np.ndarray) else values.filter(pa.array(kept))
            for name, values in self.vectors.items()
        }
        parts = (self.numbers, self.places, self.slots, self.signs)
        numbers, places, slots, signs = (part[:, kept] for part in parts)
        return Encoded(numbers, places, slots, signs, vectors)


class Encoder:
    """Turns blocks of raw columns into rows of X and their vectors, and counts missing values."""

    def __init__(
        self,
        encoding: Encoding,
        vectors: Sequence[str],
        policies: Policies | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        """Prepare the encoding of each kind of column.

        Parameters
        ----------
        encoding : Encoding
            The encoding, already settled by `policies` (`Policies.settle`).
        vectors : sequence of str
            The vectors to make: any of y, sample_weight, offset, key, id, source_file, source_row.
        policies : Policies, optional
            What becomes of rows that do not fit; by default those of ``mpigd import``.
        sources : sequence of str
            The paths of the raw files, for source_file.
        """
        self._encoding = encoding
        self._told = Policies(command="import") if policies is None else policies
        self._rows = Rows(encoding, self._told)
        self._vectors = Vectors(encoding, vectors, sources)
        starts, slots = encoding.starts()
        placed = list(zip(encoding.columns, starts, strict=True))
        of_kind = {
            kind: [(column, start) for column, start in placed if column.kind == kind]
            for kind in ("number", "date", "category", "hash")
        }
        self._numbers = Numbers(of_kind["number"], encoding)
        self._dates = Dates(of_kind["date"])
        self._categories = Categories(of_kind["category"], encoding.unseen)
        self._hashes = Hashes(of_kind["hash"], slots, encoding.hash_bits or 0)
        self._fixed = np.concatenate([self._numbers.fixed, self._dates.fixed])
        # The columns of a row's entries must ascend. Hashed entries come last here, since
        # their slots depend on the values; `_sorted` sorts them.
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
        """The rows that were left out because they could not be encoded (BadRows)."""
        return self._rows.bad

    def check(self) -> None:
        """Raise DataError if the blocks so far miss values that the policy does not cover."""
        self._rows.check(self._vectors.raw())

    def read(self, block: Block) -> Encoded:
        """Return the encoded rows of a block, without those that are dropped or left out as bad."""
        self._rows.begin(block)
        if not block.rows:  # every row of the block was left out by the CSV reader
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

    def dense(self, encoded: Encoded) -> Iterator[Array]:
        """Yield the rows in order as dense slabs (r, d) of the encoding's dtype.

        The encoding must have no hashed categories.
        """
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
            slab += 0.0  # makes +0.0 of -0.0, so that equal values have equal bits
            yield slab

    def pieces(self, encoded: Encoded) -> tuple[Array, Array, Array]:
        """Return the rows in compressed form.

        Returns
        -------
        lengths : (m,) int64
            The number of non-zeros of each row.
        columns : (nnz,) int64
            Their columns, row after row, ascending within a row.
        values : (nnz,)
            Their values in the encoding's dtype, or float64 with hashed categories.
        """
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
        """Sort the entries of each row by column and add the signs that share a slot.

        Hashed categories come in no order, and two of one row may have the same slot.
        """
        width = self._encoding.features
        keys = np.repeat(np.arange(lengths.size), lengths) * width + index
        places, which = np.unique(keys, return_inverse=True)
        sums = np.bincount(which, weights=value, minlength=places.size)
        places, sums = places[sums != 0], sums[sums != 0]
        return np.bincount(places // width, minlength=lengths.size), places % width, sums
