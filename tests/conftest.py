"""What all tests share: under a launcher only tests/mpi runs, since the others would start jobs inside a job."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from mpigd import cache
from mpigd.launch import launched

# numba's own cache does not see that a kernel which another one calls has changed; ours is keyed by all their sources.
cache.prepare()

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

collect_ignore = ["batch", "cli", "faults", "kernels", "unit"] if launched() is not None else []


@pytest.fixture(autouse=True)
def every_save_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that end a run after a step want the checkpoint of that step: their steps are shorter than a write."""
    from mpigd.saving import Writer  # not before the cache is prepared

    monkeypatch.setattr(Writer, "free", lambda self: self.wait() is None)
