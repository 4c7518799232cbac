"""`mpigd convert`: rewrite the data of another program in mpigd's own form, slab by slab.

Matrices that are stored transposed or by columns are turned, scaled numbers become the numbers that
they mean, and rows with missing values can be left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from mpigd.data import column_names, file_vectors, metadata, unwritten
from mpigd.data.foreign_matrix import Dense, Slab, Sparse, is_nan
from mpigd.errors import DataError, UsageError
from mpigd.storage import hdf5, text_datasets
from mpigd.storage.growing_dataset import Stream
from mpigd.tables.writer import VECTORS, Writer

Array = np.ndarray[Any, Any]
POLICIES = ("refuse", "drop")
COPIED = ("id", "source_file", "source_row")  # datasets that `mpigd import` writes beside the rows


@dataclass(frozen=True)
class Done:
    """Summary of a conversion: rows x columns, dense or csr, and the number of rows left out."""

    path: str
    rows: int
    columns: int
    layout: str
    dropped: int


def convert(
    path: str,
    output: str,
    x: str,
    y: str,
    transpose: bool = False,
    missing: str = "refuse",
    links: Sequence[str] = (),
    allow_unwritten: bool = False,
) -> Done:
    """Write X and the vectors of one file to a new file.

    Parameters
    ----------
    path : str
        The file to read.
    output : str
        The file to write.
    x, y : str
        The names of the matrix and of the target.
    transpose : bool
        Whether X is turned, against what the marks of the file say.
    missing : str
        "refuse" or "drop" rows with missing values.
    links : sequence of str
        Folders into which links in the file may lead.
    allow_unwritten : bool
        Accept numbers that were never written, for which HDF5 reads its fill value.

    Returns
    -------
    Done

    Raises
    ------
    UsageError
        If `missing` is unknown, or `output` is the file that is read.
    DataError
        If the data are unusable, or no row is left.
    """
    if missing not in POLICIES:
        raise UsageError(f"--missing {missing}: expected {' or '.join(POLICIES)}")
    if os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
        raise UsageError(f"-o {output} would replace a file that is read")
    with hdf5.open_read(path, links) as file:
        matrix = _matrix(file, x, y, transpose)
        beside = _vectors(file, y, matrix.shape[0])
        if not allow_unwritten:
            unwritten.check(
                file, [x, *(y if name == "y" else name for name in beside)], by_rows=False
            )
        with hdf5.create(output) as out:
            done = _write(_Output(file, out, matrix, beside), matrix, beside, missing, path)
            if "encoding" in file and not transpose:
                hdf5.write_json(out, "encoding", hdf5.read_json(file, "encoding"))
            elif (
                not transpose
                and (known := column_names.columns(file, x, matrix.shape[1])) is not None
            ):
                out["feature_names"] = hdf5.texts(known)
    return Done(output, done[0], matrix.shape[1], matrix.layout, done[1])


def _matrix(file: hdf5.Group, x: str, y: str, transpose: bool) -> Dense | Sparse:
    found = file.raw(x)
    if isinstance(found, hdf5.Group):
        return Sparse(found, x, transpose)
    if not isinstance(found, h5py.Dataset):
        hdf5.dataset(file, x)
    return Dense(found, x, y, transpose)


def _vectors(file: hdf5.Group, y: str, n: int) -> dict[str, file_vectors.Vector]:
    """Return the vectors of n rows, by the names that they will have."""
    found: dict[str, file_vectors.Vector] = {}
    for name in (*metadata.EXTRAS, y):
        if file_vectors.there(file, name):
            found["y" if name == y else name] = vector = file_vectors.find(file, name)
            if vector.shape not in ((n,), (n, 1), (1, n)):
                raise DataError(f"{vector.place} has shape {vector.shape}, expected ({n},)")
        elif name == y != "y":
            hdf5.dataset(file, name)
    return found


class _Copy:
    """A dataset that identifies the rows, numbers or texts (n,), copied as it is.

    Texts get a fixed length.
    """

    def __init__(self, data: h5py.Dataset, out: h5py.File, name: str) -> None:
        self._data, self._text = data, text_datasets.holds_text(data)
        kind = data.dtype
        if self._text:
            slabs = text_datasets.slabs(data, 0, len(data))
            kind = hdf5.text_type(max((len(text) for slab in slabs for text in slab), default=1))
        self.stream = Stream(out, name, kind)

    def append(self, slab: Slab, keep: Array) -> None:
        rows: Array
        if self._text:  # HDF5's own reader of texts may loop over damage, see text_datasets.py
            slabs = text_datasets.slabs(self._data, slab.start, slab.stop)
            rows = np.array([text for part in slabs for text in part])
        else:
            rows = self._data[slab.start : slab.stop]
        self.stream.append(rows[keep])


class _Output:
    """The new file: X and the vectors, which grow slab by slab."""

    def __init__(
        self,
        file: hdf5.Group,
        out: h5py.File,
        matrix: Dense | Sparse,
        beside: dict[str, file_vectors.Vector],
    ) -> None:
        d, dtype = matrix.shape[1], metadata.stored_type(matrix.dtype)
        self._beside = beside
        found = {name: file.raw(name) for name in COPIED}
        whole = {
            name: data
            for name, data in found.items()
            if isinstance(data, h5py.Dataset) and data.shape == matrix.shape[:1]
        }
        self._copies = [_Copy(data, out, name) for name, data in whole.items()]
        self._classes = {name: vector.classes() for name, vector in beside.items()}
        self._labels = {
            name: hdf5.texts(names) for name, names in self._classes.items() if names is not None
        }
        kinds = {
            name: self._labels[name].dtype if name in self._labels else np.dtype(VECTORS[name])
            for name in beside
        }
        self._streams = {name: Stream(out, name, kinds[name]) for name in beside}
        self._sparse = Writer(out, "csr", d, dtype, ()) if matrix.layout == "csr" else None
        self._dense = Stream(out, "X", dtype, (d,)) if matrix.layout == "dense" else None

    def read(self, slab: Slab) -> dict[str, tuple[Array, Array]]:
        """Return the vectors' values in a slab's rows (m,), and which are missing, bool (m,)."""
        found = {
            name: vector.read(slab.start, slab.stop, self._classes[name])
            for name, vector in self._beside.items()
        }
        return {name: (values, gone | is_nan(values)) for name, (values, gone) in found.items()}

    def append(self, slab: Slab, keep: Array, read: dict[str, tuple[Array, Array]]) -> None:
        kept = slab.kept(keep)
        if self._sparse is not None:
            self._sparse.append(kept.lengths, kept.indices, kept.values, {})
        if self._dense is not None:
            self._dense.append(kept.values)
        for copy in self._copies:
            copy.append(slab, keep)
        for name, (values, _) in read.items():
            known = self._labels.get(name)
            self._streams[name].append(
                values[keep] if known is None else known[values[keep].astype(np.int64)]
            )

    def close(self) -> None:
        for stream in (
            *self._streams.values(),
            *(copy.stream for copy in self._copies),
            self._sparse,
            self._dense,
        ):
            if stream is not None:
                stream.close()


def _write(
    output: _Output,
    matrix: Dense | Sparse,
    beside: dict[str, file_vectors.Vector],
    missing: str,
    path: str,
) -> tuple[int, int]:
    """Write all rows to keep. Returns their number and the number of the others."""
    rows = dropped = 0
    for slab in matrix.slabs():
        read = output.read(slab)
        keep = ~np.logical_or.reduce([slab.gone, *(gone for _, gone in read.values())])
        if missing == "refuse" and not keep.all():
            at = int(np.argmin(keep))
            absent = [beside[name].place for name, (_, gone) in read.items() if gone[at]]
            place = matrix.place if slab.gone[at] else absent[0]
            raise DataError(
                f"{place} row {slab.start + at}: a value is missing: "
                "--missing drop leaves such rows out"
            )
        output.append(slab, keep, read)
        rows += int(keep.sum())
        dropped += int((~keep).sum())
    if rows == 0:
        raise DataError(f"{path}: no row is left")
    output.close()
    return rows, dropped
