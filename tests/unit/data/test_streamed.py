"""Streamed rows, read again in every pass, give the same model as rows in memory.

This holds whichever rank reads them and however little memory there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.config.schema import Config
from mpigd.config.units import size_of
from mpigd.data import batches, reader
from mpigd.data.loading import Layout, read, survey
from mpigd.data.shard import Shard
from mpigd.data.streamed import Streamed
from mpigd.errors import DataError, UsageError
from mpigd.parallel.comm import Comm, SelfComm
from tests.scenarios import fit, same, write
from tests.threadcomm import run
from tests.truths import generate

Array = np.ndarray[Any, Any]
FULL = dict(mode="full", epochs=4)
BLOCKS = dict(mode="minibatch", shuffle="blocks", epochs=3, batch_size=23)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows, so that small data have many."""
    monkeypatch.setattr(reader, "SLAB_BYTES", 1 << 9)
    monkeypatch.setattr(batches, "BLOCK", 16)
    monkeypatch.setattr("mpigd.training.problem.BLOCK", 16)


def loaded(paths: list[str], comm: Comm | None = None, **options: Any) -> Shard:
    layout = Layout(**{"max_memory": 1000, **options})
    return read(survey(paths, layout, comm or SelfComm()), layout, comm or SelfComm())


def plainly(paths: list[str]) -> list[str]:
    """The same files with X contiguous, as it can be mapped."""
    for path in paths:
        with h5py.File(path, "r+") as file:
            values = file["X"][...]
            del file["X"]
            file.create_dataset("X", data=values)
    return paths


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("steps", [FULL, BLOCKS], ids=["full", "blocks"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_same_bits_as_in_memory(
    steps: dict[str, Any], dtype: str | None, plain: bool, small: None, tmp_path: Path
) -> None:
    paths = write(generate("logistic", n=301, weights=True), tmp_path, files=3)
    if plain:
        assert set(loaded(plainly(paths)).X._maps) == {0, 1, 2}
    options = dict(loss="logistic", dtype=dtype, l2=1e-3, **steps)
    truth = fit(paths, **options)
    for size in (1, 3):
        for partition in ("range", "file"):
            more = dict(options, partition=partition, max_memory="1kB", threads=2)
            run(size, lambda comm, more=more: same(fit(paths, comm, **more), truth))


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
def test_same_bits_of_other_optimisers(optimizer: str, small: None, tmp_path: Path) -> None:
    paths = write(generate("logistic", n=301), tmp_path, files=2)
    options = dict(loss="logistic", optimizer=optimizer, l2=1e-2)
    same(fit(paths, max_memory="1kB", **options), fit(paths, **options))


@pytest.mark.parametrize("block", [None, 16])
def test_rows_are_those_of_the_file(block: int | None, small: None, tmp_path: Path) -> None:
    table = generate("squared", n=211)
    X = loaded(write(table, tmp_path, files=2), block=block).X
    assert isinstance(X, Streamed)
    rng = np.random.default_rng(0)
    for selection in (
        slice(3, 4),
        slice(0, 211),
        slice(14, 90),
        slice(5, 5),
        rng.integers(0, 211, 70),
        np.arange(0),
    ):
        np.testing.assert_array_equal(X.rows(selection).values, table.X[selection])
    z, w = np.empty(211), rng.normal(size=4)
    X.margins(w, 0.5, z)
    np.testing.assert_allclose(z, table.X @ w + 0.5, rtol=1e-12)


def test_little_is_held_and_the_next_piece_is_read_ahead(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = loaded(write(generate("squared", n=301), tmp_path), max_memory=3000).X
    assert isinstance(X, Streamed)
    numbers: list[int] = []
    really = X._read
    monkeypatch.setattr(X, "_read", lambda number: (numbers.append(number), really(number))[1])
    for _ in range(2):
        for start in range(0, 301, 5):
            X.rows(slice(start, min(301, start + 5)))
    X._reader.submit(lambda: None).result()
    pieces = len(X._pieces)
    assert pieces > 15 and len(X._held) * X.row_bytes * 16 <= 3000
    assert numbers[-pieces:] == list(range(pieces)), "each piece once an epoch, in order"


def test_what_fits_is_kept_in_memory(tmp_path: Path) -> None:
    paths = write(generate("squared", n=100), tmp_path)
    assert not isinstance(loaded(paths, max_memory=100 * 4 * 8).X, Streamed)
    assert isinstance(loaded(paths, max_memory=100 * 4 * 8 - 1).X, Streamed)
    run(
        2,
        lambda comm: np.testing.assert_equal(
            isinstance(loaded(paths, comm, max_memory=2000).X, Streamed), False
        ),
    )


@pytest.mark.parametrize("n", [1, 15, 16, 17, 300])
def test_blocks_are_permuted_and_rows_in_them(n: int, small: None) -> None:
    rows, places = np.arange(n), np.empty(n, dtype=np.int64)
    epochs = []
    for epoch in range(3):
        batches.block_positions(rows, n, 7, epoch, places)
        np.testing.assert_array_equal(np.sort(places), rows)
        for start in range(0, n, 16):
            block = np.sort(places[start : start + 16])
            np.testing.assert_array_equal(block, np.arange(block[0], block[0] + block.size))
        some, alone = np.flatnonzero(np.random.default_rng(epoch).random(n) < 0.3), places.copy()
        batches.block_positions(some, n, 7, epoch, alone[: some.size])
        np.testing.assert_array_equal(alone[: some.size], places[some])
        epochs.append(places.copy())
    if n == 300:
        assert not np.array_equal(epochs[0], epochs[1])
        orders = {tuple(np.argsort(epochs[0][start : start + 16])) for start in range(0, 288, 16)}
        assert len(orders) == 18, "every block has an order of its own"


REFUSED = {
    "stochastic": (dict(mode="stochastic"), "stochastic mode draws from all rows"),
    "rows": (dict(mode="minibatch"), "mini-batches of rows from everywhere .* --shuffle blocks"),
    "hash": (dict(partition="hash"), "a hash partition moves rows between ranks"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_streamed_is_refused(kind: str, tmp_path: Path) -> None:
    options, why = REFUSED[kind]
    paths = write(generate("squared", n=100), tmp_path)
    with pytest.raises(
        UsageError,
        match=f"a rank's rows take .* GB, more than --max-memory, and {why}.*: use more ranks",
    ):
        fit(paths, max_memory="1kB", **options)
    fit(paths, max_memory="1GB", epochs=1, **options)


def test_sparse_data_are_refused(tmp_path: Path) -> None:
    paths = write(generate("squared", n=100), tmp_path, as_csr=True)
    with pytest.raises(UsageError, match="sparse data cannot be streamed: use more ranks"):
        fit(paths, max_memory="1kB")
    fit(paths, max_memory="1MB", epochs=1)


def test_bad_numbers_are_found_before_training(small: None, tmp_path: Path) -> None:
    paths = write(generate("squared", n=100), tmp_path)
    with h5py.File(paths[0], "r+") as file:
        file["X"][77, 2] = np.nan

    def refused(comm: Comm) -> None:
        with pytest.raises(DataError, match="'X' row 77 column 2 is nan: not a finite number"):
            loaded(paths, comm, max_memory=100)

    run(2, refused)


def test_plain_rows_are_mapped_unless_some_must_be_changed(small: None, tmp_path: Path) -> None:
    """A subnormal number is zero in memory, so it must be zero here: its rows are read."""
    table = generate("squared", n=301)
    paths = plainly(write(table, tmp_path, files=2))
    assert set(loaded(paths).X._maps) == {0, 1}
    with h5py.File(paths[1], "r+") as file:
        file["X"][77, 2] = 5e-324
        subnormal = 301 - file["X"].shape[0] + 77
    X = loaded(paths).X
    assert set(X._maps) == {0}
    truth = table.X.copy()
    truth[subnormal, 2] = 0
    np.testing.assert_array_equal(X.rows(slice(None)).values, truth)
    assert X.rows(slice(subnormal, subnormal + 1)).values[0, 2] == 0


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2e9), ("1.5 GiB", 1.5 * 2**30), ("500mb", 5e8), ("7", 7)]
)
def test_sizes(text: str, size: float) -> None:
    assert size_of(text) == size


def test_wrong_options() -> None:
    for text in ("", "GB", "2 potatoes", "-", "1e400"):
        with pytest.raises(UsageError, match=r"--max-memory .*: expected a size like 500MB or 2GB"):
            Config(max_memory=text)
    with pytest.raises(UsageError, match="--shuffle blocks goes with --mode minibatch"):
        Config(shuffle="blocks")
