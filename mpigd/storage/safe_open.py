"""Safe access to the objects of an HDF5 file, which may come from anywhere.

HDF5 itself follows links, virtual datasets and external storage to any file that the user may read,
allocates what a file declares, and loads plugins for unknown filters. Here every object is checked
before it is opened. A file can then read only itself and the folders that were allowed, takes no
more memory than its size justifies, and runs no code.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# HDF5 loads no filter plugins that a file asks for. HDF5 reads this variable when it starts, which
# in a notebook may have happened before, so dataset_checks.py refuses such filters too.
os.environ["HDF5_PLUGIN_PRELOAD"] = "::"

import h5py

from mpigd.errors import DataError
from mpigd.storage import dataset_checks, resource_limits
from mpigd.storage.chunked_reads import Dataset

ATTRIBUTE = 1 << 16  # bytes of an attribute, at most
LINKS = 16  # links that are followed for one name, at most
NESTED = 16  # levels of virtual datasets made of virtual datasets, at most
SOURCES = 1 << 16  # sources of a virtual dataset, at most, including the sources of its sources


class Missing(DataError, KeyError):
    """There is no such object or attribute."""

    __str__ = Exception.__str__


class Group(h5py.Group):  # type: ignore[misc]
    """A group of an open file. Objects reached through it are checked; unsafe ones raise DataError.

    `links` names the folders into which links, virtual datasets and external storage may lead.
    Links within the file are always followed: they are other names of objects that are checked in
    the same way.
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
            raise Missing(f"{self.filename}: no object {name!r}")
        return found

    def __contains__(self, name: Any) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            yield _text(name, self)

    def get(self, name: Any, default: Any = None, **kinds: Any) -> Any:
        found = _follow(self, _text(name, self), _Budget(self._links))
        return default if found is None else found

    def raw(self, name: str) -> Any:
        """Return the group or the dataset of a name, or None.

        The dataset may hold texts, records or references.
        """
        return _follow(self, _text(name, self), _Budget(self._links, numbers=False))


class Attributes(h5py.AttributeManager):  # type: ignore[misc]
    """The attributes of a group or a dataset: numbers and texts of fixed length.

    They have at most ATTRIBUTE bytes.
    Texts of variable length lie in HDF5's global heap, where one flipped bit sends the library into
    an endless loop.
    """

    def __init__(self, parent: h5py.Group | h5py.Dataset) -> None:
        super().__init__(parent)
        self._place = f"{parent.file.filename}: "

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise Missing(f"{self._place}no attribute {name!r}")
        found = self.get_id(name)
        kind, space = found.get_type(), found.get_space()
        plain = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.STRING)
        size = space.get_simple_extent_npoints() * kind.get_size()
        if kind.get_class() not in plain or self.varies(name) or size > ATTRIBUTE:
            raise DataError(
                f"{self._place}attribute {name!r} is neither a "
                "text of fixed length nor a few numbers"
            )
        return super().__getitem__(name)

    def varies(self, name: str) -> bool:
        """Return whether the attribute exists and is a text of variable length."""
        kind = self.get_id(name).get_type() if name in self else None
        return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())

    def varying(self, name: str) -> Any:
        """Return the text of an attribute of variable length.

        Use it only if there is no other way.
        """
        return super().__getitem__(name)


class _Budget:
    """Limits on what may be followed for one name.

    They are: the folders that links may lead into, the number of consecutive links, the depth of
    virtual datasets within virtual datasets, and the number of their sources, each of which is
    checked once. `numbers`: whether datasets must hold numbers.
    """

    def __init__(self, folders: Sequence[str], numbers: bool = True) -> None:
        self._folders = [os.path.realpath(folder) for folder in folders]
        self.folders, self.numbers = tuple(folders), numbers
        self._links, self._nested, self._sources = LINKS, NESTED, [SOURCES]
        self._direct = False  # whether links are refused altogether
        # The objects found, by the path of the file and the name of the source.
        self.known: dict[tuple[str, str], Any] = {}

    def take(self, place: str) -> None:
        if self._direct:
            raise DataError(
                f"{place} is a link, and HDF5 would follow it by itself: "
                "virtual datasets must name the dataset"
            )
        self._links -= 1
        if self._links < 0:
            raise DataError(f"{place}: one link leads to another, more than {LINKS} times")

    def sources(self, count: int, place: str) -> _Budget:
        """Return the budget for `count` sources of one virtual dataset.

        It refuses links: HDF5 would follow them by itself.
        """
        inner = copy.copy(self)
        inner._direct, inner._nested = True, self._nested - 1
        if inner._nested < 0:
            raise DataError(
                f"{place}: one virtual dataset leads to another, more than {NESTED} times"
            )
        self._sources[0] -= count
        if self._sources[0] < 0:
            raise DataError(f"{place}: it is made of more than {SOURCES} sources")
        return inner

    def allow(self, target: str, place: str) -> str:
        """Return the real path of the file `target`.

        DataError unless it lies in an allowed folder.
        """
        real = os.path.realpath(target)
        if not any(os.path.commonpath([folder, real]) == folder for folder in self._folders):
            raise DataError(
                f"{place} leads to another file, "
                f"{target} (--allow-links FOLDER allows those in a folder)"
            )
        return real


