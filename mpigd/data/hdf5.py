"""The one door to HDF5: every file is opened, and every new one written, through these few functions.

Reading: plain h5py, read-only, without file locks (they fail on some network file systems even for reading).
Writing: to a temporary name in the same folder, flushed, fsynced, renamed, and the folder fsynced, so that a
file is whole or absent under its name.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")  # no filter plugin that a stranger's file may ask for

import h5py
import numpy as np

from mpigd.errors import DataError, StorageError

Array = np.ndarray[Any, Any]
CHECKSUM = "sha256"


@contextmanager
def open_read(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; DataError if it is missing or not HDF5, or when reading it fails."""
    try:
        file = _open_unlocked(path)
    except OSError as error:
        raise DataError(f"{path}: {_open_reason(path, error)}") from error
    with file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError) as error:
            if not _from_hdf5(error):
                raise
            raise DataError(f"{path}: damaged: {_words(error)}") from error


def _open_unlocked(path: str | os.PathLike[str]) -> h5py.File:
    """Without file locks, which parallel file systems may not have; with them where this process has the file open so already
    (a notebook does), since HDF5 opens a file twice only in the same way.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")


def _from_hdf5(error: Exception) -> bool:
    """Whether the HDF5 library says this (h5py raises many kinds), and not the system about some other file."""
    return _words(error).startswith(("Can't ", "Unable to "))


def _words(error: Exception) -> str:
    return str(error.args[0]) if error.args else ""


def _open_reason(path: str | os.PathLike[str], error: OSError) -> str:
    if not os.path.exists(path):
        return "no such file"
    if os.path.isdir(path):
        return "is a folder; name the files in it"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "may not be read (permission denied)"
    if not h5py.is_hdf5(path):
        return "not an HDF5 file (raw tables become one with `mpigd import`)"
    return f"cannot be read: {error}"


def dataset(file: h5py.Group, name: str) -> h5py.Dataset:
    """The dataset `name`, or a DataError naming what the file does have."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        place = file.file.filename + (f": group {file.name.strip('/')!r}" if file.name != "/" else "")
        raise DataError(f"{place}: no dataset {name!r}; it has {', '.join(sorted(file)) or 'nothing'}")
    return readable(found)


def readable(data: h5py.Dataset) -> h5py.Dataset:
    """The dataset, once its compression can be undone: filters beyond HDF5's own come from the package hdf5plugin."""
    properties = data.id.get_create_plist()
    codes = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    for code in codes:
        if h5py.h5z.filter_avail(code):
            continue
        with suppress(ImportError):
            import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(code):
            advice = "pip install 'mpigd[filters]'"
            raise DataError(f"{data.file.filename}: {data.name!r} is compressed with filter {code}, unknown here: {advice}")
    return data


def check_target(path: str | os.PathLike[str]) -> None:
    """StorageError if `path` is a folder or a device: renaming a file to it would fail at the end of all work, or replace
    /dev/null for everybody.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise StorageError(f"{path}: cannot be written: it is {'a folder' if os.path.isdir(path) else 'not a regular file'}")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name to write to; renamed to `path` once the body ends well, removed otherwise.

    Raises StorageError (exit code 74) naming the file when the file system refuses.
    """
    target = Path(path)
    check_target(target)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        yield temporary
        _fsync(temporary)
        os.replace(temporary, target)
        _fsync(target.parent)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def create(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """A new HDF5 file that appears under `path` when it is complete."""
    with atomic_path(path) as temporary, _Sink(temporary, "r+") as sink:
        try:
            with h5py.File(sink, "w", libver="v110") as file:
                yield file
        finally:
            if sink.failure is not None:  # the reason of whatever else went wrong
                raise sink.failure


class _Sink(io.FileIO):
    """The file below HDF5, which never tells HDF5 of a full disk: that could not close the file any more, and would
    crash at the end of the process. The first failure is kept for create(), the rest of the file is written nowhere.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.failure is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _fsync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_array(group: h5py.Group, name: str, array: Array) -> None:
    """Store an array with a checksum on every chunk (HDF5 has none on contiguous data)."""
    array = np.asarray(array)
    if array.size == 0 or array.ndim == 0:
        group.create_dataset(name, data=array)
        return
    group.create_dataset(name, data=array, fletcher32=True, chunks=_chunk(array.shape, array.dtype.itemsize))


def _chunk(shape: tuple[int, ...], itemsize: int, limit: int = 1 << 20) -> tuple[int, ...]:
    inner = max(1, int(np.prod(shape[1:])) * itemsize)
    return (max(1, min(shape[0], limit // inner)), *shape[1:])


def write_text(group: h5py.Group, name: str, text: str) -> None:
    """Store a short text as an attribute of fixed length. A Python str would go to HDF5's global heap, which has no
    checksum: there a flipped bit passes unnoticed, or sends the library into an endless loop.
    """
    group.attrs[name] = np.bytes_(text.encode())


def read_text(group: h5py.Group, name: str) -> str:
    """The text attribute `name`, or an empty text where there is none."""
    value = group.attrs.get(name, b"")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def texts(values: Sequence[str]) -> Array:
    """Texts (m,) as an array of fixed length in UTF-8, which h5py reads as text with `.asstr()`; see write_text."""
    encoded = [text.encode() for text in values]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, max(map(len, encoded), default=1))))


def write_json(group: h5py.Group, name: str, value: Any) -> None:
    """Store a JSON text as bytes: attributes end at 64 kB, and HDF5's own strings need unbounded reads."""
    text = json.dumps(value, sort_keys=True, allow_nan=True)
    write_array(group, name, np.frombuffer(text.encode(), dtype=np.uint8))


def read_json(group: h5py.Group, name: str) -> Any:
    try:
        return json.loads(dataset(group, name)[...].tobytes())
    except ValueError as error:
        raise DataError(f"{group.file.filename}: {name} is damaged") from error


def content_digest(group: h5py.Group, only: str | None = None) -> str:
    """sha256 over the names, types, shapes and bytes of all datasets below `group` (or of `only`), in name order."""
    total = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            total.update(f"{name} {item.dtype.str} {item.shape}\n".encode())
            total.update(np.ascontiguousarray(item[...]).tobytes())

    for name in [only] if only else sorted(_names(group)):
        add(name, group[name])
    return total.hexdigest()


def _names(group: h5py.Group) -> list[str]:
    names: list[str] = []
    group.visit(names.append)
    return names


def seal(file: h5py.File) -> None:
    """Write the digest of everything in the file; the last thing before it is closed."""
    write_text(file, CHECKSUM, content_digest(file))


def verify(file: h5py.File) -> None:
    """Raise DataError unless the file's contents are those that were sealed."""
    try:
        whole = read_text(file, CHECKSUM) == content_digest(file)
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{file.filename}: damaged: {_words(error)}") from error
    if not whole:
        raise DataError(f"{file.filename}: damaged: its contents do not match their checksum")
