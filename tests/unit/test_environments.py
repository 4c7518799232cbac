"""The scripts of one checkout share an environment: none may change what another needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# pip is replaced: what it would be asked for is printed.
PRELUDE = (
    'set -euo pipefail; source "$1/environment.sh"; install() { shift; echo "$*"; }; folder="$2"; '
)


def shell(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", PRELUDE + code, "bash", str(SCRIPTS), str(folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=30)


def test_one_resolution_covers_what_all_scripts_need(tmp_path: Path) -> None:
    """All packages are installed in one call of pip.

    pip respects the version bounds of packages in the same call, and of no others.
    """
    code = (
        'for extras in mpich,test mpich,peers,demo ""; '
        'do install_project "$folder" "$extras" $extras; done'
    )
    done = shell(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    root = SCRIPTS.parent
    assert done.stdout.splitlines() == [
        f"-e {root}[mpich,test] mpich,test",
        f"-e {root}[demo,mpich,peers,test] mpich,peers,demo",
        f"-e {root}[demo,mpich,peers,test]",
    ]


def test_a_package_that_the_index_lacks_is_no_end(tmp_path: Path) -> None:
    code = 'root="$folder"; install() { exit 1; }; add_package nothing || echo "goes on"'
    (tmp_path / ".venv").mkdir()
    done = shell(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr


@pytest.mark.parametrize("copied", [False, True])
def test_a_copy_of_the_project_is_noticed(copied: bool, tmp_path: Path) -> None:
    """A copy of the project in the environment is noticed.

    `pip install .` would leave one there, and later changes of the sources would not reach it.
    """
    for name in ("mpigd", "mpigd_kernels"):
        place = (
            tmp_path
            / ("root/.venv/lib/site-packages" if copied and name == "mpigd_kernels" else "root")
            / name
        )
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    paths = f"{tmp_path}/root/.venv/lib/site-packages:{tmp_path}/root"
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={paths} exec {sys.executable} -P -S "$@"\n')
    python.chmod(0o755)
    done = shell('root="$folder/root"; is_editable "$folder" && echo yes || echo no', tmp_path)
    assert (done.returncode, done.stdout) == (0, "no\n" if copied else "yes\n"), done.stderr


def test_what_waits_for_full_is_listed() -> None:
    """docs/testing.md names every file with tests that only --full runs, and the reasons."""
    page = (SCRIPTS.parent / "docs" / "testing.md").read_text()
    uses = re.compile(
        r"mark\.full\(|\bif FULL\b|\bFULL or\b|not FULL\b|environ.get\(\"TEST_FULL\"\)"
    )
    tests = SCRIPTS.parent / "tests"
    found = [path for path in tests.rglob("test_*.py") if uses.search(path.read_text())]
    assert len(found) > 10
    missing = [
        str(path.relative_to(SCRIPTS.parent))
        for path in found
        if f"`{path.relative_to(SCRIPTS.parent)}`" not in page
    ]
    assert missing == []
