"""What `mpigd evaluate` and `mpigd predict` take on the command line."""

from __future__ import annotations

import argparse

from mpigd.commands.arguments import add_options

ALLOWED = ("allow_links", "allow_unwritten", "allow_duplicates")
DATA = "HDF5 files, or raw tables encoded like the training data"


def _policies(sub: argparse.ArgumentParser, missing: tuple[str, ...]) -> None:
    group = sub.add_argument_group(
        "raw tables (in place of what the import of the training data said)"
    )
    group.add_argument("--missing", choices=missing, default=None, help="missing values")
    group.add_argument(
        "--unseen", choices=("error", "zero", "other"), default=None,
        help="levels that the training data did not have: refuse, no column (zeros), or that of rare levels",
    )  # fmt: skip
    group.add_argument(
        "--on-bad-row", choices=("error", "skip"), default="error",
        help="a row that cannot be encoded: end, or leave it out and name it",
    )  # fmt: skip


def evaluate_arguments(sub: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `mpigd evaluate`."""
    sub.add_argument("model")
    sub.add_argument("data", nargs="+", help=DATA)
    sub.add_argument("--json", action="store_true", help="one JSON object with the metrics")
    _policies(sub, ("refuse", "mean", "zero", "drop"))
    add_options(sub, ["x", "y", "partition", *ALLOWED])


def predict_arguments(sub: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `mpigd predict`."""
    sub.add_argument("model")
    sub.add_argument("data", nargs="+", help=DATA)
    sub.add_argument(
        "-o", "--output", default="predictions.h5", help="the HDF5 file to write (predictions.h5)"
    )
    sub.add_argument("--csv", nargs="?", const="", default=None, metavar="FILE", help="also as CSV")
    sub.add_argument(
        "--parquet",
        nargs="?",
        const="",
        default=None,
        metavar="FILE",
        help="also as Parquet; needs pyarrow",
    )
    sub.add_argument(
        "--with-source",
        action="store_true",
        help="the file of each row, and its data row there, from 0",
    )
    _policies(sub, ("refuse", "mean", "zero"))
    add_options(sub, ["x", "y", *ALLOWED])
