"""Counts of the values that columns miss, and what is said about them."""

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

    def check(
        self, policy: str, required: Collection[str], told: Policies = FIRST,
        dates: Collection[str] = (), with_reference: Collection[str] = (),
    ) -> None:  # fmt: skip
        """DataError for what `policy` does not cover; of the columns `required` (target, weight,
        ...) only drop does, and of dates no mean. with_reference: columns with a reference level,
        which zeros would be."""
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
        """DataError if one of these columns misses values that `policy` would make its reference
        level."""
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
