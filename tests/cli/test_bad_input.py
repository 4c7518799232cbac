"""Wrong input: the right exit code and one line that names the place, on any number of ranks."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.__main__ import main
from tests.cli.driver import Done, run_commands
from tests.launch import mpiexec, python
from tests.scenarios import fit, write
from tests.truths import Table, generate

# name: (arguments, exit code, what the line says). Files are made by `folder`.
TRAIN_DATA: dict[str, tuple[str, int, str]] = {
    "missing": ("none.h5", 65, "none.h5: no such file"),
    "one of two missing": ("good.h5 none.h5", 65, "none.h5: no such file"),
    "glob": ("nothing*.h5", 65, "nothing*.h5: no file matches"),
    "not HDF5": (
        "table.csv", 65, "table.csv: not an HDF5 file (raw tables become one with `mpigd import`)"
    ),
    "a folder": ("sub", 65, "sub: is a folder; name the files in it"),
    "half a file": ("half.h5", 65, "half.h5: "),
    "a model": ("model.h5", 65, "model.h5: no dataset 'X'"),
    "flat X": ("flat.h5", 65, "flat.h5: 'X' has shape (40,), expected (rows, columns)"),
    "short y": ("short.h5", 65, "short.h5: 'y' has shape (39,), expected (40,)"),
    "nan": ("nan.h5", 65, "nan.h5: 'X' row 37 column 2 is nan: not a finite number"),
    "nan in the second file": (
        "good.h5 nan.h5", 65, "nan.h5: 'X' row 37 column 2 is nan: not a finite number"
    ),
    "infinite y": ("inf.h5", 65, "inf.h5: 'y' row 3 is inf: not a finite number"),
    "text labels": ("text.h5", 65, "text.h5: the target 'y' is text, with "),
    "unknown x": (
        "good.h5 --x features", 65, "good.h5: no dataset 'features'; it has X, y (name it with --x)"
    ),
    "unknown y": ("good.h5 --y label", 65, "good.h5: no target 'label' (name it with --y)"),
    "empty": ("empty.h5", 65, "empty.h5: 'X' has no rows"),
    "columns differ": ("good.h5 wide.h5", 65, "wide.h5: columns 5 do not match 4 of good.h5"),
    "layouts differ": (
        "good.h5 sparse.h5", 65, "sparse.h5: layout csr do not match dense of good.h5"
    ),
    "one class": (
        "one.h5 --loss logistic", 65, "one.h5: the logistic loss needs exactly two different values"
    ),
    "three classes": (
        "three.h5 --loss hinge", 65, "three.h5: the hinge loss needs exactly two different values"
    ),
    "negative count": (
        "minus.h5 --loss poisson", 65,
        "minus.h5 row 31: y is -1: the poisson loss needs numbers of at least 0"
    ),
    "zero for gamma": (
        "good.h5 --loss gamma", 65, ": y is 0: the gamma loss needs numbers above 0"
    ),
    "validation missing": ("good.h5 --validation none.h5", 65, "none.h5: no such file"),
    "validation columns": (
        "good.h5 --validation wide.h5", 65, "wide.h5: 5 columns, but the model was trained on 4"
    ),
    "start missing": ("good.h5 --start none.h5", 65, "none.h5: no such file"),
    "start is data": ("good.h5 --start good.h5", 65, "good.h5: not a model of mpigd"),
    "start does not fit": ("wide.h5 --start model.h5", 2, "--start model.h5: "),
    "resume missing": ("good.h5 --resume none.h5", 65, "none.h5: no such file"),
    "resume a model": ("good.h5 --resume model.h5", 65, "model.h5: not a checkpoint of mpigd"),
    "class weight of none": (
        "good.h5 --loss logistic --class-weight 7=2", 2, "no class '7'; the classes are 0, 1"
    ),
    "class weight of numbers": (
        "good.h5 --class-weight balanced", 2, "--class-weight goes with losses that have classes"
    ),
    "CSR without indices": (
        "torso.h5", 65, "torso.h5: group 'X': no dataset 'indices'; it has data"
    ),
    "output is a pipe": (
        "good.h5 -o pipe", 74, "pipe: cannot be written: it is not a regular file"
    ),
    "dry run": ("none.h5 --dry-run", 65, "none.h5: no such file"),
}  # fmt: skip
OPTIONS: dict[str, tuple[str, int, str]] = {
    "no command": ("", 2, "COMMAND"),
    "unknown command": ("trian good.h5", 2, "trian"),
    "no data": ("train", 2, "no data given: mpigd train DATA.h5"),
    "unknown option": ("train good.h5 --optimzer adam", 2, "--optimzer: did you mean --optimizer?"),
    "unknown option of import": (
        "import table.csv -o x.h5 --taget b", 2, "--taget: did you mean --target?"
    ),
    "unknown choice": ("train good.h5 --loss logistc", 2, "--loss logistc: did you mean logistic?"),
    "no number": ("train good.h5 --epochs many", 2, "epochs = 'many': expected a whole number"),
    "half a number": ("train good.h5 --epochs 1.5", 2, "epochs = '1.5': expected a whole number"),
    "below the range": ("train good.h5 --l2 -1", 2, "--l2 -1.0: must be at least 0"),
    "nan as a number": ("train good.h5 --l2 nan", 2, "--l2 nan: must be at least 0"),
    "batch of full": (
        "train good.h5 --batch-size 10", 2, "--batch-size goes with --mode minibatch or stochastic"
    ),
    "batch of none": (
        "train good.h5 --mode minibatch --batch-size 0", 2, "--batch-size 0: must be at least 1"
    ),
    "patience alone": (
        "train good.h5 --patience 3", 2,
        "--patience counts validations: name the data with --validation"
    ),
    "no such folder": (
        "train good.h5 -o deep/down/model.h5", 2, "-o deep/down/model.h5: the folder does not exist"
    ),
    "bad TOML": ("train good.h5 --config bad.toml", 2, "bad.toml: not TOML: "),
    "missing TOML": ("train good.h5 --config none.toml", 2, "none.toml: No such file"),
    "unknown key": (
        "train good.h5 --config key.toml", 2,
        "unknown option 'batchsize': did you mean 'batch_size'?"
    ),
    "wrong kind in TOML": (
        "train good.h5 --config kind.toml", 2, "epochs = 'many': expected a whole number"
    ),
}  # fmt: skip
USE: dict[str, tuple[str, int, str]] = {
    "evaluate without model": ("evaluate none.h5 good.h5", 65, "none.h5: no such file"),
    "evaluate with data": ("evaluate good.h5 good.h5", 65, "good.h5: not a model of mpigd"),
    "evaluate with a damaged model": ("evaluate damaged.h5 good.h5", 65, "damaged.h5: damaged"),
    "evaluate missing data": ("evaluate model.h5 none.h5", 65, "none.h5: no such file"),
    "evaluate other columns": (
        "evaluate model.h5 wide.h5", 65, "wide.h5: 5 columns, but the model was trained on 4"
    ),
    "evaluate unseen label": (
        "evaluate model.h5 three.h5", 65, "label 2 is none of the model's classes (0, 1)"
    ),
    "evaluate without target": (
        "evaluate model.h5 bare.h5", 65, "bare.h5: no target 'y' (name it with --y)"
    ),
    "predict other columns": (
        "predict model.h5 wide.h5", 65, "wide.h5: 5 columns, but the model was trained on 4"
    ),
    "predict nan": (
        "predict model.h5 nan.h5", 65, "nan.h5: 'X' row 37 column 2 is nan: not a finite number"
    ),
    "info of nothing": ("info none.h5", 65, "none.h5: no such file"),
    "info of text": ("info table.csv", 65, "table.csv: not an HDF5 file"),
}  # fmt: skip
CASES = (
    {name: (f"train {words} --quiet", *rest) for name, (words, *rest) in TRAIN_DATA.items()}
    | OPTIONS
    | USE
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of wrong file, 40 rows each."""
    where = tmp_path_factory.mktemp("bad")
    rng, table = np.random.default_rng(0), generate("logistic", n=40)
    X, y = table.X, table.y

    def put(name: str, **arrays: Any) -> None:
        with h5py.File(where / f"{name}.h5", "w") as file:
            for key, value in arrays.items():
                file[key] = value

    nan, minus, infinite = X.copy(), y.copy(), y.copy()
    nan[37, 2], minus[31], infinite[3] = np.nan, -1, np.inf
    put("good", X=X, y=y)
    put("bare", X=X)
    put("flat", X=y, y=y)
    put("short", X=X, y=y[:39])
    put("nan", X=nan, y=y)
    put("inf", X=X, y=infinite)
    put("minus", X=X, y=minus)
    put("one", X=X, y=np.ones(40))
    put("three", X=X, y=np.arange(40.0) % 3)
    put("wide", X=rng.normal(size=(40, 5)), y=y)
    put("empty", X=X[:0], y=y[:0])
    put("text", X=X, y=np.array([b"yes", b"no"] * 20))
    with h5py.File(where / "torso.h5", "w") as file:
        file.create_group("X").attrs.update({"encoding-type": "csr_matrix", "shape": [40, 3]})
        file["X/data"], file["y"] = y, y
    os.mkfifo(where / "pipe")
    (where / "sub").mkdir()
    (where / "sub" / "sparse.h5").write_bytes(
        Path(write(table, where / "sub", as_csr=True)[0]).read_bytes()
    )
    (where / "sub" / "sparse.h5").rename(where / "sparse.h5")
    (where / "half.h5").write_bytes((where / "good.h5").read_bytes()[:1500])
    (where / "table.csv").write_text("a,b\n1,2\n")
    (where / "bad.toml").write_text("loss = logistic\n")
    (where / "key.toml").write_text("batchsize = 3\n")
    (where / "kind.toml").write_text('epochs = "many"\n')
    fit(Table(X, y), loss="logistic").save(str(where / "model.h5"))
    (where / "damaged.h5").write_bytes((where / "model.h5").read_bytes())
    with h5py.File(where / "damaged.h5", "r+") as file:
        file["coef"][0] = 99.0
    return where


