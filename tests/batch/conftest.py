"""One cluster for all tests of batch jobs; without one they are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.batch.cluster import Cluster
from tests.launch import ROOT


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not shutil.which("slurmctld") and not (os.geteuid() == 0 and shutil.which("apt-get")):
        pytest.skip(
            "Slurm is not installed, and only root with apt-get can install it (slurm-wlm, munge)"
        )
    script, folder = (
        str(ROOT / "scripts" / "slurm" / "local_cluster.sh"),
        tmp_path_factory.mktemp("slurm"),
    )
    try:
        started = subprocess.run(
            ["timeout", "200", script, "start", str(folder)], capture_output=True, text=True
        )
        if started.returncode:
            pytest.skip(f"no local Slurm: {started.stderr[-2000:]}")
        made = Cluster(str(folder / "slurm.conf"), tmp_path_factory.mktemp("jobs"))
        made.train("alone")
        yield made
    finally:
        subprocess.run([script, "stop", str(folder)], timeout=60)
