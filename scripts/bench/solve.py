"""Data passes and seconds until the objective is within 1e-6, and 1e-9, of the optimum.

The optimum is proven.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.commands import RANKS, folder
from scripts.bench.harness import ABSENT, FULL, Row, Size, launch, line, unusable
from scripts.bench.problems import PROBLEMS, Problem
from scripts.bench.solvers import installed

TARGETS = {1e-6: 12, 1e-9: 18}
FASTER = 3.0  # than the best peer
SHORT = ("sklearn", "sklearnex", "snapml", "glum", "torch")
PEERS = {False: SHORT, True: (*SHORT, "pyspark")}
BUDGET = {False: 4.0, True: 50.0}  # times our seconds: the most that a fit of a peer may take
TWO_THREADS = {name: "2" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
Found = Mapping[str, Any]


def drive(size: Size) -> list[Row]:
    full = size.megabytes >= FULL.megabytes
    rows = [row for name in PEERS[full] for row in peer(name)]
    with folder() as where:
        for problem in PROBLEMS:
            if absent := [module for module in problem.needs if find_spec(module) is None]:
                rows += told([Row(f"solve: {problem.name}, {', '.join(absent)}", ABSENT)])
                continue
            data = where / f"{problem.name}.h5"
            try:
                problem.make(data)
            except Exception as error:  # all that it needs is installed: something is wrong
                rows += told([Row(f"solve: {problem.name}", f"failed: {error}", ">= 0")])
                continue
            for l2 in problem.l2:
                name = f"solve: {problem.name}" + (f" l2 {l2:g}" if len(problem.l2) > 1 else "")
                try:
                    rows += told(contest(name, problem, l2, data, full))
                except RuntimeError as error:  # the others go on
                    rows += told(
                        [Row(f"{name}: could not be measured", f"failed: {error}", ">= 0")]
                    )
            data.unlink()
    return rows


def peer(module: str) -> list[Row]:
    """Return no row for a peer that can be used, else one row (target not met).

    That row says whether the peer is absent or broken.
    """
    if not installed(module):
        return [Row(f"solve: peer {module}", ABSENT)]
    wrong = unusable(module)
    return [Row(f"solve: peer {module}", wrong, ">= 0")] if wrong else []


def told(rows: list[Row]) -> list[Row]:
    """Printed as they come: all of them take minutes."""
    print("\n".join(map(line, rows)), flush=True)
    return rows


def contest(name: str, problem: Problem, l2: float, data: Path, full: bool) -> list[Row]:
    ours, judged = data.with_suffix(".ours.npz"), data.with_suffix(".judged.npz")
    words = (data, problem.loss, repr(l2), ours)
    launch(RANKS, "-m", "scripts.bench.solving", *words, "5" if full else "3", limit=300.0)
    launch(
        0,
        "-m",
        "scripts.bench.solvers",
        *words,
        judged,
        repr(BUDGET[full]),
        *PEERS[full],
        env=TWO_THREADS,
        limit=1500.0,
    )
    return judge(name, dict(np.load(ours)), dict(np.load(judged)))


def judge(name: str, ours: Found, judged: Found) -> list[Row]:
    """Rows on reads and on time, of what both programs have written."""
    steps = {goal: int(np.argmax(judged["errors"] <= goal)) for goal in TARGETS}
    missed = {goal for goal, step in steps.items() if judged["errors"][step] > goal}
    rows = [
        Row(
            f"{name}: reads to {goal:g}",
            "not reached" if goal in missed else float(ours["reads"][steps[goal]]),
            f"<= {most}",
        )
        for goal, most in TARGETS.items()
    ]
    if 1e-6 in missed:
        return rows
    mine = float(ours["seconds"][steps[1e-6]])
    rows.append(Row(f"{name}: seconds to 1e-6, statistics included", mine))
    contestants = zip(*(judged[part] for part in ("seconds", "names", "reached")), strict=True)
    there = [(float(spent), str(peer)) for spent, peer, error in contestants if error <= 1e-6]
    if there:
        spent, peer = min(there)
        rows.append(Row(f"{name}: {peer}'s fit / ours, seconds", spent / mine, f">= {FASTER:g}"))
    else:
        rows.append(
            Row(
                f"{name}: no peer was there; the time each had / ours",
                float(judged["limit"]) / mine,
                f">= {FASTER:g}",
            )
        )
    return rows
