"""Limits of the system: descriptors of open files, and memory.

Reaching them is no fault of the input.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mpigd.errors import LimitError

# Descriptors that MPI, logs, checkpoints and HDF5's checks of a file may need besides.
SPARE = 24
PLENTY = 1 << 16  # descriptors to which a soft limit is raised, if the hard limit allows it
# HDF5 reports a lack of memory in the text of an error of any type.
_MEMORY = re.compile(
    r"memory allocation failed|can't allocate|unable to allocate|cannot allocate memory"
    r"|out of memory",
    re.I,
)


def open_descriptors() -> int:
    """Return the number of descriptors that this process has open."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # another system, or no descriptor is left
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return sum(_is_open(number) for number in range(min(soft, 1 << 12)))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def reserve(files: int, place: str) -> None:
    """Make room for `files` more open files.

    Parameters
    ----------
    files : int
        The number of files.
    place : str
        What needs them, for the message.

    Raises
    ------
    LimitError
        If the system does not allow that many.
    """
    if afford(files) < files:
        needed, allowed = (
            open_descriptors() + files + SPARE,
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
        raise LimitError(
            f"{place} needs {needed:,} open files at once, and the system allows this process "
            f"{allowed:,} (ulimit -n)"
        )


def afford(files: int) -> int:
    """Return how many of `files` more files can be open at once.

    The soft limit of the process is raised as far as needed and possible.
    """
    used = open_descriptors() + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or used + files <= soft:
        return files
    wanted = max(PLENTY, used + files)
    highest = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if highest > soft:
        with suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            soft = highest
    return max(0, min(files, soft - used))


def check_descriptor(place: str) -> None:
    """Raise LimitError unless another file can be opened now.

    HDF5 would read zeros from a source of a virtual dataset that it cannot open.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise LimitError(f"{place} cannot be read: {error.strerror} (ulimit -n)") from error


def told(error: BaseException) -> str:
    """Return what the system lacked, if that is why an operation failed; else an empty text."""
    if isinstance(error, MemoryError):
        return " ".join(str(error).split()) or "memory allocation failed"
    code = error.errno if isinstance(error, OSError) else None
    text = " ".join(map(str, error.args))
    if code in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return f"{os.strerror(code or errno.EMFILE)} (ulimit -n)"
    if code == errno.ENOMEM or _MEMORY.search(text):
        return "memory allocation failed"
    return ""


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors from a lack of resources in the body into a LimitError that names the file."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise_if_lacking(path, error)
        raise


def raise_if_lacking(path: str | os.PathLike[str], error: BaseException) -> None:
    """Raise LimitError, naming the file, if the limits of the system caused an error."""
    if not (why := told(error)):
        return
    if "ulimit" in why:
        raise LimitError(f"{path}: cannot be opened: {why}") from error
    raise LimitError(
        f"{path}: not enough memory to read it: {why} (use fewer ranks on a host, or more hosts)"
    ) from error
