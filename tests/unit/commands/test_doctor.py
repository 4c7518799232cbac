"""`mpigd doctor` finds and names faults.

Facts of ranks and hosts are made up by the tests; other tests run real jobs.
"""

from __future__ import annotations

import ctypes
import dataclasses
import fcntl
import json
import os
import platform
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.commands import doctor
from mpigd.commands.doctor import OK, PROBLEM, WARNING, Check, Facts
from mpigd.parallel import kernel_cache
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.parallel.launcher import LAUNCHERS
from tests import threadcomm
from tests.launch import FLAVOURS, mpiexec, python

SOUND = Facts(
    host="n1", versions="mpigd 1", cores=[0, 1, 2, 3], threads=1, library="MPICH 5", cpu="Z80",
    fma=True, filters=["gzip", "lzf"], cache="/c", compiled=3,
)  # fmt: skip


def fact(**changes: Any) -> Facts:
    return dataclasses.replace(SOUND, **changes)


def found(*facts: Facts) -> dict[str, Check]:
    return {check.name: check for check in doctor.judge(facts)}


def bad(*facts: Facts) -> dict[str, str]:
    """Names and verdicts of the checks that are not well."""
    return {name: check.verdict for name, check in found(*facts).items() if check.verdict != OK}


def test_nothing_wrong() -> None:
    assert bad(SOUND) == {}
    assert bad(SOUND, SOUND, fact(host="n2"), fact(host="n2")) == {}
    assert all(not check.advice for check in found(SOUND, SOUND).values())


TROUBLES = {
    "versions": ({"versions": "mpigd 2"}, PROBLEM),
    "MPI": ({"library": "Open MPI"}, PROBLEM),
    "HDF5": ({"hdf5_error": "OSError no space"}, PROBLEM),
    "CPU": ({"fma": False}, WARNING),
    "subnormals": ({"subnormals": False}, WARNING),
    "temporary": ({"temporary_error": "PermissionError"}, WARNING),
    "cache": ({"cache_error": "not private"}, WARNING),
    "cores": ({"threads": 5}, WARNING),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_on_one_rank_is_found_and_named(name: str) -> None:
    changes, verdict = TROUBLES[name]
    facts = [SOUND, fact(host="n2"), fact(host="n3", **changes)]
    assert bad(*facts) == {name: verdict}
    line = str(found(*facts)[name])
    assert line.startswith(f"{verdict:8} {name}")
    assert "rank 2" in line or "n3" in line
    assert "\n" not in line and " -> " in line


@pytest.mark.parametrize(
    ("places", "word"),
    [
        ([([0, 1], 1), ([0, 1], 1)], ""),  # not bound, and the threads fit
        ([([0], 1), ([1], 1)], ""),
        ([([0, 1], 2), ([2, 3], 2)], ""),
        ([([0, 1], 2), ([0, 1], 1)], "3 threads on 2 core(s) of n1"),
        (
            [([0], 1), ([0], 1)],
            "2 threads on 1 core(s) of n1",
        ),  # bound to the same core, whatever else there is
        ([([0, 1], 1), ([1, 2], 1)], "cores of rank 0 are partly those of others on n1"),
        ([([0, 1, 2, 3], 1), ([3], 1)], "cores of rank 0 are partly"),
    ],
)
def test_threads_and_cores(places: list[tuple[list[int], int]], word: str) -> None:
    check = doctor.placement([fact(cores=own, threads=threads) for own, threads in places])
    assert (check.verdict == OK) == (not word)
    assert word in check.advice
    apart = [fact(cores=own, threads=len(own), host=f"n{i}") for i, (own, _) in enumerate(places)]
    assert doctor.placement(apart).verdict == OK, "the same numbers on other hosts are other cores"


def test_many_hosts_are_cut_short() -> None:
    check = found(*[fact(host=f"n{i:04d}", cores=[i]) for i in range(2000)])["hosts"]
    assert check.seen.startswith("n0000 (1), n0001 (1)") and check.seen.endswith("(2000)")
    assert len(check.seen) < 200


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([5], "5"),
        ([0, 1, 2, 3, 8], "0-3,8"),
        ([1, 3, 5], "1,3,5"),
        ([0, 1, 3, 4], "0-1,3-4"),
    ],
)
def test_spans(numbers: list[int], text: str) -> None:
    assert doctor.spans(numbers) == text


def test_what_is_probed_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    facts = doctor.probe(3)
    assert facts.host == socket.gethostname() and facts.threads == 3
    assert facts.variables["OMP_NUM_THREADS"] == "7"
    assert (
        f"HDF5 {h5py.version.hdf5_version}" in facts.versions
        and f"numpy {np.__version__}" in facts.versions
    )
    status = Path("/proc/self/status")
    if status.exists():  # Linux's own words for the same set of cores
        lines = dict(line.split(":\t") for line in status.read_text().splitlines() if ":\t" in line)
        assert doctor.spans(facts.cores) == lines["Cpus_allowed_list"]
    assert {"gzip", "lzf"} <= set(facts.filters) and "nonsense" not in facts.filters
    assert (facts.hdf5_error, facts.temporary_error) == ("", "")
    assert facts.subnormals


