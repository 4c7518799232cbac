"""Write a dataset of row ids: int64 if all are whole numbers, otherwise text of fixed length."""

from __future__ import annotations

import tempfile
from typing import Any

import h5py
import numpy as np

from mpigd.errors import StorageError
from mpigd.storage.growing_dataset import Stream

Array = np.ndarray[Any, Any]
NUMBER = r"^(0|-?[1-9][0-9]{0,17})$"  # one spelling of each number, so that 007 stays a text
SLAB_ROWS = 1 << 16


class Ids:
    """Writes the dataset `name` of ids in the HDF5 group `group`.

    The dtype is int64 if all ids are whole numbers, otherwise text as long as the longest. This
    depends on all ids, so the texts wait in a temporary file in `folder` until `close`.
    """

    def __init__(self, group: h5py.Group, name: str, folder: str) -> None:
        self._group, self._name = group, name
        self._whole, self._width = True, 1
        try:
            self._texts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            self._ends = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            why = f"no temporary file can be made: {error.strerror}"
            raise StorageError(f"{folder}: {why}") from error

    def append(self, texts: Any) -> None:
        """Add Arrow texts (m,), none of which is missing.

        Raises StorageError if the temporary file cannot be written.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        lengths = pc.binary_length(texts).cast(pa.int32()).to_numpy(zero_copy_only=False)
        self._whole = self._whole and bool(pc.all(pc.match_substring_regex(texts, NUMBER)).as_py())
        self._width = max(self._width, int(lengths.max(initial=0)))
        try:
            self._texts.write("".join(texts.to_pylist()).encode())
            self._ends.write(lengths.tobytes())
        except OSError as error:
            raise StorageError(f"ids cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Write the dataset and delete the temporary files."""
        kind = np.dtype(np.int64) if self._whole else h5py.string_dtype("utf-8", self._width)
        out = Stream(self._group, self._name, kind)
        self._texts.seek(0)
        self._ends.seek(0)
        while part := self._ends.read(4 * SLAB_ROWS):
            ends = np.cumsum(np.frombuffer(part, dtype=np.int32), dtype=np.int64)
            text = self._texts.read(int(ends[-1]))
            starts = np.concatenate([[0], ends[:-1]])
            each = [text[start:end] for start, end in zip(starts, ends, strict=True)]
            out.append(np.array([int(one) for one in each] if self._whole else each, dtype=kind))
        out.close()
        self._texts.close()
        self._ends.close()
