"""Parsers of quantities that options spell as text, and the formatting of numbers for people.

The quantities are sizes in bytes, bounds, times and class weights.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from mpigd.errors import UsageError

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def readable(value: float) -> str:
    """Format a number for people: integers with thousands separators, others with six digits."""
    if math.isfinite(value) and float(value).is_integer() and abs(value) < 2.0**53:
        return f"{int(value):,}"
    return f"{value:.6g}" if not 1e6 <= abs(value) < 1e15 else f"{value:,.1f}"


def size_of(text: str) -> int:
    """Return the number of bytes of a size like 500MB or 1.5 GiB. Raises UsageError."""
    number = text.strip().rstrip("abgikmtABGIKMT ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"--max-memory {text}: expected a size like 500MB or 2GB") from None


def limits_of(text: str) -> tuple[float, float]:
    """Return (low, high) for bounds like 0:1, -1:1, 0: or :2. Raises UsageError.

    An empty side is infinite.
    """
    low, colon, high = text.partition(":")
    try:
        limits = (
            (float(low) if low.strip() else -math.inf),
            (float(high) if high.strip() else math.inf),
        )
    except ValueError:
        limits = (math.nan, math.nan)
    if not colon or not limits[0] <= 0.0 <= limits[1] or limits[0] == limits[1]:
        raise UsageError(
            f"--bounds {text}: expected LOW:HIGH with LOW <= 0 <= HIGH, "
            "like 0:1, 0: or --bounds=-1:1"
        )
    return limits


def seconds_of(text: str) -> float:
    """Return the seconds of a time as batch systems write it. Raises UsageError.

    Examples are 3600, 59:30, 12:00:00 and 1-12:00:00.
    """
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
        raise UsageError(
            f"--max-time {text}: expected seconds, MM:SS, HH:MM:SS or DAYS-HH:MM:SS"
        ) from None
    return seconds


# One LABEL=WEIGHT of --class-weight: a label in double quotes, or a label without commas.
PART = re.compile(r'\s*"(?P<quoted>(?:[^"]|"")*)"\s*=(?P<number>[^,]*)|(?P<plain>[^,]*)', re.DOTALL)


class ClassWeight(NamedTuple):
    """One LABEL=WEIGHT of --class-weight.

    Attributes
    ----------
    label : str
        The label without quotation marks.
    spelled : str
        The label as it was written.
    value : float
        The weight, finite and at least 0.
    """

    label: str
    spelled: str
    value: float


def class_weights_of(text: str) -> list[ClassWeight]:
    """Parse LABEL=WEIGHT,... of --class-weight.

    A label with a comma is written in double quotes, and a double quote within it is doubled, as in
    CSV. A label without quotes ends at the last equals sign of its part. Raises UsageError with a
    text that shows how to write the weights.
    """
    found: list[ClassWeight] = []
    at = 0
    while at <= len(text):
        part = PART.match(text, at)
        assert part is not None  # the second alternative matches everything
        label, equals, number = part[0].rpartition("=")
        label = spelled = label.strip()
        if part["quoted"] is not None:
            label, number = part["quoted"].replace('""', '"'), part["number"]
        elif not equals:
            raise UsageError(
                f"--class-weight {text}: expected balanced, or LABEL=WEIGHT,...{_requoted(text)}"
            )
        found.append(ClassWeight(label, spelled, _class_weight(text, number)))
        at = part.end() + 1
    return found


def _class_weight(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        raise UsageError(f"--class-weight {text}: {number.strip()!r} is not a number") from None
    if not 0.0 <= value < math.inf:
        raise UsageError(f"--class-weight {text}: weights are finite and at least 0")
    return value


def _requoted(text: str) -> str:
    """Return a hint if commas within labels were read as the ends of parts, else an empty text."""
    if text == "balanced":
        return ""
    pieces, waiting = [], ""
    for part in text.split(","):
        waiting += part
        if "=" in part:
            label, _, number = waiting.rpartition("=")
            pieces.append(f"{quoted_label(label.strip())}={number}")
            waiting = ""
        else:
            waiting += ","
    if waiting or not pieces:
        return ""
    return (
        "; a label with a comma stands in double quotes: "
        f"--class-weight {shlex.quote(','.join(pieces))}"
    )


def quoted_label(label: str) -> str:
    """Return the label as --class-weight accepts it: in double quotes if it needs them."""
    plain = label and label == label.strip() and not any(mark in label for mark in ',"=\n\r')
    return label if plain else '"' + label.replace('"', '""') + '"'


def class_weights_text(weights: Mapping[Any, Any]) -> str:
    """Return the text for --class-weight of a mapping from labels to weights.

    Python and TOML may give the weights as such a mapping. Raises UsageError if it is empty or a
    weight is not a number.
    """
    parts = []
    for label, value in weights.items():
        if isinstance(value, bool | str):
            raise UsageError(f"class weight of {label!r} is {value!r}: expected a number")
        try:
            parts.append(f"{quoted_label(str(label))}={float(value)!r}")
        except (TypeError, ValueError):
            raise UsageError(f"class weight of {label!r} is {value!r}: expected a number") from None
    if not parts:
        raise UsageError(
            "class weights: an empty mapping names no class: leave it out, or say balanced"
        )
    return ",".join(parts)
