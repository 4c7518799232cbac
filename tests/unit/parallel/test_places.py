"""Folders and paths.

Private folders, also through links, and relative paths in a working directory that disappears.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpigd.config.schema import Config
from mpigd.errors import StorageError, Unfinished, UsageError
from mpigd.parallel import kernel_cache, launcher, working_directory
from mpigd.parallel.kernel_cache import make_private
from mpigd.scoring import fitted_model
from mpigd.training.run_guard import claim, newest, save
from tests.launch import environment
from tests.scenarios import generate, write


def silent(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder of one's own, and beside it `open`, where others may write."""
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)  # sticky, as /tmp is
    yield tmp_path / "home"


def test_a_link_to_a_private_folder(home: Path) -> None:
    target = home.parent / "scratch"
    target.mkdir(mode=0o700)
    (home / "link").symlink_to(target)
    (home / "second").symlink_to("link")
    for name in ("link", "second"):
        os.close(claim(str(home / name), silent)[0])
        assert (target / "claim").exists()


def test_a_link_to_a_folder_that_was_cleaned_away(home: Path) -> None:
    """It is made anew, for its owner alone."""
    target = home.parent / "scratch" / "saved"
    (home / "link").symlink_to(target)
    os.close(claim(str(home / "link"), silent)[0])
    assert target.stat().st_mode & 0o777 == 0o700


def test_a_link_that_others_can_change_is_refused(home: Path) -> None:
    """And nothing is made where it leads. The advice is followed: the folder itself."""
    target = home / "saved"
    first, second = home.parent / "open" / "link", home / "second"
    first.symlink_to(target)
    second.symlink_to(first)
    for link in (first, second):
        with pytest.raises(
            StorageError, match=rf"this link lies in {first.parent}, where others may write"
        ) as caught:
            claim(str(link), silent)
        assert not target.exists()
    told = re.search(r"name the folder that it leads to, (.*)", str(caught.value))
    assert told
    os.close(claim(told[1], silent)[0])
    assert (target / "claim").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_others_may_write(linked: bool, home: Path) -> None:
    """The advice is a command that mends it, for a name with blanks too."""
    target = named = home / "my results"
    target.mkdir()
    target.chmod(0o777)
    if linked:
        named = home / "link"
        named.symlink_to(target)
    with pytest.raises(StorageError, match="others may write to this folder") as caught:
        claim(str(named), silent)
    subprocess.run(shlex.split(str(caught.value).rpartition(": ")[2]), check=True, timeout=60)
    os.close(claim(str(named), silent)[0])


