"""Command-line arguments: the parser, the groups of options, and options made from `Config`.

The fields of `mpigd.config.schema.Config` hold the help text, the group and the default of each
training option. A command adds the fields that it needs with `add_options`, and its own options to
the groups that `option_groups` returns.
"""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Sequence
from typing import Any, get_args

from mpigd.config.schema import FIELDS, GROUPS, TYPES
from mpigd.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError and names the most similar option."""

    def error(self, message: str) -> Any:
        """Raise UsageError, where argparse would print the usage and exit."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but raise UsageError for an unknown option like a known one."""
        known, rest = super().parse_known_args(args, namespace)
        for word in rest:
            near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, 1)
            if word.startswith("-") and near:
                raise UsageError(
                    f"unknown option {word}: did you mean {near[0]}? (see {self.prog} --help)"
                )
        return known, rest


def option_groups(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the groups of options of `parser` by name, and create them at the first call.

    Every option of a command belongs to one of `mpigd.config.schema.GROUPS`. ``--help`` shows the
    groups in that order and leaves out those without options.
    """
    titles = {name: f"{name} ({about})" for name, about in GROUPS.items()}
    known = {group.title: group for group in parser._action_groups}
    return {
        name: known.get(title) or parser.add_argument_group(title) for name, title in titles.items()
    }


def help_text(name: str) -> str:
    """Return the help text of the field `name` with its default, escaped for argparse."""
    field = FIELDS[name]
    text = str(field.metadata["help"])
    if field.default is not None and not isinstance(field.default, bool | tuple):
        shown = (
            f"{field.default:g}".replace("e-0", "e-")
            if isinstance(field.default, float)
            else field.default
        )
        text += f" (default: {shown})"
    return text.replace("%", "%%")


def add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add an option for each of these fields of `Config` to its group.

    An option that is not given on the command line is absent from the parsed result, so that the
    environment, the TOML file or the default can supply its value.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        The parser of a command.
    names : sequence of str
        Names of fields of `Config`.
    """
    groups = option_groups(parser)
    for name in names:
        field, spelling = FIELDS[name], name.replace("_", "-")
        limits = field.metadata
        group = groups[limits["group"]]
        kinds = (
            get_args(TYPES[name]) if isinstance(TYPES[name], types.UnionType) else (TYPES[name],)
        )
        common: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": help_text(name),
        }
        if kinds[0] is bool:
            flag = f"--no-{spelling}" if field.default else f"--{spelling}"
            group.add_argument(
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
        group.add_argument(*flags, metavar=shown, **many, **common)
