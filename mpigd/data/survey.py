"""The first pass over raw tables: what each column is, which values it has, what it misses. It ends in an Encoding.

A text column of a CSV file is what its first value looks like (a number, true or false, a date or time, else a category),
if all the others look so too, and a category otherwise. So neither order of blocks nor their size decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpigd.data.columns import ExactSum, absent, first_misfit, to_text
from mpigd.data.encoding import Column, Encoding, Target, listed, no_column
from mpigd.data.levels import describe, levels_of
from mpigd.data.missing import Missing
from mpigd.data.number_text import read_numbers
from mpigd.data.tables import Block, Source
from mpigd.errors import DataError, UsageError

Array = np.ndarray[Any, Any]
POLICIES = ("refuse", "mean", "zero", "drop")
MOST_BITS = 30
Levels = Mapping[str, str]
GUESSES = ("number", "boolean", "time")
MOST_CATEGORIES = 100_000  # of one column; more are no categories, and would not stay in bounded memory
SPARSE, NARROW = 0.25, 16  # CSR below this share of non-zeros, if there are more columns than this


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an import is told: names of raw columns, and how to treat them."""

    target: str | None = None
    missing: str = "refuse"
    hash_bits: int | None = None
    weight: str | None = None
    offset: str | None = None
    key: str | None = None
    drop: Sequence[str] = ()
    categorical: Sequence[str] = ()
    dtype: str = "float32"
    drop_first: bool = False
    reference: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.missing not in POLICIES:
            raise UsageError(f"--missing {self.missing}: expected {', '.join(POLICIES)}")
        if self.dtype not in ("float32", "float64"):
            raise UsageError(f"--dtype {self.dtype}: expected float32 or float64")
        if self.hash_bits is not None and not 1 <= self.hash_bits <= MOST_BITS:
            raise UsageError(f"--hash {self.hash_bits}: expected 1 to {MOST_BITS} bits")
        if self.hash_bits is not None and (self.drop_first or self.reference):
            option = "--drop-first" if self.drop_first else "--reference"
            raise UsageError(f"{option} does not go with --hash: hashed categories have no levels")

    def extras(self) -> dict[str, str]:
        """Dataset -> raw column."""
        named = {"sample_weight": self.weight, "offset": self.offset, "key": self.key}
        return {vector: name for vector, name in named.items() if name is not None}

    def refuse_columns(self, why: str) -> None:
        """UsageError if anything was said about columns."""
        said = {
            "--target": self.target, "--hash": self.hash_bits, "--weight": self.weight, "--offset": self.offset,
            "--key": self.key, "--drop": self.drop or None, "--categorical": self.categorical or None,
            "--drop-first": self.drop_first or None, "--reference": self.reference or None,
        }  # fmt: skip
        for name, value in said.items():
            if value is not None:
                raise UsageError(f"{why}, so {name} does not go with it")


class Tally:
    """What the first pass learns of one column. kind: number, category, key, or text while it is to be found out."""

    def __init__(self, name: str, kind: str, dtype: str, collect: bool) -> None:
        self.name, self.kind, self.missing = name, kind, Missing()
        self.guess = self.note = ""
        self.rows = self.nonzeros = 0
        self.rounded = False  # whole numbers that the dtype of X cannot hold
        self.values: set[str] = set()
        self.mean = ExactSum()
        self.problem: DataError | None = None
        self._dtype, self._collect = dtype, collect

    def add(self, block: Block) -> None:
        self.rows += block.rows
        if self.kind == "text":
            self._look(block)
        if self.note:
            return
        if self.kind == "number" or (self.kind == "text" and self.guess in ("number", "boolean")):
            gone = self._add_numbers(block)
        else:
            text = to_text(block.columns[self.name])
            gone = absent(text)
            self.nonzeros += int(gone.size - gone.sum())
            if self.kind == "category" or self.guess == "category":
                self._gather(text)
        self.missing.add(self.name, gone, block)

    def _add_numbers(self, block: Block) -> Array:
        try:
            values = read_numbers(block, self.name, self._dtype)
        except DataError as error:
            # Not raised yet: if text follows, the column is a category and its numbers are all right.
            self.problem = self.problem or error
            values = np.zeros(block.rows)
        gone = np.isnan(values)
        there = values[~gone]
        self.mean.add(there)
        self.nonzeros += int(np.count_nonzero(there))
        self.rounded = self.rounded or bool(np.any((there.astype(self._dtype) != there) & (there == np.rint(there))))
        return gone

    def _look(self, block: Block) -> None:
        text = block.columns[self.name]
        if not self.guess:
            there = text.drop_null()
            if len(there) == 0:
                return
            self.guess = next((kind for kind in GUESSES if first_misfit(kind, there.slice(0, 1)) < 0), "category")
        bad = first_misfit(self.guess, text) if self.guess != "category" else -1
        if bad >= 0 and not self.note:
            self.note = f"{block.where(bad)}: column {self.name!r} is {text[bad].as_py()!r}"

    def _gather(self, text: Any) -> None:
        if self._collect:
            self.values.update(text.unique().drop_null().to_pylist())
        if len(self.values) > MOST_CATEGORIES:
            raise DataError(
                f"column {self.name!r} is text with more than {MOST_CATEGORIES:,} different values: "
                f"hash them with --hash BITS, or leave it out with --drop {self.name}"
            )

    def settle(self) -> str:
        """The kind, once all rows were seen: number, category, key or time."""
        if self.kind != "text":
            return self.kind
        return {"boolean": "number", "": "number"}.get(self.guess, self.guess)


