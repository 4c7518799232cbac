"""Compile the kernels on one rank of each host before the other ranks need them.

The leader of a host trains on a few rows by itself, with the options of the run to come. After
that all kernels that the run will compile are in the cache, and the other ranks load them. N ranks
that compile at once would cost N times the work and race for the cache's files.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.reader import scrub
from mpigd.data.shard import Shard
from mpigd.errors import MpigdError, WorseError
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.matrix.half import Half, Narrowing
from mpigd.optim.predicted_costs import Shape
from mpigd.parallel import kernel_cache
from mpigd.parallel.affinity import leads_host
from mpigd.parallel.comm import Comm, SelfComm, together
from mpigd.training.callbacks.progress import Progress
from mpigd.training.requirements import automatic_optimizer
from mpigd_kernels import csr, half

# Options of the warm-up run that replace those of the run to come.
ALONE = dict(
    checkpoint=None,
    validation=(),
    patience=None,
    validate_every=None,
    start=None,
    log=None,
    threads=1,
    max_memory=None,
    max_time=None,
    on_failure="stop",
)

# Rows from which second-order optimisers can take samples, and steps within which they reach
# their Hessian-vector products.
MANY, STEPS = 400, 3

# What `auto` chooses depends on the number of rows. Newton's method with samples runs all kernels
# of these optimisers.
COMPILED_BY_NEWTON = ("newton", "newton-cholesky", "lbfgs-newton", "lbfgs")

Train = Callable[[Shard, Config, Comm, Progress], Any]


def rehearse(
    train: Train, config: Config, layout: str, dtype: str, offset: bool, comm: Comm
) -> None:
    """Compile, or load from the cache, what `train` with `config` needs. Collective.

    Parameters
    ----------
    train : Train
        The training function.
    config : Config
        Options of the run to come.
    layout : str
        "dense", or the layout of sparse rows.
    dtype : str
        Name of the type of the matrix in memory.
    offset : bool
        Whether the data have an offset.
    comm : Comm
        Communicator of all ranks of the run.
    """
    leads = leads_host(comm)
    with together(comm):
        if leads:
            try:
                _alone(train, config, layout, dtype, offset)
            except MpigdError:
                raise
            except Exception:  # a damaged cache file can raise anything: compile again
                for entry in kernel_cache.location().glob("*"):
                    shutil.rmtree(entry, ignore_errors=True)
                _alone(train, config, layout, dtype, offset)


def _alone(train: Train, config: Config, layout: str, dtype: str, offset: bool) -> None:
    full = config.mode == "full"
    n = MANY if full else 4
    y = np.tile([1.0, 2.0, 1.0, 2.0], n // 4)  # valid as labels, counts and positive numbers
    shard = Shard(
        n, np.arange(n), _rows(layout, dtype, n // 4), y, offset=np.zeros(n) if offset else None
    )
    short = config.replace(
        **ALONE,
        epochs=STEPS if full else 1,
        tol=0.0,
        class_weight=None,
        batch_size=None if full else 2,
    )
    if (
        full
        and config.optimizer == "auto"
        and automatic_optimizer(short, Shape(n, 3))[0] in COMPILED_BY_NEWTON
    ):
        short = short.replace(optimizer="newton")
    with contextlib.suppress(WorseError):  # the user's learning rate need not suit these rows
        train(shard, short, SelfComm(), Progress(io.StringIO(), quiet=True))


def _rows(layout: str, dtype: str, copies: int) -> Matrix:
    """Return `copies` times four rows of two columns, made by the kernels that loading uses."""
    values = np.array([[1.0, 0.5], [2.0, 0.5], [3.0, 1.0], [4.0, 1.0]] * copies, dtype)
    if dtype == "float16":
        half.all_finite(values.view(np.uint16))
        for kind in (np.float32, np.float64):
            Narrowing(values[0].astype(float), values[-1].astype(float), SelfComm()).narrow(
                values.astype(kind), np.empty(values.shape, np.uint16)
            )
        return Half(values.view(np.uint16), np.ones(2))
    for stored in {values.dtype, np.dtype("float64")}:  # the target is float64
        scrub(np.array([1.0, np.finfo(stored).tiny / 2], stored))
    if layout == "dense":
        return Dense(values)
    indptr, indices = (
        np.arange(0, 8 * copies + 1, 2, dtype=np.int64),
        np.array([0, 1] * 4 * copies, dtype=np.int32),
    )
    csr.sort_rows(indptr, indices, values.reshape(-1), 2)
    return CSR(indptr, indices, values.reshape(-1), 2)
