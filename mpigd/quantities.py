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


def seconds_of(text: str) -> float:
    """Seconds of a time like 3600, 59:30, 12:00:00 or 1-12:00:00, as batch systems write it, or a UsageError."""
    days, dash, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    try:
        if len(parts) > 3 or (dash and len(parts) != 3):
            raise ValueError
        seconds = 0.0
        for part in parts:
            seconds = 60.0 * seconds + float(part)
        seconds += 86400.0 * float(days or 0)
        if not 0.0 < seconds < math.inf:
            raise ValueError
    except ValueError:
        raise UsageError(f"--max-time {text}: expected seconds, MM:SS, HH:MM:SS or DAYS-HH:MM:SS") from None
    return seconds
