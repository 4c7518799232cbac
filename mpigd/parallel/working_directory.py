"""Where relative paths lead: to the working directory that a command began in, even if that is removed, or left, meanwhile.

A scratch folder may be cleaned under a running job. Its paths are written as the user gave them, in messages too, as long as they
lead where they did at the start; after that they are absolute.
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
    """Within the block relative paths lead to where they lead now. UsageError if the working directory is gone already."""
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
    """`path` as it is, or absolute if the working directory is no more the one of the start."""
    text = os.fspath(path)
    if not _depth or os.path.isabs(text):
        return text
    try:
        moved = os.getcwd() != _begun
    except OSError:
        moved = True
    return os.path.join(_begun, text) if moved else text
