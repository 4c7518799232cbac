"""The benchmark: python scripts/bench/run.py [--only NAME ...] [--full] [--update-docs]

Prints a table and writes results/bench.json (a list of {name, value, target, met}),
results/profile.json (the measurements of this machine that `mpigd plan` reads) and pictures. Every
subject is a file of this folder; docs/performance.md explains the rows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import harness
from scripts.bench.harness import FULL, RESULTS, ROOT, SHORT, Row, Size

RANKS = 2
# Subjects that run inside the ranks of one MPI job (`measure`), and subjects that start whole
# commands (`drive`).
INSIDE = (
    "roof", "allreduce", "kernels", "softmax", "sparse", "minibatch", "steps", "peers", "scaling",
    "exact_cost", "loading", "cv",
)  # fmt: skip
OUTSIDE = ("solve", "streaming", "memory", "startup", "plan")
SUBJECTS = (*INSIDE, *OUTSIDE)
LIMIT = 300.0  # seconds a subject may take; ten times that with --full
PAGE = ROOT / "docs" / "performance.md"
HEAD = "#### "  # of a subject's results on it
MARKS = ("<!-- results: run.py --update-docs -->\n", "<!-- end of results -->\n")


def inside(name: str, size: Size, limit: float, ranks: int = RANKS) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        words = ("-m", "scripts.bench.worker", name, out, str(size.megabytes), str(size.repeats))
        harness.launch(ranks, *words, limit=limit)
        return [Row(**row) for row in json.loads(out.read_text(encoding="utf-8"))]


def subject(name: str, size: Size, limit: float) -> list[Row]:
    """The rows of one subject; one that fails is a row that says so, and the others go on."""
    try:
        if name in INSIDE:
            return inside(name, size, limit)
        rows: list[Row] = importlib.import_module(f"scripts.bench.{name}").drive(size)
        return rows
    except Exception as error:
        text = str(error).splitlines() or [type(error).__name__]
        return [Row(f"{name}: could not be measured", f"failed: {text[-1]}", ">= 0")]


def machine() -> str:
    found = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    busy = f"; others were using it (load {load:.1f} before the start)" if load > 0.5 else ""
    return f"{found[0] if found else platform.machine()}, {cores} cores, {RANKS} ranks{busy}"


def profile(rows: Sequence[Row]) -> dict[str, object]:
    """Measurements of this machine for `mpigd plan`.

    They are the bytes a second that are read, the seconds and seconds a byte of an Allreduce, and
    the time of gradients over that of the read.
    """
    told: dict[str, object] = {}
    for row in rows:
        if "memory" in row.plot:
            told["memory"] = row.plot["memory"]
        if "read" in row.plot:
            told[f"read_{row.plot['ranks']}"] = 1e9 * row.plot["read"]
        if "alpha" in row.plot:
            told.update(row.plot)
        if row.plot.get("gradient"):
            told[f"fraction_{row.plot['d']}"] = row.value
    return told


def keep_profile(told: Mapping[str, object], path: Path = RESULTS / "profile.json") -> None:
    """Add to what other subjects, or an earlier run, have told of this machine."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **told}, indent=1) + "\n", encoding="utf-8")


def update_docs(found: Mapping[str, Sequence[Row]], where: str, page: Path = PAGE) -> None:
    """Rewrite the rows of these subjects in the generated part of the page; others stay.

    Raises ValueError if the marks of that part are missing.
    """
    before, mark, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    made, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise ValueError(f"{page}: the marks of the generated table are missing")
    _, *parts = made.split(HEAD)
    sections = {name: text for name, _, text in (part.partition("\n") for part in parts)}
    sections |= {
        name: f"\n{where}.\n\n{harness.markdown(rows)}\n\n" for name, rows in found.items()
    }
    known = [name for name in SUBJECTS if name in sections]
    made = "\n" + "".join(f"{HEAD}{name}\n{sections[name]}" for name in known)
    page.write_text(before + mark + made + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS)
    )
    parser.add_argument("--full", action="store_true", help="more data, more repeats")
    rewrite = f"rewrite what {PAGE.relative_to(ROOT)} says of the subjects that are run"
    parser.add_argument("--update-docs", action="store_true", help=rewrite)
    arguments = parser.parse_args()
    size, limit = (FULL, 10 * LIMIT) if arguments.full else (SHORT, LIMIT)
    RESULTS.mkdir(exist_ok=True)
    where, begin = machine(), time.perf_counter()
    print(where, flush=True)
    results: dict[str, list[Row]] = {}
    for name in arguments.only or SUBJECTS:
        started = time.perf_counter()
        found = subject(name, size, limit)
        print(
            f"\n== {name} ({time.perf_counter() - started:.0f} s)\n"
            + "\n".join(map(harness.line, found)),
            flush=True,
        )
        results[name] = found
        if told := profile(found):  # the subject `plan`, and people's own plans, want it
            keep_profile(told)
    harness.write_json([row for rows in results.values() for row in rows], RESULTS / "bench.json")
    finish(results, where, time.perf_counter() - begin, arguments.update_docs)


def finish(results: Mapping[str, Sequence[Row]], where: str, spent: float, docs: bool) -> None:
    rows = [row for found in results.values() for row in found]
    verdicts = [row.met for row in rows if row.met is not None]
    print(
        f"\n{sum(verdicts)} of {len(verdicts)} targets met in {spent:.0f} s; "
        f"{RESULTS.relative_to(ROOT)}/bench.json"
    )
    if docs:
        update_docs(results, where)
    try:
        from scripts.bench import charts
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("no pictures: matplotlib is not installed (the extra [bench])")
        return
    for path in charts.draw(rows, RESULTS):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
