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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpigd.errors import DataError, StorageError
from mpigd.parallel.working_directory import located
from mpigd.storage import checksum, resource_limits, safe_open
from mpigd.storage.safe_open import Group as Group

Array = np.ndarray[Any, Any]
CHECKSUM = "sha256"


@contextmanager
def open_read(
    path: str | os.PathLike[str], links: Sequence[str] = (), sealed: bool = False
) -> Iterator[Group]:
    """Open an HDF5 file for reading: its root group, which looks at everything before it is opened (safe_open.py).

    links: folders into which the file's links may lead. sealed: one without a checksum is not opened at all.
    DataError if the file is missing or not HDF5, or when reading it fails.
    """
    try:
        there = located(path)
        if os.path.exists(there) and not os.path.isfile(there):
            raise OSError("no regular file")  # a pipe would be waited for without end
        checksum.check(there, sealed)
        file = safe_open.open_file(there)
    except OSError as error:
        resource_limits.raise_if_lacking(path, error)
        raise DataError(f"{path}: {_open_reason(there, error)}") from error
    with file, resource_limits.named(path), readable(path):
        yield Group(h5py.h5g.open(file.id, b"/"), links)


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """What HDF5 finds wrong with the file becomes a DataError."""
    try:
        yield
    except Exception as error:
        if not _from_hdf5(error):
            raise
        resource_limits.raise_if_lacking(path, error)
        raise DataError(f"{path}: damaged: {_words(error)}") from error


def _from_hdf5(error: Exception) -> bool:
    """Whether the HDF5 library says this (h5py raises many kinds), and not the system about some other file."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    compiled = place is not None and place.tb_frame.f_code.co_filename.startswith("h5py/")
    return compiled and not isinstance(error, MemoryError | DataError)


def _words(error: Exception) -> str:
    return " ".join(str(error.args[0]).split()) if error.args else ""


def _open_reason(path: str | os.PathLike[str], error: OSError) -> str:
    if not os.path.exists(path):
        return "no such file"
    if os.path.isdir(path):
        return "is a folder; name the files in it"
    if not os.path.isfile(path):
        return "is not a regular file"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "may not be read (permission denied)"
    if not h5py.is_hdf5(path):
        return "not an HDF5 file (raw tables become one with `mpigd import`)"
    return f"cannot be read: {error}"


def dataset(file: Group, name: str) -> h5py.Dataset:
    """The dataset `name`, or a DataError naming what the file does have."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        place = file.filename + (f": group {file.name.strip('/')!r}" if file.name != "/" else "")
        raise DataError(
            f"{place}: no dataset {name!r}; it has {', '.join(sorted(file)) or 'nothing'}"
        )
    return found


def check_target(path: str | os.PathLike[str]) -> None:
    """StorageError if `path` is a folder or a device: renaming a file to it would fail at the end of all work, or replace
    /dev/null for everybody.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise StorageError(
            f"{path}: cannot be written: it is {'a folder' if os.path.isdir(path) else 'not a regular file'}"
        )


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name to write to; renamed to `path` once the body ends well, removed otherwise.

    Raises StorageError (exit code 74) naming the file when the file system refuses.
    """
    target = Path(located(path))
    check_target(target)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        )
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        yield temporary
        fsync(temporary)
        os.replace(temporary, target)
        fsync(target.parent)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with suppress(
                OSError
            ):  # renamed, or the file system refuses this too: then that is not what failed
                os.unlink(temporary)


@contextmanager
def create(
    path: str | os.PathLike[str], inspect: Callable[[str], None] = lambda temporary: None
) -> Iterator[h5py.File]:
    """A new HDF5 file that appears under `path` when it is complete, and `inspect`, given its name until then, does not raise."""
    with atomic_path(path) as temporary:
        with _Sink(temporary, "r+", opener=no_link) as sink:
            try:
                with h5py.File(sink, "w", libver="v110") as file:
                    yield file
                    sealed = CHECKSUM in file.attrs
                if sealed:
                    sink.write(checksum.line(sink, sink.seek(0, os.SEEK_END)))
            finally:
                if sink.failure is not None:  # the reason of whatever else went wrong
                    raise sink.failure
        inspect(temporary)


