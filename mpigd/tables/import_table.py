"""The table that an import prints: each raw column, its contents, and the features made of it."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nsmallest

from mpigd.tables.column_facts import Facts
from mpigd.tables.distinct_counts import LIMIT
from mpigd.tables.encoding import Encoding
from mpigd.tables.schema import UNNAMED, Survey

HEAD = ("column", "type", "missing", "distinct", "values", "becomes")
MOST_ROWS = 100  # of the table; columns that need an option are shown even beyond that
LEVELS, WIDTH = 3, 24  # levels shown of a category, and characters shown of each


def rows(survey: Survey, encoding: Encoding | None) -> list[tuple[str, ...]]:
    """Return a row of texts for each column that was read or left out, in the order of the file.

    Parameters
    ----------
    survey : Survey
        What the first pass found.
    encoding : Encoding or None
        The encoding made of it; None if none could be made, then no numbers of features are shown.

    Returns
    -------
    list of tuple of str
        One tuple per column, with a text for each entry of HEAD.
    """
    made = (
        {}
        if encoding is None
        else {column.name: len(column.feature_names()) for column in encoding.columns}
    )
    roles = {name: vector for vector, name in survey.options.extras().items()} | {
        str(survey.options.target): "y"
    }
    found = [_row(name, fact, survey, roles.get(name), made) for name, fact in survey.facts.items()]
    if survey.empty:
        found.append((UNNAMED, "", "", "", "", "left out (no name, no values)"))
    return [*found, *((name, "", "", "", "", "left out") for name in survey.options.drop)]


def _row(
    name: str, fact: Facts, survey: Survey, role: str | None, made: Mapping[str, int]
) -> tuple[str, ...]:
    kind = survey.kinds[name]
    distinct = f"{len(fact.values):,}" if fact.kind == "text" else f"{fact.distinct:,}"
    if fact.kind == "number" and fact.distinct > LIMIT:
        distinct = f"> {LIMIT}"
    if fact.kind == "text" and not fact.whole:
        distinct = "> " + distinct
    if kind == "date":
        distinct = ""
    if name in survey.problems:
        becomes = "needs an option"
    elif role == "y":
        becomes = f"target: {len(fact.values)} classes" if kind == "category" else "target"
    elif role is not None:
        becomes = role
    elif survey.options.hash_bits is not None and kind == "category":
        becomes = "hashed"
    else:
        count = made.get(name, 0)
        becomes = f"{count:,} column" + "s" * (count != 1) if made else ""
    missing = f"{fact.missing:,}" if fact.missing else ""
    return name, kind, missing, distinct, _values(fact), becomes


def _values(fact: Facts) -> str:
    if fact.kind == "text":
        top = nsmallest(LEVELS, fact.values, key=lambda value: (-fact.values[value], value))
        there = max(1, fact.rows - fact.missing)
        shown = [f"{_short(value)} {100 * fact.values[value] / there:.3g}%" for value in top]
        return ", ".join(shown) + (", ..." if len(fact.values) > LEVELS else "")
    if fact.low is None:
        return ""
    if fact.kind == "date":
        low, high = (
            str(value).replace("T", " ").removesuffix(".000000") for value in (fact.low, fact.high)
        )
        return f"{low} to {high}"
    if fact.low == fact.high:
        return f"{fact.low:.6g}"
    return f"{fact.low:.6g} to {fact.high:.6g}"


def _short(value: str) -> str:
    text = value if value.isprintable() and value.strip() == value and value else repr(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def text(survey: Survey, encoding: Encoding | None) -> str:
    """Return the table as text: HEAD, the first MOST_ROWS columns, then those with a problem.

    The parameters are those of `rows`.
    """
    every = rows(survey, encoding)
    shown = every[:MOST_ROWS] + [row for row in every[MOST_ROWS:] if row[0] in survey.problems]
    lines = [HEAD, *((_short(row[0]), *row[1:]) for row in shown)]
    widths = [max(len(line[c]) for line in lines) for c in range(len(HEAD))]
    texts = [
        "  ".join(_padded(cell, c, widths[c]) for c, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    more = len(every) - len(shown)
    tail = [f"... and {more:,} more columns"] if more else []
    return "\n".join(texts + tail)


def _padded(cell: str, c: int, width: int) -> str:
    return cell.rjust(width) if HEAD[c] in ("missing", "distinct") else cell.ljust(width)
