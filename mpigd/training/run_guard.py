"""Guards for the length of a run: equal options, a locked checkpoint folder, a watchdog.

The lock keeps two jobs from saving in one folder. The watchdog ends a run that hangs.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from mpigd.config.schema import Config, to_dict
from mpigd.errors import DataError, LaunchError, MpigdError, StorageError, Unfinished
from mpigd.parallel import session
from mpigd.parallel.comm import Comm, together
from mpigd.parallel.kernel_cache import make_private
from mpigd.parallel.working_directory import located
from mpigd.training.checkpoint import CLAIM, found
from mpigd.version import __version__

OF_A_RANK = ("quiet", "log", "threads", "hang_timeout")  # options that may differ between ranks
# Seconds to wait for the claim of a job that is ending: its launcher may still be stopping it.
PATIENCE = 30.0


@contextmanager
def supervise(config: Config, comm: Comm, warn: Callable[[str], None]) -> Iterator[None]:
    """Check that the ranks agree, claim the checkpoint folder, and watch for hangs. Collective.

    Parameters
    ----------
    config : Config
        Options of the run.
    comm : Comm
        Communicator of all ranks of the run.
    warn : callable
        Shows a warning.
    """
    same_everywhere(config, comm)
    held: list[int] = []
    with together(comm):
        if comm.rank == 0 and config.checkpoint is not None:
            held = claim(
                config.checkpoint, warn, strict=config.on_save_error == "stop", epoch=comm.epoch
            )
    try:
        if comm.size > 1:  # a run on one rank may be the warm-up of another run
            tolerant = config.on_failure == "shrink"
            code = functools.partial(code_of_a_hang, config.checkpoint)
            session.watch(comm, config.hang_timeout, code, config.checkpoint, tolerant)
        yield
    finally:
        for handle in held:
            os.close(handle)


def code_of_a_hang(folder: str | None) -> int:
    """Return the exit code of a run that hangs.

    It is 75 ("run again") only if a checkpoint has been saved. Otherwise a run that never gets that
    far would be restarted for ever.
    """
    return Unfinished.code if folder is not None and found(folder) else MpigdError.code


def newest(config: Config) -> str:
    """Return the name of the latest checkpoint in the folder of a run, or "" if there is none."""
    with suppress(DataError):
        return (
            next((path.name for path in found(config.checkpoint)), "")
            if config.checkpoint is not None
            else ""
        )
    return ""


def save(write: Callable[[str], None], path: str, config: Config, before: str) -> None:
    """Write a trained model.

    Parameters
    ----------
    write : callable
        Writes the model to a path.
    path : str
        Where to write.
    config : Config
        Options of the run.
    before : str
        Name of the newest checkpoint when the run started.

    Raises
    ------
    Unfinished
        If the model cannot be written, but the run has saved a checkpoint newer than `before`: its
        work is not lost.
    StorageError
        If nothing newer has been saved. A job that gets no further than this must not be restarted
        again and again.
    """
    try:
        write(path)
    except StorageError as error:
        if newest(config) == before:
            raise
        raise Unfinished(
            f"{error}; the run is saved in {config.checkpoint}: run the same command again"
        ) from error


def same_everywhere(config: Config, comm: Comm, **more: object) -> None:
    """Raise LaunchError on all ranks unless all have the same versions and options. Collective.

    The message names one rank that differs.

    Parameters
    ----------
    config : Config
        Options of this rank; those of OF_A_RANK are not compared.
    comm : Comm
        Communicator of all ranks of the run.
    **more : object
        Further options to compare, which JSON can write.
    """
    versions = {name: metadata.version(name) for name in ("numpy", "numba")} | {
        "mpigd": __version__
    }
    options = {name: value for name, value in to_dict(config).items() if name not in OF_A_RANK}
    options |= more
    for what, mine in (("versions", versions), ("options", options)):
        digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()
        told = comm.allgather(np.frombuffer(digest, dtype=np.int64))
        others = np.flatnonzero(np.any(told != told[0], axis=1))
        if others.size:
            error = LaunchError(
                f"rank {others[0]} has other {what} of mpigd, numpy or numba than rank 0: start "
                "all ranks from one environment"
                if what == "versions"
                else f"rank {others[0]} was given other options than rank 0 (its command line, "
                "MPIGD_ variables or --config file)"
            )
            error.agreed = True
            raise error


def claim(
    folder: str,
    warn: Callable[[str], None],
    patience: float | None = None,
    strict: bool = True,
    epoch: int = 0,
) -> list[int]:
    """Make the folder if need be, and lock it for this process.

    The lock belongs to the operating system. It ends with the process, however that ends, so a job
    that crashed never blocks a restart.

    Parameters
    ----------
    folder : str
        Where checkpoints are saved.
    warn : callable
        Shows a warning.
    patience : float or None
        Seconds to wait for another job's lock; by default PATIENCE.
    strict : bool
        Raise if the folder cannot be used at all. Otherwise warn, since the run is worth more than
        its checkpoints.
    epoch : int
        `Comm.epoch`. Above 0 the existing claim is held by ranks of this job that are
        gone or suspended, and a new file replaces it.

    Returns
    -------
    list of int
        [file descriptor], or [] if the folder cannot be locked.

    Raises
    ------
    LaunchError
        If another job still holds the lock after `patience` seconds.
    StorageError
        If others may write to the folder; if `strict`, also if it cannot be used at all.
    """
    path, deadline = (
        Path(located(folder)),
        time.monotonic() + (PATIENCE if patience is None else patience),
    )
    try:
        if (why := make_private(path)) is not None:
            raise StorageError(f"--checkpoint {folder}: {why}")
        if epoch:
            (path / CLAIM).unlink(missing_ok=True)
        handle = os.open(path / CLAIM, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        failed = StorageError(f"--checkpoint {folder}: {error.strerror}")
        if strict:
            raise failed from error
        warn(f"{failed}; going on without checkpoints")
        return []
    return _lock(handle, folder, warn, deadline, epoch)


def _lock(
    handle: int, folder: str, warn: Callable[[str], None], deadline: float, epoch: int
) -> list[int]:
    """Take the lock and write its holder into the file; close the handle if that fails."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                warn(
                    f"{folder} is on a file system without locks: see to it that no other job "
                    "saves there"
                )
                os.close(handle)
                return []
            if time.monotonic() > deadline:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                os.close(handle)
                raise LaunchError(
                    f"--checkpoint {folder}: another job saves there ({holder}): end it, or use "
                    "another folder"
                ) from error
        time.sleep(0.2)
    with suppress(OSError):  # the disk may be full; the lock holds all the same
        os.ftruncate(handle, 0)
        since = f"since {time.strftime('%F %T')}, world {epoch}"
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, {since}\n".encode(), 0)
    return [handle]
