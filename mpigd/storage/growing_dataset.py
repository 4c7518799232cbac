"""Datasets that grow while they are written, by whole chunks of about 1 MiB.

Each chunk is then checksummed once, and a rank later reads slabs that are whole chunks. Rows that
do not fill a chunk yet wait in memory: at most one chunk for each dataset.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

Array = np.ndarray[Any, Any]
CHUNK_BYTES = 1 << 20


class Stream:
    """A growing dataset `name` of rows of shape `inner`.

    It is created once its chunk size is known.
    """

    def __init__(
        self, group: h5py.Group, name: str, dtype: Any, inner: tuple[int, ...] = ()
    ) -> None:
        self._group, self._name, self._dtype, self._inner = group, name, np.dtype(dtype), inner
        self._chunk = max(
            1, CHUNK_BYTES // max(1, self._dtype.itemsize * int(np.prod(inner, dtype=np.int64)))
        )
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
        """Write the waiting rows.

        A dataset smaller than a chunk becomes one chunk of its own size.
        """
        if self._dataset is None:
            self._chunk = max(1, min(self._chunk, self._held))
        self._write(self._held)

    def _write(self, count: int) -> None:
        if self._dataset is None:
            shapes = dict(
                shape=(0, *self._inner),
                maxshape=(None, *self._inner),
                chunks=(self._chunk, *self._inner),
            )
            # Whole chunks are written once, so HDF5's chunk cache would only keep megabytes of them
            # in memory.
            self._dataset = self._group.create_dataset(
                self._name, dtype=self._dtype, fletcher32=True, rdcc_nbytes=0, **shapes
            )
        if count == 0:
            return
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        start = self._dataset.shape[0]
        self._dataset.resize(start + count, axis=0)
        self._dataset[start:] = rows[:count]
        self._held = rows.shape[0] - count
        # A view would keep the whole block alive.
        self._waiting = [rows[count:].copy()] if self._held else []
