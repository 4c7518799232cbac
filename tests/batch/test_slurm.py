"""Jobs in a real Slurm of two nodes, made from the templates.

They use both nodes, continue after their time limit, and end with the bits of a run without any
batch system.
"""

from __future__ import annotations

import sys

import pytest

import mpigd
from mpigd.scoring import fitted_model
from tests.batch.cluster import Cluster, tried
from tests.faults.jobs import FULL
from tests.launch import needs_openmpi

BOTH = "--nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --time=10"


def undisturbed(cluster: Cluster) -> str:
    return fitted_model.load(str(cluster.folder / "alone.h5")).digest


@tried
def test_srun(cluster: Cluster) -> None:
    """A job reaches its time limit.

    USR1 reaches the ranks, they save, and the job is queued again.
    """
    job = cluster.job("train.sh", "srun", f"{BOTH} --signal=USR1@20", slow=True)
    job.until_saved()
    cluster(
        "scontrol", "update", f"JobId={job.number}", "EndTime=now+45"
    )  # looked at every 30 s, 30 s ahead
    job.until_requeued()
    assert "stopped by a signal after step" in job.said
    assert not (cluster.folder / "srun.h5").exists()
    assert job.end() == "COMPLETED", job.told()
    assert job.nodes == {"n1", "n2"}
    assert job.digest() == undisturbed(cluster)


@pytest.mark.parametrize(
    "flavour", ["mpich", *([pytest.param("openmpi", marks=needs_openmpi)] if FULL else [])]
)
def test_mpirun(flavour: str, cluster: Cluster) -> None:
    """The same with the signal to the script (B:), which is sent by hand here."""
    job = cluster.job("train_mpirun.sh", f"mpirun-{flavour}", BOTH, flavour, slow=True)
    job.until_saved()
    cluster("scancel", "--batch", "--signal=USR1", str(job.number))
    job.until_requeued()
    assert "stopped by a signal after step" in job.said
    assert job.end() == "COMPLETED", job.told()
    assert job.digest() == undisturbed(cluster)


@tried
def test_scancel_loses_nothing_after_the_last_checkpoint(cluster: Cluster) -> None:
    job = cluster.job("train.sh", "cancelled", BOTH, slow=True)
    job.until_saved()
    before = job.saved()[0].name
    cluster("scancel", str(job.number))
    assert job.end() == "CANCELLED", job.said
    assert job.shown("Restarts") == "0"
    assert job.saved()[0].name >= before
    cluster.train("cancelled")
    assert job.digest() == undisturbed(cluster)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
@tried
def test_a_sweep(launcher: str, cluster: Cluster) -> None:
    """mpigd submit makes an array job."""
    expected = [mpigd.train(cluster.data, loss="logistic", l2=l2).digest for l2 in (1e-4, 1e-2)]
    place = cluster.folder / f"sweep-{launcher}"
    place.mkdir()
    words = [
        sys.executable,
        "-m",
        "mpigd",
        "submit",
        "--scheduler",
        "slurm",
        "--ranks",
        "2",
        "--time",
        "0:10:00",
    ]
    words += [
        "--launcher",
        launcher,
        "--sweep",
        "l2=1e-4,1e-2",
        f"--directive=--chdir={place}",
        "--",
    ]
    number = cluster(*words, "train", *cluster.data, "--loss", "logistic", "--quiet").split()[-1]
    queue = ("squeue", "--noheader", "--jobs", number)
    cluster.until(lambda: not cluster(*queue), f"{place.name}/mpigd-*.log", lambda: cluster(*queue))
    models = [place / "sweep" / f"l2-{value}.h5" for value in ("1e-4", "1e-2")]
    assert [fitted_model.load(str(model)).digest for model in models] == expected
