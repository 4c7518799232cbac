"""Rows that a file declares and nobody wrote are never taken for zeros without a word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.commands.info import describe
from mpigd.config.schema import FIELDS
from mpigd.data.convert import convert
from mpigd.data.loading import Layout, load
from mpigd.errors import DataError
from mpigd.parallel.comm import SelfComm
from tests.launch import command
from tests.scenarios import fit
from tests.threadcomm import run

N, D = 1000, 4
X = np.random.default_rng(0).standard_normal((N, D))
VECTORS = {"y": X[:, 0] + 1.0, "sample_weight": np.ones(N), "offset": X[:, 1], "key": np.arange(N)}


def sparse_parts(file: h5py.File) -> dict[str, Any]:
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "shape": (N, D)})
    return {
        "indptr": np.arange(0, 2 * N + 1, 2),
        "indices": np.tile(np.array([0, 2], np.int32), N),
        "data": X[:, :2].ravel(),
    }


def write(
    path: Path, gone: str = "", csr: bool = False, libver: Any = "earliest", **how: Any
) -> Path:
    """Write all kinds of chunked datasets; return the path of the file.

    In those of `gone` the last 4 of 10 chunks are not written, as after a job that died.
    """
    with h5py.File(path, "w", libver=libver) as file:
        parts = (
            {f"X/{name}": part for name, part in sparse_parts(file).items()} if csr else {"X": X}
        )
        for name, values in {**parts, **VECTORS}.items():
            chunk = -(-len(values) // 10)
            data = file.create_dataset(
                name, values.shape, values.dtype, chunks=(chunk, *values.shape[1:]), **how
            )
            rows = slice(0, 6 * chunk if name == gone else len(values))
            data[rows] = values[rows]
    return path


def refusal(path: Path, **layout: Any) -> str:
    """The sentence by which a data set is refused, the same on all ranks."""
    found = set()
    for size in (1, 2):
        with pytest.raises(DataError) as caught:
            run(size, lambda comm: load([str(path)], Layout(**layout), comm))
        found.add(str(caught.value))
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "how", [{}, dict(compression="gzip"), dict(maxshape=None)], ids=["plain", "gzip", "growing"]
)
def test_whole_files_are_read(libver: str, how: dict[str, Any], tmp_path: Path) -> None:
    for csr in (False, True):
        path = write(tmp_path / f"{csr}.h5", "", csr, libver, **({} if "maxshape" in how else how))
        if "maxshape" in how:
            with h5py.File(path, "r+", libver=libver) as file:
                for name in ("y", "X/data") if csr else ("y", "X"):
                    values = file[name][...]
                    del file[name]
                    wide = (None, *values.shape[1:])
                    file.create_dataset(
                        name, data=values, chunks=(50, *values.shape[1:]), maxshape=wide
                    )
        assert load([str(path)], Layout(), SelfComm()).n == N


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("name", ["X", *VECTORS])
def test_chunks_that_a_job_did_not_write(name: str, libver: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "data.h5", name, libver=libver))
    assert message.startswith(
        f"{tmp_path / 'data.h5'}: {name!r}: 4 of 10 chunks were never written, "
        "the first at row 600: "
    )
    assert "zeros" not in message and "--allow-unwritten" in message


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_parts_of_a_sparse_matrix(name: str, tmp_path: Path) -> None:
    """The row of an entry is told, not its place among the entries."""
    message = refusal(write(tmp_path / "data.h5", f"X/{name}", csr=True))
    assert (
        f"'X/{name}': 4 of 10 chunks were never written, "
        f"the first at row {606 if name == 'indptr' else 600}" in message
    )


def test_columns_in_chunks_of_their_own(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        data = file.create_dataset("X", (N, D), "f4", chunks=(100, 2))
        data[:, :2] = X[:, :2]
        data[:300, 2:] = X[:300, 2:]
        file["y"] = VECTORS["y"]
    assert "'X': 7 of 20 chunks were never written, the first at row 300" in refusal(
        tmp_path / "data.h5"
    )


def test_a_gap_in_the_middle_and_a_vector_that_is_one_row(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["X"] = X
        data = file.create_dataset("y", (1, N), "f8", chunks=(1, 100))
        data[0, :200], data[0, 300:] = VECTORS["y"][:200], VECTORS["y"][300:]
    assert "'y': 1 of 10 chunks were never written, the first at row 200" in refusal(
        tmp_path / "data.h5"
    )


@pytest.mark.parametrize("name", ["X", "y"])
def test_contiguous_data_that_were_never_allocated(name: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for key, values in (("X", X), ("y", VECTORS["y"])):
            data = file.create_dataset(key, values.shape, values.dtype)
            if key != name:
                data[...] = values
    assert f"{name!r}: no row was ever written" in refusal(tmp_path / "data.h5")


def test_nothing_is_missing_where_there_is_nothing(tmp_path: Path) -> None:
    """Nothing is missing in a sparse matrix without entries, nor in small data in the header.

    HDF5 calls the layout of the latter compact.
    """
    with h5py.File(tmp_path / "data.h5", "w") as file:
        parts = sparse_parts(file)
        for name, values in parts.items():
            file.create_dataset(
                f"X/{name}", data=np.zeros(N + 1, int) if name == "indptr" else values[:0]
            )
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(
            file.id, b"y", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((N,)), properties
        )
    assert load([str(tmp_path / "data.h5")], Layout(), SelfComm()).X.entries == 0


def test_damage_that_makes_more_chunks_than_there_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 is not asked any longer then: damage may have it find chunks without end."""
    asked = 0

    def endless(data: Any, callback: Callable[[Any], Any]) -> None:
        nonlocal asked
        while callback(None) is None:
            asked += 1

    path = write(tmp_path / "data.h5")
    monkeypatch.setattr("mpigd.data.unwritten.chunks_of", endless)
    assert "is damaged: it has more than the 10 chunks of its shape" in refusal(path)
    assert asked < 100


