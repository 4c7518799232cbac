"""How raw columns become numbers: what is stored with the data and the model, and doing it, block
by block.

A number is one column; a category is one column for each of its values (all of them: the penalty
settles what is collinear; or all but a reference level, whose rows have zeros), or, hashed, a sign
in one of 2**bits slots that all categories share and that follow the numbers. A missing category is
no category: zeros, which a column with a reference level has no room for.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpigd.errors import DataError

VERSION = 1
WITH_REFERENCE = 2  # of encodings that a program of version 1 would take for those of all levels
WITH_FORMS = 3  # of those that say more: how text is written, dates, what to do with unseen levels
KINDS = ("number", "category", "hash", "date")
UNSEEN = ("error", "zero", "other")
OTHER = "<other>"  # the level of rare categories
SHOWN = 6  # columns or categories listed in a message


@dataclass(frozen=True)
class Column:
    """A raw column that becomes features. kind: number, category (with its values, ascending), hash
    or date.

    reference: the category that has no column of its own. adorned: numbers with signs of currency or
    percent around them, which are left out. by_meaning: whether hashed texts are those that
    spelling.meaning gives. parts: of a date, by name ("year", "month", ...), one
    feature each; format: how a date is written (as for strptime), None for ISO 8601. rare: the other
    categories of the training data, which share one column, NAME=<other>; None without that column.
    """

    name: str
    kind: str
    categories: tuple[str, ...] | None = None
    mean: float | None = None  # of the values that are there, for --missing mean
    reference: str | None = None
    adorned: bool = False
    by_meaning: bool = False
    parts: tuple[str, ...] | None = None
    format: str | None = None
    rare: tuple[str, ...] | None = None

    def feature_names(self) -> list[str]:
        if self.parts is not None:
            return [f"{self.name}.{part}" for part in self.parts]
        if self.categories is None:
            return [self.name]
        levels = [*self.categories, *([OTHER] if self.rare is not None else [])]
        return [f"{self.name}={value}" for value in levels if value != self.reference]


@dataclass(frozen=True)
class Target:
    """The column to be predicted; for text its classes, ascending: y holds their positions."""

    name: str
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything needed to encode new raw files like the first ones.

    features: how many columns X has. extras: sample_weight, offset, key, id -> raw column.
    zero_based: svmlight only. unseen: what becomes of a category that the training data did not have.
    infinite: whether infinities count as missing. csv: how CSV files are written, as far as it is not
    the usual way: options of mpigd.tables.csv_reader.Dialect. lists: nested column -> how many plain
    ones it became.
    """

    format: str  # "table" or "svmlight"
    features: int
    columns: tuple[Column, ...] = ()
    target: Target | None = None
    extras: Mapping[str, str] = field(default_factory=dict)
    missing: str = "refuse"
    hash_bits: int | None = None
    dtype: str = "float32"
    layout: str = "dense"
    zero_based: bool = False
    unseen: str = "error"
    infinite: bool = False
    csv: Mapping[str, Any] = field(default_factory=dict)
    lists: Mapping[str, int] = field(default_factory=dict)

    @property
    def hashed(self) -> bool:
        """Whether some categories are hashed."""
        return any(column.kind == "hash" for column in self.columns)

    @property
    def feature_names(self) -> list[str] | None:
        """The d names, a category's as column=value; None where they are hashed or the file had none."""
        if self.format == "svmlight" or self.hashed:
            return None
        return [name for column in self.columns for name in column.feature_names()]

    def starts(self) -> tuple[list[int], int]:
        """Where each column's features begin; and where the slots of hashed ones do, behind all."""
        starts, width = [], 0
        for column in self.columns:
            starts.append(width)
            width += len(column.feature_names()) if column.kind != "hash" else 0
        return starts, width

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. What has its default is left out where version 1 did not have it,
        so that programs of before read whatever they can."""
        stored = dict(vars(self)) | {"version": VERSION, "feature_names": self.feature_names}
        stored["columns"] = [dict(vars(column)) for column in self.columns]
        stored["target"] = self.target and dict(vars(self.target))
        new = Encoding(format="", features=0)
        for name in ("unseen", "infinite", "csv", "lists"):
            _leave_out(stored, name, getattr(new, name), stored, WITH_FORMS)
        for column in stored["columns"]:
            _leave_out(column, "reference", None, stored, WITH_REFERENCE)
            for name in ("adorned", "by_meaning"):
                _leave_out(column, name, False, stored, WITH_FORMS)
            for name in ("parts", "format", "rare"):
                _leave_out(column, name, None, stored, WITH_FORMS)
        return stored

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> Encoding:
        """The inverse of to_dict. DataError for another version, or for what is no encoding."""
        version = stored.get("version")
        if version not in (VERSION, WITH_REFERENCE, WITH_FORMS):
            known = f"this program reads {VERSION} to {WITH_FORMS}"
            raise DataError(f"the stored encoding has version {version}, {known}: import anew")
        plain = {
            key: value for key, value in stored.items() if key not in ("version", "feature_names")
        }
        try:
            target = plain.pop("target")
            columns = tuple(
                Column(**_frozen(column, "categories", "parts", "rare"))
                for column in plain.pop("columns")
            )
            if any(column.kind not in KINDS for column in columns):
                raise KeyError("kind")
            for column in columns:
                if column.reference not in (None, *(column.categories or ())):
                    raise KeyError("reference")
            return Encoding(
                columns=columns, target=target and Target(**_frozen(target, "classes")), **plain
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"the stored encoding is damaged ({error}): import anew") from error


def _leave_out(
    part: dict[str, Any], name: str, default: Any, whole: dict[str, Any], version: int
) -> None:
    """Drop a value that is its default; else the whole needs a program of `version`."""
    if part[name] == default:
        del part[name]
    else:
        whole["version"] = max(whole["version"], version)


def _frozen(stored: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    lists = {key: tuple(stored[key]) for key in keys if stored.get(key) is not None}
    return {**stored, **lists}


def references(stored: Mapping[str, Any]) -> dict[str, str]:
    """Column -> reference level, of an encoding as it is stored."""
    columns = stored.get("columns") or ()
    levels = {str(column["name"]): column.get("reference") for column in columns}
    return {name: str(level) for name, level in levels.items() if level is not None}


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Some of the names, for a message."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def no_column(path: str, name: str, present: Sequence[str], why: str = "") -> str:
    """The message for a column that is not there, with the nearest one that is."""
    near = difflib.get_close_matches(name, present, 1)
    return f"{path}: no column {name!r}{why}; " + (
        f"did you mean {near[0]!r}?" if near else f"it has {listed(present)}"
    )
