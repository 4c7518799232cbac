"""Reading data sets: every row is on exactly one rank, and each fault is reported with its place.

This holds for any files and any partition.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mpigd.data import contiguous as plain
from mpigd.data.loading import Layout, load, passing
from mpigd.data.shard import Shard
from mpigd.matrix.base import CSR, Dense
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import load as load_model
from mpigd.storage import safe_open
from tests.launch import python
from tests.scenarios import PLACES, write
from tests.threadcomm import run
from tests.truths import Table, generate

Array = np.ndarray[Any, Any]


def read(paths: Sequence[str], size: int = 1, **layout: Any) -> list[Shard]:
    return run(size, lambda comm: load(paths, Layout(**layout), comm))


def values(shard: Shard) -> Array:
    if isinstance(shard.X, Dense):
        return shard.X.values
    assert isinstance(shard.X, CSR)
    return sparse.csr_matrix(
        (shard.X.data, shard.X.indices, shard.X.indptr), (shard.X.n, shard.X.d)
    ).toarray()


def together(shards: Sequence[Shard]) -> Table:
    """All ranks' rows in the order of their numbers, which must be 0..n-1, each once."""
    rows = np.concatenate([shard.rows for shard in shards])
    np.testing.assert_array_equal(np.sort(rows), np.arange(shards[0].n))
    assert all(np.all(np.diff(shard.rows) > 0) for shard in shards), "ascending"

    def whole(parts: list[Any]) -> Any:
        return None if parts[0] is None else np.concatenate(parts)[np.argsort(rows)]

    vectors = ([getattr(shard, name) for shard in shards] for name in ("y", "c", "offset"))
    return Table(whole([values(shard) for shard in shards]), *map(whole, vectors))