def no_link(path: str, flags: int) -> int:
    """For open(): not through a link that somebody has put where our temporary file was."""
    return os.open(path, flags | os.O_NOFOLLOW)


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
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(
        0o022
    )  # elsewhere: for a moment another thread would make its files with this one
    os.umask(mask)
    return mask


def fsync(path: str | os.PathLike[str]) -> None:
    """Have what was written to a file or a folder on the disk."""
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
    data = group.create_dataset(
        name, array.shape, array.dtype, fletcher32=True, chunks=_chunk(array.shape, array.itemsize)
    )
    for piece in (
        data.iter_chunks()
    ):  # HDF5 lets one thread in at a time: another may be reading the rows of the next step
        data[piece] = array[piece]


def _chunk(shape: tuple[int, ...], itemsize: int, limit: int = 1 << 20) -> tuple[int, ...]:
    """At most `limit` bytes of consecutive numbers."""
    chunk, left = [], max(1, limit // itemsize)
    for length in reversed(shape):
        chunk.append(max(1, min(length, left)))
        left //= chunk[-1]
    return tuple(reversed(chunk))


def write_text(group: h5py.Group, name: str, text: str) -> None:
    """Store a short text as an attribute of fixed length. A Python str would go to HDF5's global heap, which has no
    checksum: there a flipped bit passes unnoticed, or sends the library into an endless loop."""
    group.attrs[name] = np.bytes_(text.encode())


def read_text(group: Group, name: str) -> str:
    """The text attribute `name`, or an empty text where there is none that write_text wrote."""
    value = b"" if group.attrs.varies(name) else group.attrs.get(name, b"")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def texts(values: Sequence[str]) -> Array:
    """Texts (m,) as an array of fixed length in UTF-8, which h5py reads as text with `.asstr()`; see write_text."""
    encoded = [text.encode() for text in values]
    return np.array(encoded, dtype=text_type(max(map(len, encoded), default=1)))


def text_type(size: int) -> np.dtype[Any]:
    """The type of texts of that many bytes in UTF-8."""
    kind: np.dtype[Any] = h5py.string_dtype("utf-8", max(1, size))
    return kind


def write_json(group: h5py.Group, name: str, value: Any) -> None:
    """Store a JSON text as bytes: attributes end at 64 kB, and HDF5's own strings need unbounded reads."""
    write_array(
        group, name, np.frombuffer(json.dumps(value, sort_keys=True).encode(), dtype=np.uint8)
    )


def read_json(group: Group, name: str, kind: type = dict) -> Any:
    """The JSON text `name`: a value of that kind, or a DataError."""
    try:
        value = json.loads(dataset(group, name)[...].tobytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{group.filename}: {name!r} is damaged: no JSON") from error
    if not isinstance(value, kind):
        raise DataError(f"{group.filename}: {name!r} is damaged: not what was stored there")
    return value


def content_digest(group: h5py.Group, only: str | None = None) -> str:
    """sha256 over the names, types, shapes and bytes of all datasets below `group` (or of `only`), in name order."""
    total = hashlib.sha256()
    names: list[Any] = [only] if only else []
    if not only:
        group.visit(names.append)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{group.file.filename}: damaged: a name is not UTF-8")
    for name in sorted(names):
        if isinstance(item := group[name], h5py.Dataset):
            total.update(f"{name} {item.dtype.str} {item.shape}\n".encode())
            total.update(np.ascontiguousarray(item[...]).tobytes())
    return total.hexdigest()


def seal(file: h5py.File) -> None:
    """Have create() write a checksum of all bytes behind them."""
    write_text(file, CHECKSUM, "of all bytes, in the last line of the file")


def verify(file: Group) -> None:
    """Raise DataError unless the file is one that was sealed: open_read() has compared its bytes with their checksum then."""
    if not checksum.there(file.filename):
        raise DataError(f"{file.filename}: damaged: its contents do not match their checksum")
