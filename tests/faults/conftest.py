"""One folder with data for all fault tests, and kernels that are compiled."""

from __future__ import annotations

import pytest

from tests.faults.jobs import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("faults"))
    made.warm()
    return made