# Virtual datasets


def virtual(path: Path, *pieces: tuple[Any, str, Any], n: int = N) -> Path:
    """X of pieces: where they go, their file, and which of its rows."""
    layout = h5py.VirtualLayout((n, D), "f8")
    for where, name, rows in pieces:
        layout[where] = h5py.VirtualSource(name, "X", (N, D))[rows]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("X", layout)
        file["y"] = VECTORS["y"][:n]
    return path


ALL = np.s_[:, :]


def test_what_is_mapped_to_nothing(tmp_path: Path) -> None:
    write(tmp_path / "part.h5")
    path = virtual(
        tmp_path / "data.h5",
        (np.s_[:300, :], "part.h5", np.s_[:300, :]),
        (np.s_[500:, :], "part.h5", np.s_[500:, :]),
    )
    message = refusal(path, links=(str(tmp_path),))
    assert "'X': no source is mapped to 800 of 4000 numbers, the first at row 300: HDF5" in message
    shard = load([str(path)], Layout(links=(str(tmp_path),), unwritten=True), SelfComm())
    np.testing.assert_array_equal(shard.X.values[298:302, 0], [*X[298:300, 0], 0.0, 0.0])  # type: ignore[union-attr]


def test_sources_that_take_turns(tmp_path: Path) -> None:
    """Sources of every third row, or of some of the columns, leave nothing unmapped.

    Without one of them, rows or columns are missing.
    """
    write(tmp_path / "part.h5")
    turns = [(np.s_[k::3, :], "part.h5", np.s_[k::3, :]) for k in range(3)]
    sides = [(np.s_[:, :1], "part.h5", np.s_[:, :1]), (np.s_[:, 1:], "part.h5", np.s_[:, 1:])]
    for pieces in (turns, sides):
        path = virtual(tmp_path / "data.h5", *pieces)
        X_read = load([str(path)], Layout(links=(str(tmp_path),)), SelfComm()).X
        np.testing.assert_array_equal(X_read.values, X)  # type: ignore[union-attr]
        refused = virtual(tmp_path / "less.h5", *pieces[:-1])
        assert "no source is mapped to" in refusal(refused, links=(str(tmp_path),))


def test_turns_that_are_too_many_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpigd.data.unwritten.BLOCKS", 5)
    test_sources_that_take_turns(tmp_path)


@pytest.mark.parametrize(("file", "name"), [("none.h5", "X"), ("part.h5", "Z")])
def test_sources_that_are_not_there(file: str, name: str, tmp_path: Path) -> None:
    write(tmp_path / "part.h5")
    layout = h5py.VirtualLayout((N, D), "f8")
    layout[:400] = h5py.VirtualSource("part.h5", "X", (N, D))[:400]
    layout[400:] = h5py.VirtualSource(file, name, (600, D))
    with h5py.File(tmp_path / "data.h5", "w") as out:
        out.create_virtual_dataset("X", layout)
        out["y"] = VECTORS["y"]
    links = (str(tmp_path),)
    assert f"'X' leads to {file}: {name!r}, which is not there, at row 400" in refusal(
        tmp_path / "data.h5", links=links
    )
    shard = load([str(tmp_path / "data.h5")], Layout(links=links, unwritten=True), SelfComm())
    assert shard.X.values[400:].any() == 0  # type: ignore[union-attr]


