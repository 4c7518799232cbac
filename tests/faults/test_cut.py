"""--on-failure shrink over two hosts: a link that goes down, or a host that is lost.

The hosts are network namespaces with two ranks in each.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.faults.jobs import FULL, LIMIT, SOON, Ended, Place
from tests.launch import OPENMPI_PYTHON, Job, environment, needs_openmpi

HERE, THERE, LINK = "mpigd-here", "mpigd-there", "mpigd0"
ADDRESSES = {HERE: "10.99.7.1", THERE: "10.99.7.2"}
# This script starts a command on the other host, as ssh would. Like ssh it does not notice at once
# that the other host is lost.
AGENT = f"""#!/bin/sh
shift
ip netns exec {THERE} unshare -u sh -c "hostname {THERE}; $*"
code=$?
[ $code -lt 128 ] || exec sleep 900
exit $code
"""
# How often the kernel repeats what is not answered. Five repetitions take thirteen seconds; the
# default of 15 takes a quarter of an hour.
RETRIES = 5


def ip(*words: str, check: bool = True) -> str:
    return subprocess.run(
        ["ip", *words], check=check, timeout=60, capture_output=True, text=True
    ).stdout


class Hosts:
    """Two of them, and the link between them. mpirun is started HERE."""

    def __init__(self, agent: Path) -> None:
        self.agent = agent
        agent.write_text(AGENT)
        agent.chmod(0o700)
        for host in (HERE, THERE):
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ip("link", "add", LINK, "netns", HERE, "type", "veth", "peer", "name", LINK, "netns", THERE)
        for host, address in ADDRESSES.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", LINK)
            ip("-n", host, "link", "set", LINK, "up")

    def start(self, place: Place, name: str, env: Mapping[str, str] | None = None) -> Job:
        """A run of some twelve seconds, once its first checkpoint is there."""
        words = place.train(
            name, {"always": [(0, "slow")]}, "--hang-timeout", "60", "--on-failure", "shrink"
        )
        hosts = ",".join(f"{address}:2" for address in ADDRESSES.values())
        mpirun = [
            str(Path(OPENMPI_PYTHON).parent / "mpirun"),
            "--with-ft",
            "ulfm",
            "--host",
            hosts,
            "-n",
            "4",
        ]
        mpirun += ["--prtemca", "plm_ssh_agent", str(self.agent), "-x", "PYTHONPATH"]
        shell = f'hostname {HERE}; exec "$@"'
        said = environment(env, "openmpi")
        del said["PRTE_MCA_rmaps_default_mapping_policy"]
        command = [
            "ip",
            "netns",
            "exec",
            HERE,
            "unshare",
            "-u",
            "sh",
            "-c",
            shell,
            "sh",
            *mpirun,
            OPENMPI_PYTHON,
            *words,
        ]
        job, until = Job(command, said), time.monotonic() + LIMIT
        while not list((place.folder / name).glob("step-*.h5")):
            if time.monotonic() > until or job.process.poll() is not None:
                raise AssertionError(f"no checkpoint: {job.finish(1)}")
            time.sleep(0.2)
        return job

    def link(self, state: str) -> None:
        ip("-n", HERE, "link", "set", LINK, state)

    def lose(self, host: str) -> None:
        for pid in ip("netns", "pids", host).split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not shutil.which("ip") and shutil.which("apt-get"):
        subprocess.run(
            "apt-get update && apt-get install -y iproute2",
            shell=True,
            timeout=200,
            capture_output=True,
        )
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need the packages iproute2 and util-linux")
    try:
        try:
            made = Hosts(tmp_path / "agent.sh")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces: {error.stderr.strip()}")
        yield made
    finally:
        for host in (HERE, THERE):
            ip("netns", "del", host, check=False)


def ended(job: Job) -> Ended:
    done = job.finish(LIMIT)
    return Ended(done.returncode, done.stdout + done.stderr, time.time(), job.survivors())


def ends_the_same(place: Place, name: str) -> bool:
    """Return whether it has ended with the right bits, or does when the command is repeated."""
    if not (place.folder / f"{name}.h5").exists():
        continued = place.run(name)
        assert continued.code == 0, continued.said
    return place.digest(name) == place.digest("alone")


@needs_openmpi
def test_a_link_that_is_down_for_five_seconds(hosts: Hosts, place: Place) -> None:
    with hosts.start(place, "cut 5") as job:
        hosts.link("down")
        time.sleep(5)
        hosts.link("up")
        end = ended(job)
    assert end.code == 0, end.said
    assert "are gone" not in end.said
    assert end.left == []
    assert place.digest("cut 5") == place.digest("alone")


@needs_openmpi
@pytest.mark.parametrize(
    ("seconds", "env"),
    [
        pytest.param(8, SOON, id="8 of 4"),
        pytest.param(
            30,
            {},
            id="30 of 20",
            marks=pytest.mark.skipif(not FULL, reason="takes a minute: scripts/test.sh --full"),
        ),
    ],
)
def test_a_link_that_is_down_for_longer_than_a_rank_is_waited_for(
    seconds: float, env: Mapping[str, str], hosts: Hosts, place: Place
) -> None:
    """One side at most goes on, and what it leaves ends with the same bits."""
    name = f"cut {seconds}"
    with hosts.start(place, name, env) as job:
        hosts.link("down")
        time.sleep(seconds)
        hosts.link("up")
        end = ended(job)
    assert end.code in (0, 75), end.said
    assert "are gone" in end.said or "are left here" in end.said, "the cut was not noticed"
    assert end.said.count("go on after step") <= 1, end.said
    assert end.left == []
    assert (place.folder / f"{name}.h5").exists() == (end.code == 0)
    assert ends_the_same(place, name)


@needs_openmpi
def test_a_host_that_is_lost(hosts: Hosts, place: Place) -> None:
    """The connections of a lost host are closed, so mpirun ends the job, with exit code 0.

    The templates in scripts/ handle this exit code.
    """
    with hosts.start(place, "host") as job:
        hosts.lose(THERE)
        end = ended(job)
    assert "lost communication with a remote daemon" in end.said
    assert end.code == 0
    assert end.left == []
    assert not (place.folder / "host.h5").exists()
    assert ends_the_same(place, "host")


@needs_openmpi
def test_the_host_of_mpirun_is_lost(hosts: Hosts, place: Place) -> None:
    with hosts.start(place, "first") as job:
        hosts.lose(HERE)
        end = ended(job)
    assert end.left == []
    assert ends_the_same(place, "first")


@needs_openmpi
def test_a_host_that_is_lost_without_a_word(hosts: Hosts, place: Place) -> None:
    """The power of a host fails.

    The other ranks finish the run without its ranks, and mpirun ends once it has noticed the loss.
    """
    ip("netns", "exec", HERE, "sh", "-c", f"echo {RETRIES} >/proc/sys/net/ipv4/tcp_retries2")
    with hosts.start(place, "power", SOON) as job:
        hosts.link("down")
        hosts.lose(THERE)
        end = ended(job)
    assert "2 of 4 ranks are gone; 2 go on after step" in end.said
    assert end.left == []
    assert place.digest("power") == place.digest("alone")
