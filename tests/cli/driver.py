"""Many commands in one job: each would otherwise start MPI anew, which takes a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.launch import mpiexec

SCRIPT = """
import contextlib, io, json, pathlib, sys
from mpigd.__main__ import main
from mpigd.parallel.launcher import launched

rank, seen = (launched() or (0, 1))[0], {}
for name, words in json.loads(pathlib.Path("commands.json").read_text()).items():
    print(name, flush=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words.split())
    seen[name] = [code, out.getvalue(), err.getvalue()]
pathlib.Path(f"seen{rank}.json").write_text(json.dumps(seen))
"""


class Done(NamedTuple):
    """The exit code and the output of a command on one rank."""

    code: int
    out: str
    err: str


def run_commands(ranks: int, commands: Mapping[str, str], folder: Path) -> list[dict[str, Done]]:
    """Run command lines by name in `folder`, one after the other; per rank what each did.

    On a machine that has nothing compiled yet, compiling takes most of the time. Tests of single
    jobs check how long a command may take.
    """
    (folder / "commands.json").write_text(json.dumps(commands))
    done = mpiexec(ranks, "-c", SCRIPT, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads((folder / f"seen{rank}.json").read_text()) for rank in range(ranks)]
    return [{name: Done(*seen) for name, seen in record.items()} for record in records]