def test_chunks_of_sources(tmp_path: Path) -> None:
    """Those that are used."""
    write(tmp_path / "part.h5", "X")
    whole = virtual(tmp_path / "data.h5", (ALL, "part.h5", ALL))
    message = refusal(whole, links=(str(tmp_path),))
    assert (
        f"'X' is made of {tmp_path / 'part.h5'}: 'X': 4 of 10 chunks were never written, "
        "the first at row 600" in message
    )
    used = virtual(tmp_path / "used.h5", (ALL, "part.h5", np.s_[:600, :]), n=600)
    assert load([str(used)], Layout(links=(str(tmp_path),)), SelfComm()).n == 600


def test_sources_that_are_too_short(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "short.h5", "w") as file:
        file["X"] = X[:700]
    for n, rows in ((N, ALL), (900, np.s_[:900, :])):
        path = virtual(tmp_path / "data.h5", (ALL, "short.h5", rows), n=n)
        assert re.search(
            rf"'X' takes numbers.* from {tmp_path}/short.h5: 'X', which has",
            refusal(path, links=(str(tmp_path),)),
        )


def test_a_virtual_dataset_that_grows_with_its_source(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file.create_dataset("X", data=X, maxshape=(None, D))
    layout = h5py.VirtualLayout((10, D), "f8", maxshape=(None, D))
    source = h5py.VirtualSource("part.h5", "X", (10, D), maxshape=(None, D))
    layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_virtual_dataset("X", layout)
        file["y"] = VECTORS["y"]
    assert load([str(tmp_path / "data.h5")], Layout(links=(str(tmp_path),)), SelfComm()).n == N


def test_external_files_that_end_too_soon(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(X[:700].tobytes())
    for size in (X.nbytes, h5py.h5f.UNLIMITED):
        with h5py.File(tmp_path / "data.h5", "w") as file:
            file.create_dataset("X", (N, D), "f8", external=[(str(raw), 0, size)])
            file["y"] = VECTORS["y"]
        assert f"'X': {raw} ends before its numbers do, at row 700" in refusal(
            tmp_path / "data.h5", links=(str(tmp_path),)
        )
    raw.unlink()
    assert "raw: No such file or directory" in refusal(tmp_path / "data.h5", links=(str(tmp_path),))


# The way out


def advised(message: str) -> list[str]:
    """The options that a message names."""
    return re.findall(r"--[a-z][a-z-]+", message)


def test_the_advice_is_what_the_commands_understand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the option that the message names, missing chunks act like zeros in the file.

    This holds for every command.
    """
    gone, zeros = write(tmp_path / "gone.h5", "X"), write(tmp_path / "zeros.h5", "X")
    with h5py.File(zeros, "r+") as file:
        file["X"][600:] = 0.0
    model = tmp_path / "model.h5"
    fit([str(zeros)]).save(str(model))
    digest = describe(str(model))["digest"]
    commands = {
        "train": ("-o", tmp_path / "other.h5", "--quiet"),
        "info": (),
        "evaluate": (),
        "predict": ("-o", tmp_path / "predicted.h5"),
        "plan": (),
        "cv": ("--l2", "1,10", "--folds", "2", "--quiet"),
    }
    for name, more in commands.items():
        words = [name, *([model] if name in ("evaluate", "predict") else []), gone, *more]
        refused = command(capsys, *words)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (65, 1), (
            name,
            refused.stderr,
        )
        options = advised(refused.stderr)
        assert options == ["--allow-unwritten"]
        done = command(capsys, *words, *options)
        assert done.returncode == 0, (name, done.stderr)
        expected = command(capsys, *(zeros if word is gone else word for word in words))
        if name in ("evaluate", "cv"):
            assert done.stdout == expected.stdout
    fit([str(gone)], allow_unwritten=True).save(str(tmp_path / "other.h5"))
    assert describe(str(tmp_path / "other.h5"))["digest"] == digest


def test_the_option_is_part_of_nothing_else() -> None:
    for name in ("allow_unwritten", "allow_duplicates"):
        assert FIELDS[name].metadata["model"] is FIELDS["allow_links"].metadata["model"] is False
        assert FIELDS[name].metadata["fixed"] is FIELDS["allow_links"].metadata["fixed"] is False


def test_conversion_looks_too(tmp_path: Path) -> None:
    path = write(tmp_path / "data.h5", "X")
    with pytest.raises(DataError, match="4 of 10 chunks were never written, the first at row 600"):
        convert(str(path), str(tmp_path / "out.h5"), "X", "y")
    assert convert(str(path), str(tmp_path / "out.h5"), "X", "y", allow_unwritten=True).rows == N
