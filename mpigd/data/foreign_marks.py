"""Marks of other programs: values that mean "missing", scales, and transposed matrices.

netCDF: the attributes of its users' guide (appendix A) and the CF conventions (section 8.1), and
the fill values of netcdf.h, which hold without an attribute. rhdf5: the integer -2^31 is NA. MATLAB
and Julia store matrices column by column: in the file, rows and columns have changed places.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpigd.errors import DataError
from mpigd.storage import dataset_checks
from mpigd.storage.safe_open import Attributes

Array = np.ndarray[Any, Any]
# The values that netCDF stores for unwritten numbers, by kind and size; bytes have none.
NETCDF_FILLS: dict[str, float] = {
    "f4": 2.0**122 * 1.875,
    "f8": 2.0**122 * 1.875,
    "i2": -(2**15) + 1,
    "u2": 2**16 - 1,
    "i4": -(2**31) + 1,
    "u4": 2**32 - 1,
    "i8": -(2**63) + 2,
    "u8": 2**64 - 2,
}
NUMBERS = (
    "_FillValue",
    "missing_value",
    "valid_range",
    "valid_min",
    "valid_max",
    "scale_factor",
    "add_offset",
)
RHDF5 = "rhdf5-NA.OK"
JULIA = b"Julia data file (HDF5)"
MATLAB_NUMBERS = (
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Return an attribute: a text, an array of numbers (m,), or None.

    Parameters
    ----------
    item : h5py.Group or h5py.Dataset
        The object with the attribute.
    name : str
        Its name.

    Returns
    -------
    str, ndarray (m,), h5py.Empty or None
        None if there is no such attribute, or it is a text of variable length. h5py.Empty if it has
        no data.
    """
    attributes = Attributes(item)
    if name not in attributes or attributes.varies(name):
        return None
    found = attributes[name]
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    return found if isinstance(found, str | h5py.Empty) else np.atleast_1d(np.asarray(found))


def command(path: str, x: str, y: str, *options: str) -> str:
    """Return the `mpigd convert` command for a file, quoted for a shell.

    Parameters
    ----------
    path : str
        The file.
    x, y : str
        The names of the matrix and of the target.
    *options : str
        Further options of the command.
    """
    names = [*([] if x == "X" else ["--x", x]), *([] if y == "y" else ["--y", y])]
    target = Path(path).with_suffix(".h5").name
    target = (
        f"converted-{target}" if os.path.exists(target) or target == Path(path).name else target
    )
    return f"`mpigd convert {shlex.join([path, '-o', target, *names, *options])}`"


@dataclass(frozen=True)
class Marks:
    """The meaning of the stored numbers of one dataset.

    Attributes
    ----------
    fills : tuple of (str, value)
        Values of the stored type that mean a missing number, each with its reason (the attribute).
    low, high : float or None
        Limits; numbers outside of them are missing.
    unsigned : bool
        Whether stored integers are taken as unsigned.
    scale, offset : float
        The number is stored * scale + offset.
    """

    fills: tuple[tuple[str, Any], ...] = ()
    low: float | None = None
    high: float | None = None
    unsigned: bool = False
    scale: float = 1.0
    offset: float = 0.0

    @property
    def scaled(self) -> bool:
        return self.scale != 1.0 or self.offset != 0.0

    def there(self) -> bool:
        return self != Marks()

    def stored(self, values: Array) -> Array:
        return values.view(f"u{values.itemsize}") if self.unsigned else values

    def missing(self, values: Array) -> Array:
        """Return which of the stored numbers are missing: bool, of the same shape."""
        values = self.stored(values)
        gone = np.zeros(values.shape, bool)
        for _, fill in self.fills:
            gone |= values == fill
        if self.low is not None:
            gone |= values < self.low
        if self.high is not None:
            gone |= values > self.high
        return gone

    def numbers(self, values: Array) -> Array:
        """Return the numbers that the stored ones mean; float64 if they are scaled."""
        values = self.stored(values)
        return values.astype(np.float64) * self.scale + self.offset if self.scaled else values

    def why(self, value: Any) -> str:
        """Return the reason why a stored value means a missing number."""
        for name, fill in self.fills:
            if value == fill:
                return name
        return "outside the valid range that its attributes declare"


