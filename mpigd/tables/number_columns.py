"""The first pass over columns of numbers.

All columns of a block are processed together, since a table may have thousands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mpigd.tables.column_facts import Facts, Plan
from mpigd.tables.distinct_counts import Distinct
from mpigd.tables.exact_means import ExactSums
from mpigd.tables.float32_check import Spread
from mpigd.tables.missing_values import Missing
from mpigd.tables.number_text import not_a_number, read_matrix
from mpigd.tables.readers import Block

Array = np.ndarray[Any, Any]
EXACT = 2.0**53  # float64 rounds whole numbers above this
DIGITS = re.compile(r"[+-]?\d+")


class Numbers:
    """Statistics of the p columns whose values were all numbers so far. Arrays are (p,)."""

    def __init__(self, names: Sequence[str], plan: Plan) -> None:
        p = len(names)
        self.names, self._plan = list(names), plan
        self._forms = [plan.form(name) for name in names]
        self._rows = 0
        self._missing, self._nonzeros = np.zeros(p, np.int64), np.zeros(p, np.int64)
        self._low, self._high = np.full(p, np.inf), np.full(p, -np.inf)
        self._whole, self._counter = np.ones((2, p), dtype=bool)
        self._last = np.full(p, np.nan)
        self._problems: dict[str, str] = {}
        self._values = np.empty((p, 0))
        self._distinct, self._sums, self._spread = Distinct(p), ExactSums(p), Spread(p)

    def add(self, block: Block, missing: Missing) -> dict[str, bool]:
        """Add a block to the statistics.

        Parameters
        ----------
        block : Block
            The next rows.
        missing : Missing
            Receives the counts of missing values.

        Returns
        -------
        dict of str to bool
            The columns that turned out not to be numbers, which are removed from the statistics;
            for each, whether all its values before this block were missing.

        Raises
        ------
        DataError
            If a column that must be numbers has another value.
        """
        values, misfits = read_matrix(block, self.names, self._forms)
        lost = {}
        for j, row in misfits.items():
            if self._plan.kinds[self.names[j]] != "auto":
                raise not_a_number(block, self.names[j], row)
            lost[self.names[j]] = bool(self._missing[j] == self._rows)
        if lost:
            kept = np.array([name not in lost for name in self.names], dtype=bool)
            self._keep(kept)
            values = values[kept]
        if self.names and block.rows:
            self._add(block, values, missing)
        self._rows += block.rows
        self._values = values
        return lost

    def settled(self, block: Block) -> Block:
        """Return the block that was added last, with numbers in place of their text."""
        import pyarrow as pa

        numbers = {name: pa.array(row) for name, row in zip(self.names, self._values, strict=True)}
        return replace(block, columns={**block.columns, **numbers})

    def _keep(self, kept: Array) -> None:
        self.names = [name for name, stays in zip(self.names, kept, strict=True) if stays]
        self._forms = [self._plan.form(name) for name in self.names]
        self._missing, self._nonzeros = self._missing[kept], self._nonzeros[kept]
        self._low, self._high, self._whole = self._low[kept], self._high[kept], self._whole[kept]
        self._counter, self._last = self._counter[kept], self._last[kept]
        for part in (self._distinct, self._sums, self._spread):
            part.keep(kept)

    def _add(self, block: Block, values: Array, missing: Missing) -> None:
        self._infinities(block, values)
        gone = np.isnan(values)
        counts = np.count_nonzero(gone, axis=1)
        for j in np.flatnonzero(counts):
            missing.add(self.names[j], gone[j], block)
        self._missing += counts
        self._nonzeros += np.count_nonzero(values, axis=1) - counts
        self._low = np.fmin(self._low, np.fmin.reduce(values, axis=1))
        self._high = np.fmax(self._high, np.fmax.reduce(values, axis=1))
        self._codes(block, values, gone)
        self._count_rows(values)
        self._distinct.add(values)
        self._sums.add(values)
        self._spread.add(values)

    def _infinities(self, block: Block, values: Array) -> None:
        """Replace infinities by NaN, in place.

        Unless the plan takes them for missing values, the first one is recorded as the problem of
        its column.
        """
        infinite = np.isinf(values)
        for j in np.flatnonzero(infinite.any(axis=1)):
            if not self._plan.infinite:
                row = int(np.argmax(infinite[j]))
                text = block.columns[self.names[j]][row].as_py()
                why = "not a finite number: --infinite missing takes infinities for missing values"
                self._problems.setdefault(
                    self.names[j], f"{block.where(row)}: column {self.names[j]!r} is {text}, {why}"
                )
            values[j, infinite[j]] = np.nan

    def _codes(self, block: Block, values: Array, gone: Array) -> None:
        """Record columns of whole numbers that look like codes.

        These have leading zeros, or more digits than float64 can hold.
        """
        whole = self._whole
        with np.errstate(invalid="ignore"):  # damaged files may have signalling NaN
            whole[whole] = ((np.rint(values[whole]) == values[whole]) | gone[whole]).all(axis=1)
        free = [int(j) for j in np.flatnonzero(whole) if self._plan.kinds[self.names[j]] == "auto"]
        for i, row in leading_zeros([block.columns[self.names[j]] for j in free]):
            self._code(block, free[i], row, "leading zeros, like a code")
        for j in map(int, np.flatnonzero(whole & (np.maximum(self._high, -self._low) > EXACT))):
            texts = block.columns[self.names[j]]
            for at in np.flatnonzero(np.abs(values[j]) > EXACT).tolist():
                if DIGITS.fullmatch(str(texts[at].as_py()).strip()):
                    self._code(block, j, at, "more digits than float64 holds")
                    break

    def _count_rows(self, values: Array) -> None:
        """Find columns that count the rows: each value is one more than the value before it."""
        first = self._rows == 0
        for many in (8, values.shape[1]):  # the first few values exclude nearly all columns
            left = np.flatnonzero(self._counter)
            self._counter[left] = np.all(np.diff(values[left, :many], axis=1) == 1, axis=1)
        self._counter &= first | (values[:, 0] == self._last + 1)
        self._last = values[:, -1].copy()

    def _code(self, block: Block, j: int, row: int, why: str) -> None:
        name, shown = self.names[j], shlex.quote(self.names[j])
        text = block.columns[name][row].as_py()
        self._problems.setdefault(
            name,
            f"{block.where(row)}: column {name!r} is {text}, {why}: "
            f"--text {shown} if these are categories, "
            f"--number {shown} if they are numbers, or --drop {shown}",
        )

    def facts(self) -> dict[str, Facts]:
        """Return the facts about each column that had numbers in all blocks."""
        means, damaged = self._sums.means(), self._spread.damaged()
        found = {}
        for j, name in enumerate(self.names):
            there = self._rows > self._missing[j]
            found[name] = Facts(
                "number", self._rows, int(self._missing[j]), int(self._nonzeros[j]),
                float(self._low[j]) if there else None, float(self._high[j]) if there else None,
                int(self._distinct.count[j]), means[j],
                damaged=self._spread.why(j) if damaged[j] else "",
                counter=bool(self._counter[j] and self._rows > 2),
                problem=self._problems.get(name, ""),
            )  # fmt: skip
        return found


def leading_zeros(texts: Sequence[Any]) -> list[tuple[int, int]]:
    """Find the arrays of numbers as text that have a number with leading zeros, like 007.

    Return pairs (position of the array, first row with such a number).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = list(texts)
    if not texts or not pa.types.is_string(texts[0].type):
        return []
    together = pa.chunked_array(texts)
    zero = together.filter(pc.starts_with(together, "0"))
    if not pc.any(pc.match_substring_regex(zero, "^0[0-9]")).as_py():
        return []
    rows = [pc.index(pc.match_substring_regex(text, "^0[0-9]"), True).as_py() for text in texts]
    return [(i, row) for i, row in enumerate(rows) if row >= 0]
