"""The scenarios of every communicator under MPI, also with buffers that need several calls."""

from __future__ import annotations

import numpy as np
import pytest

import mpigd.parallel.comm
from mpigd.parallel.comm import Comm, MPIComm
from tests.scenarios_comm import SCENARIOS


@pytest.mark.parametrize("pieces", [None, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(
    name: str, pieces: int | None, comm: Comm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pieces`: at most so many elements (bytes where bytes travel) in one MPI call."""
    if pieces is not None:
        monkeypatch.setattr(mpigd.parallel.comm, "SLICE", pieces)
    SCENARIOS[name](comm)


def test_what_cannot_be_filled_is_refused(comm: Comm) -> None:
    """A column of a matrix would be copied, the copy filled, and the result lost."""
    if not isinstance(comm, MPIComm):
        pytest.skip("one process: nothing is ever filled")
    column = np.zeros((4, 3))[:, 1]
    for call in (comm.allreduce, comm.bcast, lambda buffer: comm.recv(buffer, 0)):
        with pytest.raises(ValueError, match="contiguous"):
            call(column)
