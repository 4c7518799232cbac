"""Trains the same model in many ways and compares the digests.

    python scripts/same_bits.py DATA.h5 [--full]

Each row of the table is a run: ranks, threads, partition, files, MPI library, interrupted or not.
All runs of one configuration (loss, mode, optimiser, dtype, layout) must end with the same digest
of the model and of the optimiser's state.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mpigd.scoring import fitted_model

LIMIT = 300  # seconds a run may take


@dataclass(frozen=True)
class Way:
    """One way to run: ranks 0 means without mpiexec."""

    ranks: int
    threads: int = 1
    partition: str = "range"
    files: int = 1
    mpi: str = "mpich"
    stops: tuple[
        int, ...
    ] = ()  # epochs after which the run is ended and continued by the next way in `relay`

    def __str__(self) -> str:
        library = self.mpi if self.ranks else "no MPI"
        stopped = f", stopped after epoch {', '.join(map(str, self.stops))}" if self.stops else ""
        return (
            f"{library:8} ranks {self.ranks or 1}  threads {self.threads}  "
            f"{self.partition:6} {self.files} file(s){stopped}"
        )


SHORT = (
    Way(0), Way(3, threads=2, partition="hash"), Way(5, partition="file", files=5),
    Way(2, files=2, mpi="openmpi"), Way(4, partition="hash", stops=(1,)),
)  # fmt: skip
CONFIGURATIONS = (
    ("--loss", "logistic", "--l2", "1e-4", "--mode", "full", "--epochs", "20"),
    ("--loss", "logistic", "--l2", "1e-4", "--mode", "minibatch", "--epochs", "2", "--lr", "0.01"),
    (
        "--loss",
        "logistic",
        "--mode",
        "stochastic",
        "--batch-size",
        "64",
        "--epochs",
        "2",
        "--optimizer",
        "momentum",
    ),
)


def full_ways() -> Iterator[Way]:
    for mpi, ranks, threads in itertools.product(
        ("mpich", "openmpi"), (1, 2, 3, 4, 5, 7), (1, 2, 3)
    ):
        partition = ("range", "hash", "file")[(ranks + threads) % 3]
        yield Way(
            ranks,
            threads,
            partition,
            (1, 2, 5)[(ranks * threads) % 3],
            mpi,
            (1,) if threads == 2 else (),
        )
    yield Way(0)


def full_configurations() -> Iterator[tuple[str, ...]]:
    yield from CONFIGURATIONS
    for optimizer in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"):
        yield (*CONFIGURATIONS[1], "--optimizer", optimizer)
    for loss in ("squared", "hinge", "squared_hinge", "huber", "quantile", "poisson", "softmax"):
        yield ("--loss", loss, "--l2", "1e-4", "--mode", "full", "--epochs", "10")
    for optimizer in ("newton-cholesky", "lbfgs"):  # newton is what full mode takes by itself
        yield (
            "--loss",
            "logistic",
            "--l2",
            "1e-4",
            "--mode",
            "full",
            "--epochs",
            "10",
            "--tol",
            "0",
            "--optimizer",
            optimizer,
        )
    yield (
        "--loss",
        "logistic",
        "--mode",
        "full",
        "--epochs",
        "10",
        "--dtype",
        "float64",
        "--class-weight",
        "balanced",
    )


def split(data: Path, folder: Path, files: int) -> list[str]:
    """The rows of `data` in so many files of unequal length."""
    if files == 1:
        return [str(data)]
    paths = [folder / f"{data.stem}-{files}-{part}.h5" for part in range(files)]
    with h5py.File(data) as whole:
        n = whole["y"].shape[0]
        cuts = [n * part * (part + 1) // (files * (files + 1)) for part in range(files + 1)]
        for path, start, stop in zip(paths, cuts, cuts[1:], strict=False):
            if not path.exists():
                copy_rows(whole, path, start, stop)
    return [str(path) for path in paths]


def copy_rows(whole: h5py.File, path: Path, start: int, stop: int) -> None:
    with h5py.File(path, "w") as part:
        for name, item in whole.items():
            if name == "encoding":
                whole.copy(name, part)
            elif isinstance(item, h5py.Group):
                group = part.create_group(name)
                indptr = item["indptr"][start : stop + 1]
                group.attrs.update(item.attrs)
                group.attrs["shape"] = np.array([stop - start, item.attrs["shape"][1]])
                group["indptr"] = indptr - indptr[0]
                for entry in ("indices", "data"):
                    group[entry] = item[entry][indptr[0] : indptr[-1]]
            else:
                part[name] = item[start:stop]


def command(way: Way, arguments: list[str]) -> list[str]:
    python = os.environ.get("TEST_OPENMPI_PYTHON", "") if way.mpi == "openmpi" else sys.executable
    run = [python, "-m", "mpigd", *arguments]
    return (
        run
        if not way.ranks
        else [str(Path(python).with_name("mpiexec")), "-n", str(way.ranks), *run]
    )


def digests(way: Way, data: Path, options: tuple[str, ...], folder: Path) -> tuple[str, str]:
    """(digest, state_digest) of one run, perhaps stopped and continued on the way."""
    model, checkpoint = folder / "model.h5", folder / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    train = [
        *split(data, folder, way.files),
        "-o",
        str(model),
        *options,
        "--quiet",
        "--checkpoint",
        str(checkpoint),
    ]
    for epoch in way.stops:
        # The first part of the run uses other ranks and another partition. A learning rate that is
        # fitted to the number of epochs would differ.
        first = Way(way.ranks % 3 + 1, mpi=way.mpi)
        at = options.index("--epochs") + 1
        shorter = [*options[:at], str(epoch), *options[at + 1 :]]
        short = [
            str(data),
            "-o",
            str(model),
            *shorter,
            "--quiet",
            "--checkpoint",
            str(checkpoint),
            "--lr-schedule",
            "constant",
        ]
        subprocess.run(command(first, ["train", *short]), check=True, timeout=LIMIT)
    threads = [
        "--threads",
        str(way.threads),
        "--partition",
        way.partition,
        "--lr-schedule",
        "constant",
    ]
    subprocess.run(command(way, ["train", *train, *threads]), check=True, timeout=LIMIT)
    trained = fitted_model.load(str(model))
    return trained.digest, trained.summary["state_digest"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--full",
        action="store_true",
        help="every optimiser and loss, more ranks, threads and files",
    )
    arguments = parser.parse_args()
    ways = list(full_ways()) if arguments.full else list(SHORT)
    if "TEST_OPENMPI_PYTHON" not in os.environ:
        print("TEST_OPENMPI_PYTHON is not set: leaving out Open MPI")
        ways = [way for way in ways if way.mpi != "openmpi"]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for options in full_configurations() if arguments.full else CONFIGURATIONS:
            print("\n" + " ".join(options))
            seen = set()
            for way in ways:
                digest, state = digests(way, arguments.data, options, Path(folder))
                seen.add((digest, state))
                print(f"  {way!s:70} {digest[:16]} {state[:16]}", flush=True)
            print("  the same bits" if len(seen) == 1 else f"  {len(seen)} DIFFERENT RESULTS")
            failures += len(seen) > 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
