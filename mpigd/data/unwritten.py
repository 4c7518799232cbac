"""Finds numbers that a file declares and nobody ever wrote.

HDF5 silently reads its fill value there, mostly zero. A job that died leaves chunks without a place
in the file. A virtual dataset may have regions that no source is mapped to, or missing sources. If
space was allocated before it was written (as parallel HDF5 does), unwritten numbers cannot be told
from written ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from mpigd.data import foreign_marks
from mpigd.errors import DataError
from mpigd.storage import dataset_checks, hdf5
from mpigd.storage.chunked_reads import Dataset

# Blocks of one source's region in a virtual dataset that are checked one by one, at most.
BLOCKS = 10_000
# datasets of groups that have one element for each row
ROWS = ("indptr", "codes", "values", "mask")
ADVICE = "HDF5 reads its fill value there (--allow-unwritten lets it)"
Named = Callable[[int], str]  # what messages call an index along the axis of the rows


def check(file: hdf5.Group, names: Sequence[str], by_rows: bool = True) -> None:
    """Raise DataError if a dataset, or one in a group, has numbers that were never written.

    Parameters
    ----------
    file : hdf5.Group
        The open file.
    names : sequence of str
        Datasets and groups.
    by_rows : bool
        Whether sparse matrices are stored by rows.
    """
    for name in names:
        for data, named in _datasets(file, name, by_rows):
            _check(data, named)


def _datasets(file: hdf5.Group, name: str, by_rows: bool) -> Iterator[tuple[Dataset, Named]]:
    found = file.raw(name)
    if isinstance(found, Dataset):
        yield found, _row
    elif isinstance(found, hdf5.Group):
        parts = {part: found.raw(part) for part in found}
        indptr = parts.get("indptr")
        # indptr comes first, since it gives the rows of the others' elements.
        for part in sorted(parts, key=lambda part: part != "indptr"):
            of_rows = part in ROWS and (by_rows or "indptr" not in parts)
            named: Named = _row if of_rows else _entry
            if by_rows and part in ("data", "indices") and isinstance(indptr, Dataset):
                named = _row_of(indptr)
            if isinstance(parts[part], Dataset):
                yield parts[part], named


def _row(index: int) -> str:
    return f"row {index}"


def _entry(index: int) -> str:
    return f"entry {index}"


def _row_of(indptr: Dataset) -> Named:
    """Return the function that names the row of an entry of a sparse matrix."""

    def named(index: int) -> str:
        low, high = 0, max(0, len(indptr) - 1)
        while low < high:  # search the last row that begins at or before the index
            middle = (low + high + 1) // 2
            low, high = (middle, high) if int(indptr[middle]) <= index else (low, middle - 1)
        return f"row {low}"

    return named


def _check(data: Dataset, named: Named = _row, part: slice = slice(None)) -> None:
    """Check a part of the first axis of a dataset."""
    if not data.size:
        return
    if data.is_virtual:
        _check_virtual(data, named)
    elif data.external:
        _check_external(data, named)
    elif data.chunks is None:
        layout = data.id.get_create_plist().get_layout()
        if layout == h5py.h5d.CONTIGUOUS and not data.id.get_storage_size():
            raise DataError(f"{dataset_checks.named(data)}: no row was ever written: {ADVICE}")
    else:
        _check_chunks(data, named, part)


def _check_chunks(data: Dataset, named: Named, part: slice) -> None:
    """Raise DataError unless every chunk has a place in the file.

    Counting stops at one more chunk than there can be: damage may make HDF5 find many.
    """
    grid = [-(-length // chunk) for length, chunk in zip(data.shape, data.chunks, strict=True)]
    total, count = math.prod(grid), 0

    def counted(info: Any) -> bool | None:
        nonlocal count
        count += 1
        return True if count > total else None

    chunks_of(data, counted)
    if count > total:
        raise DataError(
            f"{dataset_checks.named(data)} is damaged: "
            f"it has more than the {total} chunks of its shape"
        )
    if count < total:
        _find_missing(data, named, part, grid)


def chunks_of(data: h5py.Dataset, callback: Callable[[Any], Any]) -> None:
    """Call a function for every chunk that has a place in the file.

    The calls end as soon as one returns something other than None.
    """
    data.id.chunk_iter(callback)


def _find_missing(data: Dataset, named: Named, part: slice, grid: Sequence[int]) -> None:
    there = np.zeros(grid, dtype=bool)

    def mark(info: Any) -> None:
        there[
            tuple(at // chunk for at, chunk in zip(info.chunk_offset, data.chunks, strict=True))
        ] = True

    chunks_of(data, mark)
    first, last, _ = part.indices(len(data))
    there[: first // data.chunks[0]] = True
    there[-(-last // data.chunks[0]) :] = True
    gone, axis = np.argwhere(~there), _axis(data)
    if gone.size:
        index = max(int(gone[:, axis].min()) * data.chunks[axis], 0 if axis else first)
        missing = (
            f"{len(gone)} of {there.size} chunks were never written, the first at {named(index)}"
        )
        raise DataError(f"{dataset_checks.named(data)}: {missing}: {ADVICE}")


def _axis(data: h5py.Dataset) -> int:
    """Return the axis of the rows.

    It is the second for a matrix that is stored transposed, and for a vector that is stored as one
    row.
    """
    if data.ndim != 2:
        return 0
    return int(data.shape[0] == 1 or bool(foreign_marks.transposed(data)))


def _check_external(data: Dataset, named: Named) -> None:
    needed, held = data.size * data.dtype.itemsize, 0
    for name, offset, size in data.external:
        there = max(0, os.path.getsize(name) - offset)
        held += min(there, size)
        if there < size:
            break
    if held < needed:
        at = named(held // (data.dtype.itemsize * math.prod(data.shape[1:])))
        raise DataError(
            f"{dataset_checks.named(data)}: {name} ends before its numbers do, at {at}: {ADVICE}"
        )


def _check_virtual(data: Dataset, named: Named) -> None:
    """Raise DataError unless a source is mapped to every number, exists, and was written."""
    place, left = dataset_checks.named(data), h5py.h5s.create_simple(data.shape)
    left.select_hyperslab((0,) * data.ndim, data.shape)
    mapped, exact = 0, True
    for source, found in zip(data.virtual_sources(), data.sources, strict=True):
        mapped += data.size if _unlimited(source.vspace) else source.vspace.get_select_npoints()
        exact = _take(left, source.vspace, data.shape) and exact
        if not found:
            at = named(_first(source.vspace))
            raise DataError(
                f"{place} leads to {source.file_name}: {source.dset_name!r}, "
                f"which is not there, at {at}: {ADVICE}"
            )
        for piece in found:
            _check_source(place, source, piece)
    if exact and left.get_select_npoints():
        at = named(left.get_select_bounds()[0][0])
        raise DataError(
            f"{place}: no source is mapped to {left.get_select_npoints()} of {data.size} numbers, "
            f"the first at {at}: {ADVICE}"
        )
    if not exact and mapped < data.size:
        raise DataError(
            f"{place}: no source is mapped to {data.size - mapped} of {data.size} numbers: {ADVICE}"
        )


def _check_source(place: str, source: Any, found: Dataset) -> None:
    """Check the part of a source that a virtual dataset uses."""
    part, kind = slice(None), source.src_space.get_select_type()
    wanted = None  # the minimal shape of the source
    # A selection of everything: the file does not store its shape.
    if kind == h5py.h5s.SEL_ALL and not _unlimited(source.vspace):
        if found.size != (count := source.vspace.get_select_npoints()):
            raise DataError(
                f"{place} takes {count} numbers from {dataset_checks.named(found)}, "
                f"which has {found.size}"
            )
    elif kind == h5py.h5s.SEL_HYPERSLABS and not _unlimited(source.src_space):
        low, high = source.src_space.get_select_bounds()
        wanted = tuple(int(edge) + 1 for edge in high)
        part = slice(int(low[0]), wanted[0])
    if wanted is not None and (
        len(wanted) != found.ndim or any(a > b for a, b in zip(wanted, found.shape, strict=True))
    ):
        raise DataError(
            f"{place} takes numbers up to {wanted} from {dataset_checks.named(found)}, which has "
            f"the shape {found.shape}"
        )
    try:
        _check(found, part=part)
    except DataError as error:
        raise DataError(f"{place} is made of {error}") from None


def _unlimited(space: h5py.h5s.SpaceID) -> bool:
    """Return whether a selection grows with its dataset, and so is never too large."""
    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return False
    _, _, count, block = space.get_regular_hyperslab()
    return h5py.h5s.UNLIMITED in (*count, *block)


def _first(space: h5py.h5s.SpaceID) -> int:
    """Return the first row of a selection."""
    return int(
        (space.get_regular_hyperslab() if _unlimited(space) else space.get_select_bounds())[0][0]
    )


def _take(left: h5py.h5s.SpaceID, part: h5py.h5s.SpaceID, shape: tuple[int, ...]) -> bool:
    """Remove a selection from what is left of a virtual dataset.

    Returns whether that was possible with little effort. If not, `left` still holds numbers that
    have a source.
    """
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
    for start, stride, count, block, length in zip(
        *part.get_regular_hyperslab(), shape, strict=True
    ):
        if h5py.h5s.UNLIMITED in (count, block):
            axes.append(
                (start, 1, 1, length - start)
                if block in (stride, h5py.h5s.UNLIMITED)
                else (start, 1, 0, 0)
            )
        else:
            axes.append(
                (start, 1, 1, count * block) if stride == block else (start, stride, count, block)
            )
    start, stride, count, block = (tuple(values) for values in zip(*axes, strict=True))
    if math.prod(count) > BLOCKS or 0 in count:
        return False
    left.select_hyperslab(start, count, stride, block, h5py.h5s.SELECT_NOTB)
    return True
