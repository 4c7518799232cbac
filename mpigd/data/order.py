"""The order of files that a pattern or a folder names."""

from __future__ import annotations

import re

DIGITS = re.compile(r"(\d+)")


def natural(path: str) -> tuple[tuple[str | int, ...], str]:
    """A sort key under which numbers inside names count as numbers: part-2 comes before part-10.

    Folders are compared one by one. Names that differ in leading zeros alone are ordered by their text.
    """
    # Even positions are text and odd ones are numbers, so that unlike things never meet; a slash
    # sorts before all else, so that a folder's files stand together.
    pieces = DIGITS.split(path.replace("/", "\0"))
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces)), path
