"""Numbers so large that sums over rows overflow, as those that stand for a missing value often are (1.8e308, 1e300)."""

from __future__ import annotations

import math

LARGEST = 2.0**500  # whose square can be added up for as many rows as are ever counted


def advice(value: float, what: str) -> str:
    """What to do about a value of a column, of the target or of the weights (`what`)."""
    return f"correct it if it stands for a missing value, or divide {what} by {power(value):g}"


def power(value: float) -> float:
    """The power of ten in whose unit the value is a number from 1 to 10."""
    return 10.0 ** math.floor(math.log10(abs(value)))
