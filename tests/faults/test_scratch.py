"""The working directory of a job is removed or cleaned during the run, or before it begins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpigd.scoring import fitted_model
from mpigd.training import checkpoint
from tests.faults.jobs import LIMIT, Place
from tests.launch import environment, mpiexec, python

ELSEWHERE = (
    "the working directory cannot be used (No such file or directory): cd to a folder that is there"
)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("at", ["load", "7", "model"])
def test_nothing_of_the_run_lies_in_it(at: str, scratch: Path, place: Place) -> None:
    ended = place.run(f"gone {at}", {at: [(1, "gone")]}, cwd=scratch)
    assert ended.code == 0, ended.said
    assert "Traceback" not in ended.said
    assert not scratch.exists()
    assert place.digest(f"gone {at}") == place.digest("alone")


def test_the_model_was_to_lie_in_it(scratch: Path, place: Place) -> None:
    """The run is saved and asks to be started again; the same command then writes the model.

    A run that makes no progress is not asked to be repeated for ever.
    """
    options = ("-o", "model.h5", "--checkpoint-every", "40")
    ended = place.run("model in it", {"7": [(0, "gone")]}, *options, cwd=scratch)
    assert ended.code == 75, ended.said
    told = re.search(
        r"model\.h5: cannot be written: No such file or directory; "
        r"the run is saved in (.*): run the same command",
        ended.said,
    )
    assert told, ended.said
    assert checkpoint.found(told[1])
    assert ended.left == []
    scratch.mkdir()
    (scratch / "model.h5").mkdir()  # in the way, but no fault of the run's
    assert place.run("model in it", None, *options, cwd=scratch).code == 74
    (scratch / "model.h5").rmdir()
    again = place.run("model in it", None, *options, cwd=scratch)
    assert again.code == 0, again.said
    assert fitted_model.load(str(scratch / "model.h5")).digest == place.digest("alone")


def test_all_that_is_written_lies_in_it_and_it_is_there_again(scratch: Path, place: Place) -> None:
    """A new folder of the same name is used.

    It is another folder to the system, but to people it is the one that they named.
    """
    options = ("-o", "model.h5", "--checkpoint", "saved", "--log", "log.jsonl")
    ended = place.run("renewed", {"7": [(2, "renewed")]}, *options, cwd=scratch)
    assert ended.code == 0, ended.said
    assert fitted_model.load(str(scratch / "model.h5")).digest == place.digest("alone")
    assert checkpoint.read(checkpoint.found(str(scratch / "saved"))[0]).step == 40
    assert (scratch / "saved").stat().st_mode & 0o777 == 0o700


def test_data_named_from_it_are_read_again(scratch: Path, place: Place) -> None:
    """Streamed rows, of which the files are opened at every pass."""
    data = [os.path.relpath(path, scratch) for path in place.data]
    words = [
        word if word not in place.data else data[place.data.index(word)]
        for word in place.train("streams")
    ]
    streamed = [*words, "--max-memory", "4KB", "--shuffle", "blocks"]
    runs = [["-m", "mpigd"], ["-m", "tests.faults.run", '{"7": [[0, "renewed"]]}']]
    digests = set()
    for run in runs:
        done = mpiexec(2, *run, *streamed[2:], "--resume", "never", cwd=scratch, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        digests.add(place.digest("streams"))
    assert len(digests) == 1


def test_it_is_gone_before_the_start(scratch: Path, place: Place) -> None:
    """One sentence for the command, and an error of the family for the function."""
    script = "import os, sys; os.rmdir(os.getcwd()); " + "{}"
    command = script.format(
        f"from mpigd.__main__ import main; sys.exit(main({place.train('none')[2:]!r}))"
    )
    done = python("-c", command, cwd=scratch, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (2, f"mpigd: {ELSEWHERE}\n")
    scratch.mkdir()
    function = script.format(f"import mpigd; mpigd.train({place.data!r})")
    done = python("-c", function, cwd=scratch, timeout=LIMIT)
    assert done.stderr.splitlines()[-1] == f"mpigd.errors.UsageError: {ELSEWHERE}"
    scratch.mkdir()  # the advice
    program = [sys.executable, *place.train("none", None, "--epochs", "1")]
    shell = 'cd scratch && rmdir ../scratch; cd .. && exec "$@"'
    run = subprocess.run(
        ["sh", "-c", shell, "sh", *program],
        cwd=scratch.parent,
        env=environment(),
        timeout=LIMIT,
        check=False,
    )
    assert run.returncode == 0
