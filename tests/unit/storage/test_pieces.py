"""One HDF5 read touches a bounded number of chunks.

Tiny chunks therefore take no more memory than others.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpigd.config.schema import Config
from mpigd.data.loading import Layout, load
from mpigd.data.metadata import inspect
from mpigd.errors import LaunchError, LimitError
from mpigd.parallel.comm import SelfComm
from mpigd.storage import chunked_reads, hdf5, resource_limits
from mpigd.training import plan
from tests.launch import python

Array = np.ndarray[Any, Any]
SHAPE = (60, 23)
VALUES = np.random.default_rng(0).standard_normal(SHAPE)
CHUNKS = [(1, 23), (3, 5), (60, 1), (1, 1), (7, 23), (60, 23)]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "data.h5"
    with h5py.File(path, "w") as file:
        for number, chunks in enumerate(CHUNKS):
            file.create_dataset(f"chunks{number}", data=VALUES, chunks=chunks)
        file.create_dataset("vector", data=VALUES[:, 0], chunks=(1,))
        file["whole"] = VALUES
    return path


def touched(part: Any, shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    parts = part if isinstance(part, tuple) else (part,)
    edges = [p.indices(length) for p, length in zip(parts, shape, strict=False)]
    edges += [(0, length, 1) for length in shape[len(parts) :]]
    counts = (
        -(-stop // chunk) - start // chunk
        for (start, stop, _), chunk in zip(edges, chunks, strict=True)
    )
    return math.prod(counts)


def index(length: int) -> st.SearchStrategy[Any]:
    edge = st.none() | st.integers(-length - 2, length + 2)
    return st.slices(length) | st.builds(slice, edge, edge) | st.integers(0, length - 1)


@settings(max_examples=150, deadline=None)
@given(
    number=st.integers(0, len(CHUNKS) - 1),
    rows=index(SHAPE[0]),
    columns=st.none() | index(SHAPE[1]),
)
def test_any_selection_is_what_numpy_selects(
    boxes: Path, number: int, rows: Any, columns: Any
) -> None:
    selection = rows if columns is None else (rows, columns)
    if any(isinstance(part, slice) and (part.step or 1) < 1 for part in (rows, columns)):
        return  # h5py knows no steps backwards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_reads, "CHUNKS", 8)
        with hdf5.open_read(boxes) as file:
            np.testing.assert_array_equal(file[f"chunks{number}"][selection], VALUES[selection])


@pytest.mark.parametrize("number", range(len(CHUNKS)))
def test_few_chunks_at_once(number: int, boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_reads, "CHUNKS", 8)
    counts: list[int] = []
    direct = h5py.Dataset.read_direct

    def counted(data: h5py.Dataset, out: Array, part: Any, *rest: Any) -> None:
        counts.append(touched(part, data.shape, data.chunks))
        direct(data, out, part, *rest)

    monkeypatch.setattr(h5py.Dataset, "read_direct", counted)
    with hdf5.open_read(boxes) as file:
        for rows in (slice(0, 60), slice(5, 40), slice(59, 60)):
            out = np.empty((rows.stop - rows.start, SHAPE[1]))
            file[f"chunks{number}"].read_direct(out, rows)
            np.testing.assert_array_equal(out, VALUES[rows])
        np.testing.assert_array_equal(file["vector"][3:50], VALUES[3:50, 0])
    assert counts and max(counts) <= 8


def test_ordinary_chunks_are_one_read(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    direct = h5py.Dataset.read_direct
    monkeypatch.setattr(
        h5py.Dataset,
        "read_direct",
        lambda data, *how: (calls.append(how[1:]), direct(data, *how))[1],
    )
    with hdf5.open_read(boxes) as file:
        for name in ("chunks1", "chunks4", "whole"):
            file[name].read_direct(np.empty((50, SHAPE[1])), np.s_[5:55])
    assert calls == [(np.s_[5:55],)] * 3


# Memory

N = 200_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 200,000 rows in chunks of one row and in chunks of a thousand rows.

    A virtual dataset refers to the former.
    """
    folder = tmp_path_factory.mktemp("tiny")
    X, y = np.random.default_rng(0).standard_normal((N, 4), np.float32), np.arange(N) % 7.0
    paths = {}
    for name, rows in (("tiny", 1), ("usual", 1000)):
        paths[name] = folder / f"{name}.h5"
        with h5py.File(paths[name], "w") as file:
            for key, values in (("X", X), ("y", y)):
                data = file.create_dataset(
                    key, values.shape, values.dtype, chunks=(rows, *values.shape[1:])
                )
                for start in range(0, N, 1000):
                    data[start : start + 1000] = values[start : start + 1000]
    layout = h5py.VirtualLayout((N, 4), "f4")
    layout[:] = h5py.VirtualSource("tiny.h5", "X", (N, 4))
    paths["virtual"] = folder / "virtual.h5"
    with h5py.File(paths["virtual"], "w") as file:
        file.create_virtual_dataset("X", layout)
        file["y"] = y
    return paths


