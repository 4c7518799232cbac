"""Many files: their order, one that is named twice, and more of them than may be open at once."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.commands.info import describe
from mpigd.data.loading import Layout, load, read, survey
from mpigd.data.metadata import expand
from mpigd.data.streamed import Streamed
from mpigd.errors import DataError
from mpigd.parallel.comm import SelfComm
from mpigd.storage import file_order
from mpigd.storage.open_files import Recent
from tests.launch import command, python
from tests.scenarios import fit
from tests.threadcomm import run

Array = np.ndarray[Any, Any]


def write(path: Path, rows: int = 5, seed: int = 0, **how: Any) -> Path:
    X = np.random.default_rng(seed).standard_normal((rows, 3))
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=X, **how)
        file["y"] = X[:, 0] + np.arange(rows) % 3
    return path


# The order


def test_digits_are_numbers() -> None:
    shuffled = ["part-10", "part-2", "part-1", "part-02", "part", "part-2b", "9", "10"]
    assert sorted(shuffled, key=file_order.natural) == [
        "9",
        "10",
        "part",
        "part-1",
        "part-02",
        "part-2",
        "part-2b",
        "part-10",
    ]
    names = [f"run{a}-part{b}.h5" for a in (1, 2, 10, 100) for b in (0, 3, 20, 111)]
    assert sorted(random.Random(0).sample(names, len(names)), key=file_order.natural) == names
    assert sorted(
        ["part-²", "part-1", "٣", "part-" + "9" * 300], key=file_order.natural
    )  # nothing but 0 to 9 is a digit
    padded = [f"part-{k:05}.h5" for k in range(0, 200, 7)]
    assert sorted(padded, key=file_order.natural) == sorted(padded)


def test_a_glob_is_in_natural_order_and_other_files_in_that_given(tmp_path: Path) -> None:
    for k in range(12):
        write(tmp_path / f"part-{k}.h5", seed=k)
    expected = [str(tmp_path / f"part-{k}.h5") for k in range(12)]
    for size in (1, 3):
        assert (
            run(size, lambda comm: expand([str(tmp_path / "part-*.h5")], comm)) == [expected] * size
        )
    given = [str(tmp_path / f"part-{k}.h5") for k in (10, 2, 1)]
    assert expand(given, SelfComm()) == given
    whole, parts = fit([str(tmp_path / "part-*.h5")]), fit(expected)
    assert whole.digest == parts.digest


# One file twice


def twice(folder: Path, how: str) -> list[str]:
    path = write(folder / "b.h5")
    write(folder / "c.h5", seed=1)
    if how == "symbolic":
        (folder / "d.h5").symlink_to(path)
    if how == "hard":
        os.link(path, folder / "d.h5")
    more = {
        "name": [str(path)],
        "spelling": [str(folder / "." / "x" / ".." / "b.h5").replace("/x/..", "/.")],
        "globs": [str(folder / "[bc].h5"), str(folder / "b*.h5")],
    }
    return [str(path), *more.get(how, [str(folder / "d.h5")])]


@pytest.mark.parametrize("how", ["name", "spelling", "globs", "symbolic", "hard"])
def test_a_file_that_is_named_twice(how: str, tmp_path: Path) -> None:
    data = twice(tmp_path, how)
    for size in (1, 2):
        with pytest.raises(DataError) as caught:
            run(size, lambda comm: load(data, Layout(), comm))
        message = str(caught.value)
        names = re.findall(r"\S+\.h5", message)
        assert all(os.path.samefile(name, tmp_path / "b.h5") for name in names)
        assert len(names) == 2 if "the same file" in message else "b.h5 is named twice" in message
        assert "(--allow-duplicates)" in message and "\n" not in message
    rows = load(data, Layout(duplicates=True), SelfComm()).n
    assert rows == (20 if how == "globs" else 10)


def test_the_advice_is_what_the_commands_understand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = twice(tmp_path, "hard")
    model = tmp_path / "model.h5"
    fit([data[0]]).save(str(model))
    for name, more in {
        "train": ["-o", str(tmp_path / "other.h5"), "--quiet"],
        "evaluate": [],
        "predict": ["-o", str(tmp_path / "predicted.h5")],
        "plan": [],
        "cv": ["--l2", "1,10", "--folds", "2", "--quiet"],
    }.items():
        words = [name, *([str(model)] if name in ("evaluate", "predict") else []), *data, *more]
        refused = command(capsys, *words)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (65, 1), refused.stderr
        done = command(capsys, *words, *re.findall(r"--[a-z-]+", refused.stderr))
        assert done.returncode == 0, (name, done.stderr)
    assert describe(str(tmp_path / "other.h5"))["digest"] == fit(data, allow_duplicates=True).digest


def test_equal_files_and_validation_data_are_no_duplicates(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    assert fit([str(first), str(second)], validation=[str(first)], epochs=1).summary["rows"] == 10


# More than may be open


LIMITED = """
import os, resource, sys
from mpigd.__main__ import main
import mpigd.training.trainer
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    "how",
    [{}, dict(chunks=(2, 3)), dict(chunks=(2, 3), compression="gzip")],
    ids=["map", "chunks", "gzip"],
)
def test_streamed_files_take_few_descriptors(how: dict[str, Any], tmp_path: Path) -> None:
    for k in range(90):
        write(tmp_path / f"part-{k}.h5", seed=k, **how)
    pattern = str(tmp_path / "part-*.h5")
    digests = {fit([pattern]).digest}
    for soft, hard in ((40, 40), (40, 4096)):
        words = ["train", pattern, "-o", tmp_path / "model.h5", "--quiet", "--max-memory", "1kB"]
        done = python("-c", LIMITED, str(soft), str(hard), *words)
        assert done.returncode == 0, done.stderr
        digests.add(describe(str(tmp_path / "model.h5"))["digest"])
    assert len(digests) == 1


