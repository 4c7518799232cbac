"""Counts of the missing values of columns, and the error messages about them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from mpigd.errors import DataError
from mpigd.tables.encoding import listed
from mpigd.tables.policies import Policies
from mpigd.tables.readers import Block

Array = np.ndarray[Any, Any]
FIRST = Policies(command="import")


class Missing:
    """The number of missing values of each column, and the place of the first one."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, name: str, gone: Array, block: Block) -> None:
        """Count the missing values of a column in the next block.

        gone (m,) bool marks the rows without a value. Blocks must come in order.
        """
        if gone.any():
            count, first = self._found.get(name, (0, block.where(int(gone.argmax()))))
            self._found[name] = count + int(gone.sum()), first

    def join(self, other: Missing) -> None:
        """Add the columns of another count, which replace those of the same name."""
        self._found |= other._found

    def forget(self, names: Sequence[str]) -> None:
        """Remove these columns from the count."""
        for name in names:
            self._found.pop(name, None)

    def check(
        self,
        policy: str,
        required: Collection[str],
        told: Policies = FIRST,
        dates: Collection[str] = (),
        with_reference: Collection[str] = (),
    ) -> None:
        """Check that the policy covers all missing values.

        Parameters
        ----------
        policy : str
            "refuse", "mean", "zero" or "drop".
        required : collection of str
            Columns that cannot be filled in, such as target and weight; only "drop" covers them.
        told : Policies
            The policies of the command, for the advice in the message.
        dates : collection of str
            Columns of dates, which "mean" does not cover.
        with_reference : collection of str
            Columns with a reference level. The message advises no fill value for them, because
            zeros would stand for the reference level.

        Raises
        ------
        DataError
            If the policy does not cover the missing values of a column.
        """
        if policy == "drop":
            return
        if policy == "mean":
            required = {*required, *dates}
        self._refuse([name for name in self._found if name in required], told.of_missing(()))
        if policy == "refuse":
            fills = ["zero"] if any(name in self._found for name in dates) else ["mean", "zero"]
            fills = [] if any(name in self._found for name in with_reference) else fills
            self._refuse(list(self._found), told.of_missing(fills))

    def check_levels(
        self, policy: str, with_reference: Sequence[str], told: Policies = FIRST
    ) -> None:
        """Check that no missing category would become a reference level.

        Raises
        ------
        DataError
            If `policy` is "mean" or "zero" and a column of `with_reference` has missing values: its
            zeros would stand for the reference level.
        """
        if policy in ("mean", "zero"):
            why = "a missing category would be taken for the reference level"
            advice = f"{why}: {told.of_missing(())}"
            advice += ", or keep that column's levels" if told.command == "import" else ""
            self._refuse([name for name in self._found if name in with_reference], advice)

    def _refuse(self, names: Sequence[str], advice: str) -> None:
        if names:
            each = [
                f"column {name!r} {self._found[name][0]:,} (first: {self._found[name][1]})"
                for name in names
            ]
            raise DataError(f"missing values: {listed(each)}: {advice}")