@pytest.fixture(scope="module", params=[1, 2])
def seen(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Done]]:
    """Per rank what each case did, in one process: TestJobs has whole jobs."""
    ranks = request.param
    commands = {
        name: words
        for name, (words, _, _) in CASES.items()
        if ranks == 1 or not words.startswith("info")
    }
    return run_commands(ranks, commands, folder)


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str, seen: list[dict[str, Done]]) -> None:
    _, code, words = CASES[name]
    if name not in seen[0]:
        pytest.skip("mpigd info is a command for one process")
    check_line(seen[0][name].err, words)
    for rank, done in enumerate(record[name] for record in seen):
        assert done.code == code
        assert done.out == ""
        assert rank == 0 or done.err == "", "what all ranks know, rank 0 says"


def check_line(err: str, words: str) -> None:
    assert words in err
    assert re.fullmatch(r"mpigd: [^\n]+\n", err), f"one line: {err!r}"
    assert "Traceback" not in err


class TestJobs:
    """Whole jobs, from the launcher's start to its exit code."""

    @pytest.mark.parametrize("ranks", [0, 2])
    @pytest.mark.parametrize("name", ["missing", "nan", "unknown option", "evaluate unseen label"])
    def test_exit_code(self, name: str, ranks: int, folder: Path) -> None:
        words, code, text = CASES[name]
        done = job(ranks, *words.split(), folder=folder)
        assert done.returncode == code
        assert not [line for line in done.stdout.splitlines() if "mpigd" in line]
        check_line(
            "".join(line for line in done.stderr.splitlines(True) if line.startswith("mpigd")), text
        )
        assert "Traceback" not in done.stderr
        if not ranks:
            check_line(done.stderr, text)

    @pytest.mark.parametrize("ranks", [0, 2])
    def test_the_environment_is_checked(self, ranks: int, folder: Path) -> None:
        done = job(ranks, "train", "good.h5", folder=folder, env={"MPIGD_EPOCS": "3"})
        assert done.returncode == 2
        check_line(done.stderr, "did you mean 'epochs'?")

    @pytest.mark.parametrize("ranks", [0, 2])
    @pytest.mark.parametrize(
        "words",
        [
            "train good.h5 --quiet -o sub",
            "predict model.h5 good.h5 -o no/where.h5",
            "train good.h5 --log no/where.jsonl --quiet",
        ],
    )
    def test_what_cannot_be_written(self, words: str, ranks: int, folder: Path) -> None:
        """Rank 0 alone finds out; the job ends all the same."""
        done = job(ranks, *words.split(), folder=folder)
        assert done.returncode == 74, done.stderr
        ours = [line for line in done.stderr.splitlines() if line.startswith("mpigd: ")]
        assert len(ours) == 1
        assert "train" not in words or len(done.stderr.splitlines()) == 1, (
            "the launcher has nothing to add"
        )
        assert words.replace(" --quiet", "").split()[-1] in ours[0]
        assert "Traceback" not in done.stderr

    def test_an_output_that_cannot_be_is_found_before_the_work(self, folder: Path) -> None:
        check_line(
            job(0, "train", "good.h5", "-o", "sub", folder=folder).stderr,
            "sub: cannot be written: it is a folder",
        )

    def test_a_full_disk_below_the_log(self, folder: Path) -> None:
        done = job(0, "train", "good.h5", "--log", "/dev/full", "--quiet", folder=folder)
        assert done.returncode == 74
        check_line(done.stderr, "/dev/full: cannot be written: No space left on device")


def job(ranks: int, *words: str, folder: Path, env: Mapping[str, str] | None = None) -> Any:
    """`python -m mpigd WORDS` without a launcher for 0 ranks, else under it."""
    if ranks:
        return mpiexec(ranks, "-m", "mpigd", *words, cwd=folder, env=env)
    return python("-m", "mpigd", *words, cwd=folder, env=env)


@pytest.mark.parametrize("words", ["info model.h5", "evaluate model.h5 good.h5"])
def test_a_reader_that_leaves_sees_no_traceback(words: str, folder: Path) -> None:
    code = (
        "import os, subprocess, sys; r, w = os.pipe(); os.close(r); "
        f"sys.exit(subprocess.call({command(words)!r}, stdout=w))"
    )
    done = python("-c", code, cwd=folder)
    assert (done.returncode, done.stderr) == (141, "")


def command(words: str) -> list[str]:
    return [sys.executable, "-m", "mpigd", *words.split()]


def test_what_nobody_foresaw_is_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("never seen")

    monkeypatch.setattr("mpigd.commands.info.describe", fails)
    assert main(["info", "any.h5"]) == 70
    assert "ZeroDivisionError: never seen" in capsys.readouterr().err
