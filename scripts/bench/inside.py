"""Run mpigd's command line, then note the modules and the memory that this rank used.

    python scripts/bench/inside.py NOTE COMMAND...

Writes NOTE.RANK, one JSON object: the number of imported modules, how many of them are not part of
mpigd, and the peak resident size in bytes. The size is VmHWM, because getrusage would also count
the launcher before the exec. This script imports nothing that a rank would not import anyway.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mpigd.__main__ import main
from mpigd.parallel.launcher import launched

if __name__ == "__main__":
    code = main(sys.argv[2:])
    modules = len(sys.modules)
    others = sum(not name.startswith("mpigd") for name in sys.modules)
    peak = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    rank = (launched() or (0, 1))[0]
    Path(f"{sys.argv[1]}.{rank}").write_text(
        f'{{"modules": {modules}, "others": {others}, "peak": {1024 * int(peak)}}}'
    )
    sys.exit(code)
