"""Rename columns whose names occur more than once."""

from __future__ import annotations

from collections.abc import Sequence


def rename_duplicates(names: Sequence[str]) -> list[str]:
    """Return unique names: a, a, a become a, a.1, a.2, as in read_csv of pandas."""
    taken, count, found = set(names), dict.fromkeys(names, 0), []
    for name in names:
        new = name
        if count[name]:
            while new in taken:
                new = f"{name}.{count[name]}"
                count[name] += 1
            taken.add(new)
        else:
            count[name] = 1
        found.append(new)
    return found
