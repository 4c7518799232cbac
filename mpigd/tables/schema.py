"""Inference of column types: the first pass over raw tables, which ends in an Encoding.

The type of a CSV column follows from all its values: numbers (also true and false), else a
category. A column that only seems to be a category (numbers with signs around them, dates,
identifiers) is refused. The message names the column and the options that settle its type.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mpigd.errors import DataError, UsageError
from mpigd.tables import first_pass
from mpigd.tables.column_facts import Facts, Plan
from mpigd.tables.encoding import Column, Encoding, Target, listed, no_column
from mpigd.tables.first_pass import look_through
from mpigd.tables.float32_check import type_of
from mpigd.tables.import_options import Options
from mpigd.tables.kept_blocks import Kept
from mpigd.tables.missing_values import Missing
from mpigd.tables.number_text import NumberFormat
from mpigd.tables.readers import Source
from mpigd.tables.reference_levels import (
    Groups,
    check_unseen,
    describe,
    describe_rare,
    gather,
    levels_of,
)
from mpigd.tables.spelling import merged
from mpigd.tables.text_columns import alike, look

Levels = Mapping[str, str]
# X is CSR if its share of non-zeros is below SPARSE and it has more than NARROW columns.
SPARSE, NARROW = 0.25, 16
UNNAMED = ""  # the name of a column for which the header has no name
MOST_PROBLEMS = 5  # the number of columns that a message names
KNOWN = ("text", "string", "number", "category", "time", "null")


@dataclass(frozen=True)
class Survey:
    """The results of the first pass."""

    options: Options
    facts: Mapping[str, Facts]  # column -> its statistics
    kinds: Mapping[str, str]  # column -> "number", "category", "date" or "key"
    problems: Mapping[str, str]  # column -> the reason why it needs an option
    missing: Missing  # counts of missing values
    empty: bool  # whether there is a column without name and values
    told: Sequence[str] = ()  # notes for the user about the files
    lists: Mapping[str, int] = field(default_factory=dict)  # nested column -> number of plain ones

    def encoding(self) -> tuple[Encoding, list[str]]:
        """Make the encoding.

        Returns
        -------
        encoding : Encoding
            The encoding of these data.
        notes : list of str
            Notes for the user.

        Raises
        ------
        DataError
            If columns need an option, or have missing values that the policy does not cover.
        UsageError
            If options do not fit the data.
        """
        options, facts = self.options, self.facts
        if self.problems:
            raise DataError("; ".join(list(self.problems.values())[:MOST_PROBLEMS]) + self._more())
        special = [str(options.target), *options.extras().values()]
        features = [name for name in facts if name not in special]
        if not features:
            raise UsageError(f"no column is left besides {listed(special)}")
        counts = {name: facts[name].values for name in features if self.kinds[name] == "category"}
        groups = gather(counts, options.min_count or 0, options.reference)
        values = {name: groups[name][0] if name in groups else None for name in features}
        levels = levels_of(values, options.drop_first, options.reference)
        check_unseen(options.unseen, options.min_count, levels, groups)
        dates = [name for name in features if self.kinds[name] == "date"]
        self.missing.check(options.missing, special, dates=dates, with_reference=levels)
        self.missing.check_levels(options.missing, list(levels))
        numbers = {name: facts[name] for name in features if self.kinds[name] == "number"}
        damaged = {
            f"column {name!r}": fact.damaged for name, fact in numbers.items() if fact.damaged
        }
        dtype, notes = type_of(damaged, options.dtype)
        notes = [*self.told, *describe(levels, options.drop_first), *describe_rare(groups), *notes]
        notes += [
            f"column {name!r} counts the rows ({facts[name].low:g} to {facts[name].high:g}): "
            f"--drop {shlex.quote(name)} if it is no feature"
            for name in numbers
            if facts[name].counter
        ]
        if self.empty:
            notes.append(
                "a column without a name and without values is left out "
                "(a delimiter at the end of lines?)"
            )
        notes += [note for name in facts for note in alike(name, facts[name].values)]
        encoding = _encoding(
            features, facts, self.kinds, levels, groups, replace(options, dtype=dtype)
        )
        return replace(encoding, lists=self.lists), notes

    def _more(self) -> str:
        more = len(self.problems) - MOST_PROBLEMS
        return f"; and {more} more columns (--dry-run shows all)" if more > 0 else ""


def survey(
    sources: Sequence[Source],
    options: Options,
    tick: Callable[[int], None],
    most: int | None = None,
    kept: Kept | None = None,
) -> Survey:
    """Run the first pass over raw tables.

    Parameters
    ----------
    sources : sequence of Source
        The files of the data set.
    options : Options
        The options of the import.
    tick : function
        Called with the number of rows read so far.
    most : int, optional
        Read only this number of rows; by default all.
    kept : Kept, optional
        Takes the rows for the second pass, if they are few enough.

    Returns
    -------
    Survey
        What was found about the columns.

    Raises
    ------
    DataError
        If the files cannot be read or have different columns.
    UsageError
        If the options do not fit the columns, or the target is not named.
    """
    options = _with_parts(options, sources[0].groups())
    kinds, notes = _without_labels(sources, options)
    if len(kinds) == 1 and sources[0].format == "csv":
        why = f"the header is one column, {next(iter(kinds))!r}"
        ways = (
            "--delimiter space if blanks are between values; "
            "--comment TEXT leaves out lines above it that begin with TEXT"
        )
        raise DataError(f"{sources[0].path}: {why}: {ways}")
    if options.target is None:
        raise UsageError(
            "--target COLUMN is needed, or --like FILE for new data; "
            f"the columns are {listed(list(kinds), 30)}"
        )
    special = [options.target, *options.extras().values()]
    _check_names(sources[0].path, kinds, special, options)
    kinds = {name: kind for name, kind in kinds.items() if name not in options.drop}
    plan = _plan(sources[0].path, kinds, options)
    facts, missing = look_through(sources, plan, tick, most, kept)
    empty = (
        UNNAMED in facts
        and facts[UNNAMED].missing == facts[UNNAMED].rows
        and UNNAMED not in special
    )
    if empty:
        del facts[UNNAMED]
        missing.forget([UNNAMED])
    found, problems = _settle(facts, kinds, options)
    return Survey(options, facts, found, problems, missing, empty, notes, _lists(sources[0], found))


def _with_parts(options: Options, groups: Mapping[str, Sequence[str]]) -> Options:
    """Return options in which each nested column is replaced by its plain columns."""

    def flat(names: Sequence[str]) -> list[str]:
        return [part for name in names for part in groups.get(name, [name])]

    return replace(
        options,
        drop=flat(options.drop),
        categorical=flat(options.categorical),
        number=flat(options.number),
    )


def _lists(source: Source, used: Container[str]) -> dict[str, int]:
    """Return nested column -> number of its plain columns, for those that are used."""
    return {
        name: len(parts)
        for name, parts in source.groups().items()
        if any(part in used for part in parts)
    }


def _without_labels(
    sources: Sequence[Source], options: Options
) -> tuple[dict[str, str], list[str]]:
    """Return column -> kind for these files, and notes for the user.

    Row labels of pandas are left out, unless an option names them.
    """
    named = {*options.named(), *options.drop}
    labels: dict[str, str] = {}
    for source in sources:
        labels |= {name: source.path for name in reversed(source.index()) if name not in labels}
    # A column that is no row label in some file is treated like any other column.
    stray = {
        name
        for source in sources
        for name in labels
        if name in source.kinds() and name not in source.index()
    }
    left_out = [name for name in labels if name not in named | stray]
    notes = [
        f"column {name!r} of {labels[name]} has the row labels of pandas and is left out: "
        f"--number {shlex.quote(name)} or --text {shlex.quote(name)} makes it a feature"
        for name in left_out
    ]
    notes += [note for source in sources for note in source.notes]
    return agree(sources, left_out), notes


def _plan(path: str, kinds: Mapping[str, str], options: Options) -> Plan:
    """Return how the first pass reads each column.

    DataError for a type that cannot be read.
    """
    roles = {
        "text": "auto",
        "string": "text",
        "category": "text",
        "number": "number",
        "null": "number",
        "time": "text",
    }
    for name, kind in kinds.items():
        if kind not in KNOWN:
            raise DataError(
                f"{path}: column {name!r} holds {kind}: leave it out with --drop "
                f"{shlex.quote(name)}"
            )
    plan = {name: roles[kind] for name, kind in kinds.items()}
    extras = options.extras()
    plan |= {name: "number" for vector, name in extras.items() if vector not in ("key", "id")}
    plan |= dict.fromkeys(options.number, "number") | dict.fromkeys(options.dates(), "date")
    plan |= {extras[vector]: "text" for vector in ("key", "id") if vector in extras}
    plan |= dict.fromkeys(options.categorical, "text")
    plain = NumberFormat(options.dialect.decimal, options.dialect.thousands)
    forms = dict.fromkeys(options.number, replace(plain, adorned=True))
    return Plan(plan, forms, options.dates(), options.infinite == "missing", plain)


def _settle(
    facts: Mapping[str, Facts], kinds: Mapping[str, str], options: Options
) -> tuple[dict[str, str], dict[str, str]]:
    """Return column -> kind, and column -> problem for columns that need an option."""
    found, problems = dict[str, str](), dict[str, str]()
    keys = [name for vector, name in options.extras().items() if vector in ("key", "id")]
    for name, fact in facts.items():
        found[name], problem = fact.kind, fact.problem
        if name in keys:
            found[name] = "key"
        elif fact.kind == "text":
            found[name], problem = _text(name, fact, kinds[name], options)
        if name == UNNAMED and fact.counter:
            problem = (
                "a column without a name counts the rows: "
                "leave it out with --drop '', or take it with --number ''"
            )
        if problem and name not in options.number:
            problems[name] = problem
    return found, problems


def _text(name: str, fact: Facts, kind: str, options: Options) -> tuple[str, str]:
    """Return the kind of a column of text, and why it needs an option; "" if it does not."""
    shown, hashed = shlex.quote(name), options.hash_bits is not None and name != options.target
    declared = name in options.categorical
    if kind == "time" and not declared:
        advice = (
            f"--date {shown} makes them features, --text {shown} categories, "
            f"or leave it out with --drop {shown}"
        )
        return "category", f"column {name!r} has dates or times: {advice}"
    if not fact.whole and not hashed:
        return "category", (
            f"column {name!r} is text with more than {first_pass.MOST_CATEGORIES:,} "
            f"different values: hash them with --hash BITS, or leave it out with --drop {shown}"
        )
    if declared or kind == "category":
        fact.values = merged(fact.values)
        return "category", ""
    seen = look(
        name, fact.values, typed=kind == "string", hashed=hashed, target=name == options.target
    )
    if seen.kind == "number" and fact.values:
        true = sum(count for value, count in fact.values.items() if value.lower() == "true")
        fact.mean = true / sum(fact.values.values())
        fact.nonzeros = true
    return seen.kind, seen.problem


def _encoding(
    features: list[str],
    facts: Mapping[str, Facts],
    kinds: Mapping[str, str],
    levels: Levels,
    groups: Groups,
    options: Options,
) -> Encoding:
    hashed = options.hash_bits is not None and any(kinds[name] == "category" for name in features)
    if hashed:  # numbers come first, and the slots of hashed categories follow them
        features.sort(key=lambda name: kinds[name] == "category")
    columns = tuple(
        _column(name, facts[name], kinds[name], levels.get(name), groups, options)
        for name in features
    )
    width = sum(len(column.feature_names()) for column in columns if column.kind != "hash")
    if hashed and options.hash_bits is not None:
        width += 1 << options.hash_bits
    if width == 0:
        named = listed(list(levels.values()))
        raise UsageError(f"no column is left: each has one level alone, the reference ({named})")
    # This also counts the rows of reference levels, which have no non-zero. Only the choice of the
    # layout depends on the number.
    filled = sum(_filled(facts[name], kinds[name], options.missing) for name in features)
    name = str(options.target)
    classes = tuple(sorted(facts[name].values)) if kinds[name] == "category" else None
    return Encoding(
        format="table",
        features=width,
        columns=columns,
        extras=options.extras(),
        missing=options.missing,
        target=Target(name, classes),
        hash_bits=options.hash_bits,
        dtype=options.dtype,
        layout=choose_layout(filled, facts[name].rows, width),
        unseen=options.unseen,
        infinite=options.infinite == "missing",
        csv=options.dialect.to_dict(),
    )


def _column(
    name: str, fact: Facts, kind: str, reference: str | None, groups: Groups, options: Options
) -> Column:
    if kind == "number":
        return Column(name, "number", mean=fact.mean, adorned=name in options.number)
    if kind == "date":
        return Column(name, "date", parts=fact.parts, format=options.dates()[name])
    if options.hash_bits is not None:
        return Column(name, "hash", by_meaning=True)
    categories, rare = groups[name]
    return Column(name, "category", categories=categories, reference=reference, rare=rare)


def _filled(fact: Facts, kind: str, missing: str) -> int:
    """Return the number of non-zeros that a raw column will have in X."""
    with_mean = missing == "mean" and kind == "number" and fact.mean
    return fact.nonzeros * max(1, len(fact.parts)) + (fact.missing if with_mean else 0)


def choose_layout(nonzeros: int, rows: int, width: int) -> str:
    """Choose the layout of X.

    Parameters
    ----------
    nonzeros : int
        The number of non-zeros.
    rows, width : int
        The shape of X.

    Returns
    -------
    str
        "csr" if the share of non-zeros is below SPARSE and width above NARROW, else "dense".
    """
    return "csr" if width > NARROW and nonzeros < SPARSE * rows * width else "dense"


def agree(sources: Sequence[Source], left_out: Collection[str] = ()) -> dict[str, str]:
    """Determine the columns of a data set from all its files.

    Parameters
    ----------
    sources : sequence of Source
        The files.
    left_out : collection of str
        Columns to ignore.

    Returns
    -------
    dict of str to str
        Column -> kind.

    Raises
    ------
    DataError
        If a file has other columns or kinds than the first one; the message names the file and the
        column.

    Notes
    -----
    The kind "null" goes with any other kind. "string" and "category" together are "string".
    """
    first = sources[0].path
    known = {name: kind for name, kind in sources[0].kinds().items() if name not in left_out}
    for source in sources[1:]:
        kinds = {name: kind for name, kind in source.kinds().items() if name not in left_out}
        for name in known:
            if name not in kinds:
                raise DataError(no_column(source.path, name, list(kinds), f" as in {first}"))
        for name, kind in kinds.items():
            if name not in known:
                raise DataError(f"{source.path}: column {name!r} is not in {first}")
            if known[name] == "null":  # a Parquet column in which all values are missing
                known[name] = kind
            if {kind, known[name]} == {"string", "category"}:
                known[name] = kind = "string"
            if kind not in ("null", known[name]):
                raise DataError(
                    f"{source.path}: column {name!r} is {kind}, but {known[name]} in {first}"
                )
    return known


def _check_names(
    path: str, kinds: Mapping[str, str], special: Sequence[str], options: Options
) -> None:
    forced = [*options.categorical, *options.number, *options.dates()]
    for name in (*special, *options.drop, *forced, *options.reference):
        if name not in kinds:
            raise UsageError(no_column(path, name, list(kinds)))
    for name in special:
        if special.count(name) > 1 or name in options.drop:
            raise UsageError(
                f"column {name!r} has two uses: "
                "--target, --weight, --offset, --key, --id and --drop name different ones"
            )
    for name in forced:
        if forced.count(name) > 1 or name in options.drop:
            raise UsageError(
                f"column {name!r} has two uses: "
                "--number, --text, --date and --drop name different ones"
            )
    for name, level in options.reference.items():
        if name in special or name in options.drop:
            raise UsageError(f"--reference {name}={level}: the column is not one of the features")
    if str(options.target) in options.dates():
        raise UsageError(f"--date {options.target}: the target cannot be a date")
