"""Checks of what a dataset declares: its type, its size and its filters.

It must hold numbers, fit into its file, and use known filters.
"""

from __future__ import annotations

import math
import os
from importlib import import_module

import h5py

from mpigd.errors import DataError

FLOOR = 64 << 20  # bytes that any file may declare: less than a rank needs in any case
DEFLATE = 1100  # HDF5's own filters expand one byte to 1032 bytes at most
OTHERS = 1 << 16  # zstd and similar filters expand constants by this factor
CHUNK = 1 << 32  # bytes; larger chunks are new in HDF5 2.0, and HDF5 holds each chunk as a whole
PLAIN_FILTERS = (1, 2, 3)  # deflate, shuffle, fletcher32
# Besides the plain filters: szip, nbit, scale-offset, and lzf, which comes with h5py.
OWN_FILTERS = (*PLAIN_FILTERS, 4, 5, 6, 32000)


def named(data: h5py.Dataset) -> str:
    return f"{data.file.filename}: {(data.name or '').strip('/')!r}"


def check_type(data: h5py.Dataset) -> None:
    dtype = data.dtype
    if dtype.kind in "fiub":
        return
    text = dtype.kind in "SU" or h5py.check_string_dtype(dtype) is not None
    raise DataError(f"{named(data)} holds {'text' if text else dtype}, expected numbers")


def check_size(data: h5py.Dataset, others: int) -> None:
    """Raise DataError if the declared size exceeds what the file can hold.

    Parameters
    ----------
    data : h5py.Dataset
        The dataset.
    others : int
        Bytes of the other files that hold parts of the dataset.
    """
    if data.shape is None:
        raise DataError(f"{named(data)} is empty: it has no shape")
    size, codes = os.stat(data.file.filename).st_size + others, filters(data)
    ratio = (
        (DEFLATE if all(code in PLAIN_FILTERS for code in codes) else OTHERS) if data.chunks else 1
    )
    room = max(FLOOR, ratio * size)
    declared = math.prod(max(1, length) for length in data.shape) * data.dtype.itemsize
    if declared > room:
        raise DataError(
            f"{named(data)} declares {declared:.3g} bytes, "
            f"but a file of {size} bytes cannot hold them"
        )
    chunk = math.prod(data.chunks or ()) * data.dtype.itemsize
    if chunk > min(room, CHUNK):
        raise DataError(f"{named(data)} declares chunks of {chunk:.3g} bytes: too large to be held")


def check_columns(path: str, d: int, place: str) -> None:
    """Raise DataError if a sparse matrix declares too many columns for a file of its size.

    The number of columns stands in an attribute alone. A vector of d numbers must fit into the
    memory that the file justifies.

    Parameters
    ----------
    path : str
        The file.
    d : int
        The declared number of columns.
    place : str
        What the message calls the matrix.
    """
    room = max(FLOOR, DEFLATE * os.stat(path).st_size)
    if 8 * d > room:
        raise DataError(f"{place} declares {d} columns, too many for a file of its size")


def filters(data: h5py.Dataset) -> list[int]:
    """Return the codes of the filters of the chunks, in the order of writing."""
    properties = data.id.get_create_plist()
    return [int(properties.get_filter(i)[0]) for i in range(properties.get_nfilters())]


def check_filters(data: h5py.Dataset) -> None:
    for code in filters(data):
        if not available(code):
            advice = "pip install 'mpigd[filters]'"
            raise DataError(
                f"{data.file.filename}: {data.name!r} is compressed with filter {code}, "
                f"unknown here: {advice}"
            )


def available(code: int) -> bool:
    """Return whether a filter is one of HDF5's own or of the package hdf5plugin, and can be used.

    Filters from other sources are refused.
    """
    if code not in OWN_FILTERS:
        try:
            if code not in import_module("hdf5plugin").FILTERS.values():
                return False
        except ImportError:
            return False
    return bool(h5py.h5z.filter_avail(code))
