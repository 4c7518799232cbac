"""Bounds that exact sums carry from sweep to sweep: powers of two above all |residual| and all |loss|.

Every decision is a function of counts and maxima over all ranks' rows, so it is the same on all ranks and for any partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpigd.reduction.base import SMALLEST, NotFinite, power_above

Array = np.ndarray[Any, Any]


class Limits:
    """One limit for residuals, one for losses. `known`: that of the residuals is given and stays."""

    def __init__(self, residual: float | None, n: int) -> None:
        first = float(power_above(residual or 1.0))
        self.known, self._n = residual is not None, n
        self.values = np.array(
            [first, first]
        )  # of |r| and of |l|; replaced, never changed in place
        self._calm = [0.0, 0.0]  # rows seen since one was over a sixteenth of its limit

    def state(self) -> dict[str, Array]:
        return {"limits": self.values.copy(), "calm": np.array(self._calm)}

    def restore(self, state: dict[str, Array]) -> None:
        self.values, self._calm = state["limits"].copy(), [float(rows) for rows in state["calm"]]

    def rise(self, tops: Array) -> None:
        """Above the maxima (|r|, |l|) of all rows; NotFinite if the third number says that some are not finite."""
        if tops[2]:
            raise NotFinite()
        self.values = np.maximum(self.values, power_above(tops[:2]))
        self._calm = [0.0, 0.0]

    def measure_again(self, visible: Sequence[float]) -> bool:
        """After a wild trial step a limit may be so large that all terms vanish in its grid: then it begins anew.

        `visible`: how many |r|, |l| of a full sweep exceed a 4096th of their limit.
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
        """Once a data set's worth of rows has stayed below a sixteenth of a limit, that falls and its grid becomes finer."""
        calm = self._calm
        calm[0], calm[1] = 0.0 if large[0] else calm[0] + rows, 0.0 if large[1] else calm[1] + rows
        for i in (0, 1) if calm[0] >= self._n or calm[1] >= self._n else ():
            if calm[i] >= self._n and not (i == 0 and self.known):
                self.values = self.values.copy()
                self.values[i] = max(self.values[i] / 8, SMALLEST)
                calm[i] = 0.0
