"""The one door to HDF5: all files are opened, and all new files written, through these functions.

Files are read with plain h5py, read-only and without file locks (locks fail on some network file
systems even for reading). Files are written to a temporary name in the same folder, flushed,
fsynced and renamed, and the folder is fsynced. A file is therefore whole or absent under its name.
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
    """Open an HDF5 file for reading and return its root group, as a context manager.

    The group checks every object before it opens it, see safe_open.py.

    Parameters
    ----------
    path : path
        The file.
    links : sequence of str
        Folders into which links in the file may lead.
    sealed : bool
        Whether the file must have a checksum. A file without one is then not opened at all.

    Raises
    ------
    DataError
        If the file is missing, is not HDF5, or is damaged.
    LimitError
        If the system lacks memory or file descriptors.
    """
    try:
        there = located(path)
        if os.path.exists(there) and not os.path.isfile(there):
            raise OSError("no regular file")  # opening a pipe would block for ever
        checksum.check(there, sealed)
        file = safe_open.open_file(there)
    except OSError as error:
        resource_limits.raise_if_lacking(path, error)
        raise DataError(f"{path}: {_open_reason(there, error)}") from error
    with file, resource_limits.named(path), readable(path):
        yield Group(h5py.h5g.open(file.id, b"/"), links)


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors that the HDF5 library raises in the body into DataErrors."""
    try:
        yield
    except Exception as error:
        if not _from_hdf5(error):
            raise
        resource_limits.raise_if_lacking(path, error)
        raise DataError(f"{path}: damaged: {_words(error)}") from error


def _from_hdf5(error: Exception) -> bool:
    """Return whether the HDF5 library raised an error.

    h5py raises errors of many types; the system may also raise some of these about other files. The
    innermost frame of the traceback shows the origin.
    """
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
    """Return the dataset `name`. If there is none, a DataError names what the file has."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        place = file.filename + (f": group {file.name.strip('/')!r}" if file.name != "/" else "")
        raise DataError(
            f"{place}: no dataset {name!r}; it has {', '.join(sorted(file)) or 'nothing'}"
        )
    return found


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise StorageError if `path` is a folder or a device.

    Renaming a file to it would fail after all the work, or replace /dev/null for everybody.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise StorageError(
            f"{path}: cannot be written: it is "
            f"{'a folder' if os.path.isdir(path) else 'not a regular file'}"
        )


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a temporary name to write to.

    It is renamed to `path` if the body succeeds, else removed.

    Raises
    ------
    StorageError
        With exit code 74, naming the file, if the file system refuses an operation.
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
            # This fails after the renaming. If the file system refuses it, the error above counts.
            with suppress(OSError):
                os.unlink(temporary)


@contextmanager
def create(
    path: str | os.PathLike[str], inspect: Callable[[str], None] = lambda temporary: None
) -> Iterator[h5py.File]:
    """Yield a new HDF5 file; it appears under `path` once it is complete.

    Parameters
    ----------
    path : path
        The name of the file.
    inspect : callable
        Called with the temporary name of the closed file, before it is renamed. If it raises, the
        file is removed.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        with _Sink(temporary, "r+", opener=no_link) as sink:
            try:
                with h5py.File(sink, "w", libver="v110") as file:
                    yield file
                    sealed = CHECKSUM in file.attrs
                if sealed:
                    sink.write(checksum.line(sink, sink.seek(0, os.SEEK_END)))
            finally:
                if sink.failure is not None:  # the cause of any other error
                    raise sink.failure
        inspect(temporary)


def no_link(path: str, flags: int) -> int:
    """Open a file for `open()`, but refuse links.

    Somebody might have put a link in place of the temporary file.
    """
    return os.open(path, flags | os.O_NOFOLLOW)