def of(data: h5py.Dataset) -> Marks:
    """Return the marks of a dataset; empty ones if it does not hold numbers.

    Raises
    ------
    DataError
        If an attribute does not follow the conventions.
    """
    if data.dtype.kind not in "fiu":
        return Marks()
    given = {name: _number(data, name) for name in NUMBERS}
    unsigned = data.dtype.kind == "i" and _unsigned(data)
    kind = np.dtype(f"u{data.dtype.itemsize}") if unsigned else data.dtype
    fills = [
        (f"its {name}", value)
        for name in ("_FillValue", "missing_value")
        for value in _as(given[name], kind, unsigned)
    ]
    default = NETCDF_FILLS.get(f"{kind.kind}{kind.itemsize}")
    if default is not None and given["_FillValue"] is None and _filled_with(data, default):
        fills.append(("netCDF's value for what was never written", kind.type(default)))
    if RHDF5 in Attributes(data) and data.dtype.kind == "i" and data.dtype.itemsize == 4:
        fills.append(("NA in R", kind.type(-(2**31))))
    low, high = (
        _limit(given, "valid_min", 0, kind, unsigned),
        _limit(given, "valid_max", 1, kind, unsigned),
    )
    scale, offset = _factor(given["scale_factor"], 1.0), _factor(given["add_offset"], 0.0)
    if not np.isfinite([scale, offset]).all() or scale == 0:
        raise DataError(
            f"{dataset_checks.named(data)}: scale_factor {scale} and add_offset {offset} leave "
            "nothing of the numbers"
        )
    return Marks(tuple(fills), low, high, unsigned, scale, offset)


def _unsigned(data: h5py.Dataset) -> bool:
    if "_Unsigned" not in Attributes(data):
        return False
    found = attribute(data, "_Unsigned")
    if not isinstance(found, str):
        raise DataError(
            f"{dataset_checks.named(data)}: its attribute _Unsigned is no text of fixed length: "
            f"{_without(data, '_Unsigned')}"
        )
    return found.lower() == "true"


def _without(data: h5py.Dataset, name: str) -> str:
    """Return advice on how to remove an attribute that cannot be interpreted."""
    code = (
        f"import h5py; del h5py.File({str(data.file.filename)!r}, "
        f"'r+')[{str(data.name)!r}].attrs[{name!r}]"
    )
    return f'remove it with `python -c "{code}"`'


def _factor(found: Array | None, default: float) -> float:
    return default if found is None else float(found[0])


def _number(data: h5py.Dataset, name: str) -> Array | None:
    """Return the numbers of an attribute of netCDF, or None if there is none.

    DataError for a text, which might be meant as a number.
    """
    if name not in Attributes(data):
        return None
    found = attribute(data, name)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or found.size == 0:
        raise DataError(
            f"{dataset_checks.named(data)}: its attribute {name} is no number: "
            f"{_without(data, name)}"
        )
    return found.reshape(-1)


def _as(values: Array | None, kind: np.dtype[Any], unsigned: bool) -> list[Any]:
    """Return the values that the stored type can hold.

    Other values cannot occur among the data.
    """
    if values is None:
        return []
    if unsigned and values.dtype.kind == "i" and values.itemsize == kind.itemsize:
        values = values.view(kind)
    with np.errstate(all="ignore"):
        cast = values.astype(kind)
        return [
            one for one, value in zip(cast, values, strict=True) if kind.kind == "f" or one == value
        ]


def _limit(
    given: dict[str, Array | None], name: str, place: int, kind: np.dtype[Any], unsigned: bool
) -> Any:
    pair = given["valid_range"]
    value = given[name] if pair is None or pair.size != 2 else pair[place : place + 1]
    if value is None:
        return None
    if unsigned and value.dtype.kind == "i" and value.itemsize == kind.itemsize:
        value = value.view(kind)
    return value[0] if np.isfinite(value[0]) else None


