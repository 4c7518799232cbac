"""The command `mpigd doctor`, which checks the environment of a run and prints a line per check.

Each rank collects facts about its environment (`probe`), and all ranks exchange them as bytes
(`gather`). The checks (`judge`) are a function of the facts of all ranks, so that their result is
the same on every rank. Only folder, clocks and Allreduce are measured collectively.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from mpigd import __version__
from mpigd.config.schema import resolve
from mpigd.errors import LaunchError
from mpigd.parallel import kernel_cache as cache
from mpigd.parallel.affinity import cores, fair_threads
from mpigd.parallel.comm import Comm, bcast_bytes
from mpigd.parallel.launcher import LAUNCHERS, fits, launched
from mpigd.parallel.session import library_version
from mpigd.parallel.standard_streams import put

OK, WARNING, PROBLEM = "ok", "warning", "problem"
FILTERS = {
    "gzip": 1,
    "lzf": 32000,
    "blosc": 32001,
    "lz4": 32004,
    "bitshuffle": 32008,
    "zstd": 32015,
    "blosc2": 32026,
}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# Variables of launchers that do not provide the number of processes.
STRAY = ("PALS_RANKID", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK")
# Limits in seconds above which a warning is given: the difference of the clocks of the hosts, and
# the time of an Allreduce of one number.
SKEW, SLOW = (2.0, 1e-3)
SHOWN = 8  # maximal number of hosts or groups of ranks in one line


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes
    ----------
    name : str
        What was checked.
    seen : str
        What was found.
    verdict : str
        OK, WARNING or PROBLEM.
    advice : str
        What to do about it; "" if all is well.
    """

    name: str
    seen: str
    verdict: str = OK
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:8} {self.name:10} {self.seen}" + (
            f" -> {self.advice}" if self.advice else ""
        )


@dataclass(frozen=True)
class Facts:
    """The facts about the environment of one rank. Error texts are empty if all is well."""

    host: str
    versions: str
    cores: list[int]
    threads: int  # the number that a run would use
    library: str = ""  # name and version of the MPI library
    variables: dict[str, str] = field(default_factory=dict)  # those of THREADS that are set
    cpu: str = ""
    fma: bool | None = None  # whether the CPU has fused multiply-add; None if unknown
    subnormals: bool = True  # whether subnormal numbers survive a multiplication
    filters: list[str] = field(default_factory=list)  # the filters that HDF5 can read
    hdf5_error: str = ""
    temporary_error: str = ""
    cache: str = ""
    compiled: int = 0  # number of kernels in the cache
    cache_error: str = ""


def run(comm: Comm) -> int:
    """Print the report on rank 0. Return 0, or 69 if a problem would prevent a run. Collective."""
    checks, well = report(comm)
    if comm.rank == 0:
        put("\n".join(map(str, checks)))
    return 0 if well else LaunchError.code


def report(comm: Comm) -> tuple[list[Check], bool]:
    """Return all checks and whether none of them is a problem, equal on all ranks. Collective."""
    fair = fair_threads(comm)
    facts = gather(comm, probe(resolve({})[0].threads or fair))
    checks = [launcher(comm.size), *judge(facts), folder(comm)]
    checks += [clocks(comm), allreduce(comm)] if comm.size > 1 else []
    return checks, all(check.verdict != PROBLEM for check in checks)


def gather(comm: Comm, facts: Facts) -> list[Facts]:
    """Return the facts of all ranks in rank order. Collective.

    Parameters
    ----------
    comm : Comm
        The ranks to check.
    facts : Facts
        The facts of this rank, from `probe`.
    """
    text = json.dumps(asdict(facts)).encode()
    longest = np.array([len(text)], dtype=np.int64)
    comm.allreduce(longest, "max")
    rows = comm.allgather(np.frombuffer(text.ljust(int(longest[0])), dtype=np.uint8))
    return [Facts(**json.loads(row.tobytes())) for row in rows]


