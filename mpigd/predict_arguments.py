"""What `mpigd evaluate` and `mpigd predict` take on the command line."""

from __future__ import annotations

import argparse

from mpigd.options import add_options

ALLOWED = ("allow_links", "allow_unwritten", "allow_duplicates")
DATA = "HDF5 files, or raw tables encoded like the training data"


def evaluate_arguments(sub: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `mpigd evaluate`."""
    sub.add_argument("model")
    sub.add_argument("data", nargs="+", help=DATA)
    sub.add_argument("--json", action="store_true", help="one JSON object with the metrics")
    add_options(sub, ["x", "y", "partition", *ALLOWED])


def predict_arguments(sub: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `mpigd predict`."""
    sub.add_argument("model")
    sub.add_argument("data", nargs="+", help=DATA)
    sub.add_argument("-o", "--output", default="predictions.h5", help="the HDF5 file to write (predictions.h5)")
    sub.add_argument("--csv", nargs="?", const="", default=None, metavar="FILE", help="also as CSV")
    sub.add_argument("--parquet", nargs="?", const="", default=None, metavar="FILE", help="also as Parquet; needs pyarrow")
    sub.add_argument("--with-source", action="store_true", help="the file of each row, and its data row there, from 0")
    add_options(sub, ["x", "y", *ALLOWED])
