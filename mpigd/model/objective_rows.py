"""This rank's rows as an objective needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mpigd.matrix.base import Matrix

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rows:
    """This rank's rows as the objective needs them.

    Parameters
    ----------
    X
        The matrix (m, d).
    y : (m,) float64
        Targets or class codes.
    c : (m,) float64
        Weights; may be one number broadcast. Kernels take contiguous copies of the rows they need.
    offset : (m,) float64 or None
        Added to the margins.
    """

    X: Matrix
    y: Array
    c: Array
    offset: Array | None

    @cached_property
    def targets(self) -> Array:
        """y as a sweep takes it: (1, m)."""
        return self.y[np.newaxis]

    @cached_property
    def weights(self) -> Array:
        """c as a sweep takes it: a number that is broadcast becomes an array of one element."""
        return self.c if self.c.strides[0] else self.c[:1].copy()
