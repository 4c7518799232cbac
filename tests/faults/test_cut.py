"""--on-failure shrink over two hosts with a link that goes down: two network namespaces, two ranks in each. By hand (--full)."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.jobs import FULL, LIMIT, Place
from tests.launch import OPENMPI_PYTHON, Job, environment, needs_openmpi

HERE, THERE, LINK = "mpigd-here", "mpigd-there", "mpigd0"
ADDRESSES = {HERE: "10.99.7.1", THERE: "10.99.7.2"}


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, timeout=10, capture_output=True)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """The two hosts; what starts a command on the second one, as ssh would."""
    if not FULL:
        pytest.skip("takes a minute: scripts/test.sh --full")
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, and the packages iproute2 and util-linux")
    try:
        for host in (HERE, THERE):
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ip("link", "add", LINK, "netns", HERE, "type", "veth", "peer", "name", LINK, "netns", THERE)
        for host, address in ADDRESSES.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", LINK)
            ip("-n", host, "link", "set", LINK, "up")
        script = tmp_path / "agent.sh"
        script.write_text(f'#!/bin/sh\nshift\nexec ip netns exec {THERE} unshare -u sh -c "hostname {THERE}; $*"\n')
        script.chmod(0o700)
        yield script
    finally:
        for host in (HERE, THERE):
            ip("netns", "del", host, check=False)


def cut(place: Place, agent: Path, name: str, seconds: float) -> tuple[int, str]:
    """A run of some twelve seconds whose link is down for a while, as soon as its first checkpoint is there."""
    words = place.train(name, {"always": [(0, "slow")]}, "--hang-timeout", "60", "--on-failure", "shrink")
    hosts = ",".join(f"{address}:2" for address in ADDRESSES.values())
    mpirun = [str(Path(OPENMPI_PYTHON).parent / "mpirun"), "--with-ft", "ulfm", "--prtemca", "plm_ssh_agent", str(agent)]
    mpirun += ["--host", hosts, "-n", "4", "-x", "PYTHONPATH", OPENMPI_PYTHON]
    shell = f'hostname {HERE}; exec "$@"'
    env = environment(flavour="openmpi")
    del env["PRTE_MCA_rmaps_default_mapping_policy"]
    with Job(["ip", "netns", "exec", HERE, "unshare", "-u", "sh", "-c", shell, "sh", *mpirun, *words], env) as job:
        until = time.monotonic() + LIMIT
        while not list((place.folder / name).glob("step-*.h5")):
            assert time.monotonic() < until and job.process.poll() is None, "no checkpoint"
            time.sleep(0.2)
        ip("-n", HERE, "link", "set", LINK, "down")
        time.sleep(seconds)
        ip("-n", HERE, "link", "set", LINK, "up")
        done = job.finish(LIMIT)
    return done.returncode, done.stdout + done.stderr


@needs_openmpi
def test_a_link_that_is_down_for_five_seconds(agent: Path, place: Place) -> None:
    code, said = cut(place, agent, "cut 5", 5)
    assert code == 0, said
    assert "are gone" not in said
    assert place.digest("cut 5") == place.digest("alone")


@needs_openmpi
def test_a_link_that_is_down_for_thirty_seconds(agent: Path, place: Place) -> None:
    """Longer than the heartbeats are waited for: one side at most goes on, and what it leaves ends with the same bits."""
    code, said = cut(place, agent, "cut 30", 30)
    assert code in (0, 75), said
    assert "are gone" in said or "are left here" in said, "the cut was not noticed"
    assert said.count("go on after step") <= 1, said
    if code == 75:
        assert not (place.folder / "cut 30.h5").exists()
        continued = place.run("cut 30")
        assert continued.code == 0, continued.said
    assert place.digest("cut 30") == place.digest("alone")