READ = """
import json, sys
from mpigd.commands import doctor
from mpigd.storage import hdf5
from mpigd.errors import DataError

def reads(name):
    try:
        with hdf5.open_read(f"{sys.argv[1]}/{name}.h5") as file:
            return bool((file["x"][:] == 1.0).all())
    except (OSError, DataError):
        return False

told = doctor.probe(1).filters
print(json.dumps([told, [name for name in ("gzip", "lzf", "blosc", "lz4", "zstd", "blosc2") \
if reads(name)]]))
"""


def test_filters_that_are_said_to_be_readable_are(tmp_path: Path) -> None:
    import hdf5plugin

    compressions: dict[str, Any] = {"gzip": {"compression": "gzip"}, "lzf": {"compression": "lzf"}}
    classes = {
        "blosc": hdf5plugin.Blosc,
        "lz4": hdf5plugin.LZ4,
        "zstd": hdf5plugin.Zstd,
        "blosc2": hdf5plugin.Blosc2,
    }
    for name, options in {
        **compressions,
        **{name: kind() for name, kind in classes.items()},
    }.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("x", data=np.ones(1000), chunks=(100,), **options)
    done = python("-c", READ, tmp_path)
    told, read = json.loads(done.stdout)
    assert [name for name in told if name != "bitshuffle"] == read, done.stderr
    assert {"gzip", "lzf"} <= set(read)


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "truth"),
    [
        ("x86_64", "model name\t: Xeon\nflags\t\t: fpu sse2 fma avx2\n", ("Xeon", True)),
        (
            "x86_64",
            "model name\t: Atom\nflags\t\t: fpu sse2 fma4 avx\n",
            ("Atom", False),
        ),  # fma4 is another one
        ("x86_64", None, ("x86_64", None)),
        ("arm64", None, ("arm64", True)),
        ("ppc64le", "cpu\t\t: POWER9\nclock\t: 2.3:1\n", ("ppc64le", None)),
    ],
)
def test_the_processor(
    machine: str,
    cpuinfo: str | None,
    truth: tuple[str, bool | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(path: Path) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read)
    assert doctor._cpu() == truth


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux",
    reason="sets the flush-to-zero mode of x86-64 through glibc",
)
def test_a_processor_that_flushes_to_zero_is_noticed() -> None:
    libm = ctypes.CDLL("libm.so.6")
    usual, changed = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
    libm.fegetenv(usual)
    changed.raw = usual.raw[:28] + (int.from_bytes(usual.raw[28:], "little") | 0x8040).to_bytes(
        4, "little"
    )
    libm.fesetenv(changed)
    try:
        flushed = doctor.probe(1)
    finally:
        libm.fesetenv(usual)
    assert not flushed.subnormals
    assert doctor.probe(1).subnormals


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere: a full disk is what the test can make up."""

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", full)
    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", full)
    facts = doctor.probe(1)
    assert "No space left" in facts.temporary_error and "No space left" in facts.hdf5_error
    verdicts = bad(facts)
    assert (verdicts["HDF5"], verdicts["temporary"]) == (PROBLEM, WARNING)


def test_the_cache_is_the_one_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CPU_FEATURES")  # as a user's shell is: `prepare` sets it
    tmp_path.chmod(0o700)
    folder = kernel_cache.prepare()
    (folder / "kernel.nbc").write_bytes(b"")
    facts = doctor.probe(1)
    assert (facts.cache, facts.compiled, facts.cache_error) == (str(folder), 1, "")
    folder.chmod(0o777)
    assert stat.S_IMODE(kernel_cache.prepare().stat().st_mode) == 0o700
    assert doctor.probe(1).cache_error


def test_facts_travel_whole() -> None:
    """Texts of unequal length, none of them ASCII."""

    def travel(comm: Comm) -> list[Facts]:
        return doctor.gather(
            comm, fact(host="knöten" * (comm.rank + 1), variables={"A": "ü" * 1000}, fma=None)
        )

    for facts in threadcomm.run(3, travel):
        assert facts == [
            fact(host="knöten" * n, variables={"A": "ü" * 1000}, fma=None) for n in (1, 2, 3)
        ]


def test_the_report_is_the_same_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "launched", lambda: None)
    reports = threadcomm.run(3, doctor.report)
    assert reports[0] == reports[1] == reports[2]
    names = {check.name for check in reports[0][0]}
    assert {"launcher", "versions", "cores", "HDF5", "folder", "clocks", "Allreduce"} <= names
    assert list(tmp_path.iterdir()) == []


class Pretence(SelfComm):
    """Rank 0 of two; `other` makes up what the other one contributes."""

    size = 2

    def __init__(self, other: Callable[[np.ndarray[Any, Any]], object], added: bool = True) -> None:
        self._other, self._added = other, added

    def allgather(self, buffer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.stack([buffer, np.broadcast_to(self._other(buffer), buffer.shape)])

    def allreduce(self, buffer: np.ndarray[Any, Any], op: str = "sum") -> None:
        if op == "sum" and self._added:
            buffer *= 3.0


def test_a_folder_that_another_rank_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = doctor.folder(Pretence(lambda mine: mine))
    assert seen.verdict == OK and str(tmp_path) in seen.seen and "file locks work" in seen.seen
    alone = doctor.folder(Pretence(lambda mine: ~mine))
    assert alone.verdict == WARNING and "rank 1 does not see it" in alone.advice
    assert list(tmp_path.iterdir()) == []


def test_a_current_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_text", refuse)
    check = doctor.folder(SelfComm())
    assert check.verdict == WARNING and "Permission denied" in check.advice


def test_file_locks_that_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    check = doctor.folder(SelfComm())
    assert check.verdict == OK and "no file locks" in check.seen


def test_clocks_that_differ() -> None:
    assert doctor.clocks(Pretence(lambda mine: mine + 0.5)).verdict == OK
    late = doctor.clocks(Pretence(lambda mine: mine - 10.0))
    assert late.verdict == WARNING and late.seen == "10000.0 ms apart"


def test_a_sum_that_is_wrong() -> None:
    assert doctor.allreduce(Pretence(lambda mine: mine)).verdict in (OK, WARNING)
    wrong = doctor.allreduce(Pretence(lambda mine: mine, added=False))
    assert wrong.verdict == PROBLEM


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No launcher's variables, and nothing on the PATH."""
    for name in (*(name for pair in LAUNCHERS for name in pair), *doctor.STRAY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "python"))
    return monkeypatch


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_no_launcher(unlaunched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = doctor.launcher(1)
    assert nothing.verdict == WARNING and "mpigd[mpich]" in nothing.advice
    there = program(tmp_path / "mpiexec")
    assert doctor.launcher(1) == Check("launcher", f"not under a launcher; on the PATH is {there}")
    own = program(tmp_path / "env" / "mpiexec")
    assert str(own) in doctor.launcher(1).advice, (
        "the environment's own mpiexec is not the one on the PATH"
    )
    unlaunched.setenv("FLUX_TASK_RANK", "3")
    assert "FLUX_TASK_RANK" in doctor.launcher(1).advice


def test_a_launcher_and_mpi_must_agree(unlaunched: pytest.MonkeyPatch) -> None:
    unlaunched.setenv("PMI_RANK", "0")
    unlaunched.setenv("PMI_SIZE", "4")
    assert doctor.launcher(4) == Check("launcher", "PMI_SIZE=4, MPI sees 4")
    assert doctor.launcher(1).verdict == PROBLEM


def test_a_launcher_that_tells_no_size(unlaunched: pytest.MonkeyPatch) -> None:
    unlaunched.setenv("PMIX_RANK", "0")
    assert doctor.launcher(4) == Check("launcher", "PMIX_RANK, MPI sees 4")


def test_a_problem_is_exit_code_69(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda threads: fact(hdf5_error="OSError broken"))
    monkeypatch.setattr(doctor, "launcher", lambda size: Check("launcher", "none"))
    assert doctor.run(SelfComm()) == 69
    assert "problem  HDF5" in capsys.readouterr().out


def test_one_process_does_not_import_mpi() -> None:
    code = (
        "import sys; from mpigd.__main__ import main; print(main(['doctor']), "
        "'mpi4py' in sys.modules)"
    )
    done = python("-c", code)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[-1] == "0 False" and "not under a launcher" in done.stdout
    assert all(line.split()[0] in (OK, WARNING, PROBLEM) for line in lines[:-1])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_two_ranks(flavour: str) -> None:
    done = mpiexec(2, "-m", "mpigd", "doctor", flavour=flavour)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("MPI sees 2") == 1, "rank 0 alone prints"
    assert {"mpich": "MPICH", "openmpi": "Open MPI"}[flavour] in done.stdout
    assert f"{socket.gethostname()} (2)" in done.stdout
    assert "us for 1 MiB" in done.stdout


def test_too_many_threads_are_a_warning_not_a_problem() -> None:
    threads = str(2 * (os.cpu_count() or 1))
    done = python("-m", "mpigd", "doctor", env={"MPIGD_THREADS": threads})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{threads} threads on" in done.stdout
