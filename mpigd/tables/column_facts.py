"""The plan of the first pass over raw tables, and the facts that it finds about each column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpigd.tables.number_text import NumberFormat


@dataclass
class Facts:
    """The facts about one column that the first pass finds.

    Attributes
    ----------
    kind : str
        "number", "text" or "date".
    rows, missing, nonzeros : int
        The number of rows, of missing values, and of values that are neither missing nor zero.
    low, high : float or datetime64, optional
        The smallest and largest number or date.
    distinct : int
        The number of distinct numbers; 101 means more than 100 (distinct_counts.LIMIT).
    mean : float, optional
        The mean of the numbers, rounded once.
    values : dict of str to int
        How often each text occurs, in the order of first occurrence.
    whole : bool
        Whether `values` has all texts.
    damaged : str
        What rounding to float32 does to the numbers, if that is bad.
    parts : tuple of str
        The parts that become features if this is a column of dates (`dates.Seen.parts`).
    counter : bool
        Whether the numbers count the rows.
    problem : str
        What is wrong with the numbers, and which options help.
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
    damaged: str = ""
    parts: tuple[str, ...] = ()
    counter: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """Instructions for the first pass: the type as which it reads each column.

    Attributes
    ----------
    kinds : mapping of str to str
        For each column "number", "auto" (a number if possible, otherwise text), "text" or "date".
    forms : mapping of str to NumberFormat
        How numbers are written in columns that differ from `plain`.
    dates : mapping of str to str or None
        How dates are written (directives of strptime); None for ISO 8601.
    infinite : bool
        Whether infinities are missing values.
    plain : NumberFormat
        How numbers are written in all other columns.
    """

    kinds: Mapping[str, str]
    forms: Mapping[str, NumberFormat]
    dates: Mapping[str, str | None]
    infinite: bool
    plain: NumberFormat

    def form(self, name: str) -> NumberFormat:
        """Return the format of the numbers of a column."""
        return self.forms.get(name, self.plain)
