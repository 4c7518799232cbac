"""Rows in, HDF5 out: the data layout of the trainer, written as it streams.

Every dataset grows by whole chunks of about a mebibyte, so that each is checksummed once and a rank later reads
slabs that are chunks. What is not a whole chunk yet waits in memory: at most one chunk a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

Array = np.ndarray[Any, Any]
CHUNK_BYTES = 1 << 20
VECTORS = {"y": np.float64, "sample_weight": np.float64, "offset": np.float64, "key": np.int64}


class Stream:
    """One dataset `name` of rows of shape `inner` that grows; it is created once its chunk size is known."""

    def __init__(self, group: h5py.Group, name: str, dtype: Any, inner: tuple[int, ...] = ()) -> None:
        self._group, self._name, self._dtype, self._inner = group, name, np.dtype(dtype), inner
        self._chunk = max(1, CHUNK_BYTES // max(1, self._dtype.itemsize * int(np.prod(inner, dtype=np.int64))))
        self._waiting: list[Array] = []
        self._held = 0
        self._dataset: h5py.Dataset | None = None

    def append(self, rows: Array) -> None:
        """Add rows of shape (m, *inner)."""
        if rows.shape[0] == 0:
            return
        self._waiting.append(np.ascontiguousarray(rows, dtype=self._dtype))
        self._held += rows.shape[0]
        if self._held >= self._chunk:
            self._write(self._held // self._chunk * self._chunk)

    def close(self) -> None:
        """Write what waits. A dataset smaller than a chunk is one chunk of its own size."""
        if self._dataset is None:
            self._chunk = max(1, min(self._chunk, self._held))
        self._write(self._held)

    def _write(self, count: int) -> None:
        if self._dataset is None:
            shapes = dict(shape=(0, *self._inner), maxshape=(None, *self._inner), chunks=(self._chunk, *self._inner))
            # Whole chunks are written once: HDF5's cache would only hold megabytes of them back.
            self._dataset = self._group.create_dataset(self._name, dtype=self._dtype, fletcher32=True, rdcc_nbytes=0, **shapes)
        if count == 0:
            return
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        start = self._dataset.shape[0]
        self._dataset.resize(start + count, axis=0)
        self._dataset[start:] = rows[:count]
        self._held = rows.shape[0] - count
        self._waiting = [rows[count:].copy()] if self._held else []  # a view would keep the whole block alive


class Writer:
    """Writes X, dense (n, d) or CSR in AnnData's on-disk encoding, and the vectors beside it, into an open file.

    dtype: of X ("float32" or "float64"). vectors: which of y, sample_weight, offset, key there are.
    """

    def __init__(self, file: h5py.File, layout: str, d: int, dtype: str, vectors: Sequence[str]) -> None:
        self.rows = self.nonzeros = 0
        self._file, self._layout, self._d, self._dtype = file, layout, d, np.dtype(dtype)
        self._vectors = {name: Stream(file, name, VECTORS[name]) for name in vectors}
        if layout == "dense":
            self._parts = {"X": Stream(file, "X", dtype, (d,))}
            return
        group = file.create_group("X")
        kinds = {"data": self._dtype, "indices": np.dtype(np.int32 if d < 2**31 else np.int64), "indptr": np.dtype(np.int64)}
        self._parts = {name: Stream(group, name, kind) for name, kind in kinds.items()}
        self._parts["indptr"].append(np.zeros(1, dtype=np.int64))

    def append(self, lengths: Array, indices: Array, data: Array, vectors: Mapping[str, Array]) -> None:
        """Add m rows: lengths (m,) non-zeros each, their columns and values row after row, and each vector's (m,) values.

        Columns ascend within a row.
        """
        data = np.asarray(data, dtype=self._dtype)
        if self._layout == "dense":
            self._append_dense(lengths, indices, data)
        else:
            self._parts["data"].append(data)
            self._parts["indices"].append(indices)
            self._parts["indptr"].append(self.nonzeros + np.cumsum(lengths, dtype=np.int64))
        for name, stream in self._vectors.items():
            stream.append(vectors[name])
        self.rows += lengths.size
        self.nonzeros += int(indices.size)

    def _append_dense(self, lengths: Array, indices: Array, data: Array) -> None:
        ends = np.cumsum(lengths)
        step = max(1, 4 * CHUNK_BYTES // (self._d * self._dtype.itemsize))  # a wide slab would be much larger than its entries
        for start in range(0, lengths.size, step):
            stop = min(start + step, lengths.size)
            entries = slice(int(ends[start] - lengths[start]), int(ends[stop - 1]))
            slab = np.zeros((stop - start, self._d), dtype=self._dtype)
            slab[np.repeat(np.arange(stop - start), lengths[start:stop]), indices[entries]] = data[entries]
            self._parts["X"].append(slab)

    def close(self) -> None:
        """Write what waits, and the shape."""
        for stream in (*self._parts.values(), *self._vectors.values()):
            stream.close()
        if self._layout == "csr":
            attributes = self._file["X"].attrs
            attributes["encoding-type"], attributes["encoding-version"] = "csr_matrix", "0.1.0"
            attributes["shape"] = np.array([self.rows, self._d], dtype=np.int64)