def probe(threads: int) -> Facts:
    """Return the facts of this rank, which would use `threads` threads.

    An error becomes a text in the facts, since after an exception here the other ranks would wait
    for this one.
    """
    cpu, fma = _cpu()
    filters: list[str] = []
    folder = str(cache.location())
    return Facts(
        host=socket.gethostname(),
        versions=_versions(),
        cores=sorted(cores()),
        threads=threads,
        library=library_version() or "",
        variables={name: os.environ[name] for name in THREADS if name in os.environ},
        cpu=cpu,
        fma=fma,
        # Arrays instead of constants, so that the processor multiplies at run time, in the mode
        # that the loaded libraries have set.
        subnormals=bool((np.array([5e-324, -5e-324]) * np.ones(2)).all()),
        hdf5_error=_error(lambda: _write_and_read(filters)),
        filters=filters,
        temporary_error=_error(lambda: tempfile.NamedTemporaryFile(prefix="mpigd-").close()),
        cache=folder,
        compiled=sum(1 for _ in Path(folder).rglob("*.nbc")),
        # cache.prepare() has chosen another folder if others may write to this one, or if it
        # cannot be created.
        cache_error=""
        if os.environ.get("NUMBA_CACHE_DIR", folder) == folder
        else "not usable, or not private",
    )


def _error(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return " ".join(f"{type(error).__name__} {error}".split())
    return ""


def _versions() -> str:
    import h5py

    packages = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("numpy", "numba", "mpi4py", "h5py")
    )
    return (
        f"mpigd {__version__}, python {platform.python_version()}, {packages}, "
        f"HDF5 {h5py.version.hdf5_version}"
    )


def _cpu() -> tuple[str, bool | None]:
    """Return the name of the processor, and whether it has fused multiply-add (None: unknown)."""
    if platform.machine() in ("arm64", "aarch64"):
        return platform.machine(), True  # part of the instruction set
    try:
        lines = [
            line.split(":", 1)
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if ":" in line
        ]
    except OSError:
        return platform.machine(), None
    told = {name.strip(): value.strip() for name, value in lines}
    return told.get("model name", platform.machine()), "fma" in told[
        "flags"
    ].split() if "flags" in told else None


def _write_and_read(filters: list[str]) -> None:
    """Write and read a small HDF5 file with mpigd.storage.hdf5; add the available filters."""
    from mpigd.storage import dataset_checks, hdf5

    filters += [name for name, number in FILTERS.items() if dataset_checks.available(number)]
    with tempfile.TemporaryDirectory(prefix="mpigd-") as place:
        with hdf5.create(f"{place}/test.h5") as file:
            file.create_dataset(
                "x", data=np.arange(1000.0), chunks=(100,), fletcher32=True, compression="gzip"
            )
        with hdf5.open_read(f"{place}/test.h5") as file:
            if not np.array_equal(file["x"][:], np.arange(1000.0)):
                raise OSError("what was read is not what was written")


def judge(facts: Sequence[Facts]) -> Iterator[Check]:
    """Yield the checks that follow from the facts of all ranks, which are in rank order."""
    one = facts[0]
    yield alike("versions", [fact.versions for fact in facts])
    yield alike("MPI", [fact.library or "none: one process" for fact in facts])
    hosts = {fact.host: sum(other.host == fact.host for other in facts) for fact in facts}
    yield Check("hosts", some([f"{host} ({ranks})" for host, ranks in hosts.items()]))
    yield placement(facts)
    told = sorted({f"{name}={value}" for fact in facts for name, value in fact.variables.items()})
    yield Check("variables", some(told) or "none sets a number of threads")
    seen = some(list(dict.fromkeys(fact.cpu for fact in facts))) + (
        "" if one.fma is None else ", fused multiply-add"
    )
    advice = "exact sums are slow there: use other hosts, or --reduce native"
    yield errors(
        "CPU",
        seen,
        ["no fused multiply-add" if fact.fma is False else "" for fact in facts],
        advice,
    )
    advice = "a library built with -ffast-math was loaded: results may differ"
    yield errors(
        "subnormals",
        "kept",
        ["" if fact.subnormals else "flushed to zero" for fact in facts],
        advice,
    )
    yield errors(
        "HDF5",
        "writes and reads",
        [fact.hdf5_error for fact in facts],
        "reinstall h5py, or free space",
        PROBLEM,
    )
    readable = [name for name in FILTERS if all(name in fact.filters for fact in facts)]
    others = [name for name in FILTERS if name not in readable]
    yield Check("filters", ", ".join(readable) + (f"; not {', '.join(others)}" if others else ""))
    yield errors(
        "temporary",
        tempfile.gettempdir(),
        [fact.temporary_error for fact in facts],
        "set TMPDIR to another folder",
    )
    compiled = min(fact.compiled for fact in facts)
    seen = f"{one.cache}, " + (
        f"{compiled} compiled kernels" if compiled else "empty: the first run compiles"
    )
    advice = f"set {cache.VARIABLE} to a folder of your own, or every run compiles again"
    yield errors("cache", seen, [fact.cache_error for fact in facts], advice)


