"""Arguments of `mpigd evaluate` and `mpigd predict`, which both score a model on data."""

from __future__ import annotations

import argparse

from mpigd.commands.arguments import add_options, option_groups

ALLOWED = ("allow_links", "allow_unwritten", "allow_duplicates")
DATA = "HDF5 files, or raw tables, which are encoded like the training data"
IMPORTED = "(default: as the training data were imported)"


def _policies(sub: argparse.ArgumentParser, missing: tuple[str, ...]) -> None:
    """Add the options for rows of raw tables that do not fit the encoding of the model."""
    group = option_groups(sub)["data"]
    group.add_argument(
        "--missing",
        choices=missing,
        default=None,
        help=f"what to do with missing values in raw tables {IMPORTED}",
    )
    group.add_argument(
        "--unseen",
        choices=("error", "zero", "other"),
        default=None,
        help="what to do with levels in raw tables that the training data did not have: refuse "
        "them (error), set all columns of the category to zero (zero), or use the column of rare "
        f"levels (other) {IMPORTED}",
    )
    group.add_argument(
        "--on-bad-row",
        choices=("error", "skip"),
        default="error",
        help="what to do with a row of a raw table that cannot be encoded: stop (error), or leave "
        "it out and name it (skip) (default: error)",
    )


def evaluate_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `mpigd evaluate` to its parser."""
    sub.add_argument("model", help="model file that mpigd train wrote")
    sub.add_argument("data", nargs="+", help=DATA)
    option_groups(sub)["run"].add_argument(
        "--json", action="store_true", help="print one JSON object with the metrics"
    )
    _policies(sub, ("refuse", "mean", "zero", "drop"))
    add_options(sub, ["x", "y", "partition", *ALLOWED])


def predict_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `mpigd predict` to its parser."""
    run = option_groups(sub)["run"]
    sub.add_argument("model", help="model file that mpigd train wrote")
    sub.add_argument("data", nargs="+", help=DATA)
    run.add_argument(
        "-o",
        "--output",
        default="predictions.h5",
        help="HDF5 file for the predictions (default: predictions.h5)",
    )
    run.add_argument(
        "--csv",
        nargs="?",
        const="",
        default=None,
        metavar="FILE",
        help="write the predictions as CSV too; without FILE, next to the HDF5 file "
        "(default: no CSV file)",
    )
    run.add_argument(
        "--parquet",
        nargs="?",
        const="",
        default=None,
        metavar="FILE",
        help="write the predictions as Parquet too; without FILE, next to the HDF5 file; needs "
        "pyarrow (default: no Parquet file)",
    )
    run.add_argument(
        "--with-source",
        action="store_true",
        help="add to each prediction the file of its row and the number of the row there, from 0",
    )
    _policies(sub, ("refuse", "mean", "zero"))
    add_options(sub, ["x", "y", *ALLOWED])
