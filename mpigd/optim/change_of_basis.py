"""A change of basis that replaces nearly dependent columns by their remainders.

The remainder of a column is what the columns before it do not explain of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpigd.optim.base import Array, State
from mpigd_kernels import vector


@dataclass(frozen=True)
class Basis:
    """A basis of the parameters.

    Parameters
    ----------
    index : array (m,) of int64
        Parameters that stand for other directions.
    vectors : array (m, p) of float64
        These directions.
    dependent : array (p,) of float64
        1 for columns without a remainder, else 0.
    """

    index: Array
    vectors: Array
    dependent: Array

    @staticmethod
    def none(p: int) -> Basis:
        return Basis(np.zeros(0, np.int64), np.zeros((0, p)), np.zeros(p))

    @staticmethod
    def of(state: State, p: int) -> Basis:
        """Return the basis in a state of p parameters, or the standard basis."""
        if "basis_index" not in state:
            return Basis.none(p)
        return Basis(
            state["basis_index"].astype(np.int64), state["basis_vectors"], state["basis_dependent"]
        )

    def named(self) -> State:
        if not (self.index.size or self.dependent.any()):
            return {}
        return {
            "basis_index": self.index.astype(np.float64),
            "basis_vectors": self.vectors,
            "basis_dependent": self.dependent,
        }

    def outwards(self, x: Array) -> Array:
        """Return the parameters (p,) for which x (p,) in this basis stands."""
        s = x.copy()
        s[self.index] = 0.0
        for j, v in zip(self.index, self.vectors, strict=True):
            vector.add_scaled(s, x[j], v)
        return s

    def inwards(self, g: Array) -> Array:
        """Return a gradient (p,) in this basis."""
        y = g.copy()
        y[self.index] = [vector.dot(v, g) for v in self.vectors]
        return y
