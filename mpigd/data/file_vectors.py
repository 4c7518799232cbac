"""Vectors of a file in the forms of several programs: numbers (masked or not), texts, categories.

AnnData (docs: "On-disk format"): a categorical is a group of `codes` (-1 is missing) and
`categories`, and a nullable array is a group of `values` and `mask`. Before version 0.7, the
categories of obs/NAME were in obs/__categories/NAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import h5py
import numpy as np

from mpigd.data import foreign, foreign_marks
from mpigd.errors import DataError
from mpigd.storage import dataset_checks, hdf5, text_datasets

Array = np.ndarray[Any, Any]
MOST_CLASSES = 10_000
LONGEST = 1000  # bytes of a label, at most


class Vector(Protocol):
    """A vector of an open file, in the form of one of several programs.

    Attributes
    ----------
    place : str
        What messages call it.
    shape : tuple of int
        The stored shape, which callers check: (n,), (n, 1) or (1, n) for n rows.
    """

    place: str
    shape: tuple[int, ...]

    def classes(self) -> tuple[str, ...] | None:
        """Return the class names, ascending; None for a vector of numbers.

        Raises
        ------
        DataError
            If they are damaged, or too many for a target.
        """

    def read(
        self, start: int, stop: int, classes: Sequence[str] | None = None
    ) -> tuple[Array, Array]:
        """Return values of the vector.

        Parameters
        ----------
        start, stop : int
            The rows, m of them.
        classes : sequence of str, optional
            The class names; needed if the values are texts.

        Returns
        -------
        ndarray (m,)
            The numbers, in the stored type or, if scaled, float64; or the positions of texts in
            `classes`, float64. The value of a missing one has no meaning.
        ndarray (m,) of bool
            Which of them are missing.

        Raises
        ------
        DataError
            If the file is damaged.
        """

    def why(self, row: int) -> str:
        """Return what messages say about the missing value of a row."""


class Numbers:
    """A vector of numbers. `mask`, a dataset of the same shape, marks missing ones."""

    def __init__(self, place: str, data: h5py.Dataset, mask: h5py.Dataset | None = None) -> None:
        self.place, self._data, self._mask = place, data, mask
        self.shape, self._marks = data.shape, foreign_marks.of(data)

    def classes(self) -> None:
        return None

    def read(
        self, start: int, stop: int, classes: Sequence[str] | None = None
    ) -> tuple[Array, Array]:
        stored = text_datasets.piece(self._data, start, stop)
        gone = self._marks.missing(stored)
        if self._mask is not None:
            gone |= text_datasets.piece(self._mask, start, stop) != 0
        return self._marks.numbers(stored), gone

    def why(self, row: int) -> str:
        if self._mask is not None:
            return "is masked"
        value = self._marks.stored(text_datasets.piece(self._data, row, row + 1))[0]
        return f"is {value:g}, {self._marks.why(value)}"


class Texts:
    """A vector of texts, which are class labels; an empty text is missing, as is an unknown one."""

    def __init__(self, place: str, data: h5py.Dataset, mask: h5py.Dataset | None = None) -> None:
        self.place, self._data, self._mask = place, data, mask
        self.shape = text_datasets.shape_of(data)

    def classes(self) -> tuple[str, ...]:
        found: set[bytes] = set()
        for slab in text_datasets.slabs(self._data, 0, max(self.shape)):
            found.update(slab)
            if len(found) > MOST_CLASSES + 1:
                raise DataError(
                    f"{self.place} holds more than {MOST_CLASSES} different texts: "
                    "a target has fewer classes"
                )
        return tuple(sorted(_label(text, self.place) for text in found if text))

    def read(
        self, start: int, stop: int, classes: Sequence[str] | None = None
    ) -> tuple[Array, Array]:
        assert classes is not None
        known: dict[bytes, int] = {name.encode(): code for code, name in enumerate(classes)} | {
            b"": -1
        }
        codes = [
            known.get(text, -1)
            for slab in text_datasets.slabs(self._data, start, stop)
            for text in slab
        ]
        found = np.array(codes, np.float64)
        gone = found < 0
        if self._mask is not None:
            gone |= text_datasets.piece(self._mask, start, stop) != 0
        return found, gone

    def why(self, row: int) -> str:
        return "is masked" if self._mask is not None else "is an empty text"


class Categories:
    """A vector of codes, with a category for each code.

    Categories are texts, which are class labels, or numbers, which are the values.
    """

    def __init__(self, place: str, codes: h5py.Dataset, categories: h5py.Dataset) -> None:
        self.place, self._codes = place, codes
        self.shape = codes.shape
        if codes.dtype.kind not in "iu" or categories.ndim != 1:
            raise DataError(
                f"{place}: codes are {codes.dtype} and categories {categories.shape}: "
                "no categories of texts"
            )
        self._texts, self._values = text_datasets.holds_text(categories), categories
        if not self._texts:
            dataset_checks.check_type(categories)
        if categories.shape[0] > MOST_CLASSES:
            raise DataError(
                f"{place} has more than {MOST_CLASSES} categories: a target has fewer classes"
            )

    def _names(self) -> list[str]:
        slabs = text_datasets.slabs(self._values, 0, self._values.shape[0])
        names = [_label(text, self.place) for slab in slabs for text in slab]
        if len(set(names)) < len(names):
            raise DataError(f"{self.place} is damaged: a category is there twice")
        return names

    def classes(self) -> tuple[str, ...] | None:
        return tuple(sorted(self._names())) if self._texts else None

    def read(
        self, start: int, stop: int, classes: Sequence[str] | None = None
    ) -> tuple[Array, Array]:
        codes = text_datasets.piece(self._codes, start, stop).astype(np.int64)
        if self._texts:
            assert classes is not None
            place = {name: code for code, name in enumerate(classes)}
            values = np.array([place[name] for name in self._names()], np.float64)
        else:
            values = np.asarray(self._values[...]).astype(np.float64)
        if codes.size and (codes.max() >= values.size or codes.min() < -1):
            row = int(np.argmax((codes >= values.size) | (codes < -1)))
            raise DataError(
                f"{self.place} row {start + row} has code {codes[row]}, but there are "
                f"{values.size} categories"
            )
        gone = codes < 0
        return np.append(values, 0.0)[codes], gone

    def why(self, row: int) -> str:
        return "has no category (code -1)"


def _label(text: bytes, place: str) -> str:
    if len(text) > LONGEST:
        raise DataError(f"{place} holds a text of {len(text)} bytes: no label of a class")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place} holds the text {text!r}, which is not UTF-8") from error


def there(file: hdf5.Group, name: str) -> bool:
    return file.raw(name) is not None


def find(file: hdf5.Group, name: str) -> Vector:
    """Return the vector `name` of an open file. DataError, naming it, if it is no vector."""
    found, place = file.raw(name), f"{file.filename}: {name!r}"
    if isinstance(found, hdf5.Group):
        return _group(found, place)
    if not isinstance(found, h5py.Dataset):
        hdf5.dataset(file, name)
    folder, _, last = name.rpartition("/")
    old = file.raw(f"{folder}/__categories/{last}") if folder else None
    if isinstance(old, h5py.Dataset):
        return Categories(place, found, old)
    return _plain(place, found)


def _plain(place: str, data: h5py.Dataset, mask: h5py.Dataset | None = None) -> Numbers | Texts:
    if text_datasets.holds_text(data):
        return Texts(place, data, mask)
    foreign.check_records(data)
    dataset_checks.check_type(data)
    return Numbers(place, data, mask)


def _group(group: hdf5.Group, place: str) -> Vector:
    parts = {name: group.raw(name) for name in ("codes", "categories", "values", "mask")}
    whole = {name for name, part in parts.items() if isinstance(part, h5py.Dataset)}
    if {"codes", "categories"} <= whole:
        return Categories(place, parts["codes"], parts["categories"])
    if {"values", "mask"} <= whole and parts["values"].shape == parts["mask"].shape:
        dataset_checks.check_type(parts["mask"])
        return _plain(place, parts["values"], parts["mask"])
    foreign.refuse_group(group, place, "a vector, of numbers or of categories")
