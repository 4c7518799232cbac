"""Quantities that options spell as texts."""

from __future__ import annotations

import math

from mpigd.errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_of(text: str) -> int:
    """Bytes of a size like 500MB or 1.5 GiB, or a UsageError."""
    number = text.strip().rstrip("abgikmtABGIKMT ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"--max-memory {text}: expected a size like 500MB or 2GB") from None


def limits_of(text: str) -> tuple[float, float]:
    """(low, high) of bounds like 0:1, -1:1, 0: or :2, or a UsageError."""
    low, colon, high = text.partition(":")
    try:
        limits = (float(low) if low.strip() else -math.inf), (float(high) if high.strip() else math.inf)
    except ValueError:
        limits = (math.nan, math.nan)
    if not colon or not limits[0] <= 0.0 <= limits[1] or limits[0] == limits[1]:
        raise UsageError(f"--bounds {text}: expected LOW:HIGH with LOW <= 0 <= HIGH, like 0:1, 0: or --bounds=-1:1")
    return limits