def equal(one: Table, other: Table) -> None:
    for name in ("X", "y", "c", "offset"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


@pytest.mark.parametrize("partition", PLACES)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["csr", "float32", "float16"])
def test_rows_that_pass_by(
    kind: str, size: int, partition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slab by slab the rows that would be held, whatever the slabs."""
    table, layout = generate("squared", n=70, weights=True), Layout(partition=partition)
    paths = write(table, tmp_path, files=3, as_csr=kind == "csr")
    if kind == "float16":
        for path in paths:
            with h5py.File(path, "r+") as file:
                X = file["X"][...].astype(np.float16)
                del file["X"]
                file["X"] = X
    held = load(paths, Layout(), SelfComm()).X
    monkeypatch.setattr("mpigd.data.reader.SLAB_BYTES", 300)

    def rows_of(comm: Comm) -> tuple[Array, Array, int]:
        shard, slabs = passing(paths, layout, comm)
        assert shard.X.n == 0 and shard.y is not None and shard.c is not None
        numbers, z, count = np.asarray(shard.rows), np.empty(shard.rows.size), 0
        np.testing.assert_array_equal(shard.y, table.y[numbers])
        for rows, X in slabs:
            X.margins(np.arange(1.0, X.d + 1), 0.5, z[rows])
            count += 1
        return numbers, z, count

    found, whole = run(size, rows_of), np.empty(70)
    held.margins(np.arange(1.0, held.d + 1), 0.5, whole)
    numbers, z = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:2])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(70))
    np.testing.assert_array_equal(z, whole[numbers])
    assert sum(count for _, _, count in found) > 3, "more slabs than files"


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    size=st.integers(1, 7),
    partition=st.sampled_from(PLACES),
    as_csr=st.booleans(),
    chunk=st.integers(1, 16),
)
@settings(max_examples=60, deadline=None)
def test_every_row_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    size: int,
    partition: str,
    as_csr: bool,
    chunk: int,
) -> None:
    folder, n = tmp_path_factory.mktemp("rows"), sum(lengths)
    table = generate("squared", n=n, weights=True)
    paths, first = [], 0
    for number, length in enumerate(lengths):
        part = table.take(slice(first, first + length))
        (folder / str(number)).mkdir()
        paths += write(part, folder / str(number), as_csr=as_csr)
        if length and not as_csr:
            with h5py.File(paths[-1], "r+") as file:
                del file["X"]
                chunks = (min(chunk, length), 4)
                file.create_dataset(
                    "X", data=part.X, chunks=chunks, compression="gzip", fletcher32=True
                )
        first += length
    shards = read(paths, size, partition=partition)
    equal(together(shards), table)
    assert {shard.n for shard in shards} == {n}
    assert (
        shards[0].where(n - 1)
        == f"{paths[max(i for i in range(len(lengths)) if lengths[i])]} row {_last(lengths)}"
    )


def _last(lengths: list[int]) -> int:
    return [length for length in lengths if length][-1] - 1


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranges_are_balanced_and_keep_chunks_whole(size: int, tmp_path: Path) -> None:
    n, chunk = 10_000, 64
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("X", data=np.ones((n, 2)), chunks=(chunk, 2))
        file["y"] = np.zeros(n)
    shards = read([str(tmp_path / "a.h5")], size)
    for shard in shards:
        assert abs(shard.rows.size - n / size) <= chunk
        assert shard.rows[0] % chunk == 0


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("files", [1, 3])
def test_sparse_ranges_balance_entries(size: int, files: int, tmp_path: Path) -> None:
    """The rows grow longer: equal rows would leave the last rank most of the work."""
    X = np.tril(np.ones((600, 600)))
    paths = write(Table(X, np.zeros(600)), tmp_path, files, as_csr=True)
    shards = read(paths, size)
    entries = np.array([shard.X.entries for shard in shards])
    assert entries.sum() == 600 * 601 / 2
    assert np.abs(entries - entries.mean()).max() <= 600


@pytest.mark.parametrize("files", [1, 4])
def test_equal_keys_meet(files: int, tmp_path: Path) -> None:
    table, keys = generate("squared", n=120), np.random.default_rng(0).integers(-50, 50, 120)
    paths = write(table, tmp_path, files)
    first = 0
    for path in paths:
        with h5py.File(path, "r+") as file:
            length = file["y"].shape[0]
            file["key"] = keys[first : first + length]
            first += length
    shards = read(paths, 4, partition="hash")
    equal(together(shards), table)
    for shard in shards:
        assert shard.rows.size
        np.testing.assert_array_equal(shard.key, keys[shard.rows])
    held = [set(keys[shard.rows]) for shard in shards]
    assert all(not held[a] & held[b] for a in range(4) for b in range(a))


def test_hashed_rows_are_spread(tmp_path: Path) -> None:
    shards = read(write(generate("squared", n=4000), tmp_path, 3), 4, partition="hash")
    counts = [shard.rows.size for shard in shards]
    assert max(abs(count - 1000) for count in counts) < 5 * np.sqrt(1000)


def test_whole_files(tmp_path: Path) -> None:
    paths = write(generate("squared", n=200), tmp_path, 5)
    shards = read(paths, 3, partition="file")
    ends = np.cumsum([0, *(length for _, length in shards[0].files)])
    owners = np.empty(200, dtype=int)
    for rank, shard in enumerate(shards):
        owners[shard.rows] = rank
    assert all(len(set(owners[a:b])) == 1 for a, b in pairwise(ends))
    assert max(shard.rows.size for shard in shards) < 200 * 0.5


# What is stored, and as what it arrives.


@pytest.mark.parametrize(
    ("stored", "asked", "kept"),
    [
        ("float64", None, "float64"), ("float32", None, "float32"),
        ("float64", "float32", "float32"), ("float32", "float64", "float64"),
        ("int8", None, "float32"), ("uint16", None, "float32"), ("int32", None, "float64"),
        ("int64", None, "float64"), ("bool", None, "float32"),
        ("float16", None, "float32"), (">f8", None, "float64"), (">f4", None, "float32"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_csr", [False, True])
def test_types(stored: str, asked: str | None, kept: str, as_csr: bool, tmp_path: Path) -> None:
    X = np.random.default_rng(0).integers(0, 2 if stored == "bool" else 100, (20, 3))
    paths = write(Table(X, np.arange(20) % 2 == 0), tmp_path, as_csr=as_csr)
    with h5py.File(paths[0], "r+") as file:
        place = file["X"] if as_csr else file
        name = "data" if as_csr else "X"
        content = place[name][...].astype(stored)
        del place[name]
        place[name] = content
    (shard,) = read(paths, dtype=asked)
    assert values(shard).dtype == kept
    np.testing.assert_array_equal(values(shard), X)
    assert shard.y is not None
    assert shard.y.dtype == "float64"


def test_columns_of_sparse_rows_need_not_be_sorted(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": [3, 4]})
        group["data"], group["indices"], group["indptr"] = (
            [1.0, 2.0, 3.0, 0.0],
            np.array([3, 0, 2, 1]),
            [0, 2, 2, 4],
        )
        file["y"] = np.zeros(3)
    (shard,) = read([str(tmp_path / "a.h5")])
    np.testing.assert_array_equal(values(shard), [[2, 0, 0, 1], [0, 0, 0, 0], [0, 0, 3, 0]])


def test_globs_and_order(tmp_path: Path) -> None:
    table = generate("squared", n=90)
    paths = write(table, tmp_path, 3)
    equal(together(read([str(tmp_path / "*.h5")], 2)), table)
    backwards = together(read(paths[::-1], 2))
    lengths = [length for _, length in read(paths)[0].files]
    np.testing.assert_array_equal(backwards.y[: lengths[2]], table.y[-lengths[2] :])


def test_other_names(tmp_path: Path) -> None:
    table = generate("squared", n=30)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/features"], file["late"], file["early"] = table.X, table.y, -table.y
    (shard,) = read([str(tmp_path / "a.h5")], x="deep/features", y="late")
    equal(together([shard]), table)


def test_a_target_is_not_needed_for_predictions(tmp_path: Path) -> None:
    paths = write(generate("squared", n=30), tmp_path)
    with h5py.File(paths[0], "r+") as file:
        del file["y"]
    assert read(paths, need_y=False)[0].y is None


@pytest.mark.parametrize("name", ["Blosc", "LZ4", "Zstd"])
def test_compressed_by_filters_beyond_hdf5s_own(name: str, tmp_path: Path) -> None:
    """The filters of hdf5plugin are found when a file needs them.

    The process is a new one that has not imported hdf5plugin.
    """
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="the extra [filters] is not installed")
    table = generate("logistic", n=300)
    with (
        h5py.File(tmp_path / "plain.h5", "w") as plain,
        h5py.File(tmp_path / "packed.h5", "w") as packed,
    ):
        for file, options in ((plain, {}), (packed, dict(getattr(hdf5plugin, name)()))):
            file.create_dataset("X", data=table.X, chunks=(50, table.X.shape[1]), **options)
            file["y"] = table.y
    digests = set()
    for kind in ("plain", "packed"):
        model = tmp_path / f"{kind}-model.h5"
        done = python(
            "-m", "mpigd", "train", tmp_path / f"{kind}.h5", "-o", model, "--loss", "logistic",
            "--epochs", "2", "--quiet"
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        digests.add(load_model(str(model)).digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    "how",
    [{}, dict(chunks=(16, 4)), dict(chunks=(16, 4), compression="gzip")],
    ids=["plain", "chunks", "gzip"],
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_number_is_read_once(
    how: dict[str, Any], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chunk, and no byte of contiguous data, is read twice over all ranks.

    The rows of a rank, and slabs too, end at the borders of chunks.
    """
    monkeypatch.setattr("mpigd.data.reader.SLAB_BYTES", 1 << 9)
    monkeypatch.setattr("mpigd.data.contiguous.PIECE", 200)
    path, values = tmp_path / "data.h5", np.random.default_rng(0).standard_normal((500, 4))
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=values, **how)
        file["y"] = np.zeros(500)
    touched: list[Any] = []
    direct, pread = h5py.Dataset.read_direct, os.preadv

    def counted_direct(source: Any, out: Any, rows: Any) -> None:
        touched.extend(range(rows.start // 16, -(-rows.stop // 16)))
        direct(source, out, rows)

    def counted_pread(handle: int, views: Any, place: int) -> int:
        touched.extend(range(place, place + len(views[0])))
        return pread(handle, views, place)

    monkeypatch.setattr(h5py.Dataset, "read_direct", counted_direct)
    monkeypatch.setattr(os, "preadv", counted_pread)
    parts = run(size, lambda comm: load([str(path)], Layout(), comm).X)
    np.testing.assert_array_equal(np.concatenate([part.values for part in parts]), values)
    assert len(touched) == len(set(touched)) == (values.nbytes if not how else -(-500 // 16))


@pytest.mark.parametrize("how", [dict(userblock_size=512), {}])
def test_the_place_of_plain_numbers(how: dict[str, Any], tmp_path: Path) -> None:
    """What lies in the file in another way is left to HDF5."""
    path = tmp_path / "data.h5"
    values = np.arange(12.0).reshape(4, 3)
    with h5py.File(path, "w", **how) as file:
        plainly = file.create_dataset("plain", data=values)
        file["swapped"] = values.astype(">f8")
        file["single"] = values.astype("f4")
        file.create_dataset("chunks", data=values, chunks=(2, 3))
        file.create_dataset("nothing", (4, 3), "f8")
        file.create_dataset("outside", (4, 3), "f8", external=[(str(tmp_path / "other"), 0, 96)])
        file["virtual"] = values
        layout = h5py.VirtualLayout((4, 3), "f8")
        layout[:] = h5py.VirtualSource(plainly)
        file.create_virtual_dataset("link", layout)
    with h5py.File(path) as file:
        found = {name: plain.offset(file[name], np.dtype("f8")) for name in file}
        places = {name for name, place in found.items() if place is not None}
        assert places == (set() if how else {"plain", "virtual"})
        for name in places:
            out = np.empty((4, 3))
            assert (
                sum(piece.size for piece in plain.read(plain.handle(file[name]), found[name], out))
                == 12
            )
            np.testing.assert_array_equal(out, values)
            np.testing.assert_array_equal(
                plain.Map(file[name], found[name], out.dtype).open().fetch(slice(0, 4)), values
            )


@pytest.mark.parametrize("as_csr", [False, True])
def test_one_rank_reads_the_encoding_and_each_rank_its_rows(
    as_csr: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On many ranks, reads of the first file's names by all of them would be the most opens."""
    paths = write(generate("logistic", n=90), tmp_path, as_csr=as_csr)
    with h5py.File(paths[0], "r+") as file:
        d = file["X"].attrs["shape"][1] if as_csr else file["X"].shape[1]
        file["feature_names"] = [f"column {j}" for j in range(d)]
    opened: list[str] = []
    original = safe_open.open_file
    monkeypatch.setattr(
        safe_open, "open_file", lambda path: opened.append(str(path)) or original(path)
    )
    shards = read(paths, 3)
    assert all(shard.feature_names == [f"column {j}" for j in range(d)] for shard in shards)
    # Metadata and encoding once. A rank opens the file for its rows: vectors and dense X, or the
    # two boundaries of its share of a CSR matrix (not those of the whole) and all its rows.
    assert len(opened) == 2 + (4 + 3 if as_csr else 2 * 3)
