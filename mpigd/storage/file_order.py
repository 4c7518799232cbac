"""The order of a data set's files, and the check that no file is named twice."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from mpigd.errors import DataError

DIGITS = re.compile(r"(\d+)")


def natural(path: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key under which numbers inside names count as numbers.

    For example, part-2 comes before part-10. Folders are compared one by one. Names that differ in
    leading zeros alone are ordered by their text.
    """
    # Even positions are text and odd ones are numbers, so that text is never compared with a
    # number. A slash sorts before all else, so that a folder's files stand together.
    pieces = DIGITS.split(path.replace("/", "\0"))
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces)), path


def check_once(paths: Sequence[str]) -> None:
    """Raise DataError if two paths are one file.

    This happens with overlapping globs, another spelling, a symbolic link or a hard link.
    """
    seen: dict[object, str] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue  # the code that opens the file reports the reason
        same = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        if same in seen:
            twice = (
                "is named twice" if seen[same] == path else f"and {seen[same]} are the same file"
            )
            raise DataError(f"{path} {twice}: its rows would count double (--allow-duplicates)")
        seen[same] = path
