"""Preconditioners for conjugate gradients on a Hessian.

They are a Cholesky factor of the (sampled) Hessian; above a few thousand columns, its diagonal,
improved by L-BFGS pairs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, State
from mpigd.optim.change_of_basis import Basis
from mpigd.optim.lbfgs_memory import Pairs
from mpigd_kernels import linalg, vector

TINIEST = 1e-14  # relative to the largest diagonal element: less curvature counts as none


class Curved(Protocol):
    def hessian_diagonal(self) -> Array:
        """Return the diagonal of the Hessian (p,)."""


class Preconditioner:
    """A symmetric matrix M that is close to a Hessian, and whose inverse is cheap.

    Parameters
    ----------
    U : array (k, p / k, p / k) or (p,) of float64
        Upper triangular factors of k diagonal blocks, M = U'U; or the square roots of a diagonal M.
    pairs : Pairs or None
        Products of an earlier step's conjugate gradients. They improve a diagonal as they improve
        L-BFGS, and `learned` collects those of this step.
    dot : Dot
        Inner product.
    basis : Basis or None
        Basis of the parameters in which M is factorised; None: the standard basis.
    trusted : bool
        Whether replaced pivots hide no curvature.

    References
    ----------
    Pairs of conjugate gradients: Morales and Nocedal, SIOPT 2000.
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
        """Return M^-1 g for a vector g (p,)."""
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
        """Return the factors, and the basis to which they belong, as arrays of a state."""
        doubt = {} if self.trusted else {"factor_in_doubt": np.ones(1)}
        return {"factor": self.U} | doubt | ({} if self.basis is None else self.basis.named())

    @staticmethod
    def of(state: State, size: int) -> Preconditioner:
        """Return the preconditioner that `named` has put into a state of `size` parameters."""
        return Preconditioner(
            state["factor"], basis=Basis.of(state, size), trusted="factor_in_doubt" not in state
        )


def ridge(penalty: Penalty, size: int) -> Array:
    """Return the diagonal of the penalty's Hessian (size,)."""
    diagonal = np.zeros(size)
    penalty.add_curvature(np.ones(size), diagonal)
    return diagonal


def roots(oracle: Curved, penalty: Penalty) -> Array:
    """Return the square roots of the Hessian's diagonal (p,), or 1 if there is no curvature.

    Parameters
    ----------
    oracle : Curved
        Gives the diagonal at the point set by `look_at`.
    penalty : Penalty
        Its curvature is included.
    """
    diagonal = oracle.hessian_diagonal()
    diagonal += ridge(penalty, diagonal.size)
    return np.sqrt(np.where(diagonal > TINIEST * diagonal.max(initial=0.0), diagonal, 1.0))


def with_penalty(H: Array, penalty: Penalty, size: int) -> Array:
    """Add the penalty's Hessian in place, and return the sum.

    Parameters
    ----------
    H : array (1, p, p) or (k, p / k, p / k) of float64
        Hessian, or its diagonal blocks.
    penalty : Penalty
        Penalty on the parameters.
    size : int
        Number of parameters p.
    """
    for block, diagonal in zip(H, ridge(penalty, size).reshape(H.shape[0], -1), strict=True):
        block[np.diag_indices_from(block)] += diagonal
    return H


def factors(H: Array) -> Array:
    """Return the Cholesky factors of the blocks of a Hessian (k, p / k, p / k)."""
    U = H.copy()
    for block in U:
        linalg.cholesky(block)
    return U
