"""The options of an import: their checks, and their construction from keywords."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from mpigd.errors import UsageError
from mpigd.tables.csv_reader import USUAL, Dialect
from mpigd.tables.encoding import UNSEEN
from mpigd.tables.policies import MISSING as POLICIES
from mpigd.tables.reference_levels import named_levels

MOST_BITS = 30
MOST_FEATURES = 1 << 40  # of svmlight
# The option of the command line for a field, if it is not the name of the field.
FLAGS = {
    "hash_bits": "--hash",
    "categorical": "--text",
    "zero_based": "--zero-based or --one-based",
    "header": "--header or --no-header",
    "default_na": "--no-default-na",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an import: the names of raw columns, and how to treat them.

    Attributes
    ----------
    target, weight, offset, key, id : str, optional
        The raw columns of y and of the vectors beside it.
    missing : str
        The policy for missing values: "refuse", "mean", "zero" or "drop" (the row).
    hash_bits : int, optional
        Hash categories into 2**hash_bits columns.
    drop : sequence of str
        Columns to leave out.
    categorical, number : sequence of str
        Columns that are categories, or numbers, whatever they look like.
    date : sequence of str
        Columns of dates, as NAME or NAME=FORMAT (of strptime).
    infinite : str
        "refuse" infinities or take them as "missing".
    unseen : str
        The policy for levels that only later data have: "error", "zero" or "other".
    min_count : int, optional
        Levels of fewer rows share one column; at least 2.
    dialect : Dialect
        How CSV files are written.
    dtype : str
        The dtype of X: "auto", "float32" or "float64".
    drop_first : bool
        Whether the first level of each category has no column.
    reference : mapping of str to str
        The level of a category that has no column.
    allow_duplicates : bool
        Whether a file that is named twice is read twice.
    features, zero_based : int, bool, optional
        The number of features and the base of indices (svmlight only).

    Raises
    ------
    UsageError
        If a value is not allowed, or two options exclude each other.
    """

    target: str | None = None
    missing: str = "refuse"
    hash_bits: int | None = None
    weight: str | None = None
    offset: str | None = None
    key: str | None = None
    drop: Sequence[str] = ()
    categorical: Sequence[str] = ()
    number: Sequence[str] = ()
    date: Sequence[str] = ()
    id: str | None = None
    infinite: str = "refuse"
    unseen: str = "error"
    min_count: int | None = None
    dialect: Dialect = USUAL
    dtype: str = "auto"
    drop_first: bool = False
    reference: Mapping[str, str] = field(default_factory=dict)
    allow_duplicates: bool = False
    features: int | None = None
    zero_based: bool | None = None

    def __post_init__(self) -> None:
        if self.missing not in POLICIES:
            raise UsageError(f"--missing {self.missing}: expected {', '.join(POLICIES)}")
        if self.dtype not in ("auto", "float32", "float64"):
            raise UsageError(f"--dtype {self.dtype}: expected auto, float32 or float64")
        if self.infinite not in ("refuse", "missing"):
            raise UsageError(f"--infinite {self.infinite}: expected refuse or missing")
        if self.unseen not in UNSEEN:
            raise UsageError(f"--unseen {self.unseen}: expected {', '.join(UNSEEN)}")
        if self.min_count is not None and self.min_count < 2:
            raise UsageError(f"--min-count {self.min_count}: expected at least 2")
        if self.hash_bits is not None and (self.min_count is not None or self.unseen != "error"):
            option = "--unseen" if self.min_count is None else "--min-count"
            raise UsageError(f"{option} does not go with --hash: any level has a slot")
        if self.hash_bits is not None and not 1 <= self.hash_bits <= MOST_BITS:
            raise UsageError(f"--hash {self.hash_bits}: expected 1 to {MOST_BITS} bits")
        if self.hash_bits is not None and (self.drop_first or self.reference):
            option = "--drop-first" if self.drop_first else "--reference"
            raise UsageError(f"{option} does not go with --hash: hashed categories have no levels")

    def extras(self) -> dict[str, str]:
        """Return the raw column of each of sample_weight, offset, key and id that is given."""
        named = {
            "sample_weight": self.weight,
            "offset": self.offset,
            "key": self.key,
            "id": self.id,
        }
        return {vector: name for vector, name in named.items() if name is not None}

    def named(self) -> list[str]:
        """Return the columns that an option names for a use; a column may occur twice."""
        forced = [*self.categorical, *self.number, *self.dates(), *self.reference]
        return [*([self.target] if self.target else []), *self.extras().values(), *forced]

    def dates(self) -> dict[str, str | None]:
        """Return the format of each date column; None for ISO 8601."""
        pairs = [text.partition("=") for text in self.date]
        return {name: form or None for name, _, form in pairs}

    def refuse(self, allowed: Collection[str], why: str) -> None:
        """Raise UsageError if an option differs from its default, unless it is in `allowed`.

        Parameters
        ----------
        allowed : collection of str
            The names of the fields that may be given.
        why : str
            The reason, with which the message begins.
        """
        for own in fields(self):
            if own.name not in allowed and getattr(self, own.name) not in (_usual(own), []):
                names = self.dialect.to_dict() if own.name == "dialect" else [own.name]
                flags = ", ".join(map(flag, names))
                raise UsageError(f"{why}, so {flags} does not go with it")


def flag(name: str) -> str:
    """Return the option of the command line for a field of Options or Dialect."""
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def _usual(own: Field[Any]) -> Any:
    return own.default if own.default_factory is MISSING else own.default_factory()


def options_of(given: Mapping[str, Any]) -> Options:
    """Return the Options for the keywords of `import_data`.

    Raises
    ------
    UsageError
        If an option does not exist or a value is not allowed.
    """
    own = {field.name for field in fields(Options)} - {"dialect"}
    marks = {field.name for field in fields(Dialect)}
    for name in given:
        if name not in own | marks:
            near = difflib.get_close_matches(name, own | marks, 1)
            raise UsageError(
                f"import has no option {name}" + (f": did you mean {near[0]}?" if near else "")
            )
    told = {name: value for name, value in given.items() if name in own}
    if told.get("features") is not None and not 0 < told["features"] <= MOST_FEATURES:
        raise UsageError(f"--features {told['features']}: expected 1 to 2**40")
    told["reference"] = named_levels(told.get("reference", ()))
    for name in ("drop", "categorical", "number", "date"):
        told[name] = _several(name, told.get(name, ()))
    dialect = {name: value for name, value in given.items() if name in marks}
    dialect["na"] = tuple(_several("na", dialect.get("na", ())))
    return Options(**told, dialect=Dialect(**dialect))


def _several(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and name == "date":
        return [f"{column}={form}" if form else str(column) for column, form in value.items()]
    return [value] if isinstance(value, str) else [str(one) for one in value]
