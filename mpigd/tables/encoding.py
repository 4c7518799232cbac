"""Encoding of raw columns as features; it is stored with the data and the model.

A number becomes one feature. A category becomes one feature (0 or 1) for each of its values. All
values get one, since the penalty resolves the collinearity, or all but a reference level, whose
rows have zeros. A hashed category becomes a sign in one of 2**bits slots, which all hashed
categories share and which follow the other features.

A missing category has zeros in all features of its column. A column with a reference level cannot
encode a missing category, because zeros already mean the reference level.

The module encoder.py applies an encoding to blocks of rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpigd.errors import DataError

VERSION = 1
# Encodings with a reference level, which a program of version 1 would read as one without.
WITH_REFERENCE = 2
# Encodings with more fields: how text is written, dates, the policy for unseen levels.
WITH_FORMS = 3
KINDS = ("number", "category", "hash", "date")
UNSEEN = ("error", "zero", "other")
OTHER = "<other>"  # the level of rare categories
SHOWN = 6  # columns or categories listed in a message


@dataclass(frozen=True)
class Column:
    """A raw column and the features that it becomes.

    Attributes
    ----------
    name : str
        The name of the raw column.
    kind : str
        "number", "category", "hash" (a hashed category) or "date".
    categories : tuple of str, optional
        The values of a category, ascending.
    mean : float, optional
        The mean of the values that are present, for ``--missing mean``.
    reference : str, optional
        The level of a category that has no feature.
    adorned : bool
        Whether the numbers have currency or percent signs around them, which are removed.
    by_meaning : bool
        Whether hashed texts are first normalised by `mpigd.tables.spelling.meaning`.
    parts : tuple of str, optional
        The parts of a date ("year", "month", ...); each becomes one feature.
    format : str, optional
        How a date is written, in the directives of strptime; None for ISO 8601.
    rare : tuple of str, optional
        The categories of the training data that share one feature, NAME=<other>. None if there is
        no such feature.
    """

    name: str
    kind: str
    categories: tuple[str, ...] | None = None
    mean: float | None = None
    reference: str | None = None
    adorned: bool = False
    by_meaning: bool = False
    parts: tuple[str, ...] | None = None
    format: str | None = None
    rare: tuple[str, ...] | None = None

    def feature_names(self) -> list[str]:
        """Return the names of the features; that of a level is column=level."""
        if self.parts is not None:
            return [f"{self.name}.{part}" for part in self.parts]
        if self.categories is None:
            return [self.name]
        levels = [*self.categories, *([OTHER] if self.rare is not None else [])]
        return [f"{self.name}={value}" for value in levels if value != self.reference]


@dataclass(frozen=True)
class Target:
    """The column to be predicted.

    Attributes
    ----------
    name : str
        The name of the raw column.
    classes : tuple of str, optional
        The classes of a text column, ascending; y holds their positions. None for numbers.
    """

    name: str
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything that is needed to encode new raw files like the first ones.

    Attributes
    ----------
    format : str
        "table" (CSV, Parquet, Arrow, ORC) or "svmlight".
    features : int
        The number d of columns of X.
    columns : tuple of Column
        The raw columns in the order of their features; empty for svmlight.
    target : Target, optional
        The column to be predicted.
    extras : mapping of str to str
        The raw column of each of sample_weight, offset, key and id, if there is one.
    missing : str
        The policy for missing values: "refuse", "mean", "zero" or "drop".
    hash_bits : int, optional
        The base-2 logarithm of the number of slots for hashed categories.
    dtype : str
        The dtype of X, "float32" or "float64".
    layout : str
        The layout of X, "dense" or "csr".
    zero_based : bool
        Whether indices count from 0 (svmlight only).
    unseen : str
        The policy for categories that the training data did not have: "error", "zero" or "other".
    infinite : bool
        Whether infinities count as missing values.
    csv : mapping
        The fields of `mpigd.tables.csv_reader.Dialect` that differ from their defaults.
    lists : mapping of str to int
        The number of plain columns that each nested column became.
    """

    format: str
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
        """The d names of the features; that of a category is column=value.

        None if some categories are hashed or if the file had no names.
        """
        if self.format == "svmlight" or self.hashed:
            return None
        return [name for column in self.columns for name in column.feature_names()]

    def starts(self) -> tuple[list[int], int]:
        """Return the first feature of each column, and the first slot of hashed categories.

        The slots follow all other features.
        """
        starts, width = [], 0
        for column in self.columns:
            starts.append(width)
            width += len(column.feature_names()) if column.kind != "hash" else 0
        return starts, width

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON.

        Fields that version 1 did not have are left out if they have their default, so that older
        programs can read as many encodings as possible.
        """
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
        """Return the encoding that `to_dict` stored.

        Raises
        ------
        DataError
            If the version is unknown or `stored` is not an encoding.
        """
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
    """Remove a value that equals its default; otherwise raise the stored version to `version`."""
    if part[name] == default:
        del part[name]
    else:
        whole["version"] = max(whole["version"], version)


def _frozen(stored: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    lists = {key: tuple(stored[key]) for key in keys if stored.get(key) is not None}
    return {**stored, **lists}


def references(stored: Mapping[str, Any]) -> dict[str, str]:
    """Return the reference level of each column that has one, from a stored encoding."""
    columns = stored.get("columns") or ()
    levels = {str(column["name"]): column.get("reference") for column in columns}
    return {name: str(level) for name, level in levels.items() if level is not None}


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Return the first `most` names as text, with the total number if there are more."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def no_column(path: str, name: str, present: Sequence[str], why: str = "") -> str:
    """Return the message for a column that does not exist, with the most similar existing name.

    Parameters
    ----------
    path : str
        The file.
    name : str
        The column that was asked for.
    present : sequence of str
        The columns of the file.
    why : str
        What follows the name in the message, for example ", the target of the training data".
    """
    near = difflib.get_close_matches(name, present, 1)
    return f"{path}: no column {name!r}{why}; " + (
        f"did you mean {near[0]!r}?" if near else f"it has {listed(present)}"
    )
