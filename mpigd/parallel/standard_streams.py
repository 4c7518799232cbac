"""Writing to the standard streams, also if they are closed or have a limited encoding.

Output to a stream that was closed before the start is dropped without an error. A stream that is
open and cannot be written is an error.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from mpigd.errors import StorageError


def prepare() -> None:
    """Make the standard streams of this process writable. Only for mpigd's own commands.

    The descriptors 0, 1 and 2 are connected to the null device if they are closed. Otherwise the
    next file that is opened would get such a descriptor, and messages would be written into it.
    Characters that the encoding of a stream lacks are written as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            silence(number)
    sys.stdout, sys.stderr = _usable(sys.stdout, 1), _usable(sys.stderr, 2)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") in ("strict", "surrogateescape") and hasattr(
            stream, "reconfigure"
        ):
            stream.reconfigure(errors="backslashreplace")


def silence(*numbers: int) -> None:
    """Connect these descriptors to the null device.

    Otherwise Python would try to flush a failed stream again at its end, and fail again.
    """
    for number in numbers:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)


def _usable(stream: Any, number: int) -> TextIO:
    """Return the stream, or a new one if it is missing.

    Python sets a stream to None if its descriptor is closed at the start.
    """
    if stream is None or stream.closed:
        return open(number, "w", encoding="utf-8", closefd=False)
    return stream  # type: ignore[no-any-return]


def put(text: str) -> None:
    """Write one or more lines to stdout.

    Raises StorageError if that fails, and BrokenPipeError if the reader has closed the pipe.
    """
    try:
        print(text)
        finish()
    except OSError as error:
        _failed(error)


def finish() -> None:
    """Flush stdout and stderr. Raises the errors of `put`."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _failed(error)
    flush()


def _failed(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        raise error
    silence(1)
    if error.errno != errno.EBADF:
        raise StorageError(f"the standard output cannot be written: {error.strerror}") from error


def flush() -> None:
    """Flush stdout and stderr, and ignore errors."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def end() -> None:
    """Flush both streams, or drop their output if that fails. Only for mpigd's own commands.

    Python would otherwise flush them again at its end, and exit with code 120.
    """
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            silence(number)


def say(text: str) -> None:
    """Write `text` to stderr and flush it; do nothing if that fails."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()
