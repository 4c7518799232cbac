"""The scenarios of every communicator, on one process and on virtual ranks.

Other tests check how the world communicator is found.
"""

from __future__ import annotations

import numpy as np
import pytest

from mpigd.errors import LaunchError
from mpigd.parallel.comm import SelfComm
from mpigd.parallel.launcher import UNTOLD, fits, launched
from tests.launch import python
from tests.scenarios_comm import SCENARIOS
from tests.threadcomm import run


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_process(name: str) -> None:
    SCENARIOS[name](SelfComm())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SCENARIOS)
def test_virtual_ranks(name: str, size: int) -> None:
    run(size, SCENARIOS[name])


def test_one_process_has_nobody_to_talk_to() -> None:
    with pytest.raises(LaunchError, match="send"):
        SelfComm().send(np.zeros(1), 0)
    with pytest.raises(LaunchError, match="receive"):
        SelfComm().recv(np.zeros(1), 0)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
            None,
        ),  # the batch script itself, not a step of srun
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            (1, 2),
        ),
        ({"PMI_RANK": "1"}, None),
        ({"PMIX_RANK": "3", "PMIX_NAMESPACE": "prterun-host-1@1"}, (3, UNTOLD)),
        ({"PMIX_RANK": "3", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (3, UNTOLD)),
        (
            {
                "PMIX_RANK": "3",
                "PMIX_NAMESPACE": "slurm.pmix.7.0",
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "8",
            },
            (3, 8),
        ),
    ],
)
def test_launched(variables: dict[str, str], expected: tuple[int, int] | None) -> None:
    assert launched(variables) == expected


def test_what_a_launcher_told_is_compared_with_what_mpi_sees() -> None:
    assert fits((1, 4), 1, 4) and fits((1, UNTOLD), 1, 4)
    assert not fits((1, 4), 0, 1)
    assert not fits((1, UNTOLD), 0, 1), "two processes that both are rank 0 of 1"


def test_without_a_launcher_mpi_is_not_imported() -> None:
    done = python(
        "-c",
        "import sys; from mpigd.parallel.session import connect; comm = connect();"
        "print(type(comm).__name__, comm.rank, comm.size, "
        "any(name.startswith('mpi4py') for name in sys.modules))",
    )
    assert done.stdout.split() == ["SelfComm", "0", "1", "False"], done.stderr


@pytest.mark.parametrize(
    "names", [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")]
)
def test_a_wrong_launcher_is_refused(names: tuple[str, str]) -> None:
    """Two processes of which MPI knows nothing would both train alone as rank 0 of 1."""
    script = (
        "from mpigd.parallel.session import connect; from mpigd.errors import MpigdError\n"
        "try: connect()\n"
        "except MpigdError as error: print(error); raise SystemExit(error.code)"
    )
    done = python("-c", script, env=dict(zip(names, ("0", "2"), strict=True)), timeout=30)
    assert done.returncode == 69, done.stderr
    assert "started 2 processes" in done.stdout
    assert "sees 1" in done.stdout
    assert done.stdout.count("\n") == 1
