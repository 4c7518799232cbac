"""What a file may make HDF5 do: read that file alone, take no more memory than the file can hold, run no code.

HDF5 itself follows links, virtual datasets and external storage to any file that this user may read, allocates what a
file declares, and asks plugins for filters that it does not know. Here every object is looked at before it is opened.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

# No filter plugin that a file may ask for. HDF5 looks at this when it starts, which in a notebook may have been before:
# _check_filters refuses them too.
os.environ["HDF5_PLUGIN_PRELOAD"] = "::"

import h5py

from mpigd.errors import DataError

FLOOR = 64 << 20  # bytes that any file may declare: less than a rank takes anyway
DEFLATE = 1100  # no byte that HDF5's own filters compress becomes more than 1032
OTHERS = 1 << 16  # zstd and its like do so with constants
CHUNK = 1 << 32  # bytes; larger ones are new in HDF5 2.0, and each is held as a whole
ATTRIBUTE = 1 << 16  # bytes of an attribute
LINKS = 16  # that are followed for one name
PLAIN_FILTERS = (1, 2, 3)  # deflate, shuffle, fletcher32
OWN_FILTERS = (*PLAIN_FILTERS, 4, 5, 6, 32000)  # szip, nbit, scale-offset, and lzf, which comes with h5py


class Group(h5py.Group):  # type: ignore[misc]
    """A group of an open file. What is reached from here has been looked at, or is refused by DataError.

    links: folders into which links, virtual datasets and external storage may lead. Links within a file are followed: they
    are nothing but other names of what is looked at in the same way.
    """

    def __init__(self, bind: h5py.h5g.GroupID, links: Sequence[str] = ()) -> None:
        super().__init__(bind)
        self._links = tuple(links)

    @property
    def filename(self) -> str:
        return str(self.file.filename)

    @property
    def attrs(self) -> Attributes:
        return Attributes(self)

    def __getitem__(self, name: Any) -> Any:
        if (found := self.get(name)) is None:
            raise KeyError(f"{self.filename}: no object {name!r}")
        return found

    def __contains__(self, name: Any) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            yield _text(name, self)

    def get(self, name: Any, default: Any = None, **kinds: Any) -> Any:
        found = _follow(self, _text(name, self), _Budget(self._links))
        return default if found is None else found


class Attributes(h5py.AttributeManager):  # type: ignore[misc]
    """A group's attributes: numbers and texts, none larger than ATTRIBUTE."""

    def __init__(self, parent: Group) -> None:
        super().__init__(parent)
        self._place = f"{parent.filename}: "

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        found = self.get_id(name)
        kind, space = found.get_type(), found.get_space()
        plain = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.STRING)
        if kind.get_class() not in plain or space.get_simple_extent_npoints() * kind.get_size() > ATTRIBUTE:
            raise DataError(f"{self._place}attribute {name!r} is neither a text nor a few numbers")
        return super().__getitem__(name)