def test_links_that_lead_in_a_circle_or_to_a_file(home: Path) -> None:
    (home / "a").symlink_to("b")
    (home / "b").symlink_to("a")
    (home / "file").write_text("")
    (home / "link").symlink_to("file")
    for name in ("a", "file", "link"):
        with pytest.raises(StorageError, match=f"--checkpoint {home / name}: Not a directory"):
            claim(str(home / name), silent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give folders away")
def test_a_folder_of_somebody_else(home: Path) -> None:
    target = home / "theirs"
    target.mkdir(mode=0o700)
    os.chown(target, 12345, -1)
    assert make_private(target) == f"{target} is not yours: use another folder"
    (home / "own").mkdir(mode=0o700)
    (target / "link").symlink_to(home / "own")
    assert f"this link lies in {target}, where others may write" in (
        make_private(target / "link") or ""
    )


def test_compiled_kernels_may_be_kept_through_a_link(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every process would compile for itself, and leave a folder behind."""
    target = home.parent / "scratch"
    target.mkdir(mode=0o700)
    (home / "kernels").symlink_to(target)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setenv(kernel_cache.VARIABLE, str(home / "kernels"))
    assert kernel_cache.prepare().parent == home / "kernels"
    assert list(target.iterdir())
    monkeypatch.chdir(home)
    monkeypatch.setenv(kernel_cache.VARIABLE, "kernels")
    assert kernel_cache.prepare().parent == home / "kernels", (
        "numba may compile in another working directory"
    )


def test_no_folder_for_compiled_kernels(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setenv(kernel_cache.VARIABLE, str(home / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(home / "none"))
    with pytest.raises(
        StorageError,
        match=r"no folder for compiled kernels can be made .*: set MPIGD_CACHE_DIR to one",
    ):
        kernel_cache.prepare()
    monkeypatch.setenv(kernel_cache.VARIABLE, str(home / "new"))  # the advice
    assert kernel_cache.prepare().parent == home / "new"


@pytest.mark.parametrize("value", ["1", "2", "yes"])
def test_a_compiler_that_is_switched_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    import mpigd

    model = mpigd.train((np.eye(3), np.arange(3.0)), l2=1e-3)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    for call in (
        lambda: mpigd.train((np.eye(3), np.arange(3.0))),
        lambda: model.predict(np.eye(3)),
    ):
        with pytest.raises(UsageError, match="have to be compiled: unset NUMBA_DISABLE_JIT"):
            call()
    for harmless in ("0", ""):
        monkeypatch.setenv("NUMBA_DISABLE_JIT", harmless)
        assert model.predict(np.eye(3)).shape == (3,)


def test_relative_paths_stay_where_they_led(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with working_directory.settled():
        assert working_directory.located("a/b.h5") == "a/b.h5"
        os.chdir(tmp_path)
        assert working_directory.located("../b.h5") == f"{folder}/../b.h5"
        assert working_directory.located(Path("/x")) == "/x"
        with working_directory.settled():
            assert working_directory.located("b.h5") == str(folder / "b.h5"), (
                "the outermost one counts"
            )
        os.chdir(folder)
        shutil.rmtree(folder)
        assert working_directory.located("b.h5") == str(folder / "b.h5")
        folder.mkdir()
        assert working_directory.located("b.h5") == str(folder / "b.h5")
    assert working_directory.located("b.h5") == "b.h5"
    with (
        pytest.raises(UsageError, match="the working directory cannot be used"),
        working_directory.settled(),
    ):
        pass
    monkeypatch.chdir(tmp_path)
    with working_directory.settled():
        assert working_directory.located("b.h5") == "b.h5"


def test_two_threads_may_be_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with working_directory.settled():
            inside.set()
            leave.wait(100)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(100)
    with working_directory.settled():
        pass
    os.chdir("/")
    assert working_directory.located("a") == str(tmp_path / "a"), "the other one is still inside"
    leave.set()
    thread.join()
    assert working_directory.located("a") == "a"


def test_a_model_that_cannot_be_written(tmp_path: Path) -> None:
    """The exit code is 75 if this run has saved a new checkpoint, and 74 otherwise.

    In the second case the same command would fail again and again.
    """
    (tmp_path / "saved").mkdir()
    config = Config(checkpoint=str(tmp_path / "saved"))
    before = newest(config)

    def fail(path: str) -> None:
        raise StorageError(f"{path}: cannot be written: No space left on device")

    def attempt(before: str) -> None:
        save(fail, "model.h5", config, before)

    with pytest.raises(StorageError, match=r"No space left on device$"):
        attempt(before)
    (tmp_path / "saved" / "step-000000000010.h5").touch()
    with pytest.raises(
        Unfinished,
        match=r"No space left on device; the run is saved in .*: run the same command again",
    ):
        attempt(before)
    with pytest.raises(StorageError, match=r"No space left on device$"):
        attempt(newest(config))
    assert newest(Config()) == newest(Config(checkpoint=str(tmp_path / "none"))) == ""


def test_a_fork_is_no_process_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launcher.child()
    monkeypatch.setattr(launcher, "STARTED", os.getpid() + 1)
    assert launcher.child()


def limited(
    kilobytes: int, words: str, folder: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """`mpigd WORDS` where no file may become larger."""
    shell = f"ulimit -f {kilobytes}; exec {sys.executable} -m mpigd {words}"
    return subprocess.run(
        ["bash", "-c", shell],
        cwd=folder,
        env=environment(env),
        timeout=200,
        check=False,
        capture_output=True,
        text=True,
    )


def test_compiled_code_that_cannot_be_kept(tmp_path: Path) -> None:
    """A full disk, a quota: the run takes longer, and gives the same model."""
    (path,) = write(generate("logistic", n=60, d=3), tmp_path)
    # All kernels are compiled here, so options with few kernels are used.
    few = "--loss logistic --mode stochastic --optimizer sgd --batch-size 20 --no-standardize"
    fine = limited(10_000, f"train {path} {few} --quiet -o fine.h5", tmp_path)
    assert fine.returncode == 0, fine.stderr
    none = limited(
        16,
        f"train {path} {few} --quiet -o none.h5",
        tmp_path,
        MPIGD_CACHE_DIR=str(tmp_path / "kernels"),
    )
    assert none.returncode == 0, none.stderr
    assert none.stderr == ""
    assert (
        fitted_model.load(str(tmp_path / "none.h5")).digest
        == fitted_model.load(str(tmp_path / "fine.h5")).digest
    )


def test_a_model_larger_than_a_file_may_be(tmp_path: Path) -> None:
    (path,) = write(generate("logistic", n=60, d=3), tmp_path)
    done = limited(2, f"train {path} --loss logistic --quiet", tmp_path)
    assert (done.returncode, done.stderr) == (
        74,
        "mpigd: model.h5: cannot be written: File too large\n",
    )
