"""Arguments of the command line, made from the fields of the configuration."""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Sequence
from typing import Any, get_args

from mpigd.config.schema import FIELDS, TYPES
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
                raise UsageError(
                    f"unknown option {word}: did you mean {near[0]}? (see {self.prog} --help)"
                )
        return known, rest


def add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """An argument for each of these configuration fields; only what is given appears in the result."""
    for name in names:
        field, spelling = FIELDS[name], name.replace("_", "-")
        limits = field.metadata
        kinds = (
            get_args(TYPES[name]) if isinstance(TYPES[name], types.UnionType) else (TYPES[name],)
        )
        common: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": limits["help"].replace("%", "%%"),
        }
        if kinds[0] is bool:
            flag = f"--no-{spelling}" if field.default else f"--{spelling}"
            parser.add_argument(
                flag, action="store_false" if field.default else "store_true", **common
            )
            continue
        flags = [f"--{spelling}", *([f"--{limits['alias']}"] if limits["alias"] else [])]
        many: dict[str, Any] = {"nargs": "+"} if kinds[0] == tuple[str, ...] else {}
        shown = (
            "{" + ",".join(limits["choices"]) + "}"
            if limits["choices"]
            else spelling.upper().replace("-", "_")
        )
        if name == "class_weight":
            many = {"action": "append"}
        parser.add_argument(*flags, metavar=shown, **many, **common)
