"""The command `mpigd import`: its arguments, and the call of import_data."""

from __future__ import annotations

import argparse

from mpigd.errors import UsageError
from mpigd.parallel.standard_streams import put, say


def import_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `mpigd import` to a parser, in groups.

    Their names are those of the options of `mpigd.tables.importer.import_data`.
    """
    sub.add_argument(
        "source",
        nargs="+",
        help="files, folders of Parquet parts, or globs: one data set, in this order",
    )
    sub.add_argument("-o", "--output", help="the HDF5 file to write")
    sub.add_argument(
        "--dry-run",
        nargs="?",
        type=int,
        const=0,
        default=None,
        metavar="ROWS",
        help="write nothing; print what would become of each column, from all rows or the first "
        "ROWS",
    )
    sub.add_argument(
        "--like", metavar="FILE", help="encode as this imported file, or this model's data, was"
    )
    sub.add_argument(
        "--format",
        choices=("csv", "parquet", "arrow", "orc", "svmlight"),
        help="default: from the file name",
    )
    sub.add_argument(
        "--allow-duplicates",
        action="store_true",
        default=argparse.SUPPRESS,
        help="read a file again that is named again",
    )
    _roles(sub.add_argument_group("columns"))
    _values(sub.add_argument_group("values"))
    _csv(sub.add_argument_group("how CSV files are written"))
    _svmlight(sub.add_argument_group("how svmlight files are written"))


class Group:
    """Adds arguments that appear in the result only if they are given on the command line."""

    def __init__(self, group: argparse._ActionsContainer) -> None:
        self._group = group

    def add(self, *flags: str, **kind: object) -> None:
        self._group.add_argument(
            *flags,
            default=argparse.SUPPRESS,
            **kind,  # type: ignore[arg-type]
        )


def _roles(group: argparse._ArgumentGroup) -> None:
    add, several = Group(group).add, dict(nargs="+", metavar="COLUMN")
    add("--target", help="the column to be predicted: numbers, or classes as text")
    add("--weight", help="the column of sample weights")
    add("--offset", help="the column added to the linear predictor")
    add("--key", help="the column that the hash partition uses")
    add("--id", help="a column to keep beside the data, and beside predictions")
    add("--drop", help="columns to leave out", **several)
    add(
        "--text",
        "--categorical",
        dest="categorical",
        help="columns that are categories, whatever they look like",
        **several,
    )
    add(
        "--number",
        help="columns that are numbers; signs of currency and percent around them are left out",
        **several,
    )
    add(
        "--date",
        nargs="+",
        metavar="COLUMN[=FORMAT]",
        help="columns of dates or times, which become year, month, day, weekday, hour, minute and "
        "second; FORMAT as for strptime (%%m/%%d/%%Y), by default ISO 8601",
    )


def _values(group: argparse._ArgumentGroup) -> None:
    add = Group(group).add
    add(
        "--missing",
        choices=("refuse", "mean", "zero", "drop"),
        help="missing values: refuse, fill in the mean or zero, or drop the row",
    )
    add(
        "--infinite",
        choices=("refuse", "missing"),
        help="infinities: refuse, or take them for missing values",
    )
    add(
        "--unseen",
        choices=("error", "zero", "other"),
        help="levels of categories that only later data have: refuse, no column (zeros), or that "
        "of rare levels",
    )
    add(
        "--min-count",
        type=int,
        metavar="N",
        help="levels of fewer than N rows share one column, NAME=<other>",
    )
    add(
        "--hash",
        type=int,
        dest="hash_bits",
        metavar="BITS",
        help="hash categories into 2**BITS columns",
    )
    add(
        "--drop-first",
        action="store_true",
        help="no column for the first level (by its text) of each category: its rows have zeros",
    )
    add(
        "--reference",
        action="append",
        metavar="COLUMN=LEVEL",
        help="no column for that level of that category; may be repeated, goes before --drop-first",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "float64"),
        help="of the stored numbers; auto: float32, unless a column needs more digits",
    )


def _svmlight(group: argparse._ArgumentGroup) -> None:
    add = Group(group).add
    add(
        "--features",
        type=int,
        metavar="N",
        help="how many there are; default: up to the highest index",
    )
    add(
        "--zero-based",
        action="store_true",
        dest="zero_based",
        help="indices count from 0; default: from 1, unless one is 0",
    )
    add("--one-based", action="store_false", dest="zero_based", help="indices count from 1")


def _csv(group: argparse._ArgumentGroup) -> None:
    add = Group(group).add
    add(
        "--delimiter",
        metavar="MARK",
        help="between values; default a comma, in .tsv files a tab (or the word tab)",
    )
    add("--quote", metavar="MARK", help="around values; none if nothing is quoted")
    add("--escape", metavar="MARK", help="before a mark that is part of a value")
    add("--comment", metavar="TEXT", help="lines that begin with TEXT are left out")
    add(
        "--encoding",
        metavar="NAME",
        help="of the text, as Python names it (cp1252, latin-1, utf-16); default utf-8",
    )
    add("--decimal", metavar="MARK", help="the decimal mark of numbers")
    add("--thousands", metavar="MARK", help="the mark between groups of three digits")
    add(
        "--na",
        nargs="+",
        metavar="TEXT",
        help="texts that are missing values, besides NA, NaN, NULL, None, N/A, n/a, #N/A and "
        "nothing",
    )
    add(
        "--no-default-na",
        action="store_false",
        dest="default_na",
        help="only the texts of --na are missing values",
    )
    add(
        "--no-header",
        action="store_false",
        dest="header",
        help="the first line is data; columns are c0, c1, ...",
    )
    add(
        "--header",
        action="store_true",
        dest="header",
        help="the first line has names, even if they are numbers",
    )
    add(
        "--rename-duplicates",
        action="store_true",
        help="a name that comes again becomes NAME.1, NAME.2, ...",
    )


def import_command(arguments: argparse.Namespace) -> int:
    from mpigd.tables.importer import import_data, preview

    options = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("command", "run", "source", "output", "dry_run")
    }
    if arguments.dry_run is not None:
        if options.pop("like") is not None:
            raise UsageError("--dry-run is not for --like: the columns become what they were there")
        table, error = preview(arguments.source, arguments.dry_run or None, **options)
        put(table)
        if error is not None:
            raise error
        return 0
    if arguments.output is None:
        raise UsageError("-o FILE is needed: the HDF5 file to write (or --dry-run)")

    def show(rows: int) -> None:
        say(f"{rows:,} rows\n")

    done = import_data(arguments.source, arguments.output, progress=show, **options)
    if done.table:
        say(f"{done.table}\n")
    for note in done.notes:
        say(f"note: {note}\n")
    dropped = f", {done.dropped:,} rows dropped" if done.dropped else ""
    say(f"{done.path}: {done.rows:,} rows x {done.features:,} columns, {done.layout}{dropped}\n")
    return 0
