"""What holds for the length of a run: ranks that agree, one job for a checkpoint folder, and a watch that ends what hangs."""

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
PATIENCE = 30.0  # seconds to wait for a dying job's claim: its launcher may still be ending it


@contextmanager
def supervise(config: Config, comm: Comm, warn: Callable[[str], None]) -> Iterator[None]:
    """Check that the ranks agree, claim the checkpoint folder, and watch for hangs. Collective."""
    same_everywhere(config, comm)
    held: list[int] = []
    with together(comm):
        if comm.rank == 0 and config.checkpoint is not None:
            held = claim(
                config.checkpoint, warn, strict=config.on_save_error == "stop", epoch=comm.epoch
            )
    try:
        if comm.size > 1:  # no rehearsal of a run
            tolerant = config.on_failure == "shrink"
            code = functools.partial(code_of_a_hang, config.checkpoint)
            session.watch(comm, config.hang_timeout, code, config.checkpoint, tolerant)
        yield
    finally:
        for handle in held:
            os.close(handle)


def code_of_a_hang(folder: str | None) -> int:
    """75, run me again, only where something has been saved: a run that never gets so far would be started for ever."""
    return Unfinished.code if folder is not None and found(folder) else MpigdError.code


def newest(config: Config) -> str:
    """The name of the last checkpoint in the folder of a run, "" if there is none."""
    with suppress(DataError):
        return (
            next((path.name for path in found(config.checkpoint)), "")
            if config.checkpoint is not None
            else ""
        )
    return ""


def save(write: Callable[[str], None], path: str, config: Config, before: str) -> None:
    """Write a trained model. StorageError; Unfinished where the run has saved more than `before`, the newest checkpoint at its
    start: then its work is not lost. A job that gets no further than this is not one to be started again and again.
    """
    try:
        write(path)
    except StorageError as error:
        if newest(config) == before:
            raise
        raise Unfinished(
            f"{error}; the run is saved in {config.checkpoint}: run the same command again"
        ) from error


def same_everywhere(config: Config, comm: Comm) -> None:
    """LaunchError on all ranks, naming one that differs, unless all run the same versions with the same options. Collective."""
    versions = {name: metadata.version(name) for name in ("numpy", "numba")} | {
        "mpigd": __version__
    }
    options = {name: value for name, value in to_dict(config).items() if name not in OF_A_RANK}
    for what, mine in (("versions", versions), ("options", options)):
        digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()
        told = comm.allgather(np.frombuffer(digest, dtype=np.int64))
        others = np.flatnonzero(np.any(told != told[0], axis=1))
        if others.size:
            error = LaunchError(
                f"rank {others[0]} has other {what} of mpigd, numpy or numba than rank 0: start all ranks from one environment"
                if what == "versions"
                else f"rank {others[0]} was given other options than rank 0 (its command line, MPIGD_ variables or --config file)"
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
    """Make the folder if need be, and lock it for this process: [file descriptor], or [] where that cannot be.

    The lock is the kernel's: it ends with the process, however that ends, so a dead job never blocks a restart. Raises
    LaunchError if another job still holds it after `patience` seconds (default: PATIENCE), StorageError if others may write to
    the folder. One that cannot be used at all is one too if `strict`, else a warning: the run is worth more than its checkpoint.
    epoch: above 0 the claim is that of ranks of this job that are gone or only stand still: a new file takes its place.
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
    """Take the lock, and say in the file who has it; closes the handle if that fails."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                warn(
                    f"{folder} is on a file system without locks: see to it that no other job saves there"
                )
                os.close(handle)
                return []
            if time.monotonic() > deadline:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                os.close(handle)
                raise LaunchError(
                    f"--checkpoint {folder}: another job saves there ({holder}): end it, or use another folder"
                ) from error
        time.sleep(0.2)
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        since = f"since {time.strftime('%F %T')}, world {epoch}"
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, {since}\n".encode(), 0)
    return [handle]
