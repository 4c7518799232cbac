"""The order of a data set's files, and whether one of them is named twice."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from mpigd.errors import DataError

_DIGITS = re.compile(r"([0-9]+)")


def natural(path: str) -> tuple[list[str | int], str]:
    """The sort key of a path in natural order: digits count as numbers, so that part-2 comes before part-10.

    Names that differ in leading zeros alone keep the order of their characters.
    """
    parts = _DIGITS.split(path)  # texts and digits take turns, so that like is compared with like
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path


def check_once(paths: Sequence[str]) -> None:
    """DataError if two paths are one file: overlapping globs, another spelling, a symbolic or a hard link."""
    seen: dict[object, str] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue  # whoever opens it says why that is impossible
        same = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        if same in seen:
            twice = "is named twice" if seen[same] == path else f"and {seen[same]} are the same file"
            raise DataError(f"{path} {twice}: its rows would count double (--allow-duplicates)")
        seen[same] = path
