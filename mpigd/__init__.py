"""mpigd: distributed training of linear and generalised linear models. MPI, HDF5, numba; the same bits anywhere.

    model = mpigd.train("flights.h5", loss="logistic", l2=1e-4)
    model.save("model.h5"); mpigd.load("model.h5").predict(X)

Importing the package imports neither MPI nor numba: each function does when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpigd.parallel import (
    launcher as launcher,  # it remembers which process this is: a fork is no rank
)
from mpigd.version import __version__

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from mpigd.config.schema import Config
    from mpigd.parallel.comm import Comm
    from mpigd.scoring.fitted_model import Model
    from mpigd.tables.importer import Summary
    from mpigd.training.cross_validation import CrossValidation

    AnyComm = Comm | Intracomm
    Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

__all__ = ["__version__", "cv", "import_data", "load", "train"]


def train(
    data: Paths | tuple[Any, ...],
    config: Config | None = None,
    *,
    comm: AnyComm | None = None,
    **options: Any,
) -> Model:
    """Fit a model; under mpirun every rank calls this and gets the same one.

    data: paths of HDF5 files (globs allowed), or this rank's own rows as (X, y), (X, y, sample_weight) or
    (X, y, sample_weight, offset): X (m, d) numpy or scipy.sparse, y (m,), the others (m,) or None. Ranks' rows are
    numbered in rank order. options: those of `mpigd train`, with underscores; they change `config`.
    comm: a communicator of mpi4py, all of whose ranks make the call, or a mpigd.parallel.comm.Comm; default: all ranks under a
    launcher, else this process alone.

    Raises mpigd.errors.MpigdError (UsageError, DataError, ...), the same on all ranks.
    """
    rows, settings, ours, progress = _prepared("mpigd.train", data, config, comm, options)
    from mpigd.training.trainer import train as run

    return run(rows, settings, ours, progress)


def cv(
    data: Paths | tuple[Any, ...],
    l2: str | Sequence[float] = "1e-6:1e2:20",
    folds: int = 5,
    choose: str = "best",
    config: Config | None = None,
    *,
    comm: AnyComm | None = None,
    **options: Any,
) -> CrossValidation:
    """Compare ridge penalties by cross-validation and train the chosen one on all rows, as `mpigd cv` does.

    data, config, comm, options: as for `train`. l2: LOW:HIGH:COUNT, or penalties. choose: "best", or "one-se" for the largest
    penalty within a standard error of it. Returns scores, smaller is better, and the model.
    """
    rows, settings, ours, progress = _prepared("mpigd.cv", data, config, comm, options)
    from mpigd.training.cross_validation import cross_validate, penalties_of

    penalties = penalties_of(
        l2 if isinstance(l2, str) else ",".join(repr(float(value)) for value in l2)
    )
    return cross_validate(rows, settings, penalties, folds, choose, ours, progress)


def _prepared(
    what: str, data: Any, config: Config | None, comm: Any, options: dict[str, Any]
) -> tuple[Any, Config, Comm, Any]:
    """Rows or paths, configuration, communicator and progress, with the kernels' cache in place before numba is imported."""
    import sys

    from mpigd.config.schema import from_mapping
    from mpigd.parallel import kernel_cache
    from mpigd.parallel.session import enter

    kernel_cache.prepare()
    from mpigd.data.in_memory import shard_of
    from mpigd.training.callbacks.progress import Progress

    settings = from_mapping({"quiet": True} | options if config is None else options, config)
    arrays = isinstance(data, tuple) and not all(
        isinstance(path, str | os.PathLike) for path in data
    )
    ours = enter(comm, what, settings.hang_timeout)
    rows = (
        shard_of(data, settings.dtype, ours) if isinstance(data, tuple) and arrays else _paths(data)
    )
    return rows, settings, ours, Progress(sys.stderr, quiet=settings.quiet or ours.rank > 0)


def _paths(data: Any) -> list[str]:
    from mpigd.errors import UsageError

    try:
        return [
            os.fspath(path) for path in ([data] if isinstance(data, str | os.PathLike) else data)
        ]
    except TypeError:
        raise UsageError("data are paths, or a tuple of this rank's arrays: (X, y)") from None


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file. Raises mpigd.errors.DataError if it is none, or damaged."""
    from mpigd.scoring.fitted_model import load as read

    return read(os.fspath(path))


def import_data(sources: Paths, output: str | os.PathLike[str], **options: Any) -> Summary:
    """Turn CSV, Parquet or svmlight files into HDF5, as `mpigd import` does; see mpigd.tables.importer.import_data."""
    from mpigd.tables.importer import import_data as run

    return run(_paths(sources), os.fspath(output), **options)
