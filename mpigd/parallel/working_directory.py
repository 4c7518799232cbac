"""Resolve relative paths against the working directory in which a command began.

A scratch folder may be removed under a running job, or the process may change its directory. Paths
are used, and shown in messages, as the user wrote them as long as the working directory is that of
the start; after that `located` makes them absolute.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mpigd.errors import UsageError

_lock = threading.Lock()
_begun = ""  # the working directory at the start of the outermost `settled`
_depth = 0


@contextmanager
def settled() -> Iterator[None]:
    """Resolve relative paths within the block against the current working directory.

    Raises UsageError if the working directory does not exist any more.
    """
    global _begun, _depth
    with _lock:
        if not _depth:
            _begun = _working_directory()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working directory cannot be used ({error.strerror}): cd to a folder that is there"
        ) from None


def located(path: str | os.PathLike[str]) -> str:
    """Return `path` unchanged, or absolute if the working directory is not that of the start."""
    text = os.fspath(path)
    if not _depth or os.path.isabs(text):
        return text
    try:
        moved = os.getcwd() != _begun
    except OSError:
        moved = True
    return os.path.join(_begun, text) if moved else text
