"""Commands whose standard streams are closed, full, or too narrow for their words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

import mpigd
from tests.launch import environment

NAME = "größe Ж"
COMMANDS = {
    "info": "info model.h5",
    "json": "info --json model.h5",
    "summary": "info --summary model.h5",
    "data": "info table.h5",
    "evaluate": "evaluate model.h5 table.h5",
    "plan": "plan table.h5",
    "dry": "train table.h5 --dry-run",
    "doctor": "doctor",
    "submit": (
        "submit --scheduler slurm --nodes 1 --ranks 2 --time 1:00:00 --dry-run -- train table.h5"
    ),
    "help": "--help",
    "version": "--version",
}
WRITES = {
    "train": "train table.h5 -o made.h5 --loss logistic",
    "cv": "cv table.h5 -o made.h5 --loss logistic --l2 1e-3,1e-2",
    "predict": "predict model.h5 table.h5 -o made.h5",
    "import": "import table.csv -o made.h5 --target y",
}
FULL = "mpigd: the standard output cannot be written: No space left on device\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 2))
    y = (X[:, 0] + rng.normal(size=80) > 0).astype(int)
    lines = [f"{NAME},b,y", *(f"{a},{b},{c}" for (a, b), c in zip(X, y, strict=True))]
    (place / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    mpigd.import_data(place / "table.csv", place / "table.h5", target="y")
    mpigd.train(place / "table.h5", loss="logistic").save(str(place / "model.h5"))
    return place


def shell(
    words: str, how: str, folder: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`mpigd WORDS` in a shell, with redirections `how`."""
    said = environment(env)
    said.pop("PYTHONUNBUFFERED", None)  # what is written at the very end is the harder case
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mpigd {words} {how}"],
        cwd=folder, env=said, timeout=120, check=False, capture_output=True, encoding="utf-8",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


CLOSED = [">&-", "2>&-", "<&- >&- 2>&-", "1</dev/null", "2>/dev/full"]


@pytest.mark.parametrize("how", CLOSED)
@pytest.mark.parametrize("command", ["info", "evaluate", "dry", "help"])
def test_what_nobody_can_hear_is_not_said(command: str, how: str, folder: Path) -> None:
    done = shell(COMMANDS[command], how, folder)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.full(
    why="closed together is closed each; 1</dev/null is a stream as full as /dev/full",
    when=lambda how: how in ("2>&-", "1</dev/null"),
)
@pytest.mark.parametrize("how", [*CLOSED, ">/dev/full"])
@pytest.mark.parametrize("command", WRITES)
def test_the_work_is_done_all_the_same(command: str, how: str, folder: Path) -> None:
    """The file is there, and is what it always is: no word went into it."""
    made = folder / "made.h5"
    made.unlink(missing_ok=True)
    done = shell(WRITES[command], how, folder)
    full = command == "cv" and how == ">/dev/full"  # its table is lost, and the model is there
    assert done.returncode == (74 if full else 0), done.stderr
    assert not full or done.stderr.endswith(FULL)
    assert "Traceback" not in done.stdout + done.stderr
    with h5py.File(made) as file:
        assert {"train": "coef", "cv": "coef", "predict": "prediction", "import": "X"}[
            command
        ] in file
    if command in ("train", "cv"):
        assert mpigd.load(made).digest


@pytest.mark.parametrize("how", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_ranks_without_streams(how: str, folder: Path) -> None:
    """Ranks run without standard streams.

    Otherwise descriptor 1 or 2 would be the first file that a rank opens, and messages of MPI would
    be written into it.
    """
    (folder / "made.h5").unlink(missing_ok=True)
    words = f"exec {sys.executable} -m mpigd {WRITES['train']} --threads 1 {how}"
    launcher = str(Path(sys.executable).parent / "mpiexec")
    done = subprocess.run(
        [launcher, "-n", "2", "sh", "-c", words],
        cwd=folder,
        env=environment(),
        timeout=120,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert mpigd.load(folder / "made.h5").digest == mpigd.load(folder / "model.h5").digest


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command: str, folder: Path) -> None:
    done = shell(COMMANDS[command], ">/dev/full", folder)
    assert done.returncode == 74, done.stderr
    assert done.stderr.endswith(FULL)
    assert done.stderr.count("No space left") == 1


@pytest.mark.parametrize("command", ["info", "json", "help", "summary"])
def test_a_reader_that_leaves(command: str, folder: Path) -> None:
    """A reader closes the pipe early.

    The exit code is that of a program which SIGPIPE ends, or 0 if everything was read. No message
    is printed.
    """
    done = shell(COMMANDS[command], "| true; exit ${PIPESTATUS[0]}", folder)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
    ids=lambda env: " ".join(f"{name}={value}" for name, value in env.items()),
)
@pytest.mark.full(
    why="all three print through the same stream: one of them shows every encoding",
    when=lambda command, env: command != "summary" and env != {"PYTHONIOENCODING": "ascii"},
)
@pytest.mark.parametrize("command", ["info", "summary", "data"])
def test_letters_that_the_encoding_lacks(command: str, env: dict[str, str], folder: Path) -> None:
    code = env.get("PYTHONIOENCODING", "ascii").partition(":")[0]
    said = environment(env)
    words = [sys.executable, "-m", "mpigd", *COMMANDS[command].split()]
    done = subprocess.run(
        words, cwd=folder, env=said, timeout=120, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert NAME.encode(code, errors="backslashreplace") in done.stdout


def test_a_name_that_no_encoding_has(folder: Path) -> None:
    """File names are bytes."""
    name = b"bad\xff.h5"
    (folder / os.fsdecode(name)).unlink(missing_ok=True)
    os.link(folder / "model.h5", os.path.join(os.fsencode(folder), name))
    words = [sys.executable, "-m", "mpigd", "info", name]
    done = subprocess.run(
        words, cwd=folder, env=environment(), timeout=120, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"bad")
    words[-1] = b"none\xff.h5"
    done = subprocess.run(
        words, cwd=folder, env=environment(), timeout=120, check=False, capture_output=True
    )
    assert done.returncode == 65, done.stderr
    assert b"no such file" in done.stderr


def test_a_library_in_a_program_without_streams(folder: Path) -> None:
    """The library works in a program without standard streams.

    sys.stderr is None in a daemon, and a program may have closed it or replaced it by an object of
    its own.
    """
    for lost in (
        "sys.stdout = sys.stderr = None",
        "sys.stderr.close()",
        "os.close(1); os.close(2)",
    ):
        train = "mpigd.train('table.h5', loss='logistic', quiet=False)"
        script = f"import os, sys, mpigd; {lost}; {train}.save('made.h5'); os._exit(7)"
        (folder / "made.h5").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=environment(), timeout=120, check=False
        )
        assert done.returncode == 7
        assert mpigd.load(folder / "made.h5").digest == mpigd.load(folder / "model.h5").digest
