"""Reference levels, rare levels and unseen levels of categorical columns.

A reference level is the level of a categorical column that gets no column in X. Rare levels, those
with fewer rows than --min-count, share one column. Unseen levels occur only in later data.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mpigd.errors import UsageError
from mpigd.tables.encoding import OTHER, listed

Values = Mapping[str, Collection[str] | None]
Groups = dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]]


def named_levels(named: Mapping[str, Any] | Sequence[str]) -> dict[str, str]:
    """Parse the option --reference.

    Return column -> level as text, from a mapping column -> level or from texts COLUMN=LEVEL.
    UsageError for anything else, and for two levels of one column.
    """
    if not isinstance(named, Mapping):
        texts = [text.partition("=") for text in named]
        pairs: Iterable[tuple[str, Any]] = [(name, level) for name, _, level in texts]
    else:
        pairs = named.items()
    levels: dict[str, str] = {}
    for name, level in pairs:
        text = str(level).lower() if isinstance(level, bool) else str(level)
        if not name or not text:
            raise UsageError(f"--reference {name}: expected COLUMN=LEVEL")
        if levels.setdefault(name, text) != text:
            both = f"{levels[name]} and {text}"
            raise UsageError(f"--reference names two levels of column {name!r}: {both}")
    return levels


def levels_of(values: Values, drop_first: bool, named: Mapping[str, str]) -> dict[str, str]:
    """Choose the reference levels.

    Parameters
    ----------
    values : mapping of str to collection of str, or None
        Column -> its levels; None for a column of numbers.
    drop_first : bool
        Whether every categorical column gets a reference level: the first one in the order of
        text, if `named` has none.
    named : mapping of str to str
        Column -> reference level that the user chose.

    Returns
    -------
    dict of str to str
        Column -> reference level.

    Raises
    ------
    UsageError
        If a column does not have the level that is named, or is no category.
    """
    found = {}
    for name, present in values.items():
        level = named.get(name)
        if present is None:
            if level is not None:
                why = f"the column holds numbers (levels? then --text {name} too)"
                raise UsageError(f"--reference {name}={level}: {why}")
        elif level is not None and level not in present:
            near = difflib.get_close_matches(level, present, 1)
            has = f"did you mean {near[0]!r}?" if near else f"it has {listed(sorted(present))}"
            why = f"column {name!r} has no level {level!r}; {has}"
            raise UsageError(f"--reference {name}={level}: {why}")
        elif level is not None or (drop_first and present):
            found[name] = min(present) if level is None else level
    return found


def gather(
    counts: Mapping[str, Mapping[str, int]], fewest: int, named: Mapping[str, str]
) -> Groups:
    """Separate rare levels from the others.

    Parameters
    ----------
    counts : mapping of str to mapping of str to int
        Column -> level -> number of rows.
    fewest : int
        Levels with fewer rows are rare.
    named : mapping of str to str
        Column -> reference level that the user chose.

    Returns
    -------
    dict of str to (tuple of str, tuple of str or None)
        Column -> the levels with a column of their own, and the rare levels; both ascending. None
        if there are no rare levels.

    Raises
    ------
    UsageError
        If a named reference level is rare, or a level has the name of the shared column.
    """
    return {name: _gather(name, levels, fewest, named.get(name)) for name, levels in counts.items()}


def _gather(
    name: str, counts: Mapping[str, int], fewest: int, reference: str | None = None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    rare = tuple(sorted(level for level, count in counts.items() if count < fewest))
    if not rare:
        return tuple(sorted(counts)), None
    if OTHER in counts:
        raise UsageError(f"--min-count {fewest}: column {name!r} has a level {OTHER!r} of its own")
    if reference in rare:
        why = f"--min-count {fewest} gathers it: it has {counts[str(reference)]:,} rows"
        raise UsageError(f"--reference {name}={reference}: {why}")
    return tuple(sorted(set(counts).difference(rare))), rare


def check_unseen(
    unseen: str, fewest: int | None, levels: Mapping[str, str], groups: Groups
) -> None:
    """Check that the policy for unseen levels can be followed.

    Parameters
    ----------
    unseen : str
        "error", "zero" or "other".
    fewest : int or None
        The option --min-count.
    levels : mapping of str to str
        Column -> reference level.
    groups : mapping
        As returned by `gather`.

    Raises
    ------
    UsageError
        For "zero" if there are reference levels, since zeros stand for these; for "other" if no
        column has a shared column for rare levels.
    """
    if unseen == "zero" and levels:
        name, level = next(iter(levels.items()))
        why = f"zeros in all columns of {name!r} stand for its reference level, {level}"
        raise UsageError(f"--unseen zero: {why}: use --unseen error")
    if unseen == "other" and fewest is None:
        raise UsageError("--unseen other needs --min-count N: levels of fewer rows share a column")
    if unseen == "other" and not any(rare for _, rare in groups.values()):
        raise UsageError(
            f"--unseen other: no category has a level of fewer than {fewest} rows (--min-count)"
        )


def describe_rare(groups: Groups) -> list[str]:
    """Return a note for the user about rare levels, if there are any."""
    gathered = [f"{len(rare):,} of {name!r}" for name, (_, rare) in groups.items() if rare]
    return [f"rare levels share a column {OTHER}: {listed(gathered)}"] if gathered else []


def describe(levels: Mapping[str, str], drop_first: bool) -> list[str]:
    """Return a note for the user about reference levels (column -> level)."""
    if not levels:
        return ["--drop-first: no column is a category"] if drop_first else []
    shown = listed([f"{name}={level}" for name, level in levels.items()], 30)
    return [f"reference levels, which have no column: {shown}"]
