"""Distributed training of linear and generalised linear models with MPI, HDF5 and numba.

    model = mpigd.train("flights.h5", loss="logistic", l2=1e-4)
    model.save("model.h5")
    mpigd.load("model.h5").predict(X)

A model has the same bits on any number of ranks and threads. Importing the package imports neither
MPI nor numba; the functions import them when they are called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# The launcher module stores the id of the process that imports it: a later fork is not a rank.
from mpigd.parallel import launcher as launcher
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
    """Fit a model. Under mpirun every rank calls this function and gets the same model.

    Parameters
    ----------
    data : path, sequence of paths, or tuple of arrays
        Paths of HDF5 files (globs are allowed), or the rows of this rank as ``(X, y)``,
        ``(X, y, sample_weight)`` or ``(X, y, sample_weight, offset)``. X is a numpy array or a
        scipy.sparse matrix of shape (m, d), y has shape (m,), and the others have shape (m,) or are
        None. The rows of all ranks are numbered in rank order.
    config : Config or None
        The configuration; None stands for the defaults, without progress reports.
    comm : mpi4py.MPI.Intracomm, mpigd.parallel.comm.Comm or None
        The ranks that train together; all of them must make the call. None stands for all ranks
        under a launcher, else for this process alone.
    **options
        Options of `mpigd train`, with underscores; they override `config`.

    Returns
    -------
    Model
        The fitted model, the same on all ranks.

    Raises
    ------
    mpigd.errors.MpigdError
        UsageError, DataError or another subclass, the same on all ranks.
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
    """Compare ridge penalties by cross-validation and train the model of the chosen one.

    The function does what the command `mpigd cv` does.

    Parameters
    ----------
    data, config, comm, **options
        As for `train`.
    l2 : str or sequence of float
        The penalties, as "LOW:HIGH:COUNT" on a logarithmic scale or as numbers.
    folds : int
        The number of parts of the rows, each held out once.
    choose : {"best", "one-se"}
        The penalty of the final model: the one with the best score, or the largest within one
        standard error of it.

    Returns
    -------
    CrossValidation
        The scores of all penalties (smaller is better) and the model.

    Raises
    ------
    mpigd.errors.MpigdError
        As `train` does.
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
    """Return rows or paths, configuration, communicator and progress.

    The kernel cache is prepared first, since that must happen before numba is imported.
    """
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
    """Read a model file. Raises mpigd.errors.DataError if it is damaged or not a model file."""
    from mpigd.scoring.fitted_model import load as read

    return read(os.fspath(path))


def import_data(sources: Paths, output: str | os.PathLike[str], **options: Any) -> Summary:
    """Convert CSV, Parquet or svmlight files to HDF5, as `mpigd import` does.

    Parameters
    ----------
    sources : path or sequence of paths
        The files to read as one data set, in this order.
    output : path
        The HDF5 file to write.
    **options
        The options of `mpigd.tables.importer.import_data`.

    Returns
    -------
    Summary
        Counts of rows and columns, and notes on the import.
    """
    from mpigd.tables.importer import import_data as run

    return run(_paths(sources), os.fspath(output), **options)
