"""The same bits on real processes.

The runs differ in MPI library, partition and CPU, and some are stopped and continued.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mpigd.scoring import fitted_model
from tests.faults.jobs import FULL
from tests.launch import OPENMPI_VARIABLES, ROOT, environment
from tests.scenarios import generate, write

# Each has fused multiply-add, and this machine may lack none of its instructions: see `flags`.
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
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, timeout=280, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    rows = generate("logistic", n=3000, d=12, weights=True)
    return Path(write(rows, folder)[0])


def test_every_way_to_run_gives_one_digest(table: Path) -> None:
    """Run scripts/same_bits.py on small data.

    Its runs differ in ranks, threads, partitions, files and MPI libraries; some are stopped and
    continued.
    """
    variables = (
        {"TEST_OPENMPI_PYTHON": os.environ["TEST_OPENMPI_PYTHON"]}
        if "TEST_OPENMPI_PYTHON" in os.environ
        else {}
    )
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
    able = [
        cpu
        for cpu, needed in CPUS.items()
        if {name.replace("avx512vnni", "avx512_vnni") for name in needed} <= flags()
    ]
    assert able, "no other CPU can be tried"
    # The CPU with the fewest instructions differs most from this machine. Only that one is tried
    # by default, because each CPU compiles everything again.
    if not FULL:
        able = able[:1]

    def digest(cpu: str) -> str:
        model = str(tmp_path / f"model-{cpu}.h5")
        target = (
            {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""} if cpu else {}
        )  # else it has this machine's instructions
        run(
            ["-m", "mpigd", "train", *paths, "-o", model, "--quiet", "--loss", loss, *options],
            **target,
        )
        return fitted_model.load(model).digest

    with ThreadPoolExecutor(2) as pool:  # they spend their time compiling
        digests = dict(zip(["", *able], pool.map(digest, ["", *able]), strict=True))
    assert len(set(digests.values())) == 1, digests
