"""The first promise on real processes: other MPI libraries, other partitions, stopped and continued, other CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.launch import OPENMPI_VARIABLES, ROOT, environment
from tests.scenarios import generate, write

# Each has fused multiply-add, and this machine may lack none of its instructions: see `runnable`.
CPUS = {
    "haswell": {"avx2", "fma"},
    "skylake-avx512": {"avx512f", "avx512vl", "avx512dq"},
    "znver5": {"avx512vnni", "avx512_bf16"},
}
RUNS = {
    "dense": ("softmax", ("--epochs", "2", "--mode", "minibatch", "--batch-size", "32")),
    "csr": ("poisson", ("--epochs", "10")),
}


def run(arguments: list[str], **variables: str) -> str:
    env = environment(variables)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, timeout=280, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    rows = generate("logistic", n=3000, d=12, weights=True)
    return Path(write(rows, folder)[0])


def test_every_way_to_run_gives_one_digest(table: Path) -> None:
    """scripts/same_bits.py on small data: ranks, threads, partitions, files, MPI libraries, stopped and continued."""
    variables = {"TEST_OPENMPI_PYTHON": os.environ["TEST_OPENMPI_PYTHON"]} if "TEST_OPENMPI_PYTHON" in os.environ else {}
    shown = run(["scripts/same_bits.py", str(table)], **variables, **OPENMPI_VARIABLES)
    assert shown.count("the same bits") == 3
    assert "DIFFERENT" not in shown


def flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


@pytest.mark.parametrize("kind", RUNS)
def test_code_compiled_for_other_cpus_gives_the_same_digest(kind: str, tmp_path: Path) -> None:
    loss, options = RUNS[kind]
    paths = write(generate(loss, n=300, d=37, weights=True), tmp_path, as_csr=kind == "csr")
    digests = {}
    for cpu, needed in {"": set[str](), **CPUS}.items():
        if not {name.replace("avx512vnni", "avx512_vnni") for name in needed} <= flags():
            print(f"this machine cannot run code for {cpu}")
            continue
        model = str(tmp_path / f"model-{cpu}.h5")
        run(["-m", "mpigd", "train", *paths, "-o", model, "--quiet", "--loss", loss, *options], NUMBA_CPU_NAME=cpu)
        digests[cpu] = json.loads(run(["-m", "mpigd", "info", "--json", model]))["digest"]
    assert len(set(digests.values())) == 1, digests
    assert np.size(list(digests)) > 1, "no other CPU could be tried"
