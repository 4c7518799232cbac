"""Names of columns."""

from __future__ import annotations

from collections.abc import Sequence


def rename_duplicates(names: Sequence[str]) -> list[str]:
    """Names of which each occurs once: a, a, a become a, a.1, a.2, as pandas' read_csv names them."""
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
