"""The benchmark's own tools: rows with targets, medians of pairs, commands with a time limit,
tables, JSON.

A row is what is printed and written: a name, a value, a target such as ">= 0.9", and whether it is
met. A ratio is the median over pairs that are timed in turn within one run, so that other load on
the machine affects both sides.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mpigd.parallel.comm import Comm

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
FEWEST = 5  # values that a median is taken of
ABSENT = "not installed"
MISSING = "not there yet"
# Settings for one program's BLAS are removed. The peers are measured with their defaults, on one
# thread a rank like every program.
FOREIGN = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Size:
    """The amount of a measurement: megabytes of X on each rank, and pairs of each ratio."""

    megabytes: float = 200.0
    repeats: int = 11

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)

    def rows(self, row_bytes: float) -> int:
        return max(16, int(self.bytes / row_bytes))


SHORT, FULL = Size(), Size(800.0, 21)


@dataclass(frozen=True)
class Row:
    """One result.

    `value` is a number, or the reason why there is none. `target` is "" if none is set. `plot`
    feeds the pictures.
    """

    name: str
    value: float | str
    target: str = ""
    plot: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Return None without a target, and if a peer is not installed: there is no comparison."""
        if not self.target or self.value == ABSENT:
            return None
        return not isinstance(self.value, str) and meets(self.value, self.target)

    def public(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "target": self.target or None,
            "met": self.met,
        }


def meets(value: float, target: str) -> bool:
    """Return whether `value` fulfils a target like ">= 0.9" or "<= 1.5"; NaN never does.

    Raises ValueError for a target of another form.
    """
    sign, _, bound = target.partition(" ")
    if sign == ">=":
        return value >= float(bound)
    if sign == "<=":
        return value <= float(bound)
    raise ValueError(f"a target is '>= NUMBER' or '<= NUMBER', not {target!r}")


def median(values: Sequence[float]) -> float:
    """ValueError below FEWEST values."""
    if len(values) < FEWEST:
        raise ValueError(f"a median of {len(values)} values, at least {FEWEST} are needed")
    return float(statistics.median(values))


Times = Mapping[str, Sequence[float]]


def ratio(times: Times, above: str, below: str) -> float:
    """The median over pairs of the quotient of two contestants' seconds."""
    return median([a / b for a, b in zip(times[above], times[below], strict=True)])


def seconds(comm: Comm, work: Callable[[], Any]) -> float:
    """The slowest rank's seconds for `work`, begun together. Collective."""
    comm.allreduce(np.zeros(1))
    begin = time.perf_counter()
    work()
    spent = np.array([time.perf_counter() - begin])
    comm.allreduce(spent, "max")
    return float(spent[0])


def paired(
    comm: Comm, works: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each contestant, timed in turn `repeats` times. Collective.

    A first round, which is not counted, compiles and warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            spent = seconds(comm, work)
            if turn:
                times[name].append(spent)
    return times


def over_ranks(value: float, comm: Comm, op: str = "sum") -> float:
    total = np.array([float(value)])
    comm.allreduce(total, op)
    return float(total[0])


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without other programs' BLAS settings and training options.

    BLAS gets one thread a rank.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in FOREIGN and not key.startswith("MPIGD_")
    }
    if "MPIGD_CACHE_DIR" in os.environ:
        kept["MPIGD_CACHE_DIR"] = os.environ["MPIGD_CACHE_DIR"]
    # As root, and with more ranks than cores, Open MPI wants to be told that it is meant.
    launch = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**kept, **ONE_THREAD, **launch, **(changes or {})}


def launch(
    ranks: int, *words: str | Path, limit: float = 120.0, env: Mapping[str, str] | None = None
) -> str:
    """Run ``python WORDS`` on `ranks` MPI ranks (0: without mpiexec) and return what it printed.

    RuntimeError with the last line of its messages if it fails, or is ended after `limit` seconds.
    """
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks else []
    process = subprocess.Popen(
        [*mpiexec, sys.executable, *map(str, words)],
        cwd=ROOT, env=environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(
            signal.SIGTERM
        )  # mpiexec ends its ranks; a kill would leave that to them
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise RuntimeError(f"ended after {limit:g} s") from None
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {last_words(out + err)}")
    return out


def unusable(module: str) -> str:
    """Return "" if `module` can be imported, ABSENT if it is not installed, or else the error.

    An installed package whose own imports fail is an error of the environment, not a missing peer.
    The import runs in another process, because libraries read their settings when they are
    imported.
    """
    if find_spec(module) is None:
        return ABSENT
    try:
        launch(0, "-c", f"import {module}")
    except RuntimeError as error:
        return f"failed: import {module}: {error}"
    return ""


def last_words(text: str) -> str:
    """Return the line that names the error, or else the last line.

    Tracebacks of ranks interleave, and the launcher prints messages of its own.
    """
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.startswith(("=", "Abort("))
    ]
    named = [
        line
        for line in lines
        if line.startswith("mpigd: ") or re.match(r"[\w.]*(Error|Exception): ", line)
    ]
    return (named or lines or ["no message"])[-1]


def shown(value: float | str) -> str:
    """A value for people: three significant figures, thousands separated."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def verdict(row: Row) -> str:
    return {True: "yes", False: "NO", None: ""}[row.met]


def line(row: Row) -> str:
    return f"{row.name:66} {shown(row.value):>14}  {row.target:10} {verdict(row)}"


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| what | value | target | met |", "|---|---:|---|---|"]
    return "\n".join(
        [
            *lines,
            *(
                f"| {row.name} | {shown(row.value)} | {row.target} | {verdict(row)} |"
                for row in rows
            ),
        ]
    )


def write_json(rows: Sequence[Row], path: Path) -> None:
    """A list of {name, value, target, met}; JSON knows no NaN, so that one becomes null."""
    public = [row.public() for row in rows]
    for entry in public:
        if isinstance(entry["value"], float) and not np.isfinite(entry["value"]):
            entry["value"] = None
    path.write_text(json.dumps(public, indent=1, allow_nan=False) + "\n", encoding="utf-8")
