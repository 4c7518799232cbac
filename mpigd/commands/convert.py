"""The command `mpigd convert`, which rewrites an HDF5 file of another program for training."""

from __future__ import annotations

import argparse

from mpigd.commands.arguments import add_options, option_groups
from mpigd.config.schema import FIELDS, resolve
from mpigd.parallel.launcher import elsewhere
from mpigd.parallel.standard_streams import say


def convert_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `mpigd convert` to its parser."""
    groups = option_groups(sub)
    sub.add_argument("data", help="HDF5 file of another program")
    groups["run"].add_argument(
        "-o", "--output", required=True, help="HDF5 file to write, in the layout for training"
    )
    groups["data"].add_argument(
        "--transpose",
        action="store_true",
        help="turn rows into columns, as matrices of R and Julia need",
    )
    groups["data"].add_argument(
        "--missing",
        choices=("refuse", "drop"),
        default="refuse",
        help="what to do with rows that have missing values: refuse the file, or drop the rows "
        "(default: refuse)",
    )
    add_options(sub, ["x", "y", "allow_links", "allow_unwritten"])


def convert_command(arguments: argparse.Namespace) -> int:
    config = resolve({name: value for name, value in vars(arguments).items() if name in FIELDS})[0]
    if elsewhere():
        return 0
    from mpigd.data.convert import convert

    how = arguments.transpose, arguments.missing, config.allow_links, config.allow_unwritten
    done = convert(arguments.data, arguments.output, config.x, config.y, *how)
    dropped = f", {done.dropped:,} rows dropped" if done.dropped else ""
    say(f"{done.path}: {done.rows:,} rows x {done.columns:,} columns, {done.layout}{dropped}\n")
    return 0
