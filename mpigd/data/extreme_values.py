"""Values so large that sums over rows overflow.

They often stand for missing values (1.8e308, 1e300).
"""

from __future__ import annotations

import math

# The squares of smaller numbers can be added up over as many rows as can be counted.
LARGEST = 2.0**500


def advice(value: float, what: str) -> str:
    """Return what to do about a value that is too large.

    Parameters
    ----------
    value : float
        A value of a column, of the target or of the weights.
    what : str
        What to divide: the column, the target or the weights.
    """
    return f"correct it if it stands for a missing value, or divide {what} by {power(value):g}"


def power(value: float) -> float:
    """Return the power of ten that divides the value into a number from 1 to 10."""
    return 10.0 ** math.floor(math.log10(abs(value)))
