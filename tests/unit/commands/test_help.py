"""The help of every command: each option has a group, a whole phrase, its default and its unit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import fields

import pytest

from mpigd.commands.arguments import Parser, help_text, option_groups
from mpigd.commands.parser import parser
from mpigd.config.schema import FIELDS, GROUPS
from mpigd.tables.csv_reader import Dialect
from mpigd.tables.import_options import Options

# The unit that the help of a number, a size or a time names; "" for a pure number.
UNITS = {
    "--batch-size": "rows",
    "--check-replicas": "steps",
    "--checkpoint-every": "steps",
    "--clip": "",
    "--delta": "units of the target",
    "--dry-run": "rows",
    "--epochs": "passes over the data",
    "--features": "features",
    "--folds": "parts",
    "--hang-timeout": "seconds",
    "--hash": "bits",
    "--l1": "",
    "--l2": "",
    "--learning-rate": "",
    "--max-memory": "bytes",
    "--max-time": "seconds",
    "--min-count": "rows",
    "--min-ranks": "ranks",
    "--momentum": "",
    "--network": "seconds",
    "--nodes": "nodes",
    "--patience": "validations",
    "--quantile": "",
    "--ranks": "ranks",
    "--seed": "",
    "--threads": "threads",
    "--time": "seconds",
    "--tol": "",
    "--validate-every": "steps",
    "--warmup": "steps",
}
# The defaults of options that are absent from the parsed result if they are not given.
DEFAULTS = {
    "": {name: field.default for name, field in FIELDS.items()},
    "import": {field.name: field.default for kind in (Options, Dialect) for field in fields(kind)},
}
QUANTITIES = {"--max-memory", "--max-time", "--time", "--network"}  # numbers that are texts


def commands() -> dict[str, argparse.ArgumentParser]:
    top = parser()
    (action,) = [act for act in top._actions if isinstance(act, argparse._SubParsersAction)]
    return dict(action.choices)


def options(sub: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option except --help."""
    for action in sub._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            yield action


def name_of(action: argparse.Action) -> str:
    """The first long name of an option."""
    return next(text for text in action.option_strings if text.startswith("--"))


def shown(action: argparse.Action) -> str:
    """The help as a user sees it."""
    return (action.help or "").replace("%%", "%")


every_command = pytest.mark.parametrize("command", sorted(commands()))


@every_command
def test_every_option_is_in_one_of_the_five_groups(command: str) -> None:
    sub = commands()[command]
    grouped = []
    for group in sub._action_groups:
        members = [act for act in group._group_actions if act in set(options(sub))]
        if members:
            assert str(group.title).partition(" (")[0] in GROUPS, [name_of(act) for act in members]
        grouped += members
    assert set(grouped) == set(options(sub))


def test_the_groups_are_five_and_train_has_them_in_this_order() -> None:
    assert list(GROUPS) == ["problem", "data", "optimiser", "run", "failures"]
    for command in ("train", "cv", "plan"):
        headings = re.findall(r"^(\w+) \(.*\):$", commands()[command].format_help(), re.MULTILINE)
        assert headings == list(GROUPS), command
    assert {field.metadata["group"] for field in FIELDS.values()} == set(GROUPS)


def test_groups_are_made_once() -> None:
    sub = Parser(prog="x")
    first = option_groups(sub)
    assert all(group is first[name] for name, group in option_groups(sub).items())


@every_command
def test_a_help_text_is_a_phrase(command: str) -> None:
    for action in options(commands()[command]):
        text = shown(action).partition(" (default:")[0]
        assert text[:1].isalpha(), text
        assert len(text.split()) >= 4, text
        assert not text.endswith("."), text


@every_command
def test_a_help_text_names_the_default(command: str) -> None:
    """Every value that may be left out has a default, if only "no file"; a flag is off."""
    for action in options(commands()[command]):
        if action.nargs == 0 or action.required:
            continue
        defaults = re.findall(r"\(default: ([^()]+)\)$", shown(action))
        assert len(defaults) == 1, (name_of(action), shown(action))
        real = action.default
        if real == argparse.SUPPRESS:
            real = DEFAULTS["import" if command == "import" else ""][action.dest]
        if isinstance(real, int | float) and not isinstance(real, bool):
            assert float(defaults[0]) == real, name_of(action)
        elif isinstance(real, str) and real:
            assert defaults[0] == real, name_of(action)


@every_command
def test_a_help_text_names_the_unit(command: str) -> None:
    """A new option that takes a number needs an entry in UNITS."""
    for action in options(commands()[command]):
        kind = "" if action.dest not in FIELDS else str(FIELDS[action.dest].type)
        number = "int" in kind or "float" in kind or action.type is not None
        if number or name_of(action) in QUANTITIES:
            assert UNITS[name_of(action)] in shown(action), name_of(action)


@pytest.mark.parametrize("command", sorted(commands()))
def test_positional_arguments_have_help_too(command: str) -> None:
    for action in commands()[command]._actions:
        assert len(shown(action).split()) >= 3, action.dest


def test_a_percent_sign_and_the_default_survive_argparse(monkeypatch: pytest.MonkeyPatch) -> None:
    field = FIELDS["tol"]
    monkeypatch.setattr(field, "metadata", {**field.metadata, "help": "part of 100 % that is left"})
    assert help_text("tol") == "part of 100 %% that is left (default: 1e-6)"
