"""The name of the kernel cache folder depends on every kernel source, also in sub-folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpigd.parallel import kernel_cache

KERNELS = Path(__file__).resolve().parents[3] / "kernels" / "mpigd_kernels"


def add(folder: Path) -> None:
    (folder / "simd" / "more.py").write_text("")


def change(folder: Path) -> None:
    (folder / "simd" / "deep" / "rows.py").write_text("WIDTH = 16\n")


def rename(folder: Path) -> None:
    (folder / "simd" / "deep" / "rows.py").rename(folder / "simd" / "deep" / "lanes.py")


def move(folder: Path) -> None:
    (folder / "simd" / "deep" / "rows.py").rename(folder / "simd" / "rows.py")


def pass_text_on(folder: Path) -> None:
    """Put the first line of a file at the end of the file before it."""
    first, second = folder / "simd" / "a.py", folder / "simd" / "b.py"
    line, rest = second.read_text().split("\n", 1)
    first.write_text(first.read_text() + line + "\n")
    second.write_text(rest)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: Any) -> Path:
    """A copy of the kernels with a sub-folder, which the cache takes for the kernels."""
    folder = tmp_path / "here" / "kernels"
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "simd" / "deep").mkdir(parents=True)
    (folder / "simd" / "deep" / "rows.py").write_text("WIDTH = 8\n")
    (folder / "simd" / "a.py").write_text("A = 1\n")
    (folder / "simd" / "b.py").write_text("B = 1\nC = 1\n")
    found = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(kernel_cache, "util", SimpleNamespace(find_spec=lambda name: found))
    return folder


@pytest.mark.parametrize("edit", [add, change, rename, move, pass_text_on])
def test_an_edit_changes_the_name(sources: Path, edit: Callable[[Path], None]) -> None:
    before = kernel_cache.location()
    assert kernel_cache.location() == before
    edit(sources)
    assert kernel_cache.location().parent == before.parent
    assert kernel_cache.location().name != before.name


def test_a_copy_has_the_same_name(sources: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Two checkouts of the same sources share what is compiled; other files do not count."""
    before = kernel_cache.location()
    other = tmp_path / "elsewhere"
    shutil.copytree(sources, other)
    (other / "simd" / "__pycache__").mkdir()
    (other / "simd" / "__pycache__" / "rows.cpython-311.pyc").write_bytes(b"compiled")
    found = SimpleNamespace(submodule_search_locations=[str(other)])
    monkeypatch.setattr(kernel_cache, "util", SimpleNamespace(find_spec=lambda name: found))
    assert kernel_cache.location() == before
