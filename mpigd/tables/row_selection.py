"""Selection of the rows of a block that become rows of X: those neither dropped nor bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpigd.errors import DataError
from mpigd.tables.bad_rows import BadRows
from mpigd.tables.encoding import Encoding
from mpigd.tables.missing_values import Missing
from mpigd.tables.policies import Policies
from mpigd.tables.readers import Block

Array = np.ndarray[Any, Any]


class Rows:
    """Collects missing values and faults while a block is encoded.

    For each block, call `begin`, then `fault` and `missing` for its columns, then `end`. Call
    `check` after the last block.
    """

    def __init__(self, encoding: Encoding, told: Policies) -> None:
        self.told, self.bad = told, BadRows(told.skips)
        self._policy, self._columns = encoding.missing, encoding.columns
        self._missing = Missing()

    def begin(self, block: Block) -> None:
        """Begin a block.

        DataError if the reader left out rows of it, unless bad rows are skipped.
        """
        self._block, self._dropped = block, np.zeros(block.rows, dtype=bool)
        for line in block.lost:
            if not self.told.skips:
                raise DataError(f"{line}: {self.told.advice()}")
            self.bad.name(line)

    def end(self) -> Array | None:
        """End the block. Return a mask (m,) of the rows to keep, or None for all.

        DataError about the first bad row, unless bad rows are skipped.
        """
        bad = self.bad.end_block()
        out = self._dropped if bad is None else self._dropped | bad
        return ~out if out.any() else None

    def fault(self, name: str, where: Array, describe: Callable[[int], str], *options: str) -> None:
        """Record rows whose value in a column cannot be encoded.

        Parameters
        ----------
        name : str
            The column.
        where : array (m,) of bool
            Marks the rows.
        describe : function
            Row -> the value, and why it cannot be encoded.
        *options : str
            Options of the command line that would help, besides leaving out bad rows.
        """
        block, advice = self._block, self.told.advice(*options)

        def line(row: int) -> str:
            text = f"{block.where(row)}: column {name!r} is {describe(row)}"
            return text if self.told.skips else f"{text}: {advice}"

        self.bad.add(where, line)

    def missing(self, name: str, gone: Array, fillable: bool = True) -> None:
        """Record rows with a missing value in a column.

        Parameters
        ----------
        name : str
            The column.
        gone : array (m,) of bool
            Marks the rows.
        fillable : bool
            Whether the mean or zero can be filled in.
        """
        if not gone.any():
            return
        if self._policy == "drop":
            self._dropped |= gone
        elif self.told.skips and (self._policy == "refuse" or not fillable):
            self.bad.add(gone, lambda row: f"{self._block.where(row)}: column {name!r} is missing")
            return
        self._missing.add(name, gone, self._block)

    def check(self, required: Sequence[str]) -> None:
        """DataError if values are missing that the policy does not cover.

        required: columns for which nothing can be filled in, such as the target.
        """
        dates = [column.name for column in self._columns if column.kind == "date"]
        levels = [column.name for column in self._columns if column.reference is not None]
        self._missing.check(self._policy, required, self.told, dates, levels)
        self._missing.check_levels(self._policy, levels, self.told)

    @property
    def fills_means(self) -> bool:
        """Whether missing numbers are replaced by means."""
        return self._policy == "mean"