def some(texts: Sequence[str]) -> str:
    """Return the first SHOWN texts in one line, and the number of all if there are more."""
    return ", ".join(texts[:SHOWN]) + (f", ... ({len(texts)})" if len(texts) > SHOWN else "")


def alike(name: str, texts: Sequence[str]) -> Check:
    """Return a check that is a problem unless all ranks have the same text.

    Parameters
    ----------
    name : str
        What is checked.
    texts : sequence of str
        The text of each rank, in rank order.
    """
    others = [
        f"{text} on rank {rank}" if text != texts[0] else "" for rank, text in enumerate(texts)
    ]
    return errors(name, texts[0], others, "start all ranks from one environment", PROBLEM)


def errors(
    name: str, seen: str, texts: Sequence[str], advice: str, verdict: str = WARNING
) -> Check:
    """Return a check that has `verdict` if any rank has an error text, else OK.

    Parameters
    ----------
    name, seen : str
        What is checked, and what was found.
    texts : sequence of str
        The error text of each rank, in rank order; "" for none. The first one is shown.
    advice : str
        What to do about an error.
    verdict : str
        WARNING or PROBLEM.
    """
    rank = next((rank for rank, text in enumerate(texts) if text), None)
    return (
        Check(name, seen)
        if rank is None
        else Check(name, seen, verdict, f"rank {rank}: {texts[rank]}; {advice}")
    )


