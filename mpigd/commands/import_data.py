"""The command `mpigd import`: its arguments, and the call of import_data."""

from __future__ import annotations

import argparse
from functools import partial

from mpigd.commands.arguments import option_groups
from mpigd.errors import UsageError
from mpigd.parallel.standard_streams import put, say


def import_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `mpigd import` to a parser, in groups.

    Their names are those of the options of `mpigd.tables.importer.import_data`. An option that is
    not given is absent from the parsed result, so that import_data has its own default.
    """
    groups = option_groups(sub)
    data, run = groups["data"], groups["run"]
    sub.add_argument(
        "source",
        nargs="+",
        help="files, folders of Parquet parts, or globs: one data set, in this order",
    )
    run.add_argument(
        "-o", "--output", help="HDF5 file to write (default: none, needed without --dry-run)"
    )
    run.add_argument(
        "--dry-run",
        nargs="?",
        type=int,
        const=0,
        default=None,
        metavar="ROWS",
        help="write nothing; print what would become of each column, from the first ROWS rows, or "
        "from all without ROWS (default: the file is written)",
    )
    data.add_argument(
        "--like",
        metavar="FILE",
        help="encode as this imported file, or this model's data, was "
        "(default: an encoding of its own)",
    )
    data.add_argument(
        "--format",
        choices=("csv", "parquet", "arrow", "orc", "svmlight"),
        help="format of the source files (default: from the file name)",
    )
    data.add_argument(
        "--allow-duplicates",
        action="store_true",
        default=argparse.SUPPRESS,
        help="read a file again that is named again",
    )
    _columns(sub.add_argument_group("data (columns of the table)"))
    _values(sub.add_argument_group("data (values of the columns)"))
    _csv(sub.add_argument_group("data (the notation of CSV files)"))
    _svmlight(sub.add_argument_group("data (the notation of svmlight files)"))


def _columns(group: argparse._ArgumentGroup) -> None:
    add = partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--target",
        metavar="COLUMN",
        help="column to be predicted: numbers, or classes as text (default: no column)",
    )
    add("--weight", metavar="COLUMN", help="column of the sample weights (default: no column)")
    add(
        "--offset",
        metavar="COLUMN",
        help="column that is added to the linear predictor (default: no column)",
    )
    add(
        "--key",
        metavar="COLUMN",
        help="column that the hash partition uses (default: no column)",
    )
    add(
        "--id",
        metavar="COLUMN",
        help="column to keep beside the data, and beside predictions (default: no column)",
    )
    several = partial(add, nargs="+", metavar="COLUMN")
    several("--drop", help="columns to leave out (default: no column)")
    several(
        "--text",
        "--categorical",
        dest="categorical",
        help="columns that are categories, whatever they look like (default: columns of text)",
    )
    several(
        "--number",
        help="columns that are numbers; signs of currency and percent around them are left out "
        "(default: columns of numbers)",
    )
    add(
        "--date",
        nargs="+",
        metavar="COLUMN[=FORMAT]",
        help="columns of dates or times, which become year, month, day, weekday, hour, minute and "
        "second; FORMAT as for strptime, like %%m/%%d/%%Y, or else ISO 8601 (default: no column)",
    )


def _values(group: argparse._ArgumentGroup) -> None:
    add = partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--missing",
        choices=("refuse", "mean", "zero", "drop"),
        help="what to do with missing values: refuse them, fill in the mean or zero, or drop the "
        "row (default: refuse)",
    )
    add(
        "--infinite",
        choices=("refuse", "missing"),
        help="what to do with infinities: refuse them, or take them for missing values "
        "(default: refuse)",
    )
    add(
        "--unseen",
        choices=("error", "zero", "other"),
        help="what to do with levels of categories that only later data have: refuse them (error), "
        "set all columns of the category to zero (zero), or use the column of rare levels (other) "
        "(default: error)",
    )
    add(
        "--min-count",
        type=int,
        metavar="N",
        help="levels of fewer than N rows share one column, NAME=<other> (default: none do)",
    )
    add(
        "--hash",
        type=int,
        dest="hash_bits",
        metavar="BITS",
        help="number of bits of a hash: categories get 2**BITS columns together "
        "(default: a column for each level)",
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
        help="no column for that level of that category; may be repeated, goes before --drop-first "
        "(default: every level has a column)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "float64"),
        help="type of the stored numbers; auto is float32, unless a column needs more digits "
        "(default: auto)",
    )


def _svmlight(group: argparse._ArgumentGroup) -> None:
    add = partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--features",
        type=int,
        metavar="N",
        help="number of features that the data have (default: up to the highest index)",
    )
    add(
        "--zero-based",
        action="store_true",
        dest="zero_based",
        help="indices count from 0, even if none is 0 (default: from 1, unless one is 0)",
    )
    add(
        "--one-based",
        action="store_false",
        dest="zero_based",
        help="indices count from 1; one that is 0 is an error",
    )


def _csv(group: argparse._ArgumentGroup) -> None:
    add = partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--delimiter",
        metavar="MARK",
        help="mark between two values, or the word tab (default: a comma, in .tsv files a tab)",
    )
    add(
        "--quote",
        metavar="MARK",
        help='mark around a value; an empty text if nothing is quoted (default: ")',
    )
    add(
        "--escape",
        metavar="MARK",
        help="mark before a mark that is part of a value (default: a quote is written twice)",
    )
    add(
        "--comment",
        metavar="TEXT",
        help="lines that begin with TEXT are left out (default: no line is)",
    )
    add(
        "--encoding",
        metavar="NAME",
        help="encoding of the text, as Python names it, like cp1252, latin-1 or utf-16 "
        "(default: utf-8)",
    )
    add("--decimal", metavar="MARK", help="decimal mark of the numbers (default: .)")
    add(
        "--thousands",
        metavar="MARK",
        help="mark between groups of three digits (default: no mark)",
    )
    add(
        "--na",
        nargs="+",
        metavar="TEXT",
        help="texts that are missing values, besides NA, NaN, NULL, None, N/A, n/a, #N/A and "
        "nothing (default: no other text)",
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
        help="the first line is data; the columns are named c0, c1 and so on",
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
        help="a name that comes again becomes NAME.1, then NAME.2 and so on",
    )


def import_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd import`: write the data set, or with --dry-run print what would become of it."""
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
