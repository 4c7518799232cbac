"""Fixtures and hooks of all tests.

Under a launcher only tests/mpi runs, since the other tests would start jobs inside a job.

Tests with the marker `full` repeat what another test proves. They run if TEST_FULL is set
(scripts/test.sh --full); docs/testing.md lists them with the reasons.
"""

from __future__ import annotations

import inspect
import os

import pytest
from hypothesis import HealthCheck, settings

from mpigd.parallel import kernel_cache
from mpigd.parallel.launcher import launched

# numba's own cache does not notice a change of a kernel that another one calls. mpigd's cache is
# keyed by the sources of all kernels.
kernel_cache.prepare()

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    text = (
        "full(why, when): only with TEST_FULL=1, if `when` is true of the parameters that it names "
        "(without `when`: always)"
    )
    config.addinivalue_line("markers", text)


def only_in_full(item: pytest.Item) -> bool:
    """Whether a marker `full` applies to this test and its parameters."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for mark in item.iter_markers("full"):
        when = mark.kwargs.get("when")
        names = [] if when is None else list(inspect.signature(when).parameters)
        if when is None or (
            params.keys() >= set(names) and when(*(params[name] for name in names))
        ):
            return True
    return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TEST_FULL"):
        return
    left_out = [item for item in items if only_in_full(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not only_in_full(item)]


collect_ignore = ["batch", "cli", "faults", "kernels", "unit"] if launched() is not None else []


@pytest.fixture(autouse=True)
def every_save_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every checkpoint that is due.

    Tests that end a run after a step need the checkpoint of that step, and their steps are shorter
    than a write.
    """
    from mpigd.training.callbacks.checkpoint_saver import Writer  # not before the cache is prepared

    monkeypatch.setattr(Writer, "free", lambda self: self.wait() is None)
