"""What a Newton step would gain: a measure, in the objective's own unit, of how far the optimum is."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot
from mpigd.optim.conjugate import conjugate_gradients
from mpigd.optim.pairs import Pairs
from mpigd.optim.preconditioner import Preconditioner, factors, roots, with_penalty

MAX_PRODUCTS = 30  # before the Hessian itself is made
RTOL = 0.1  # of the residual: the decrement is then known to about a hundredth


class SecondOrderOracle(Protocol):
    def look_at(self, w: Array) -> None: ...

    def hessian_vector(self, v: Array) -> Array: ...

    def hessian_diagonal(self) -> Array: ...

    def hessian(self) -> Array: ...


def newton_decrement(
    w: Array, g: Array, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot, pairs: Pairs, factorise: bool
) -> float:
    """g'H^-1 g for the gradient g and the Hessian H of objective plus smooth penalty at w (p,).

    Half of it is what a quadratic has left to gain, all of it where losses fall off like exponentials (separated data).
    By conjugate gradients, preconditioned by the Hessian's diagonal and the pairs of an L-BFGS; where these do not
    settle, by the Hessian's Cholesky factor if `factorise`, else infinite. Boyd and Vandenberghe, "Convex
    Optimization" (2004), section 9.5.1. Collective.
    """
    oracle.look_at(w)
    M = Preconditioner(roots(oracle, penalty), Pairs(pairs.memory, pairs.moves, pairs.changes), dot)
    s, _, products = conjugate_gradients(g, M, oracle, penalty, dot, RTOL, MAX_PRODUCTS)
    if products < MAX_PRODUCTS:
        return -dot(g, s)
    if not factorise:
        return math.inf
    U = factors(with_penalty(oracle.hessian(), penalty, w.size))
    return dot(g, Preconditioner(np.asarray(U)).solve(g))
