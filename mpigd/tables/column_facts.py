"""What the first pass over raw tables is asked, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpigd.tables.number_text import NumberFormat


@dataclass
class Facts:
    """What the first pass knows of a column.

    kind: number, text, date or key. low, high: of numbers, or of dates. distinct: of numbers, at most
    101. values: of text, each and how often, in the order in which they come; `whole` if these are
    all. problem: what is wrong with its numbers, and how to go on.
    """

    kind: str
    rows: int = 0
    missing: int = 0
    nonzeros: int = 0
    low: Any = None
    high: Any = None
    distinct: int = 0
    mean: float | None = None
    values: dict[str, int] = field(default_factory=dict)
    whole: bool = True
    damaged: str = ""  # what rounding to float32 does to it, if that is bad
    parts: tuple[str, ...] = ()  # of dates: what they can be told by
    counter: bool = False  # whether its numbers count the rows
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """What each column is to be taken for: number (with its format), auto (number if it can be), text,
    date (with its form), key. infinite: whether infinities are missing values."""

    kinds: Mapping[str, str]
    forms: Mapping[str, NumberFormat]
    dates: Mapping[str, str | None]
    infinite: bool
    plain: NumberFormat

    def form(self, name: str) -> NumberFormat:
        return self.forms.get(name, self.plain)