def fit(sources: Sequence[Source], options: Options, tick: Callable[[int], None]) -> tuple[Encoding, list[str]]:
    """The encoding of these files, and notes for the user. DataError or UsageError if they do not fit the options."""
    kinds = agree(sources)
    if options.target is None:
        raise UsageError(f"--target COLUMN is needed, or --like FILE for new data; the columns are {listed(list(kinds), 30)}")
    special = [options.target, *options.extras().values()]
    _check_names(sources[0].path, kinds, special, options)
    kinds = {name: kind for name, kind in kinds.items() if name not in options.drop}
    tallies, notes = _survey(sources, _roles(sources[0].path, kinds, options), options, tick)
    _refuse_times([name for name, tally in tallies.items() if tally.settle() == "time"])
    missing = Missing()
    for tally in tallies.values():
        missing.join(tally.missing)
    missing.check(options.missing, special)
    features = [tally for name, tally in tallies.items() if name not in special]
    if not features:
        raise UsageError(f"{sources[0].path}: no column is left besides {listed(special)}")
    kinds = {tally.name: tally.settle() for tally in features}
    values = {
        tally.name: tally.values if kinds[tally.name] == "category" else None for tally in features
    }  # fmt: skip
    levels = levels_of(values, options.drop_first, options.reference)
    missing.check_levels(options.missing, list(levels))
    notes += describe(levels, options.drop_first)
    for tally in features:
        if tally.rounded and tally.settle() == "number":
            notes.append(f"column {tally.name!r} has whole numbers that {options.dtype} rounds: --dtype float64 keeps them")
    return _encoding(features, tallies[options.target], levels, options), notes


def _encoding(features: list[Tally], target: Tally, levels: Levels, options: Options) -> Encoding:
    hashed = options.hash_bits is not None and any(tally.settle() == "category" for tally in features)
    if hashed:  # numbers first: the slots follow them
        features.sort(key=lambda tally: tally.settle() == "category")
    columns = tuple(_column(tally, options.hash_bits, levels.get(tally.name)) for tally in features)
    width = sum(len(column.feature_names()) for column in columns if column.kind != "hash")
    if hashed and options.hash_bits is not None:
        width += 1 << options.hash_bits
    if width == 0:
        named = listed(list(levels.values()))
        raise UsageError(f"no column is left: each has one level alone, the reference ({named})")
    # Of reference levels too, whose rows are not counted: only the layout depends on it.
    filled = sum(_filled(tally, options.missing) for tally in features)
    return Encoding(
        format="table", features=width, columns=columns, extras=options.extras(), missing=options.missing,
        target=Target(target.name, tuple(sorted(target.values)) if target.settle() == "category" else None),
        hash_bits=options.hash_bits, dtype=options.dtype, layout=choose_layout(filled, target.rows, width),
    )  # fmt: skip


def choose_layout(nonzeros: int, rows: int, width: int) -> str:
    """csr or dense."""
    return "csr" if width > NARROW and nonzeros < SPARSE * rows * width else "dense"


