"""The training scenarios of the unit tests on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpigd.parallel.comm import Comm
from tests.scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, comm: Comm, tmp_path: Path) -> None:
    SCENARIOS[name](comm, tmp_path)