def _text(name: Any, group: h5py.Group) -> str:
    if not isinstance(name, str):
        raise DataError(f"{group.file.filename}: the name {name!r} of an object is not UTF-8")
    return name


def _place(group: h5py.Group, name: str) -> str:
    inside = (group.name or "").strip("/")
    return f"{group.file.filename}: {f'{inside}/{name}'.strip('/')!r}"


def _follow(group: h5py.Group, path: str, budget: _Budget) -> Any:
    """Return the checked object that `path` names, starting at `group`, or None."""
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
        resource_limits.raise_if_lacking(f"{place} leads to {path}, which", error)
        raise DataError(f"{place} leads to {path}, which cannot be opened: {error}") from error


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """Open a file read-only, without file locks if possible.

    Parallel file systems may not have locks. If this process has the file open with locks already
    (a notebook does), it is opened with locks, since HDF5 opens a file twice only in the same way.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")


def look(found: Any, budget: _Budget) -> Any:
    """Return a found object in its checked form: a Group, or a Dataset that can be read.

    Raises
    ------
    DataError
        If the dataset is unsafe or unreadable. The message names it.
    """
    if isinstance(found, h5py.Group):
        return Group(found.id, budget.folders)
    if not isinstance(found, h5py.Dataset):
        return found
    with _unreadable(found):
        if budget.numbers:
            dataset_checks.check_type(found)
        others, sources = _elsewhere(found, budget)
        dataset_checks.check_size(found, others)
        dataset_checks.check_filters(found)
        return Dataset(found.id, sources)


@contextmanager
def _unreadable(data: h5py.Dataset) -> Iterator[None]:
    """Turn h5py's errors about types and properties that it cannot express into DataErrors."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError, OverflowError, UnicodeDecodeError) as error:
        raise DataError(f"{dataset_checks.named(data)} cannot be read: {error}") from error


def _elsewhere(data: h5py.Dataset, budget: _Budget) -> tuple[int, list[list[Dataset]]]:
    """Check the other files from which HDF5 will read a dataset; all of them must be allowed.

    Returns
    -------
    int
        The size of these files in bytes.
    list of list of Dataset
        The open datasets found for each source of a virtual dataset. They show what is missing:
        HDF5 reads zeros from a source that it cannot open.
    """
    place = dataset_checks.named(data)
    if not data.is_virtual:
        return sum(
            _size(budget.allow(name, place), place) for name, _, _ in data.external or ()
        ), []
    wanted = data.virtual_sources()
    for source in wanted:
        if not budget.folders:
            raise DataError(
                f"{place} is a virtual dataset, "
                f"of {source.file_name} (--allow-links FOLDER allows a folder's)"
            )
        if "%" in source.file_name + source.dset_name:
            raise DataError(
                f"{place} is a virtual dataset of files named by a pattern, {source.file_name}"
            )
    inner = budget.sources(len(wanted), place)
    resource_limits.reserve(len({source.file_name for source in wanted}), place)
    sizes: dict[str, int] = {}
    sources = [_source(data, source, inner, place, sizes) for source in wanted]
    return sum(sizes.values()), sources


def _size(path: str, place: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise DataError(f"{place} leads to {path}: {error.strerror}") from error


def _source(
    data: h5py.Dataset, source: Any, budget: _Budget, place: str, sizes: dict[str, int]
) -> list[Dataset]:
    """Return the datasets that HDF5 may take as a source of a virtual dataset.

    HDF5 looks for a source beside the file, in the current folder, and under its last name in both.
    Every file that it may find must be allowed. The sizes of the files found are added to `sizes`.
    The result is empty if no dataset is there.
    """
    own, name = data.file.filename, source.file_name
    there = {own} if name == "." else set()
    if name != ".":
        beside = os.path.dirname(os.path.realpath(own))
        tried = {
            os.path.join(folder, part)
            for folder in (beside, "")
            for part in (name, os.path.basename(name))
        }
        there = {budget.allow(path, place) for path in tried if os.path.exists(path)}
        sizes.update((path, _size(path, place)) for path in there)
    found = []
    for path in sorted(there):
        key = path, source.dset_name
        # Only hard links are followed here: HDF5 would follow other links by itself.
        if key not in budget.known:
            budget.known[key] = _follow(_root(path, place), source.dset_name, budget)
        if isinstance(budget.known[key], Dataset):
            found.append(budget.known[key])
    return found