def agree(sources: Sequence[Source]) -> dict[str, str]:
    """Column -> kind over all files; DataError that names file and column where one differs from the first file."""
    first = sources[0].path
    known = sources[0].kinds()
    for source in sources[1:]:
        kinds = source.kinds()
        for name in known:
            if name not in kinds:
                raise DataError(no_column(source.path, name, list(kinds), f" as in {first}"))
        for name, kind in kinds.items():
            if name not in known:
                raise DataError(f"{source.path}: column {name!r} is not in {first}")
            if known[name] == "null":  # a Parquet column without any value
                known[name] = kind
            if kind not in ("null", known[name]):
                raise DataError(f"{source.path}: column {name!r} is {kind}, but {known[name]} in {first}")
    return known


def _check_names(path: str, kinds: Mapping[str, str], special: Sequence[str], options: Options) -> None:
    for name in (*special, *options.drop, *options.categorical, *options.reference):
        if name not in kinds:
            raise UsageError(no_column(path, name, list(kinds)))
    for name in special:
        if special.count(name) > 1 or name in options.drop:
            raise UsageError(f"column {name!r} has two uses: --target, --weight, --offset, --key and --drop name different ones")
    for name, level in options.reference.items():
        if name in special or name in options.drop:
            raise UsageError(f"--reference {name}={level}: the column is not one of the features")


def _roles(path: str, kinds: Mapping[str, str], options: Options) -> dict[str, str]:
    """Column -> the kind that the first pass is to take it for; times and compound types are refused."""
    roles = {name: "number" if kind == "null" else kind for name, kind in kinds.items()}
    roles |= dict.fromkeys(options.categorical, "category")
    numeric = {name: "number" for vector, name in options.extras().items() if vector != "key"}
    roles |= numeric | ({options.key: "key"} if options.key else {})
    _refuse_times([name for name, kind in roles.items() if kind == "time"])
    for name, kind in roles.items():
        if kinds[name] not in ("text", "number", "category", "time", "null") or kind not in ("text", "number", "category", "key"):
            raise DataError(f"{path}: column {name!r} holds {kinds[name]}: leave it out with --drop {name}")
    return roles


def _refuse_times(names: Sequence[str]) -> None:
    if names:
        raise DataError(
            f"dates or times in {', '.join(map(repr, names))}: leave out with --drop {' '.join(names)}, "
            f"or treat as categories with --categorical {' '.join(names)}"
        )


def _survey(
    sources: Sequence[Source], roles: Mapping[str, str], options: Options, tick: Callable[[int], None]
) -> tuple[dict[str, Tally], list[str]]:
    tallies = _read(sources, roles, options, tick)
    changed = {name: tally.note for name, tally in tallies.items() if tally.note}
    if options.target in changed:
        name, was = options.target, tallies[str(options.target)].guess
        raise DataError(f"{changed[name]}, expected a {was} as before it (class names? then --categorical {name})")
    problem = next((tally.problem for tally in tallies.values() if tally.problem and not tally.note), None)
    if problem:
        raise problem
    # Their values before the first text one were not collected, so these columns are read again.
    if changed:
        tallies |= _read(sources, dict.fromkeys(changed, "category"), options, tick)
    return tallies, [f"{note}: the column is read as categories" for note in changed.values()]


def _read(sources: Sequence[Source], roles: Mapping[str, str], options: Options, tick: Callable[[int], None]) -> dict[str, Tally]:
    vectors = [options.target, options.weight, options.offset]
    tallies = {}
    for name, kind in roles.items():
        collect = options.hash_bits is None or name == options.target
        tallies[name] = Tally(name, kind, "float64" if name in vectors else options.dtype, collect)
    rows = 0
    for source in sources:
        for block in source.blocks(list(roles)):
            for tally in tallies.values():
                tally.add(block)
            rows += block.rows
            tick(rows)
    if rows == 0:
        raise DataError(f"{sources[0].path}: no data rows")
    return tallies


def _column(tally: Tally, hash_bits: int | None, reference: str | None) -> Column:
    if tally.settle() == "number":
        return Column(tally.name, "number", mean=tally.mean.mean())
    if hash_bits is not None:
        return Column(tally.name, "hash")
    categories = tuple(sorted(tally.values))
    return Column(tally.name, "category", categories=categories, reference=reference)


def _filled(tally: Tally, missing: str) -> int:
    """How many non-zeros a column will have."""
    with_mean = missing == "mean" and tally.settle() == "number" and tally.mean.mean()
    return tally.nonzeros + (tally.missing.count(tally.name) if with_mean else 0)
