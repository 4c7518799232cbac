"""Numbers that a file declares and nobody ever wrote: HDF5 reads its fill value there, mostly zero, without a word.

A job that died leaves chunks without a place in the file; a virtual dataset may have regions that nothing is mapped to, or
sources that are gone. What was allocated before it was written (as parallel HDF5 does) cannot be told from what was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from mpigd.data import declared, hdf5
from mpigd.data.pieces import Dataset
from mpigd.errors import DataError

BLOCKS = 10_000  # of one source's place in a virtual dataset that are looked at one by one
ADVICE = "HDF5 reads its fill value there (--allow-unwritten lets it)"
Row = Callable[[int], str]  # what an index along the first axis is called


def check(file: hdf5.Group, names: Sequence[str]) -> None:
    """DataError if a dataset, or one in a group, of these names has numbers that were never written."""
    for name in names:
        for data, row in _datasets(file.raw(name)):
            _check(data, row)


def _datasets(found: Any) -> Iterator[tuple[Dataset, Row]]:
    if isinstance(found, Dataset):
        yield found, _row
    elif isinstance(found, hdf5.Group):
        parts = {name: found.get(name) for name in sorted(h5py.Group.__iter__(found), reverse=True) if _readable(found, name)}
        indptr = parts.get("indptr")
        for name, part in parts.items():  # indptr before the others, whose rows it tells
            if isinstance(part, Dataset):
                yield part, _entry(indptr) if isinstance(indptr, Dataset) and name in ("data", "indices") else _row


def _readable(group: hdf5.Group, name: str) -> bool:
    try:
        return isinstance(group.get(name), Dataset)
    except DataError:  # no numbers: names of categories
        return False


def _row(index: int) -> str:
    return f"row {index}"


def _entry(indptr: Dataset) -> Row:
    def row(index: int) -> str:
        low, high = 0, max(0, len(indptr) - 1)
        while low < high:  # the last row that begins at the index or before it
            middle = (low + high + 1) // 2
            low, high = (middle, high) if int(indptr[middle]) <= index else (low, middle - 1)
        return f"row {low}"

    return row


def _check(data: Dataset, row: Row = _row, first: int = 0, last: int | None = None) -> None:
    """Look at rows first to last of a dataset."""
    if not data.size:
        return
    if data.is_virtual:
        _check_virtual(data, row)
    elif data.external:
        _check_external(data, row)
    elif data.chunks is None:
        layout = data.id.get_create_plist().get_layout()
        if layout == h5py.h5d.CONTIGUOUS and not data.id.get_storage_size():
            raise DataError(f"{declared.named(data)}: no row was ever written: {ADVICE}")
    else:
        _check_chunks(data, row, first, len(data) if last is None else last)


def _check_chunks(data: Dataset, row: Row, first: int, last: int) -> None:
    """Every chunk has a place in the file. HDF5 is asked for one more than there can be: damage may make it find many."""
    grid = [-(-length // chunk) for length, chunk in zip(data.shape, data.chunks, strict=True)]
    total, count = math.prod(grid), 0

    def counted(info: Any) -> bool | None:
        nonlocal count
        count += 1
        return True if count > total else None

    data.id.chunk_iter(counted)
    if count > total:
        raise DataError(f"{declared.named(data)} is damaged: it has more than the {total} chunks of its shape")
    if count == total:
        return
    there = np.zeros(grid, dtype=bool)

    def mark(info: Any) -> None:
        there[tuple(at // chunk for at, chunk in zip(info.chunk_offset, data.chunks, strict=True))] = True

    data.id.chunk_iter(mark)
    size = data.chunks[0]
    bands = there[first // size : -(-last // size)].reshape(-1, math.prod(grid[1:]))
    gone = np.flatnonzero(~bands.all(axis=1))
    if gone.size:
        start = max(first, (first // size + int(gone[0])) * size)
        missing = f"{int((~bands).sum())} of {bands.size} chunks were never written, the first at {row(start)}"
        raise DataError(f"{declared.named(data)}: {missing}: {ADVICE}")


def _check_external(data: Dataset, row: Row) -> None:
    needed, held = data.size * data.dtype.itemsize, 0
    for name, offset, size in data.external:
        there = max(0, os.path.getsize(name) - offset)
        held += min(there, size)
        if there < size:
            break
    if held < needed:
        at = row(held // (data.dtype.itemsize * math.prod(data.shape[1:])))
        raise DataError(f"{declared.named(data)}: {name} ends before its numbers do, at {at}: {ADVICE}")


def _check_virtual(data: Dataset, row: Row) -> None:
    """Something is mapped to every number, is there, and was written."""
    place, left = declared.named(data), h5py.h5s.create_simple(data.shape)
    left.select_hyperslab((0,) * data.ndim, data.shape)
    mapped, exact = 0, True
    for source, found in zip(data.virtual_sources(), data.sources, strict=True):
        mapped += data.size if _unlimited(source.vspace) else source.vspace.get_select_npoints()
        exact = _take(left, source.vspace, data.shape) and exact
        if not found:
            at = row(_first(source.vspace))
            raise DataError(f"{place} leads to {source.file_name}: {source.dset_name!r}, which is not there, at {at}: {ADVICE}")
        for piece in found:
            _check_source(place, source, piece)
    if exact and left.get_select_npoints():
        at = row(left.get_select_bounds()[0][0])
        raise DataError(
            f"{place}: no source is mapped to {left.get_select_npoints()} of {data.size} numbers, the first at {at}: {ADVICE}"
        )
    if not exact and mapped < data.size:
        raise DataError(f"{place}: no source is mapped to {data.size - mapped} of {data.size} numbers: {ADVICE}")


def _check_source(place: str, source: Any, found: Dataset) -> None:
    """What a virtual dataset takes of one of its sources."""
    first, last = 0, len(found)
    if not _unlimited(source.src_space) and source.src_space.get_select_type() == h5py.h5s.SEL_HYPERSLABS:
        low, high = source.src_space.get_select_bounds()
        if any(edge >= length for edge, length in zip(high, found.shape, strict=False)):
            wanted = tuple(edge + 1 for edge in high)
            raise DataError(f"{place} takes numbers of shape {wanted} from {declared.named(found)}, which has {found.shape}")
        first, last = int(low[0]), int(high[0]) + 1
    try:
        _check(found, first=first, last=last)
    except DataError as error:
        raise DataError(f"{place} is made of {error}") from None


def _unlimited(space: h5py.h5s.SpaceID) -> bool:
    """Whether a selection grows with what is there, and so is never too large."""
    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return False
    _, _, count, block = space.get_regular_hyperslab()
    return h5py.h5s.UNLIMITED in (*count, *block)


def _first(space: h5py.h5s.SpaceID) -> int:
    """The first row of a selection."""
    return int((space.get_regular_hyperslab() if _unlimited(space) else space.get_select_bounds())[0][0])


def _take(left: h5py.h5s.SpaceID, part: h5py.h5s.SpaceID, shape: tuple[int, ...]) -> bool:
    """Take a part of a virtual dataset away from what is left of it; whether that was possible with little effort."""
    kind = part.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        left.select_none()
    if kind != h5py.h5s.SEL_HYPERSLABS or left.get_select_type() == h5py.h5s.SEL_NONE:
        return True
    if not part.is_regular_hyperslab():
        blocks = part.get_select_hyper_nblocks()
        for low, high in part.get_select_hyper_blocklist(0, min(blocks, BLOCKS)):
            left.select_hyperslab(tuple(low), tuple(high - low + 1), op=h5py.h5s.SELECT_NOTB)
        return bool(blocks <= BLOCKS)
    axes = []
    for start, stride, count, block, length in zip(*part.get_regular_hyperslab(), shape, strict=True):
        if h5py.h5s.UNLIMITED in (count, block):
            axes.append((start, 1, 1, length - start) if block in (stride, h5py.h5s.UNLIMITED) else (start, 1, 0, 0))
        else:
            axes.append((start, 1, 1, count * block) if stride == block else (start, stride, count, block))
    start, stride, count, block = (tuple(values) for values in zip(*axes, strict=True))
    if math.prod(count) > BLOCKS or 0 in count:
        return False
    left.select_hyperslab(start, count, stride, block, h5py.h5s.SELECT_NOTB)
    return True
