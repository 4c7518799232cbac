"""What makes conjugate gradients on a Hessian few: its Cholesky factor; above some thousand columns its diagonal and L-BFGS."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, State
from mpigd.optim.change_of_basis import Basis
from mpigd.optim.lbfgs_memory import Pairs
from mpigd_kernels import linalg, vector

TINIEST = 1e-14  # of the largest diagonal element: less curvature than that is none


class Curved(Protocol):
    def hessian_diagonal(self) -> Array:
        """The diagonal of the Hessian (p,)."""


class Preconditioner:
    """M = U'U in k diagonal blocks: U (k, p / k, p / k) upper triangular; or of its diagonal, the roots U (p,).

    pairs: products of an earlier step's conjugate gradients, which improve a diagonal as they do L-BFGS; `learned` takes this
    step's (Morales and Nocedal, SIOPT 2000). basis: of the parameters that the factor is for. trusted: no
    curvature that is there is hidden by replaced pivots.
    """

    def __init__(
        self,
        U: Array,
        pairs: Pairs | None = None,
        dot: Dot = vector.dot,
        basis: Basis | None = None,
        trusted: bool = True,
    ) -> None:
        self.U, self.dot, self.basis, self.trusted = U, dot, basis, trusted
        self.pairs, self.learned = pairs or Pairs(), None if pairs is None else Pairs()

    def solve(self, g: Array) -> Array:
        """M^-1 g."""
        return (
            self.pairs.direction(-g, self._divide, self.dot)
            if self.pairs.moves
            else self._divide(g)
        )

    def learn(self, d: Array, Hd: Array) -> None:
        if self.learned is not None:
            self.learned.remember(d, Hd, self.dot)

    def _divide(self, g: Array) -> Array:
        if self.U.ndim == 1:
            return g / self.U / self.U
        y = g.copy() if self.basis is None else self.basis.inwards(g)
        for block, part in zip(self.U, y.reshape(self.U.shape[0], -1), strict=True):
            linalg.solve(block, part, part)
        return y if self.basis is None else self.basis.outwards(y)

    def named(self) -> State:
        """The factors, and the basis that they belong to, in a state."""
        doubt = {} if self.trusted else {"factor_in_doubt": np.ones(1)}
        return {"factor": self.U} | doubt | ({} if self.basis is None else self.basis.named())

    @staticmethod
    def of(state: State, size: int) -> Preconditioner:
        """What `named` has put into a state."""
        return Preconditioner(
            state["factor"], basis=Basis.of(state, size), trusted="factor_in_doubt" not in state
        )


def ridge(penalty: Penalty, size: int) -> Array:
    """The diagonal of the penalty's Hessian (size,)."""
    diagonal = np.zeros(size)
    penalty.add_curvature(np.ones(size), diagonal)
    return diagonal


def roots(oracle: Curved, penalty: Penalty) -> Array:
    """The roots of the Hessian's diagonal (p,) where the oracle looks, the penalty's included; 1 where there is no curvature."""
    diagonal = oracle.hessian_diagonal()
    diagonal += ridge(penalty, diagonal.size)
    return np.sqrt(np.where(diagonal > TINIEST * diagonal.max(initial=0.0), diagonal, 1.0))


def with_penalty(H: Array, penalty: Penalty, size: int) -> Array:
    """The Hessian, or its blocks, with the penalty's added in place."""
    for block, diagonal in zip(H, ridge(penalty, size).reshape(H.shape[0], -1), strict=True):
        block[np.diag_indices_from(block)] += diagonal
    return H


def factors(H: Array) -> Array:
    """The Cholesky factors of the blocks of a Hessian."""
    U = H.copy()
    for block in U:
        linalg.cholesky(block)
    return U
