"""Loading from the page cache.

Contiguous data are compared with readinto of the same bytes. Compressed chunks are read over all
cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mpigd.data.loading import Layout, load
from mpigd.parallel.comm import Comm, bcast_bytes
from scripts.bench import data
from scripts.bench.harness import ABSENT, RESULTS, Row, Size, median, paired, ratio

D = 128
CHUNK = 2048  # rows: a mebibyte


def filters() -> dict[str, dict[str, Any] | None]:
    """Keyword arguments of h5py.create_dataset by name; None where the filter is not installed."""
    if not find_spec("hdf5plugin"):
        return {"gzip": {"compression": "gzip", "compression_opts": 1}, "blosc": None, "lz4": None}
    import hdf5plugin

    return {
        "gzip": {"compression": "gzip", "compression_opts": 1},
        "blosc": dict(hdf5plugin.Blosc()),
        "lz4": dict(hdf5plugin.LZ4()),
    }


@contextmanager
def written(comm: Comm, X: Any, **how: Any) -> Iterator[Path]:
    """A file of all rows that every rank sees, warm in the page cache."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        path = Path(folder, "data.h5")
        if comm.rank == 0:
            data.write_dense(path, X, **how)
        path = Path(bcast_bytes(comm, os.fsencode(path)).decode())
        comm.allreduce(np.zeros(1))
        yield path
        comm.allreduce(np.zeros(1))


def readinto(path: Path, comm: Comm) -> Callable[[], Any]:
    """A call that reads this rank's part of the bytes of X and y straight into new arrays."""
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        places = [
            (file[name].id.get_offset(), file[name].id.get_storage_size() // comm.size)
            for name in ("X", "y")
        ]

    def work() -> list[Any]:
        arrays = []
        with open(path, "rb", buffering=0) as source:
            for offset, length in places:
                values = np.empty(length, dtype=np.uint8)
                source.seek(offset + comm.rank * length)
                view, got = memoryview(values), 0
                while got < length:
                    got += source.readinto(view[got:])
                arrays.append(values)
        return arrays

    return work


def contiguous(comm: Comm, size: Size) -> list[Row]:
    n = size.rows(4 * D) * comm.size
    with written(comm, data.dense(n if comm.rank == 0 else 1, D, 0)) as path:
        works = {
            "readinto": readinto(path, comm),
            "ours": lambda: load([str(path)], Layout(), comm),
        }
        times = paired(comm, works, size.repeats)
    return [
        Row(
            "loading: contiguous, readinto / ours, time", ratio(times, "readinto", "ours"), ">= 0.7"
        ),
        Row("loading: contiguous, ours, GB/s", 4 * D * n / median(times["ours"]) / 1e9),
    ]


def compressed(comm: Comm, size: Size, name: str, how: dict[str, Any] | None) -> list[Row]:
    """The speed-up of `comm.size` ranks over one rank on one core, per core.

    It is 1 if all cores are busy all the time.
    """
    title = f"loading: {name} chunks, speed-up over one core / {comm.size}"
    if how is None:
        return [Row(title, ABSENT, ">= 0.85")]
    n = max(2 * CHUNK, size.rows(16 * D)) * comm.size
    X = np.round(4 * data.dense(n if comm.rank == 0 else 1, D, 0))  # something to compress
    mine = comm.split(comm.rank)

    def alone() -> None:
        if comm.rank:
            return
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            load([str(path)], Layout(), mine)
        finally:
            os.sched_setaffinity(0, cores)

    with written(comm, X, rows_per_chunk=CHUNK, **how) as path:
        times = paired(
            comm, {"one": alone, "all": lambda: load([str(path)], Layout(), comm)}, size.repeats
        )
    return [
        Row(title, ratio(times, "one", "all") / comm.size, ">= 0.85"),
        Row(f"loading: {name} chunks, GB/s of rows", 4 * D * n / median(times["all"]) / 1e9),
    ]


def measure(comm: Comm, size: Size) -> list[Row]:
    rows = contiguous(comm, size)
    for name, how in filters().items():
        rows += compressed(comm, size, name, how)
    return rows