def test_no_more_than_a_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpigd.data.streamed.MAPPED", 6)
    monkeypatch.setattr("mpigd.data.streamed.FILES", 3)
    for kind, how in (("map", {}), ("chunk", dict(chunks=(2, 3)))):
        for k in range(30):
            write(tmp_path / f"{kind}-{k}.h5", seed=k, **how)
        layout = Layout(max_memory=100_000)  # of pieces: more than all
        X = read(
            survey([str(tmp_path / f"{kind}-*.h5")], layout, SelfComm()),
            Layout(max_memory=1),
            SelfComm(),
        ).X
        assert isinstance(X, Streamed)
        X._capacity = 1000
        whole = load([str(tmp_path / f"{kind}-*.h5")], Layout(), SelfComm()).X.values  # type: ignore[union-attr]
        for _ in range(2):
            for row in (3, 140, 17, 88, 149, 0):
                np.testing.assert_array_equal(
                    X.rows(slice(row, row + 1)).values, whole[row : row + 1]
                )  # type: ignore[union-attr]
            z = np.empty(150)
            X.margins(np.ones(3), 0.0, z)
            np.testing.assert_allclose(z, whole.sum(axis=1))
        targets = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
        held = {os.readlink(link) for link in targets if os.path.exists(link)}
        assert 0 < len({name for name in held if f"{kind}-" in name}) <= 7


def test_a_file_that_is_replaced_while_it_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened again at every pass: another one in its place is not taken for it."""
    monkeypatch.setattr("mpigd.data.streamed.MAPPED", 1)
    monkeypatch.setattr("mpigd.data.streamed.FEWEST", 1)
    paths = [str(write(tmp_path / f"part-{k}.h5", seed=k)) for k in range(6)]
    X = read(survey(paths, Layout(), SelfComm()), Layout(max_memory=1), SelfComm()).X
    X.rows(slice(29, 30))
    write(tmp_path / "other.h5", seed=99).rename(paths[0])
    with pytest.raises(
        DataError, match=r"part-0\.h5: the file has been changed or replaced since this run began"
    ):
        X.rows(slice(0, 5))


def test_what_was_used_last_stays_open() -> None:
    made, closed = list[int](), list[int]()

    def make(key: int) -> int:
        made.append(key)
        return key

    kept: Recent[int] = Recent(2, lambda key, thing: closed.append(thing))
    for key in (1, 2, 1, 3, 1, 2, 2, 1):
        assert kept.get(key, lambda key=key: make(key)) == key  # type: ignore[misc]
    assert (made, closed, len(kept)) == ([1, 2, 3, 2], [2, 3], 2)
