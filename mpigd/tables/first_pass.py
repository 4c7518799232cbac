"""The first pass over raw tables: it collects facts about every column.

Counts, ranges and means do not depend on the order or the size of the blocks. Columns that may be
numbers are read together, many at once. If such a column turns out to have other values after some
of its numbers were read, it is read again from the start as text, after all rows were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mpigd.errors import DataError
from mpigd.tables import dates
from mpigd.tables.column_facts import Facts, Plan
from mpigd.tables.kept_blocks import Kept
from mpigd.tables.missing_values import Missing
from mpigd.tables.number_columns import Numbers
from mpigd.tables.read_ahead import ahead
from mpigd.tables.readers import Block, Source
from mpigd.tables.text_counts import counted

Array = np.ndarray[Any, Any]
# Categories of one column. A column with more is not a category, and memory must stay bounded.
MOST_CATEGORIES = 100_000
Tick = Callable[[int], None]


class Text:
    """A column of categories, or one whose kind is still to be found out."""

    def __init__(self, before: int = 0) -> None:
        """Begin after `before` rows, all of which miss a value."""
        self.facts = Facts("text", rows=before, missing=before)

    def add(self, gone: Array, texts: Sequence[str], counts: Sequence[int]) -> None:
        """Add the next rows.

        Parameters
        ----------
        gone : (m,) bool
            Whether each row misses its value.
        texts : sequence of str, length u
            The distinct values of the other rows.
        counts : sequence of int, length u
            The number of rows that have each of them.
        """
        facts, values, missed = self.facts, self.facts.values, int(np.count_nonzero(gone))
        facts.rows += gone.size
        facts.missing += missed
        facts.nonzeros += gone.size - missed
        for value, count in zip(texts, counts, strict=True):
            if value in values or len(values) < MOST_CATEGORIES:
                values[value] = values.get(value, 0) + count
            else:
                facts.whole = False


def _add_texts(columns: Mapping[str, Text], block: Block, missing: Missing) -> None:
    found = counted([block.columns[name] for name in columns])
    for (name, column), (gone, texts, counts) in zip(columns.items(), found, strict=True):
        missing.add(name, gone, block)
        column.add(gone, texts, counts)


class Dates:
    """A column of dates or times."""

    def __init__(self, name: str, form: str | None) -> None:
        self._facts, self._name, self._form = Facts("date"), name, form
        self._seen = dates.Seen()

    def add(self, block: Block, missing: Missing) -> None:
        """Add the next rows; `missing` receives the count of missing values.

        DataError for a value that is not a date.
        """
        array, facts = block.columns[self._name], self._facts
        values, bad = dates.read(array, self._form)
        if bad >= 0:
            form = self._form or "as in 2013-12-31 or 2013-12-31 23:59:59"
            advice = f"(say its form as in --date {self._name}=%m/%d/%Y)"
            text = f"{block.where(bad)}: column {self._name!r} is {array[bad].as_py()!r}"
            raise DataError(f"{text}, expected a date {form} {advice}")
        gone = np.isnat(values)
        missing.add(self._name, gone, block)
        self._seen.add(array, values)
        facts.rows += block.rows
        facts.missing += int(gone.sum())
        facts.nonzeros += int(gone.size - gone.sum())
        there = values[~gone]
        if there.size:
            facts.low = there.min() if facts.low is None else min(facts.low, there.min())
            facts.high = there.max() if facts.high is None else max(facts.high, there.max())

    @property
    def facts(self) -> Facts:
        """The facts about the rows so far. DataError for dates among times of day alone."""
        if self._seen.mixed:
            raise DataError(
                f"column {self._name!r} has both dates and times of day alone: --drop {self._name}"
            )
        return replace(self._facts, parts=self._seen.parts())


def look_through(
    sources: Sequence[Source],
    plan: Plan,
    tick: Tick,
    most: int | None = None,
    kept: Kept | None = None,
) -> tuple[dict[str, Facts], Missing]:
    """Collect the facts of every column.

    Parameters
    ----------
    sources : sequence of Source
        The files, in order.
    plan : Plan
        How each column is to be read.
    tick : callable
        Called with the number of rows read so far, after each block.
    most : int, optional
        Read only the first `most` rows; by default all.
    kept : Kept, optional
        Receives the blocks, so that a second pass need not read the files again. It gives them up
        if there are too many rows or if a column has to be read a second time.

    Returns
    -------
    facts : dict of str to Facts
        The facts of each column of the plan, in its order.
    missing : Missing
        The counts of missing values.

    Raises
    ------
    DataError
        If there are no rows, a file cannot be read, or a value is not of its column's kind.
    """
    names = list(plan.kinds)
    numbers = Numbers([name for name in names if plan.kinds[name] in ("auto", "number")], plan)
    kinds = plan.kinds.items()
    days = {name: Dates(name, plan.dates[name]) for name, kind in kinds if kind == "date"}
    texts = {name: Text() for name, kind in kinds if kind not in ("auto", "number", "date")}
    missing, again, rows = Missing(), list[str](), 0
    for block in ahead(_blocks(sources, names, tick, most)):
        before = rows
        rows += block.rows
        for name, unseen in numbers.add(block, missing).items():
            if unseen:  # all rows so far miss a value, so the column can be text from here on
                texts[name] = Text(before)
            else:
                again.append(name)
        if kept is not None:
            kept.add(numbers.settled(block))
        _add_texts(texts, block, missing)
        for column in days.values():
            column.add(block, missing)
    facts = numbers.facts() | {name: column.facts for name, column in texts.items()}
    facts |= {name: column.facts for name, column in days.items()}
    if again:
        if kept is not None:
            kept.give_up()  # it holds numbers of columns that are text
        missing.forget(again)
        more, also = look_through(
            sources, replace(plan, kinds=dict.fromkeys(again, "text")), tick, most
        )
        facts |= more
        missing.join(also)
    return {name: facts[name] for name in names}, missing


def _blocks(
    sources: Sequence[Source], names: list[str], tick: Tick, most: int | None
) -> Generator[Block, None, None]:
    rows = 0
    for source in sources:
        for block in source.blocks(names):
            block = block if most is None else block.first_rows(most - rows)
            rows += block.rows
            yield block
            tick(rows)
            if most is not None and rows >= most:
                return
    if rows == 0:
        raise DataError(f"{sources[0].path}: no data rows")
