"""mpigd's command line, and then a note of what this rank took: python scripts/bench/inside.py NOTE COMMAND...

Writes NOTE.RANK, one JSON object: modules imported, how many of them are not our own, and the peak resident size in bytes
(VmHWM: getrusage would count what the launcher was before the exec). Imports nothing of its own that a rank has not imported
anyway.
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
