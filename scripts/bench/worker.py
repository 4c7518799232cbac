"""One subject on the ranks of an MPI job.

Usage:
    mpiexec -n 2 python -m scripts.bench.worker SUBJECT OUT.json MEGABYTES REPEATS
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

from mpigd.parallel import kernel_cache
from mpigd.parallel.session import connect
from scripts.bench.harness import Size


def main() -> None:
    name, out, megabytes, repeats = sys.argv[1:]
    comm = connect()
    kernel_cache.prepare()  # before the subject imports numba
    subject = importlib.import_module(f"scripts.bench.{name}")
    rows = subject.measure(comm, Size(float(megabytes), int(repeats)))
    if comm.rank == 0:
        Path(out).write_text(
            json.dumps([dataclasses.asdict(row) for row in rows]), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
