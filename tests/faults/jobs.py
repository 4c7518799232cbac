"""Jobs to be disturbed: a small run on three ranks, its data, and the undisturbed result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpigd.scoring import fitted_model
from tests.launch import CEILING, Job, mpiexec, python, start
from tests.scenarios import generate, write

FULL = bool(os.environ.get("TEST_FULL"))
SEED = int(os.environ.get("TEST_SEED", "3"))  # scripts/faults.sh takes another each time
RANKS = 3
LIMIT = CEILING  # seconds for a job that should end by itself
HANG = 6  # seconds, as --hang-timeout: two jobs share the cores while a rank loads its kernels
SOON = {
    "OMPI_MCA_mpi_ft_detector_period": "1",
    "OMPI_MCA_mpi_ft_detector_timeout": "4",
}  # standing still
NOT_STARTED = "The PMIx server's listener thread failed to start"
FORTY_STEPS = ("--mode", "minibatch", "--batch-size", "60", "--epochs", "4")
Schedule = Mapping[str, list[tuple[int, str]]]


@dataclass(frozen=True)
class Ended:
    """An ended job: exit code, output, time of its end, and the processes it left behind."""

    code: int
    said: str
    until: float
    left: list[int]


class Place:
    """A folder with data.

    `train` returns the command line of a run in it, and `run` starts it under mpiexec.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write(generate("logistic", n=600, d=6, weights=True), folder)

    def train(
        self,
        name: str,
        schedule: Schedule | None = None,
        *options: str,
        steps: Sequence[str] = FORTY_STEPS,
    ) -> list[str]:
        """Saved in the folder NAME, the model is NAME.h5."""
        words = ["-m", "tests.faults.run", json.dumps(schedule)] if schedule else ["-m", "mpigd"]
        words += [
            "train",
            *self.data,
            "-o",
            str(self.folder / f"{name}.h5"),
            "--loss",
            "logistic",
            *steps,
        ]
        words += ["--quiet", "--threads", "1", "--hang-timeout", str(HANG)]
        return [
            *words,
            "--checkpoint",
            str(self.folder / name),
            "--checkpoint-every",
            "2",
            *options,
        ]

    def start(
        self,
        name: str,
        schedule: Schedule | None = None,
        *options: str,
        flavour: str = "mpich",
        cwd: Path | None = None,
    ) -> Job:
        return start(RANKS, *self.train(name, schedule, *options), flavour=flavour, cwd=cwd)

    def run(
        self,
        name: str,
        schedule: Schedule | None = None,
        *options: str,
        flavour: str = "mpich",
        cwd: Path | None = None,
    ) -> Ended:
        with self.start(name, schedule, *options, flavour=flavour, cwd=cwd) as job:
            done = job.finish(LIMIT)
            return Ended(done.returncode, done.stdout + done.stderr, time.time(), job.survivors())

    def elastic(
        self, name: str, schedule: Schedule, *options: str,
        steps: Sequence[str] = FORTY_STEPS, env: Mapping[str, str] | None = None,
    ) -> Ended:  # fmt: skip
        """Run four ranks that may die, with Open MPI.

        Its launcher gives up before any rank has started in 3 of 1,000 jobs; the job is then
        started again.
        """
        words = self.train(
            name, schedule, "--hang-timeout", "60", "--on-failure", "shrink", *options, steps=steps
        )
        for _ in range(3):
            with start(4, *words, flavour="openmpi", env=env, options=("--with-ft", "ulfm")) as job:
                done = job.finish(LIMIT)
                ended = Ended(
                    done.returncode, done.stdout + done.stderr, time.time(), job.survivors()
                )
            if NOT_STARTED not in ended.said:
                break
        return ended

    def postmortem(self, name: str) -> str:
        done = python("-m", "mpigd", "postmortem", self.folder / name, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def digest(self, name: str) -> str:
        return fitted_model.load(str(self.folder / f"{name}.h5")).digest

    def warm(self) -> None:
        """Compile what the runs need, for both libraries.

        One process compiles alone, because waiting ranks would take cores from it.
        """
        patient = ("--hang-timeout", "200")
        for done in (
            python(*self.train("alone", None), timeout=240),
            mpiexec(RANKS, *self.train("warm", None, *patient), timeout=240),
        ):
            assert done.returncode == 0, done.stderr
