"""`mpigd doctor`: is everything well that a run needs? One line a check, from rank 0.

Each rank probes its own place into a record of facts, which travel as bytes; the judgement is a function of all ranks' facts, so
that it is the same everywhere. Only what concerns the ranks together (folder, clocks, Allreduce) is measured collectively.
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
# Set by launchers that do not tell their processes how many there are.
STRAY = ("PALS_RANKID", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK")
SKEW, SLOW = (
    2.0,
    1e-3,
)  # seconds between the hosts' clocks, and for an Allreduce of one number, that are too many
SHOWN = 8  # hosts or groups of ranks in one line


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, what was seen, how good that is, and what to do about it."""

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
    """What one rank sees of its own place. Texts of errors are empty where all is well."""

    host: str
    versions: str
    cores: list[int]
    threads: int  # that a run would use
    library: str = ""  # of MPI
    variables: dict[str, str] = field(default_factory=dict)  # of THREADS
    cpu: str = ""
    fma: bool | None = None  # fused multiply-add; None: not known on this system
    subnormals: bool = True  # survive a multiplication
    filters: list[str] = field(default_factory=list)  # of HDF5 that can be read
    hdf5_error: str = ""
    temporary_error: str = ""
    cache: str = ""
    compiled: int = 0  # kernels in the cache
    cache_error: str = ""


def run(comm: Comm) -> int:
    """Print the report on rank 0. Collective; returns 0, or 69 if there is a problem that must be mended first."""
    checks, well = report(comm)
    if comm.rank == 0:
        put("\n".join(map(str, checks)))
    return 0 if well else LaunchError.code


def report(comm: Comm) -> tuple[list[Check], bool]:
    """All checks, the same on every rank, and whether none of them is a problem. Collective."""
    fair = fair_threads(comm)
    facts = gather(comm, probe(resolve({})[0].threads or fair))
    checks = [launcher(comm.size), *judge(facts), folder(comm)]
    checks += [clocks(comm), allreduce(comm)] if comm.size > 1 else []
    return checks, all(check.verdict != PROBLEM for check in checks)


def gather(comm: Comm, facts: Facts) -> list[Facts]:
    """Every rank's facts, in rank order. Collective."""
    text = json.dumps(asdict(facts)).encode()
    longest = np.array([len(text)], dtype=np.int64)
    comm.allreduce(longest, "max")
    rows = comm.allgather(np.frombuffer(text.ljust(int(longest[0])), dtype=np.uint8))
    return [Facts(**json.loads(row.tobytes())) for row in rows]


def probe(threads: int) -> Facts:
    """This rank's facts. What goes wrong becomes a text in them: an exception here would leave the other ranks waiting."""
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
        # Arrays, not constants: the processor itself must multiply, in the mode that the loaded libraries left it in.
        subnormals=bool((np.array([5e-324, -5e-324]) * np.ones(2)).all()),
        hdf5_error=_error(lambda: _write_and_read(filters)),
        filters=filters,
        temporary_error=_error(lambda: tempfile.NamedTemporaryFile(prefix="mpigd-").close()),
        cache=folder,
        compiled=sum(1 for _ in Path(folder).rglob("*.nbc")),
        # cache.prepare() has taken another folder if others may write to this one, or if it cannot be made.
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
    return f"mpigd {__version__}, python {platform.python_version()}, {packages}, HDF5 {h5py.version.hdf5_version}"


def _cpu() -> tuple[str, bool | None]:
    """The processor's name, and whether it has fused multiply-add."""
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
    """A small file through our own door to HDF5; adds the filters that are known behind that door to `filters`."""
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
    """What the facts of all ranks, in rank order, say about a run."""
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
    return ", ".join(texts[:SHOWN]) + (f", ... ({len(texts)})" if len(texts) > SHOWN else "")


def alike(name: str, texts: Sequence[str]) -> Check:
    """A problem unless all ranks say the same."""
    others = [
        f"{text} on rank {rank}" if text != texts[0] else "" for rank, text in enumerate(texts)
    ]
    return errors(name, texts[0], others, "start all ranks from one environment", PROBLEM)


def errors(
    name: str, seen: str, texts: Sequence[str], advice: str, verdict: str = WARNING
) -> Check:
    """`verdict` if any rank has a text: it names the first one."""
    rank = next((rank for rank, text in enumerate(texts) if text), None)
    return (
        Check(name, seen)
        if rank is None
        else Check(name, seen, verdict, f"rank {rank}: {texts[rank]}; {advice}")
    )


def placement(facts: Sequence[Facts]) -> Check:
    """Groups of ranks that may use the same cores of a host: do their threads fit there, do groups overlap?"""
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
    advice = "10 to 100 times slower; fewer ranks, --threads 1, or another binding (mpirun --bind-to none)"
    return (
        Check("cores", some(shown), WARNING, f"{some(trouble)}: {advice}")
        if trouble
        else Check("cores", some(shown))
    )


def spans(numbers: Sequence[int]) -> str:
    """Increasing numbers in short: 0-3,8."""
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
    """Which launcher started this process, and whether MPI sees as many as it started."""
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
    """Can rank 0 write to the current folder, and does every rank see there what it wrote? Collective."""
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
    advice = f"rank {spans(blind)} does not see it: data, models and checkpoints belong on a shared file system"
    return Check("folder", f"{here}, {locks}", *((WARNING, advice) if blind else ()))


def _lock(path: Path) -> None:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def clocks(comm: Comm) -> Check:
    """How far the hosts' clocks are apart; the least of a few looks, since a rank may come late to one. Collective."""
    looks = [comm.allgather(np.array([time.time()])) for _ in range(5)]
    apart = min(float(np.ptp(look)) for look in looks)
    advice = "times in logs and of files cannot be compared: start NTP on the hosts"
    return Check(
        "clocks", f"{apart * 1e3:.1f} ms apart", *((WARNING, advice) if apart > SKEW else ())
    )


def allreduce(comm: Comm) -> Check:
    """Whether Allreduce adds up on every rank, and the slowest rank's median time for one number and for 1 MiB. Collective."""
    told = np.zeros(3)  # seconds, seconds, whether a sum was wrong
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
