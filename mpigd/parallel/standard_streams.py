"""The standard streams: closed ones are opened on nothing, and every text is one that they can take.

What nobody can read, since a stream was closed, is not said, and is no error. A stream that exists and fails is one.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from mpigd.errors import StorageError


def prepare() -> None:
    """Make the streams of this process ones that can be written to. For a program of our own only.

    Descriptors 0, 1 and 2 must not stay free: the next file opened would be one of them, and be written to by whoever has
    something to say. Letters that the encoding of a stream lacks are written with escapes.
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
    """Let these descriptors lead nowhere: Python would try, and fail, once more as it ends."""
    for number in numbers:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)


def _usable(stream: Any, number: int) -> TextIO:
    """The stream. A new one where there is none: Python has None for a descriptor that is closed when it starts."""
    if stream is None or stream.closed:
        return open(number, "w", encoding="utf-8", closefd=False)
    return stream  # type: ignore[no-any-return]


def put(text: str) -> None:
    """Write a line, or lines, to stdout. StorageError if that fails; BrokenPipeError if the reader has left."""
    try:
        print(text)
        finish()
    except OSError as error:
        _failed(error)


def finish() -> None:
    """Pass on what has been said. Errors as in `put`."""
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
    """Pass on what is written so far, unless nobody reads it any more."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def end() -> None:
    """Pass on the rest, or forget it: Python would try again at its end, and exit with 120. For a program of our own."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            silence(number)


def say(text: str) -> None:
    """Write to stderr, at once; nothing where that cannot be."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()