PEAK = """
import os, sys
from mpigd.parallel.comm import SelfComm
from mpigd.data.loading import Layout, load
limit = int(sys.argv[2])
X = load([sys.argv[1]], Layout(max_memory=limit or None, links=(os.path.dirname(sys.argv[1]),)), \
SelfComm()).X
z = __import__("numpy").empty(X.n)
X.margins(z[:4] * 0, 0.0, z)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_chunks_of_one_row_take_no_more_memory_than_others(
    limit: int, tiny: dict[str, Path]
) -> None:
    took = {name: int(python("-c", PEAK, path, str(limit)).stdout) for name, path in tiny.items()}
    for name in ("tiny", "virtual"):
        with hdf5.open_read(tiny[name], [str(tiny[name].parent)]) as file:
            allowed = file["X"].reading_bytes() + file["y"].reading_bytes()
        threads = 2 if limit else 1  # the one that reads ahead has memory of its own
        assert took[name] - took["usual"] < threads * allowed + (16 << 20), took
        assert allowed < 30e6


def test_the_plan_counts_what_chunks_take(tiny: dict[str, Path]) -> None:
    memory = {}
    for name in ("tiny", "usual"):
        infos = inspect([str(tiny[name])], "X", "y", SelfComm())
        memory[name] = plan.plan(infos, Config(), 1).memory_bytes
    assert 5e6 < memory["tiny"] - memory["usual"] < 20e6
    assert abs(memory["usual"] - plan.PROGRAM - N * (16 + plan.PER_ROW)) < 5e6


def test_the_plan_counts_a_large_chunk_that_a_filter_makes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset(
            "X", data=np.zeros((1 << 20, 8), "f4"), chunks=(1 << 20, 8), compression="gzip"
        )
        file["y"] = np.arange(1 << 20) % 3.0
    assert inspect([str(tmp_path / "data.h5")], "X", "y", SelfComm())[0].reading > 2 * (1 << 25)


LITTLE = """
import resource, sys
from mpigd.__main__ import main
import mpigd.training.trainer, mpigd.parallel.comm, mpigd.training.plan
now = int(next(line for line in open("/proc/self/status") \
if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), now + int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


def test_tiny_chunks_where_there_is_little_memory(tiny: dict[str, Path]) -> None:
    """This was called damage: memory allocation failed."""
    done = python("-c", LITTLE, str(300 << 20), "info", tiny["tiny"])
    assert done.returncode == 0, done.stderr
    code = LITTLE.replace(
        "sys.exit(main(sys.argv[2:]))",
        "from mpigd.data.loading import Layout, load\nprint(load([sys.argv[2]], Layout(), "
        "mpigd.parallel.comm.SelfComm()).n)",
    )
    done = python("-c", code, str(300 << 20), tiny["tiny"])
    assert done.stdout == f"{N}\n", done.stderr


def test_a_lack_of_memory_is_no_damage(tmp_path: Path) -> None:
    """A lack of memory is reported in the words of HDF5 or numpy, and not as damage.

    One chunk inflates to half a gigabyte, and a quarter is available.
    """
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset(
            "X", data=np.zeros((1 << 20, 128), "f4"), chunks=(1 << 20, 128), compression="gzip"
        )
        file["y"] = np.arange(1 << 20) % 3.0
        chunks = file.create_dataset(
            "rows", (1 << 20, 128), "f4", chunks=(1 << 10, 128), compression="gzip"
        )
        for start in range(0, 1 << 20, 1 << 16):
            chunks[start : start + (1 << 16)] = np.zeros((1 << 16, 128), "f4")
    for name in ("X", "rows"):
        words = ["train", tmp_path / "data.h5", "--x", name, "-o", tmp_path / "m.h5", "--quiet"]
        done = python("-c", LITTLE, str(1 << 28), *words)
        assert done.returncode == 69, done.stderr
        assert (
            "data.h5: not enough memory to read it: " in done.stderr
            and "damaged" not in done.stderr
        )
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 3 GiB"), "Unable to allocate 3 GiB"),
        (
            OSError("Can't read data (memory allocation failed for chunk)"),
            "memory allocation failed",
        ),
        (OSError(24, "Too many open files"), "Too many open files (ulimit -n)"),
        (
            RuntimeError("Unable to open file (errno = 24, error message = 'Too many open files')"),
            "Too many open files",
        ),
        (OSError(2, "No such file"), ""),
        (OSError("wrong B-tree signature"), ""),
    ],
)
def test_what_the_system_lacked(error: Exception, words: str) -> None:
    told = resource_limits.told(error)
    assert words in told and bool(words) == bool(told)
    if words:
        with pytest.raises(LimitError, match=r"data\.h5"), resource_limits.named("data.h5"):
            raise error


def test_memory_that_the_rows_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["X"], file["y"] = np.ones((4, 2)), np.ones(4)

    def none(shape: Any, dtype: Any) -> Array:
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr("mpigd.data.loading.aligned", none)
    with pytest.raises(
        LaunchError, match=r"data\.h5: not enough memory to read it: Unable to allocate 1 TiB"
    ):
        load([str(tmp_path / "data.h5")], Layout(), SelfComm())
