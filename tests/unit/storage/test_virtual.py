"""Virtual datasets with many sources, side by side or within each other.

All sources are open before a row is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.commands.info import describe
from mpigd.data.loading import Layout, load
from mpigd.errors import DataError, LimitError
from mpigd.parallel.comm import SelfComm
from mpigd.storage import hdf5, safe_open
from tests.launch import python
from tests.scenarios import fit

N, D = 10, 3
Array = np.ndarray[Any, Any]


def part(path: Path, X: Array) -> Path:
    with h5py.File(path, "w") as file:
        file["X"] = X
    return path


def join(path: Path, names: list[str], n: int = N) -> Path:
    """A virtual X of n rows of each of the files, in the file's folder."""
    layout = h5py.VirtualLayout((n * len(names), D), "f8")
    for k, name in enumerate(names):
        layout[n * k : n * (k + 1)] = h5py.VirtualSource(name, "X", (n, D))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("X", layout)
        file["y"] = np.random.default_rng(1).standard_normal(n * len(names))
    return path


def parts(folder: Path, count: int) -> Array:
    X = np.random.default_rng(0).standard_normal((count * N, D))
    for k in range(count):
        part(folder / f"part{k}.h5", X[N * k : N * (k + 1)])
    return X


def read(path: Path) -> Array:
    values: Array = load([str(path)], Layout(links=(str(path.parent),)), SelfComm()).X.values  # type: ignore[union-attr]
    return values


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize("count", [16, 17, 100])
def test_many_sources_side_by_side(count: int, tmp_path: Path) -> None:
    X = parts(tmp_path, count)
    np.testing.assert_array_equal(
        read(join(tmp_path / "data.h5", [f"part{k}.h5" for k in range(count)])), X
    )


def test_one_source_many_times(tmp_path: Path) -> None:
    X = parts(tmp_path, 1)
    np.testing.assert_array_equal(
        read(join(tmp_path / "data.h5", ["part0.h5"] * 40)), np.tile(X, (40, 1))
    )


def test_virtual_datasets_of_virtual_datasets(tmp_path: Path) -> None:
    X = parts(tmp_path, 6)
    join(tmp_path / "left.h5", ["part0.h5", "part1.h5", "part2.h5"])
    join(tmp_path / "right.h5", ["part3.h5", "part4.h5", "part5.h5"])
    np.testing.assert_array_equal(
        read(join(tmp_path / "data.h5", ["left.h5", "right.h5"], 3 * N)), X
    )


def test_depth_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """A chain that is too long, and a circle, in which HDF5 would go on until it crashes."""
    parts(tmp_path, 1)
    (tmp_path / "part0.h5").rename(tmp_path / "chain0.h5")
    for k in range(safe_open.NESTED + 1):
        join(tmp_path / f"chain{k + 1}.h5", [f"chain{k}.h5"])
    assert read(tmp_path / f"chain{safe_open.NESTED}.h5").shape == (N, D)
    words = f"one virtual dataset leads to another, more than {safe_open.NESTED} times"
    assert words in refusal(tmp_path / f"chain{safe_open.NESTED + 1}.h5")
    join(tmp_path / "a.h5", ["b.h5"] * 2, N)
    join(tmp_path / "b.h5", ["a.h5"] * 2, N)
    assert words in refusal(tmp_path / "a.h5")


def test_breadth_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts(tmp_path, 3)
    monkeypatch.setattr(safe_open, "SOURCES", 3)
    assert read(join(tmp_path / "data.h5", ["part0.h5", "part1.h5", "part2.h5"])).shape == (
        3 * N,
        D,
    )
    assert "it is made of more than 3 sources" in refusal(
        join(tmp_path / "more.h5", ["part0.h5"] * 4)
    )


def test_a_source_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    parts(tmp_path, 3)
    path = join(tmp_path / "data.h5", ["part0.h5", "part1.h5", "part2.h5"])
    (tmp_path / "part1.h5").write_bytes(b"no HDF5")
    assert f"'X' leads to {tmp_path / 'part1.h5'}, which cannot be opened" in refusal(path)


def test_sources_stay_open_and_are_closed(tmp_path: Path) -> None:
    parts(tmp_path, 20)
    path = join(tmp_path / "data.h5", [f"part{k}.h5" for k in range(20)])

    def sources() -> int:
        links = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
        return sum(
            "part" in os.path.basename(os.readlink(link)) for link in links if os.path.exists(link)
        )

    before = sources()
    with hdf5.open_read(path, [str(tmp_path)]) as file:
        data = file["X"]
        assert sources() == before + 20
        assert data[...].any(axis=1).all()
        del data
    assert sources() == before


LIMITED = """
import resource, sys
from mpigd.__main__ import main
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
sys.exit(main(sys.argv[3:]))
"""


def test_few_descriptors_change_no_model(tmp_path: Path) -> None:
    """The soft limit on open files is raised.

    If the hard limit is too low, the run says so before it reads, with an exit code that does not
    blame the input.
    """
    parts(tmp_path, 15)
    path = join(tmp_path / "data.h5", [f"part{k}.h5" for k in range(15)])
    digest = fit([str(path)], allow_links=(str(tmp_path),)).digest
    words = ["train", path, "-o", tmp_path / "model.h5", "--quiet", "--allow-links", tmp_path]
    done = python("-c", LIMITED, "24", "4096", *words)
    assert done.returncode == 0, done.stderr
    assert describe(str(tmp_path / "model.h5"))["digest"] == digest
    (tmp_path / "model.h5").unlink()
    for limit in range(12, 32, 4):
        refused = python("-c", LIMITED, str(limit), str(limit), *words)
        assert refused.returncode == 69 and not (tmp_path / "model.h5").exists(), (
            limit,
            refused.stderr,
        )
        assert "open files at once, and the system allows this process" in refused.stderr
        assert "data.h5: 'X' needs" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_descriptors_that_are_gone_when_a_row_is_read(tmp_path: Path) -> None:
    """HDF5 opens its sources when they are first read, and reads zeros where it cannot."""
    code = """
import os, resource, sys
from mpigd.storage import hdf5
from mpigd.errors import LimitError
with hdf5.open_read(sys.argv[1], [os.path.dirname(sys.argv[1])]) as file:
    data = file["X"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        data[...]
    except LimitError as error:
        print(error.code, error)
"""
    parts(tmp_path, 5)
    path = join(tmp_path / "data.h5", [f"part{k}.h5" for k in range(5)])
    done = python("-c", code, path)
    assert done.stdout == f"69 {path}: 'X' cannot be read: Too many open files (ulimit -n)\n", (
        done.stderr
    )


def test_a_limit_is_an_error_of_the_system() -> None:
    assert LimitError.code == 69 and not issubclass(LimitError, DataError)
