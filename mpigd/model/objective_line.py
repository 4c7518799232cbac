"""The mean loss along a line of parameters.

Linear predictors are linear in the parameters, so no row of X is read again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.parallel.comm import Comm
from mpigd.reduction.base import NotFinite, total

if TYPE_CHECKING:
    from mpigd.model.objective import Objective

Array = np.ndarray[Any, Any]
SLAB = 1 << 14  # rows whose losses are computed at once: their numbers stay in the cache


class LossLine:
    """The mean loss between linear predictors `here` and `there` (k, n) of this rank's rows.

    Sums over rows are multiplied by `factor`.
    """

    def __init__(
        self, objective: Objective, here: Array, there: Array, factor: float, comm: Comm
    ) -> None:
        self._objective, self._here, self._there = objective, here, there
        self._factor, self._comm = factor, comm
        self._parts = np.empty((here.shape[1], 2))

    def at(self, t: float) -> tuple[float, float]:
        """Return the mean loss and its derivative by t at here + t (there - here). Collective.

        Both are infinite if a loss or derivative is not finite.
        """
        n = self._parts.shape[0]
        for start in range(0, n, SLAB):
            self._fill(t, slice(start, min(n, start + SLAB)))
        try:
            value, slope = total(self._parts, self._comm)
        except NotFinite:  # all ranks raise it together
            return math.inf, math.inf
        return float(value) * self._factor, float(slope) * self._factor

    def _fill(self, t: float, part: slice) -> None:
        of, loss = self._objective.rows, self._objective.loss
        with np.errstate(over="ignore", invalid="ignore"):
            change = self._there[:, part] - self._here[:, part]
            z = self._here[:, part] + t * change
            r, l = np.empty_like(z), np.empty(z.shape[1])
            loss.kernel(
                z, of.y[part], np.ascontiguousarray(of.c[part]), self._objective.parameter, r, l
            )
            slope = r[0] * change[0]
            for q in range(1, z.shape[0]):  # not numpy's sum: outputs are added in a fixed order
                slope += r[q] * change[q]
        self._parts[part, 0], self._parts[part, 1] = l, slope
