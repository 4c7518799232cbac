"""Damaged files for the loaders.

A seed determines the mutations. Workers load the files with little memory and time.

`python -m tests.fuzz SEED COUNT` runs COUNT mutations of every file;
tests/unit/storage/test_fuzz.py runs some in CI, scripts/fuzz.sh many.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

MEMORY = 1 << 30  # bytes that a worker may take beyond what it has after its imports
SECONDS = 5  # for one file
ROWS, COLUMNS = 40, 5
ROOT = Path(__file__).resolve().parents[1]


def write_data(path: Path, layout: str, libver: Any = "earliest") -> None:
    draw = np.random.default_rng(0)
    X = draw.standard_normal((ROWS, COLUMNS))
    with h5py.File(path, "w", libver=libver) as file:
        how: dict[str, Any] = {}
        if layout == "gzip":
            how = dict(chunks=(8, COLUMNS), compression="gzip", shuffle=True, fletcher32=True)
        if layout == "chunks":
            how = dict(chunks=(8, 2), maxshape=(None, COLUMNS))
        if layout == "csr":
            group = file.create_group("X")
            group.attrs.update(
                {
                    "encoding-type": "csr_matrix",
                    "encoding-version": "0.1.0",
                    "shape": [ROWS, COLUMNS],
                }
            )
            group["data"] = X[:, :2].ravel()
            group["indices"] = np.tile(np.array([1, 3], np.int32), ROWS)
            group["indptr"] = np.arange(0, 2 * ROWS + 1, 2)
        else:
            file.create_dataset("X", data=X.astype("f4" if layout == "chunks" else "f8"), **how)
        file["y"] = (X[:, 0] > 0).astype("i1")
        file["sample_weight"] = np.ones(ROWS)
        file["offset"] = np.zeros(ROWS, "f4")
        file["key"] = np.arange(ROWS)
        names = json.dumps(
            {
                "feature_names": [f"c{j}" for j in range(COLUMNS)],
                "target": {"name": "y", "classes": ["a", "b"]},
            }
        )
        if layout == "names":
            file.attrs["feature_names"] = [f"c{j}" for j in range(COLUMNS)]
        else:
            file["encoding"] = np.frombuffer(names.encode(), np.uint8)
        if layout == "texts":
            file["labels"] = np.array(["a", "bc"] * (ROWS // 2), dtype=h5py.string_dtype())
            file["alias"] = h5py.SoftLink("/X")
            file["other"] = h5py.ExternalLink("good.h5", "/X")


def write_imported(path: Path) -> None:
    from mpigd.tables.importer import import_data

    table = path.with_suffix(".csv")
    table.write_text("a,b,y\n" + "".join(f"{k},{'uvw'[k % 3]},{k % 2}\n" for k in range(ROWS)))
    import_data([str(table)], str(path), target="y")


def write_trained(path: Path, kind: str) -> None:
    import mpigd

    draw = np.random.default_rng(1)
    X = draw.standard_normal((60, 3))
    y = (X[:, 0] + 0.1 * draw.standard_normal(60) > 0).astype(float)
    folder = path.parent / f"{path.stem}-checkpoints"
    model = mpigd.train(
        (X, y),
        loss="logistic",
        l2=0.1,
        mode="minibatch",
        checkpoint=str(folder),
        resume="never",
        threads=1,
    )
    if kind == "model":
        model.save(str(path))
    else:
        os.replace(sorted(folder.glob("step-*.h5"))[-1], path)


SOURCES: dict[str, Callable[[Path], None]] = {
    **{
        f"data-{layout}": lambda path, layout=layout: write_data(path, layout)
        for layout in ("plain", "gzip", "chunks", "csr", "names", "texts")
    },
    "data-latest": lambda path: write_data(path, "gzip", "latest"),
    "data-latest-csr": lambda path: write_data(path, "csr", "latest"),
    "data-imported": write_imported,
    "model": lambda path: write_trained(path, "model"),
    "checkpoint": lambda path: write_trained(path, "checkpoint"),
    # What the checksum of all bytes does not protect: somebody made it anew.
    "model-resealed": lambda path: write_trained(path, "model"),
    "checkpoint-resealed": lambda path: write_trained(path, "checkpoint"),
}
LARGE = [2**k + shift for k in (7, 8, 15, 16, 31, 32, 40, 56, 62, 63) for shift in (-1, 0)] + [
    2**64 - 1
]


def mutate(raw: bytes, draw: random.Random) -> bytes:
    """Make a few changes.

    They are changed bits, bytes and words (large ones), blocks copied over others, larger numbers,
    and a file that ends too soon.
    """
    out = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        # Most of a file is numbers. What HDF5 interprets stands at the beginning, and in places
        # where words are not random.
        at = (
            draw.randrange(len(out)) if draw.random() < 0.5 else draw.randrange(min(len(out), 2500))
        )
        kind = draw.randrange(8)
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[at] = draw.randrange(256)
        elif kind == 2:
            width = draw.choice((2, 4, 8))
            out[at : at + width] = (draw.choice(LARGE) % 2 ** (8 * width)).to_bytes(
                width, "little"
            )[: len(out) - at]
        elif kind == 3:
            length, source = draw.choice((4, 8, 16, 64, 256)), draw.randrange(len(out))
            piece = out[source : source + length][: len(out) - at]
            out[at : at + len(piece)] = piece
        elif kind == 4:
            number = int.from_bytes(out[at : at + 4], "little")
            out[at : at + 4] = (
                (number + draw.choice((1, -1, 8, number, 1 << 20))) % 2**32
            ).to_bytes(4, "little")[: len(out) - at]
        elif kind == 5:
            known = [
                value
                for value in (ROWS, COLUMNS, 8, 2 * ROWS)
                if value.to_bytes(8, "little") in out
            ]
            place = out.find(draw.choice(known).to_bytes(8, "little"), at) if known else -1
            if place >= 0:
                out[place : place + 8] = draw.choice(LARGE).to_bytes(8, "little")
        elif kind == 6:
            out[at : at + 16] = bytes(16)[: len(out) - at]
        elif draw.random() < 0.3:
            del out[max(1, at) :]
    return bytes(out)


def reseal(raw: bytes) -> bytes:
    from hashlib import sha256

    from mpigd.storage.checksum import TRAILER_BYTES

    body = raw[:-TRAILER_BYTES]
    return body + b"mpigd sha256 " + sha256(body).hexdigest().encode() + b"\n"


def attempt(kind: str, path: str) -> None:
    """What the commands do with a file, in one process."""
    from mpigd.commands import info
    from mpigd.data.loading import Layout, load
    from mpigd.errors import MpigdError
    from mpigd.parallel.comm import SelfComm
    from mpigd.scoring import fitted_model
    from mpigd.training import checkpoint

    for read in (
        lambda: info.text(path, info.describe(path)),
        lambda: fitted_model.load(path) if kind.startswith("model") else checkpoint.read(path),
        lambda: load([path], Layout(x="alias" if kind == "data-texts" else "X"), SelfComm()),
        lambda: load([path], Layout(max_memory=100, dtype="float32", need_y=False), SelfComm()),
    ):
        try:
            read()
        except MpigdError as error:
            assert "\n" not in str(error), error


@dataclass(frozen=True)
class Finding:
    """What came out of a file besides our own error."""

    kind: str
    seed: int
    what: str


def work(folder: Path, kind: str, seeds: Sequence[int]) -> None:
    """Load the mutations, in a process of its own.

    It prints the seed before each one, and afterwards what was wrong.
    """
    import mpigd.commands.info
    import mpigd.scoring.fitted_model
    import mpigd.scoring.predict  # noqa: F401

    raw = (folder / f"{kind}.h5").read_bytes()
    attempt(
        kind, str(folder / f"{kind}.h5")
    )  # compiles, and shows that nothing is wrong with the file itself
    status = Path("/proc/self/status").read_text().split("VmSize:")[1]
    room = int(status.split()[0]) * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        path = (
            folder / f"{kind}-{seed}.h5"
        )  # a new one each: HDF5 knows files that are still open by their place on the disk
        changed = mutate(raw, random.Random(f"{kind} {seed}"))
        path.write_bytes(reseal(changed) if kind.endswith("resealed") else changed)
        print(json.dumps(["begin", seed]), flush=True)
        signal.setitimer(
            signal.ITIMER_REAL, SECONDS
        )  # which kills: a loop within HDF5 hears of no exception
        try:
            attempt(kind, str(path))
        except BaseException as error:
            import traceback

            while (
                error.__cause__ is not None
            ):  # what together() says of another exception is a page
                error = error.__cause__
            where = traceback.extract_tb(error.__traceback__)
            place = " < ".join(
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(where)
            )
            print(
                json.dumps(["found", seed, f"{type(error).__name__}: {error} at {place}"]),
                flush=True,
            )
        signal.setitimer(signal.ITIMER_REAL, 0)
        path.unlink()


def run(
    folder: Path, kind: str, seeds: Sequence[int], program: str = __file__
) -> Iterator[Finding]:
    """Every file of a kind in worker processes, a new one behind each file that killed one."""
    left = list(seeds)
    while left:
        command = [sys.executable, program, str(folder), kind]
        done = subprocess.run(
            [*command, json.dumps(left)],
            capture_output=True,
            text=True,
            timeout=60 + SECONDS * len(left),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
        yield from (Finding(kind, line[1], line[2]) for line in lines if line[0] == "found")
        if done.returncode == 0:
            return
        begun = [line[1] for line in lines if line[0] == "begin"]
        if not begun:
            raise RuntimeError(f"no worker for {kind}: {done.stderr}")
        how = (
            signal.Signals(-done.returncode).name
            if done.returncode < 0
            else f"exit {done.returncode} {done.stderr[-300:]}"
        )
        yield Finding(
            kind, begun[-1], "takes too long" if how == "SIGALRM" else f"ends the process: {how}"
        )
        left = left[left.index(begun[-1]) + 1 :]


def explore(kind: str, seconds: str) -> None:
    """Run Atheris in this process, which ends with the first finding.

    libFuzzer prints the finding and keeps the file.
    """
    import atheris

    with atheris.instrument_imports(include=["mpigd", "h5py"]):
        import mpigd.commands.info
        import mpigd.scoring.predict  # noqa: F401
    with tempfile.TemporaryDirectory() as place:
        path, corpus = Path(place) / "changed.h5", Path(place) / "corpus"
        corpus.mkdir()
        SOURCES[kind](corpus / f"{kind}.h5")

        def one(raw: bytes) -> None:
            path.unlink(missing_ok=True)
            path.write_bytes(raw)
            attempt(kind, str(path))

        limits = [
            f"-max_total_time={seconds}",
            f"-timeout={SECONDS}",
            "-max_len=20000",
            "-rss_limit_mb=4096",
        ]
        atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
        atheris.Fuzz()


def main(arguments: Sequence[str]) -> None:
    """Run mutations and print what was found.

    A worker's arguments are its folder, kind and seeds. Other callers give the first seed and the
    number of seeds, or a kind for Atheris.
    """
    if len(arguments) == 3 and arguments[0] == "--atheris":
        return explore(*arguments[1:])
    if len(arguments) == 3:
        return work(Path(arguments[0]), arguments[1], json.loads(arguments[2]))
    first, count = (int(word) for word in arguments)
    found = 0
    with tempfile.TemporaryDirectory() as place:
        for name, make in SOURCES.items():
            make(Path(place) / f"{name}.h5")
            for finding in run(Path(place), name, range(first, first + count)):
                found += 1
                print(f"{finding.kind} {finding.seed}: {finding.what}", flush=True)
            print(f"{name}: {count} files", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
