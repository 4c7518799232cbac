"""Predict what a run will need (`mpigd plan`). MPI is not needed.

The prediction uses the data's metadata and a profile of a machine, which is given or measured on
this machine. A step's time is the time of a rank's rows plus one Allreduce. The first comes from
the profile, or is measured on made-up rows of the same width and layout, with the run's own
options (a tolerance may require two grids), and with as many threads as ranks share a host's
memory. The second is alpha + beta * bytes for each of the log2(ranks) rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.config.schema import to_dict as options_of
from mpigd.config.units import size_of
from mpigd.data import file_vectors
from mpigd.data.loading import encoding_of, kept_as, survey
from mpigd.data.metadata import Info
from mpigd.errors import UsageError
from mpigd.model.sample_sizes import sizes_for
from mpigd.model.targets import check_target, class_names
from mpigd.optim.predicted_costs import Shape
from mpigd.parallel.comm import Comm, together
from mpigd.parallel.standard_streams import put
from mpigd.storage import hdf5
from mpigd.training import problem, requirements
from mpigd.training.throughput import Profile, cores_of, row_seconds, told_seconds
from mpigd_kernels.simd import multi_output

# Bytes of a rank that do not grow with the data: Python, numpy, numba, the kernels, h5py, MPI,
# read buffers.
PROGRAM = 180e6
PER_ROW = 24  # bytes of a row beside X: target, weight, number
PER_PARAMETER = 64  # bytes per parameter: vectors of the optimiser, accumulators, totals
LOOKED_AT = 1 << 16  # number of targets that are read to count the classes
OVERHEAD = 60e-6  # seconds of a step without any computation
NETWORK = (2e-6, 1e-10)  # seconds per message, and per byte: 10 GB/s


@dataclass(frozen=True)
class Plan:
    """The predicted numbers of a run.

    Parameters
    ----------
    rows, columns, ranks : int
        Size of the data and number of ranks.
    memory_bytes : float
        Memory of one rank.
    steps_per_epoch : int
        Optimiser steps in one epoch.
    step_seconds, epoch_seconds : float
        Duration of a step and of an epoch.
    epochs : int
        The most epochs.
    allreduce_bytes : int
        Bytes of the Allreduce of one step.
    communication_share : float
        Share of communication in a step's time.
    """

    rows: int
    columns: int
    ranks: int
    memory_bytes: float
    steps_per_epoch: int
    step_seconds: float
    epoch_seconds: float
    epochs: int
    allreduce_bytes: int
    communication_share: float


def plan(
    infos: list[Info],
    config: Config,
    ranks: int,
    network: tuple[float, float] | None = None,
    profile: Profile | None = None,
) -> Plan:
    """Predict a run on `ranks` ranks, with as many on each host as it has cores.

    Parameters
    ----------
    infos : list of Info
        Metadata of the files.
    config : Config
        Options of the run.
    ranks : int
        Number of ranks.
    network : tuple of 2 float or None
        Seconds per message and per byte; by default those of the profile.
    profile : Profile or None
        Numbers of a machine (throughput.py); by default this machine is measured.

    Raises
    ------
    UsageError
        If the run does not fit into the memory of a host.
    """
    requirements.check(config)
    n, d, known = sum(info.n for info in infos), infos[0].d, profile or {}
    alpha, beta = network or (known.get("alpha", NETWORK[0]), known.get("beta", NETWORK[1]))
    k = _outputs(infos, config)
    config = problem.complete(config, n, d, _shape(infos, config, k))
    dtype = kept_as(infos, config.dtype)
    row_bytes = _row_bytes(infos, dtype)
    steps = 1 if config.batch_size is None else -(-n // config.batch_size)
    here = min(ranks, cores_of(known))
    share = -(-n // ranks)
    # The thread that reads ahead has memory of its own.
    threads = 1 if config.max_memory is None else 2
    memory = _memory(share, row_bytes, k, d, config) + threads * max(info.reading for info in infos)
    if infos[0].layout != "dense" and k > 1:
        # Coefficients and sums of the outputs lie side by side, padded to whole vectors.
        memory += 16 * (multi_output.width(k) - k) * d
    _check_memory(memory * here, known.get("memory") or _available())
    words = 8 * (2 * k * d + 2 * (k + 1) + 16)
    talk = math.ceil(math.log2(ranks)) * (alpha + beta * words) if ranks > 1 else 0.0
    plain = infos[0].layout == "dense" and config.mode == "full" and k == 1 and dtype.itemsize > 2
    per_row = told_seconds(known, d, row_bytes, here) if plain else None
    if per_row is None:
        per_row = row_seconds(infos[0].layout, d, row_bytes, config, here, k)
    step = share / steps * per_row + OVERHEAD + talk
    return Plan(
        n, d, ranks, memory, steps, step, step * steps, config.epochs or 1, words, talk / step
    )


def _shape(infos: list[Info], config: Config, k: int) -> Shape:
    """Return the shape from which `auto` chooses, as far as the metadata determine it.

    Samples are assumed to be possible if there are enough rows.
    """
    n, p = sum(info.n for info in infos), infos[0].d + config.intercept
    entries = (
        None
        if infos[0].layout == "dense"
        else sum(info.nonzeros or 0 for info in infos) / max(1, n)
    )
    return Shape(n, p, k, entries, 0, sizes_for(n, p, 1.0))


def _outputs(infos: list[Info], config: Config) -> int:
    """Return the number of outputs: the classes of a softmax, 1 for other losses.

    Classes are counted from the encoding, or from the first targets.
    """
    if config.loss != "softmax":
        return 1
    if names := class_names(encoding_of(infos[0])):
        return len(names)
    with hdf5.open_read(infos[0].path, infos[0].links) as file:
        targets, _ = file_vectors.find(file, config.y).read(0, LOOKED_AT)
        return max(2, np.unique(targets).size)


def _memory(share: int, row_bytes: float, k: int, d: int, config: Config) -> float:
    """Return the bytes of a rank: the program, rows in memory, vectors of rows and parameters."""
    rows = share * row_bytes
    if config.max_memory is not None:
        rows = min(rows, size_of(config.max_memory))
    return PROGRAM + rows + share * (PER_ROW + 16 * (k - 1)) + PER_PARAMETER * k * d


def _row_bytes(infos: list[Info], dtype: np.dtype[Any]) -> float:
    size = dtype.itemsize
    if infos[0].layout == "dense":
        return float(infos[0].d * size)
    entries = sum(info.nonzeros or 0 for info in infos) / max(1, sum(info.n for info in infos))
    return entries * (4 + size) + 8


def _available() -> float:
    """Return the bytes of free memory of this machine, infinity if they are unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return (
                float(next(line for line in file if line.startswith("MemAvailable")).split()[1])
                * 1024
            )
    except (OSError, StopIteration):
        return math.inf