class _Budget:
    """The folders that links may lead into, and how many links may still be followed."""

    def __init__(self, folders: Sequence[str], left: int = LINKS) -> None:
        self._folders, self._left = [os.path.realpath(folder) for folder in folders], left
        self.folders = tuple(folders)

    def take(self, place: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise DataError(f"{place}: one link leads to another, more than {LINKS} times")

    def allow(self, target: str, place: str) -> str:
        """The real path of the file `target`, or a DataError unless it lies in an allowed folder."""
        real = os.path.realpath(target)
        if not any(os.path.commonpath([folder, real]) == folder for folder in self._folders):
            raise DataError(f"{place} leads to another file, {target} (--allow-links FOLDER allows those in a folder)")
        return real


def _text(name: Any, group: h5py.Group) -> str:
    if not isinstance(name, str):
        raise DataError(f"{group.file.filename}: the name {name!r} of an object is not UTF-8")
    return name


def _place(group: h5py.Group, name: str) -> str:
    inside = (group.name or "").strip("/")
    return f"{group.file.filename}: {f'{inside}/{name}'.strip('/')!r}"


def _follow(group: h5py.Group, path: str, budget: _Budget) -> Any:
    """The object that `path` names from `group`, looked at, or None."""
    here = h5py.Group(h5py.h5g.open(group.file.id, b"/")) if path.startswith("/") else group
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(here, h5py.Group) or (found := _step(here, part, budget)) is None:
            return None
        here = found
    return look(here, budget)


def _step(group: h5py.Group, name: str, budget: _Budget) -> Any:
    links, code = group.id.links, name.encode(errors="surrogateescape")
    if b"\0" in code or not links.exists(code):
        return None
    kind = links.get_info(code).type
    if kind == h5py.h5l.TYPE_HARD:
        return h5py.Group.__getitem__(_plain(group), name)
    place = _place(group, name)
    budget.take(place)
    if kind == h5py.h5l.TYPE_SOFT:
        return _follow(group, links.get_val(code).decode(errors="surrogateescape"), budget)
    if kind != h5py.h5l.TYPE_EXTERNAL:
        raise DataError(f"{place} is a link of a kind that HDF5 does not know")
    name, path = (part.decode(errors="surrogateescape") for part in links.get_val(code))
    real = budget.allow(_beside(group, name), place)
    return _follow(_root(real, place), path, budget)


def _plain(group: h5py.Group) -> h5py.Group:
    return h5py.Group(group.id)


def _beside(group: h5py.Group, name: str) -> str:
    return os.path.join(os.path.dirname(os.path.realpath(group.file.filename)), name)


def _root(path: str, place: str) -> h5py.Group:
    try:
        return h5py.Group(h5py.h5g.open(open_file(path).id, b"/"))
    except OSError as error:
        raise DataError(f"{place} leads to {path}, which cannot be opened: {error}") from error


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """Read-only. Without file locks, which parallel file systems may not have; with them where this process has the file open
    so already (a notebook does), since HDF5 opens a file twice only in the same way.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")


def look(found: Any, budget: _Budget) -> Any:
    """A group that looks at what it holds, or the dataset, if it can be read; DataError, naming it, otherwise."""
    if isinstance(found, h5py.Group):
        return Group(found.id, budget.folders)
    if isinstance(found, h5py.Dataset):
        with _unreadable(found):
            _check_type(found)
            _check_size(found, _elsewhere(found, budget))
            _check_filters(found)
    return found


@contextmanager
def _unreadable(data: h5py.Dataset) -> Iterator[None]:
    """What h5py says of types and properties that it cannot express."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError, OverflowError, UnicodeDecodeError) as error:
        raise DataError(f"{_named(data)} cannot be read: {error}") from error


def _named(data: h5py.Dataset) -> str:
    return f"{data.file.filename}: {(data.name or '').strip('/')!r}"


def _check_type(data: h5py.Dataset) -> None:
    dtype = data.dtype
    if dtype.kind in "fiub":
        return
    text = dtype.kind in "SU" or h5py.check_string_dtype(dtype) is not None
    advice = " (`mpigd import` turns labels into codes)" if text else ""
    raise DataError(f"{_named(data)} holds {'text' if text else dtype}, expected numbers{advice}")


def _check_size(data: h5py.Dataset, others: int) -> None:
    """Declared sizes against what the file, and `others` bytes of other files, can hold."""
    if data.shape is None:
        raise DataError(f"{_named(data)} is empty: it has no shape")
    size, codes = os.stat(data.file.filename).st_size + others, filters(data)
    ratio = (DEFLATE if all(code in PLAIN_FILTERS for code in codes) else OTHERS) if data.chunks else 1
    room = max(FLOOR, ratio * size)
    declared = math.prod(max(1, length) for length in data.shape) * data.dtype.itemsize
    if declared > room:
        raise DataError(f"{_named(data)} declares {declared:.3g} bytes, but a file of {size} bytes cannot hold them")
    chunk = math.prod(data.chunks or ()) * data.dtype.itemsize
    if chunk > min(room, CHUNK):
        raise DataError(f"{_named(data)} declares chunks of {chunk:.3g} bytes: too large to be held")


def check_columns(group: Group, d: int, place: str) -> None:
    """A sparse matrix says in an attribute alone how many columns it has: a vector of as many must be possible."""
    room = max(FLOOR, DEFLATE * os.stat(group.filename).st_size)
    if 8 * d > room:
        raise DataError(f"{place} declares {d} columns, too many for a file of its size")


def filters(data: h5py.Dataset) -> list[int]:
    """The codes of the filters that the chunks have passed."""
    properties = data.id.get_create_plist()
    return [int(properties.get_filter(i)[0]) for i in range(properties.get_nfilters())]


def _check_filters(data: h5py.Dataset) -> None:
    for code in filters(data):
        if not available(code):
            advice = "pip install 'mpigd[filters]'"
            raise DataError(f"{data.file.filename}: {data.name!r} is compressed with filter {code}, unknown here: {advice}")


def available(code: int) -> bool:
    """Whether a filter is one of HDF5's own, or of the package hdf5plugin: others come from nowhere."""
    if code not in OWN_FILTERS:
        try:
            if code not in import_module("hdf5plugin").FILTERS.values():
                return False
        except ImportError:
            return False
    return bool(h5py.h5z.filter_avail(code))


def _elsewhere(data: h5py.Dataset, budget: _Budget) -> int:
    """The size of the other files from which HDF5 will read the dataset: all of them must be allowed."""
    place = _named(data)
    if not data.is_virtual:
        return sum(os.path.getsize(budget.allow(name, place)) for name, _, _ in data.external or ())
    size = 0
    for source in data.virtual_sources():
        if not budget.folders:
            raise DataError(f"{place} is a virtual dataset, of {source.file_name} (--allow-links FOLDER allows a folder's)")
        if "%" in source.file_name + source.dset_name:
            raise DataError(f"{place} is a virtual dataset of files named by a pattern, {source.file_name}")
        size += _check_source(data, source, budget, place)
    return size


def _check_source(data: h5py.Dataset, source: Any, budget: _Budget, place: str) -> int:
    """HDF5 looks for a source beside the file, in this folder, and at its last name there: what it may find must be allowed."""
    budget.take(place)
    own, name = data.file.filename, source.file_name
    if name == ".":
        _follow(_root(own, place), source.dset_name, _Budget(budget.folders, 0))
        return 0
    beside = os.path.dirname(os.path.realpath(own))
    tried = {os.path.join(folder, part) for folder in (beside, "") for part in (name, os.path.basename(name))}
    there = {budget.allow(path, place) for path in tried if os.path.exists(path)}
    if not there:
        raise DataError(f"{place} leads to {name}, which is not there")
    for path in there:  # by hard links alone: HDF5 would follow others by itself
        _follow(_root(path, place), source.dset_name, _Budget(budget.folders, 0))
    return sum(map(os.path.getsize, there))
