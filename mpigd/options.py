"""Arguments of the command line, made from the fields of the configuration."""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Sequence
from typing import Any, get_args

from mpigd.config import FIELDS, TYPES
from mpigd.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse that reports mistakes as our own errors, and names the option that was probably meant."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, rest = super().parse_known_args(args, namespace)
        for word in rest:
            near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, 1)
            if word.startswith("-") and near:
                raise UsageError(f"unknown option {word}: did you mean {near[0]}? (see {self.prog} --help)")
        return known, rest


def add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """An argument for each of these configuration fields; only what is given appears in the result."""
    for name in names:
        field, spelling = FIELDS[name], name.replace("_", "-")
        limits = field.metadata
        kinds = get_args(TYPES[name]) if isinstance(TYPES[name], types.UnionType) else (TYPES[name],)
        common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": limits["help"].replace("%", "%%")}
        if kinds[0] is bool:
            flag = f"--no-{spelling}" if field.default else f"--{spelling}"
            parser.add_argument(flag, action="store_false" if field.default else "store_true", **common)
            continue
        flags = [f"--{spelling}", *([f"--{limits['alias']}"] if limits["alias"] else [])]
        many: dict[str, Any] = {"nargs": "+"} if kinds[0] == tuple[str, ...] else {}
        shown = "{" + ",".join(limits["choices"]) + "}" if limits["choices"] else spelling.upper().replace("-", "_")
        parser.add_argument(*flags, metavar=shown, **many, **common)


def import_arguments(sub: argparse.ArgumentParser) -> None:
    """Give a parser what `mpigd import` takes."""
    sub.add_argument("source", nargs="+", help="files, folders of Parquet parts, or globs: one data set, in this order")
    sub.add_argument("-o", "--output", required=True, help="the HDF5 file to write")
    sub.add_argument("--target", help="the column to be predicted")
    sub.add_argument("--like", metavar="FILE", help="encode as this imported file was")
    sub.add_argument("--missing", choices=("refuse", "mean", "zero", "drop"), default="refuse", help="what to do")
    sub.add_argument("--hash", type=int, dest="hash_bits", metavar="BITS", help="hash categories into 2**BITS columns")
    sub.add_argument("--weight", help="the column of sample weights")
    sub.add_argument("--offset", help="the column added to the margin")
    sub.add_argument("--key", help="the column that the hash partition uses")
    sub.add_argument("--drop", nargs="+", default=[], metavar="COLUMN", help="columns to leave out")
    sub.add_argument("--categorical", nargs="+", default=[], metavar="COLUMN", help="number columns that are categories")
    sub.add_argument(
        "--drop-first", action="store_true",
        help="no column for the first level (by its text) of each category: its rows have zeros",
    )  # fmt: skip
    sub.add_argument(
        "--reference", action="append", default=[], metavar="COLUMN=LEVEL",
        help="no column for that level of that category; may be repeated, goes before --drop-first",
    )  # fmt: skip
    sub.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the stored numbers")
    sub.add_argument("--format", choices=("csv", "parquet", "svmlight"), help="default: from the file name")


def convert_arguments(sub: argparse.ArgumentParser) -> None:
    """Give a parser what `mpigd convert` takes."""
    sub.add_argument("data", help="one HDF5 file")
    sub.add_argument("-o", "--output", required=True, help="the HDF5 file to write")
    sub.add_argument("--transpose", action="store_true", help="rows become columns, as for matrices of R and Julia")
    sub.add_argument("--missing", choices=("refuse", "drop"), default="refuse", help="what to do with rows that miss something")
    add_options(sub, ["x", "y", "allow_links", "allow_unwritten"])
