"""Bounds on residuals and losses that exact sums carry from sweep to sweep.

They are powers of two above all |residual| and all |loss|. Every decision is a function of counts
and maxima over all ranks' rows. It is therefore the same on all ranks and for any partition of the
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpigd.reduction.base import SMALLEST, NotFinite, power_above

Array = np.ndarray[Any, Any]


class Limits:
    """The bound on residuals and the bound on losses.

    Parameters
    ----------
    residual
        The bound on residuals if it is known beforehand; it then never changes. Else None.
    n
        The number of rows over all ranks.
    """

    def __init__(self, residual: float | None, n: int) -> None:
        first = float(power_above(residual or 1.0))
        self.known, self._n = residual is not None, n
        # Bounds on |r| and |l|. The array is replaced, never changed in place.
        self.values = np.array([first, first])
        # Rows visited since a row exceeded a sixteenth of the bound, for both bounds.
        self._calm = [0.0, 0.0]

    def state(self) -> dict[str, Array]:
        return {"limits": self.values.copy(), "calm": np.array(self._calm)}

    def restore(self, state: dict[str, Array]) -> None:
        self.values, self._calm = state["limits"].copy(), [float(rows) for rows in state["calm"]]

    def rise(self, tops: Array) -> None:
        """Raise the bounds above the maxima of |r| and |l| over all rows.

        Parameters
        ----------
        tops : (3,) float64
            The maxima, and the number of values that are not finite.

        Raises
        ------
        NotFinite
            If a value is not finite.
        """
        if tops[2]:
            raise NotFinite()
        self.values = np.maximum(self.values, power_above(tops[:2]))
        self._calm = [0.0, 0.0]

    def measure_again(self, visible: Sequence[float]) -> bool:
        """Reset bounds that are far too large, and return whether the sweep must be repeated.

        A diverging trial step can raise a bound so far that every term rounds to zero in its grid.
        The bound is then reset.

        visible: how many |r| and how many |l| of a full sweep exceed 1/4096 of their bound.
        """
        lost = [
            i
            for i in (0, 1)
            if not visible[i] and self.values[i] > SMALLEST and not (i == 0 and self.known)
        ]
        if lost:
            self.values = self.values.copy()
            self.values[lost] = SMALLEST
        return bool(lost)

    def fall(self, large: Sequence[float], rows: float) -> None:
        """Lower a bound after n rows in sequence have stayed below a sixteenth of it.

        The grid becomes finer with the bound.

        Parameters
        ----------
        large
            How many |r| and how many |l| of this sweep exceed a sixteenth of their bound.
        rows
            How many rows this sweep visited over all ranks.
        """
        calm = self._calm
        calm[0], calm[1] = 0.0 if large[0] else calm[0] + rows, 0.0 if large[1] else calm[1] + rows
        for i in (0, 1) if calm[0] >= self._n or calm[1] >= self._n else ():
            if calm[i] >= self._n and not (i == 0 and self.known):
                self.values = self.values.copy()
                self.values[i] = max(self.values[i] / 8, SMALLEST)
                calm[i] = 0.0