def placement(facts: Sequence[Facts]) -> Check:
    """Check the binding of ranks to cores.

    Ranks on the same cores of a host form a group. A warning is given if a group has more threads
    than cores, or if the cores of two groups overlap in part.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for rank, fact in enumerate(facts):
        groups.setdefault((fact.host, tuple(fact.cores)), []).append(rank)
    shown, trouble = [], []
    for (host, own), ranks in groups.items():
        threads = sum(facts[rank].threads for rank in ranks)
        shown.append(f"{threads} thread(s) of rank {spans(ranks)} on core {spans(own)}")
        others = [other for place, other in groups if place == host and other != own]
        if threads > len(own):
            trouble.append(f"{threads} threads on {len(own)} core(s) of {host}")
        elif any(set(other) & set(own) for other in others):
            trouble.append(f"cores of rank {spans(ranks)} are partly those of others on {host}")
    advice = (
        "10 to 100 times slower; fewer ranks, --threads 1, or another binding "
        "(mpirun --bind-to none)"
    )
    return (
        Check("cores", some(shown), WARNING, f"{some(trouble)}: {advice}")
        if trouble
        else Check("cores", some(shown))
    )


def spans(numbers: Sequence[int]) -> str:
    """Return increasing numbers in short form, like 0-3,8."""
    firsts = [number for i, number in enumerate(numbers) if i == 0 or numbers[i - 1] != number - 1]
    lasts = [
        number
        for i, number in enumerate(numbers)
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1
    ]
    return ",".join(
        f"{first}" if first == last else f"{first}-{last}"
        for first, last in zip(firsts, lasts, strict=True)
    )


def launcher(size: int) -> Check:
    """Check that MPI sees as many processes as the launcher started; `size` is what MPI sees."""
    told = launched()
    if told is not None:
        shown = [
            f"{count}={told[1]}"
            for rank, count in LAUNCHERS
            if rank in os.environ and count in os.environ
        ] or ["PMIX_RANK"]
        advice = (
            "this mpiexec is not of this MPI library: use its own, or srun --mpi=pmi2 / --mpi=pmix"
        )
        return Check(
            "launcher",
            f"{shown[0]}, MPI sees {size}",
            *(() if fits(told, 0, size) else (PROBLEM, advice)),
        )
    found, beside = (
        shutil.which("mpiexec") or shutil.which("srun"),
        Path(sys.executable).parent / "mpiexec",
    )
    seen = f"not under a launcher; on the PATH is {found or 'neither mpiexec nor srun'}"
    if stray := [name for name in STRAY if name in os.environ]:
        return Check(
            "launcher",
            seen,
            WARNING,
            f"{stray[0]} is set: if this is one process of many, each is alone; use mpiexec",
        )
    if beside.exists() and (found is None or Path(found).parent != beside.parent):
        return Check("launcher", seen, WARNING, f"this environment has its own: {beside}")
    return Check(
        "launcher",
        seen,
        *(() if found else (WARNING, "pip install 'mpigd[mpich]', or load the cluster's module")),
    )


def folder(comm: Comm) -> Check:
    """Check that rank 0 can write to the current folder and all ranks see the file. Collective."""
    token, here = bcast_bytes(comm, os.urandom(16)).hex(), os.getcwd()
    path = Path(f".mpigd-doctor-{token}")
    failure = _error(lambda: path.write_text(token)) if comm.rank == 0 else ""
    locks = (
        "file locks work" if not _error(lambda: _lock(path)) else "no file locks (none are needed)"
    )
    failure, locks = (
        bcast_bytes(comm, f"{failure}\n{locks}".encode(errors="replace")).decode().split("\n")
    )
    found = comm.allgather(np.array([path.exists()]))[:, 0]
    if failure:
        return Check(
            "folder",
            here,
            WARNING,
            f"rank 0: {failure}; give -o and --checkpoint a folder that can be written",
        )
    if comm.rank == 0:
        path.unlink()
    blind = [rank for rank, there in enumerate(found) if not there]
    advice = (
        f"rank {spans(blind)} does not see it: "
        "data, models and checkpoints belong on a shared file system"
    )
    return Check("folder", f"{here}, {locks}", *((WARNING, advice) if blind else ()))


def _lock(path: Path) -> None:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def clocks(comm: Comm) -> Check:
    """Check how much the clocks of the hosts differ. Collective.

    The smallest of five measurements counts, since a rank may arrive late at one of them.
    """
    looks = [comm.allgather(np.array([time.time()])) for _ in range(5)]
    apart = min(float(np.ptp(look)) for look in looks)
    advice = "times in logs and of files cannot be compared: start NTP on the hosts"
    return Check(
        "clocks", f"{apart * 1e3:.1f} ms apart", *((WARNING, advice) if apart > SKEW else ())
    )


def allreduce(comm: Comm) -> Check:
    """Check the sums of Allreduce and its time for one number and for 1 MiB. Collective.

    The time is the median of the slowest rank.
    """
    told = np.zeros(3)  # seconds for one number, seconds for 1 MiB, whether a sum was wrong
    for i, (count, rounds) in enumerate(((1, 200), (1 << 17, 10))):
        times = []
        for _ in range(rounds):
            buffer = np.full(count, float(comm.rank + 1))
            begin = time.perf_counter()
            comm.allreduce(buffer)
            times.append(time.perf_counter() - begin)
            told[2] += np.any(buffer != comm.size * (comm.size + 1) / 2)
        told[i] = np.median(times)
    comm.allreduce(told, "max")
    seen = f"{told[0] * 1e6:.0f} us for 8 bytes, {told[1] * 1e6:.0f} us for 1 MiB"
    if told[2]:
        return Check(
            "Allreduce",
            seen,
            PROBLEM,
            "the sum is wrong: do not use this MPI library on these hosts",
        )
    advice = "ranks wait for cores (see there), or the network is slow"
    return Check("Allreduce", seen, *((WARNING, advice) if told[0] > SLOW else ()))
