"""What all tests share: under a launcher only tests/mpi runs, since the others would start jobs inside a job."""

from __future__ import annotations

from mpigd import cache
from mpigd.launch import launched

# numba's own cache does not see that a kernel which another one calls has changed; ours is keyed by all their sources.
cache.prepare()

collect_ignore = ["cli", "faults", "kernels", "unit"] if launched() is not None else []
