"""A real Slurm of two virtual nodes, and jobs made from the templates as a user would make them."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mpigd.commands.submit import RESOURCES, fill
from mpigd.scoring import fitted_model
from mpigd.training import checkpoint
from tests.launch import OPENMPI_PYTHON, ROOT, environment
from tests.scenarios import generate, write

LIMIT = 180.0  # seconds for anything that is waited for: the machine may be busy
TEMPLATES = ROOT / "scripts"
# A python whose steps are slow if a file says so, so that there is time to disturb the job. They
# are not slow once the job was queued again.
PYTHON = """#!/usr/bin/env bash
echo "${{SLURMD_NODENAME:-}}" >>{place}/nodes
if [ -e {place}/slow ] && [ -z "${{SLURM_RESTART_COUNT:-}}" ]; then
    set -- -m tests.faults.run '{{"always": [[0, "slow"]]}}' "${{@:3}}"
fi
exec {python} "$@"
"""


CUT = "mpi/pmi2: invalid client request"
TRIES = 6


class Cut(Exception):
    """Slurm cut a message of MPICH's at 1024 bytes.

    Slurm reads 1024 bytes; the message may be longer, depending on what lies in its memory
    (docs/hpc.md).
    """


def tried(test: Callable[..., None]) -> Callable[..., None]:
    """Repeat a test if Slurm has cut a message.

    The ranks then never leave MPI_Init, and no test here is about that.
    """

    @functools.wraps(test)
    def again(cluster: Cluster, **others: object) -> None:
        for _ in range(TRIES - 1):
            try:
                return test(cluster=cluster, **others)
            except Cut:
                cluster.clear()
        return test(cluster=cluster, **others)

    return again


def words(data: list[str], folder: Path, name: str) -> list[str]:
    """A run of 300 steps, saved after every second: minutes where they are slow."""
    said = [
        "train",
        *data,
        "-o",
        str(folder / f"{name}.h5"),
        "--loss",
        "logistic",
        "--mode",
        "minibatch",
        "--quiet",
    ]
    return [
        *said,
        "--batch-size",
        "60",
        "--epochs",
        "30",
        "--checkpoint",
        str(folder / name),
        "--checkpoint-every",
        "2",
    ]


def write_job(
    place: Path,
    template: str,
    resources: str,
    words: list[str],
    flavour: str = "mpich",
    slow: bool = False,
) -> Path:
    """Copy a template to the new folder `place`, and change its three lines as a stranger would."""
    python = OPENMPI_PYTHON if flavour == "openmpi" else sys.executable
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").write_text(PYTHON.format(place=place, python=python))
    (place / "bin" / "python").chmod(0o755)
    if slow:
        (place / "slow").touch()
    lines = {
        RESOURCES[template.partition("/")[0]].partition("{")[0]: resources,
        "PATH=": f'PATH={place}/bin:{Path(python).parent}:"$PATH"',
        "model=": f"model={words[words.index('-o') + 1]} train=({shlex.join(words)})",
    }
    (place / "job.sh").write_text(fill((TEMPLATES / template).read_text(), lines))
    return place / "job.sh"


def until(found: Callable[[], object], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not found():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


class Cluster:
    """`conf`: where slurm.conf is; `folder`: for data and jobs."""

    def __init__(self, conf: str, folder: Path) -> None:
        self.env = environment({"SLURM_CONF": conf, "CI": ""})
        self.folder = folder
        self.data = write(generate("logistic", n=600, d=6, weights=True), folder)

    def __call__(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def until(self, found: Callable[[], object], logs: str, what: Callable[[], str]) -> None:
        """Wait for it; raises Cut where a log of the pattern says that of its job."""

        def looked() -> object:
            if any(CUT in log.read_text() for log in self.folder.glob(logs)):
                raise Cut(what())
            return found()

        until(looked, what)

    def clear(self) -> None:
        """End all jobs, and leave nothing of them."""
        self("scancel", "--user=root")
        until(lambda: not self("squeue", "--noheader"), lambda: self("squeue"))
        for path in self.folder.iterdir():
            if str(path) not in self.data and not path.name.startswith("alone"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def words(self, name: str) -> list[str]:
        return words(self.data, self.folder, name)

    def train(self, name: str) -> None:
        """The run in this process's own way, without a batch system."""
        done = subprocess.run(
            [sys.executable, "-m", "mpigd", *self.words(name)],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stderr

    def job(
        self, template: str, name: str, resources: str, flavour: str = "mpich", slow: bool = False
    ) -> Batch:
        """Copy a template, change its three lines, submit."""
        place = self.folder / f"job-{name}"
        path = write_job(
            place, f"slurm/{template}", f"#SBATCH {resources}", self.words(name), flavour, slow
        )
        said = self(
            "sbatch", "--parsable", "--chdir", str(place), f"--output={place}/log", str(path)
        )
        return Batch(self, int(said), place, name)


class Batch:
    """A job in the queue."""

    def __init__(self, cluster: Cluster, number: int, place: Path, name: str) -> None:
        self._cluster, self.number, self._place, self.name = cluster, number, place, name

    @property
    def said(self) -> str:
        path = self._place / "log"
        return path.read_text() if path.exists() else ""

    @property
    def nodes(self) -> set[str]:
        return set((self._place / "nodes").read_text().split())

    def shown(self, field: str) -> str:
        found = re.search(
            rf"\b{field}=(\S*)", self._cluster("scontrol", "show", "job", str(self.number))
        )
        assert found
        return found[1]

    def told(self) -> str:
        """Everything that is known about the job."""
        return (
            f"{self._cluster('scontrol', 'show', 'job', str(self.number))}\n"
            f"{self._cluster('sinfo')}\n{self.said}"
        )

    def saved(self) -> list[Path]:
        folder = self._cluster.folder / self.name
        return checkpoint.found(str(folder)) if os.path.isdir(folder) else []

    def _until(self, found: Callable[[], object]) -> None:
        self._cluster.until(found, f"{self._place.name}/log", self.told)

    def until_saved(self) -> None:
        self._until(self.saved)

    def until_requeued(self) -> None:
        """Wait for it, and have Slurm start the job at once instead of in two minutes."""
        self._until(
            lambda: (
                self.shown("JobState") in ("FAILED", "COMPLETED")
                or self.shown("Reason") == "BeginTime"
            )
        )
        assert (self.shown("JobState"), self.shown("Restarts")) == ("PENDING", "1"), self.told()
        # A job that starts within the second in which it was ended is refused with the message
        # "credential revoked".
        time.sleep(2.0)
        self._cluster("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def end(self) -> str:
        """The state in which the job ends."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self._until(lambda: self.shown("JobState") in over)
        return self.shown("JobState")

    def digest(self) -> str:
        return fitted_model.load(str(self._cluster.folder / f"{self.name}.h5")).digest