def _check_memory(needed: float, available: float) -> None:
    if needed > available:
        raise UsageError(
            f"the ranks of a host like this one would need {needed / 1e9:.1f} GB, and it has "
            f"{available / 1e9:.1f} GB: use more hosts, or fewer ranks on each"
        )


def text(predicted: Plan) -> str:
    """Return the plan as text for people."""
    p = predicted
    return "\n".join(
        (
            f"{p.rows:,} rows x {p.columns:,} columns on {p.ranks:,} rank(s)",
            f"  memory       {p.memory_bytes / 1e9:.2f} GB a rank",
            f"  steps        {p.steps_per_epoch:,} an epoch, at most "
            f"{p.steps_per_epoch * p.epochs:,}",
            f"  step         {p.step_seconds * 1e3:.3g} ms, {100 * p.communication_share:.1f} % "
            "of it communication",
            f"  epoch        {p.epoch_seconds:.3g} s; all {p.epochs:,} epochs "
            f"{p.epoch_seconds * p.epochs:.3g} s",
            f"  Allreduce    {p.allreduce_bytes:,} bytes a step",
        )
    )


def to_dict(predicted: Plan) -> dict[str, Any]:
    return asdict(predicted)


def plan_only(data: Sequence[str], config: Config, comm: Comm) -> int:
    """Print what a run would do, from the files' metadata and the options alone. Collective.

    Parameters
    ----------
    data : sequence of str
        Paths of the HDF5 files.
    config : Config
        Options of the run.
    comm : Comm
        Communicator of all ranks.

    Returns
    -------
    int
        The exit code.
    """
    requirements.check(config)
    infos = survey(data, problem.layout(config), comm)
    check_target(infos[0], config.loss, comm)
    kept_as(infos, config.dtype)  # refuses float16 for sparse data, as the run would
    n = sum(info.n for info in infos)
    k = np.ones(1, dtype=np.int64)
    with together(comm):
        if comm.rank == 0:
            k[0] = _outputs(infos, config)
    comm.bcast(k)
    config = problem.complete(config, n, infos[0].d, _shape(infos, config, int(k[0])))
    if comm.rank == 0:
        steps = (config.epochs or 1) * (
            1 if config.batch_size is None else -(-n // config.batch_size)
        )
        put(
            f"{n:,} rows x {infos[0].d:,} columns ({infos[0].layout}) in {len(infos)} file(s), "
            f"{comm.size} rank(s)"
        )
        put(
            f"up to {steps:,} steps; "
            + " ".join(f"{name}={value}" for name, value in options_of(config).items())
        )
    return 0
