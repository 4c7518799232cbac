"""Streaming writer of HDF5 data sets in the layout that the trainer reads.

Datasets grow while rows are appended (mpigd/storage/growing_dataset.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from mpigd.storage import growing_dataset
from mpigd.storage.growing_dataset import Stream
from mpigd.tables.ids import Ids

Array = np.ndarray[Any, Any]
VECTORS = {
    "y": np.float64, "sample_weight": np.float64, "offset": np.float64, "key": np.int64,
    "source_file": np.int32, "source_row": np.int64,
}  # fmt: skip


class Writer:
    """Writes X and the row vectors into an open file.

    Parameters
    ----------
    file : h5py.File
        The open file.
    layout : str
        The layout of X: "dense" (n, d), or "csr" in AnnData's on-disk encoding.
    d : int
        The number of columns of X.
    dtype : str
        The dtype of X, "float32" or "float64".
    vectors : sequence of str
        The row vectors: some of y, sample_weight, offset, key, id, source_file and source_row.
    folder : str
        The folder for temporary files.
    """

    def __init__(
        self,
        file: h5py.File,
        layout: str,
        d: int,
        dtype: str,
        vectors: Sequence[str],
        folder: str = ".",
    ) -> None:
        self.rows = self.nonzeros = 0
        self._file, self._layout, self._d, self._dtype = file, layout, d, np.dtype(dtype)
        self._vectors: dict[str, Stream | Ids] = {
            name: Stream(file, name, VECTORS[name]) if name in VECTORS else Ids(file, name, folder)
            for name in vectors
        }
        if layout == "dense":
            self._parts = {"X": Stream(file, "X", dtype, (d,))}
            return
        group = file.create_group("X")
        kinds = {
            "data": self._dtype,
            "indices": np.dtype(np.int32 if d < 2**31 else np.int64),
            "indptr": np.dtype(np.int64),
        }
        self._parts = {name: Stream(group, name, kind) for name, kind in kinds.items()}
        self._parts["indptr"].append(np.zeros(1, dtype=np.int64))

    def append(
        self, lengths: Array, indices: Array, data: Array, vectors: Mapping[str, Array]
    ) -> None:
        """Append m rows, given as parts of CSR.

        Parameters
        ----------
        lengths : array (m,) of int64
            The number of non-zeros of each row.
        indices : array (e,) of int64
            The columns of the non-zeros, row after row; they ascend within a row.
        data : array (e,)
            Their values.
        vectors : mapping of str to array
            Row vector -> its values (m,).
        """
        data = np.asarray(data, dtype=self._dtype)
        if self._layout == "dense":
            self._append_dense(lengths, indices, data)
        else:
            self._parts["data"].append(data)
            self._parts["indices"].append(indices)
            self._parts["indptr"].append(self.nonzeros + np.cumsum(lengths, dtype=np.int64))
        self._append_vectors(vectors)
        self.rows += lengths.size
        self.nonzeros += int(indices.size)

    def append_dense(self, slabs: Iterable[Array], vectors: Mapping[str, Any]) -> None:
        """Append rows to a dense X.

        Parameters
        ----------
        slabs : iterable of array (r, d)
            Consecutive rows; r may differ between slabs.
        vectors : mapping of str to array
            Row vector -> its values for the rows of all slabs.
        """
        for slab in slabs:
            self._parts["X"].append(slab)
            self.rows += slab.shape[0]
            self.nonzeros += int(np.count_nonzero(slab))
        self._append_vectors(vectors)

    def _append_vectors(self, vectors: Mapping[str, Any]) -> None:
        for name, values in self._vectors.items():
            values.append(vectors[name])

    def _append_dense(self, lengths: Array, indices: Array, data: Array) -> None:
        ends = np.cumsum(lengths)
        # Rows are written in small slabs, since a wide slab would be much larger than its entries.
        step = max(1, 4 * growing_dataset.CHUNK_BYTES // (self._d * self._dtype.itemsize))
        for start in range(0, lengths.size, step):
            stop = min(start + step, lengths.size)
            entries = slice(int(ends[start] - lengths[start]), int(ends[stop - 1]))
            slab = np.zeros((stop - start, self._d), dtype=self._dtype)
            slab[np.repeat(np.arange(stop - start), lengths[start:stop]), indices[entries]] = data[
                entries
            ]
            self._parts["X"].append(slab)

    def close(self) -> None:
        """Write the buffered rows, and the shape of X."""
        for part in (*self._parts.values(), *self._vectors.values()):
            part.close()
        if self._layout == "csr":
            attributes = self._file["X"].attrs
            attributes["encoding-type"], attributes["encoding-version"] = "csr_matrix", "0.1.0"
            attributes["shape"] = np.array([self.rows, self._d], dtype=np.int64)