class _Sink(io.FileIO):
    """The file object below HDF5. It hides write errors, such as a full disk, from HDF5.

    After such an error HDF5 could not close the file any more, and would crash at the end of the
    process. The first error is kept for create(), and the rest of the data is dropped.
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
    # On systems without /proc, the mask must be set to be read. For a moment, other threads create
    # files with this mask.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def fsync(path: str | os.PathLike[str]) -> None:
    """Flush the data of a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_array(group: h5py.Group, name: str, array: Array) -> None:
    """Store an array with a checksum (fletcher32) on every chunk.

    HDF5 has no checksums on contiguous data.

    Parameters
    ----------
    group : h5py.Group
        Where the dataset is made.
    name : str
        Its name.
    array : ndarray
        Its contents, of any shape. An empty array and a scalar are stored without chunks and
        checksums.
    """
    array = np.asarray(array)
    if array.size == 0 or array.ndim == 0:
        group.create_dataset(name, data=array)
        return
    data = group.create_dataset(
        name, array.shape, array.dtype, fletcher32=True, chunks=_chunk(array.shape, array.itemsize)
    )
    # HDF5 lets in one thread at a time. Writing in pieces lets another thread read the rows of the
    # next step in between.
    for piece in data.iter_chunks():
        data[piece] = array[piece]


def _chunk(shape: tuple[int, ...], itemsize: int, limit: int = 1 << 20) -> tuple[int, ...]:
    """Return the shape of a chunk: at most `limit` bytes of consecutive numbers."""
    chunk, left = [], max(1, limit // itemsize)
    for length in reversed(shape):
        chunk.append(max(1, min(length, left)))
        left //= chunk[-1]
    return tuple(reversed(chunk))


def write_text(group: h5py.Group, name: str, text: str) -> None:
    """Store a short text as an attribute of fixed length.

    h5py stores a Python str in HDF5's global heap, which has no checksum. A flipped bit there
    passes unnoticed, or sends the library into an endless loop.
    """
    group.attrs[name] = np.bytes_(text.encode())


def read_text(group: Group, name: str) -> str:
    """Return the text attribute `name`, or an empty text if write_text wrote none."""
    value = b"" if group.attrs.varies(name) else group.attrs.get(name, b"")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def texts(values: Sequence[str]) -> Array:
    """Return texts (m,) as an array of fixed-length UTF-8, see write_text.

    h5py reads it with `.asstr()`.
    """
    encoded = [text.encode() for text in values]
    return np.array(encoded, dtype=text_type(max(map(len, encoded), default=1)))


def text_type(size: int) -> np.dtype[Any]:
    """Return the dtype of UTF-8 texts of at most `size` bytes."""
    kind: np.dtype[Any] = h5py.string_dtype("utf-8", max(1, size))
    return kind


def write_json(group: h5py.Group, name: str, value: Any) -> None:
    """Store a value as JSON text in a dataset of bytes.

    Attributes are limited to 64 kB, and reading HDF5's own strings needs unbounded reads.
    """
    write_array(
        group, name, np.frombuffer(json.dumps(value, sort_keys=True).encode(), dtype=np.uint8)
    )


def read_json(group: Group, name: str, kind: type = dict) -> Any:
    """Return the value of the JSON text in dataset `name`.

    Parameters
    ----------
    group : Group
        Where the dataset lies.
    name : str
        Its name.
    kind : type
        The type that the value must have.

    Raises
    ------
    DataError
        If there is no such dataset, or it does not hold JSON of that type.
    """
    try:
        value = json.loads(dataset(group, name)[...].tobytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{group.filename}: {name!r} is damaged: no JSON") from error
    if not isinstance(value, kind):
        raise DataError(f"{group.filename}: {name!r} is damaged: not what was stored there")
    return value


def content_digest(group: h5py.Group, only: str | None = None) -> str:
    """Return a sha256 digest of the contents of datasets.

    It covers names, types, shapes and bytes, in the order of the names.

    Parameters
    ----------
    group : h5py.Group
        All datasets below it are covered.
    only : str, optional
        The name of the one dataset to cover instead.

    Returns
    -------
    str
        Hexadecimal digits.

    Raises
    ------
    DataError
        If a name is not UTF-8.
    """
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
    """Mark the file as sealed: create() then writes a checksum of all bytes behind them."""
    write_text(file, CHECKSUM, "of all bytes, in the last line of the file")


def verify(file: Group) -> None:
    """Raise DataError unless the file is sealed.

    open_read() has already compared the bytes of a sealed file with their checksum.
    """
    if not checksum.there(file.filename):
        raise DataError(f"{file.filename}: damaged: its contents do not match their checksum")