def _filled_with(data: h5py.Dataset, default: float) -> bool:
    """Return whether a dataset was created with this fill value by explicit choice.

    Zero is HDF5's default.
    """
    properties = data.id.get_create_plist()
    chosen = properties.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    return chosen and bool(data.fillvalue == data.dtype.type(default))


def transposed(data: h5py.Dataset) -> str:
    """Return the program that stored a matrix (n, d) as (d, n), or an empty text.

    Only marks that are certain count.
    """
    if "MATLAB_class" in Attributes(data):
        return "MATLAB"
    return "Julia" if header(data.file).startswith(JULIA) else ""


def header(file: h5py.File) -> bytes:
    """Return the text in front of the HDF5 file, in which MATLAB and JLD2 name themselves."""
    if not file.userblock_size:
        return b""
    return os.pread(int(file.id.get_vfd_handle()), 128, 0)


class View:
    """A matrix (n, d) of another program, read as its numbers are meant.

    It has the interface of an h5py.Dataset.

    Parameters
    ----------
    data : h5py.Dataset
        The stored matrix.
    marks : Marks
        What its numbers mean.
    turned : bool
        Whether it is stored as (d, n).
    x, y : str
        The names of the matrix and of the target, for advice.
    """

    def __init__(self, data: h5py.Dataset, marks: Marks, turned: bool, x: str, y: str) -> None:
        self._data, self.marks, self.turned, self._x, self._y = data, marks, turned, x, y
        self.shape = data.shape[::-1] if turned else data.shape
        self.chunks = data.chunks[::-1] if turned and data.chunks else data.chunks
        unscaled = np.dtype(f"u{data.dtype.itemsize}") if marks.unsigned else data.dtype
        self.dtype = np.dtype("float64") if marks.scaled else unscaled
        self.ndim = data.ndim

    def stored(self, rows: slice) -> Array:
        """Return rows (m, d) as they are stored."""
        return np.asarray(self._data[:, rows].T if self.turned else self._data[rows])

    def read_direct(self, out: Array, rows: slice) -> None:
        """Read rows (m) into out (m, d). If a number is missing, a DataError names its place."""
        stored = self.stored(rows)
        gone = self.marks.missing(stored)
        if gone.any():
            row, column = (int(place) for place in np.argwhere(gone)[0])
            value = self.marks.stored(stored)[row, column]
            place, path = dataset_checks.named(self._data), str(self._data.file.filename)
            raise DataError(
                f"{place} row {rows.start + row} column {column} is {value:g}, "
                f"{self.marks.why(value)}: a missing number: "
                f"{command(path, self._x, self._y, '--missing', 'drop')} leaves such rows out"
            )
        with np.errstate(over="ignore"):
            out[...] = self.marks.numbers(stored)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        row, column = place
        return self.marks.numbers(self.stored(slice(row, row + 1)))[0, column]


def words(data: h5py.Dataset) -> list[str]:
    """Return texts that say how the stored numbers of a matrix are changed when they are read."""
    found, by = of(data), transposed(data)
    told = [f"transposed, as {by} stores it"] if by else []
    told += ["unsigned"] if found.unsigned else []
    told += [f"times {found.scale:g} plus {found.offset:g}"] if found.scaled else []
    told += [f"{value:g} is missing ({name})" for name, value in found.fills]
    told += [] if found.low is None else [f"less than {found.low:g} is missing"]
    return told + ([] if found.high is None else [f"more than {found.high:g} is missing"])


def matrix(data: h5py.Dataset, x: str, y: str) -> Any:
    """Return a dense dataset as rows and columns of numbers.

    Parameters
    ----------
    data : h5py.Dataset
        The stored matrix.
    x, y : str
        The names of the matrix and of the target, for advice.

    Returns
    -------
    h5py.Dataset or View
        The dataset itself; a View if another program stored it in its own way.
    """
    marks, turned = of(data), bool(transposed(data))
    return View(data, marks, turned, x, y) if marks.there() or turned else data
