"""The loaders with damaged files raise mpigd's own error only.

They take little memory and time. The mutations are in tests/fuzz.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import pytest

from mpigd.storage import hdf5
from tests import fuzz

COUNT = 400 if os.environ.get("TEST_FULL") else 40  # mutations of each file: 480 of all in CI


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    for kind, make in fuzz.SOURCES.items():
        make(path / f"{kind}.h5")
    return path


def test_damaged_files(folder: Path) -> None:
    assert len(fuzz.SOURCES) * COUNT >= 300
    with ThreadPoolExecutor(2) as workers:
        findings = workers.map(
            lambda kind: list(fuzz.run(folder, kind, range(COUNT))), fuzz.SOURCES
        )
    assert [finding for found in findings for finding in found] == []


def test_mutations_are_those_of_the_seed(folder: Path) -> None:
    raw = (folder / "data-plain.h5").read_bytes()
    once, again = (
        [fuzz.mutate(raw, random.Random(f"x {seed}")) for seed in range(30)] for _ in range(2)
    )
    assert once == again and len(set(once)) > 25


CULPRITS: dict[str, tuple[Callable[[str, str], None], str]] = {
    "another error": (lambda kind, path: {}["none"], "KeyError: 'none'"),
    "an endless loop": (lambda kind, path: [None for _ in iter(int, 1)] and None, "takes too long"),
    "much memory": (lambda kind, path: bytearray(4 << 30) and None, "MemoryError"),
    "a crash": (lambda kind, path: __import__("os").abort(), "ends the process: SIGABRT"),
}


@pytest.mark.parametrize("culprit", CULPRITS)
def test_what_must_not_come_out_is_found(
    culprit: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The worker in a process of its own, with a loader that does it for one file."""
    (tmp_path / "data-plain.h5").write_bytes(bytes(100))
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom tests import fuzz\nfrom tests.unit.storage.test_fuzz import CULPRITS\n"
        "fuzz.SECONDS = 0.3\nfiles = iter(range(9))\n"
        f"act = lambda kind, path: next(files) == 2 and CULPRITS[{culprit!r}][0](kind, path)\n"
        "fuzz.attempt = act\nfuzz.main(sys.argv[1:])\n"
    )
    found = list(fuzz.run(tmp_path, "data-plain", range(4), str(program)))
    assert [(finding.seed, CULPRITS[culprit][1] in finding.what) for finding in found][:1] == [
        (1, True)
    ], found


def test_texts_of_variable_length_are_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of variable length are not read.

    HDF5 can loop on one that is damaged in the global heap. The texts that mpigd writes have a
    fixed length.
    """
    with hdf5.open_read(folder / "data-csr.h5") as file:
        assert file["X"].attrs.varies("encoding-type")
        monkeypatch.setattr(
            h5py.AttributeManager, "__getitem__", lambda self, name: pytest.fail("read")
        )
        assert hdf5.read_text(file["X"], "encoding-type") == ""
