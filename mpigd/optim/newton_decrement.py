"""The Newton decrement: an estimate of the distance to the optimum, in units of the objective."""

from __future__ import annotations

import math

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot
from mpigd.optim.change_of_basis import Basis
from mpigd.optim.cholesky import factorise
from mpigd.optim.conjugate_gradients import conjugate_gradients
from mpigd.optim.lbfgs_memory import Pairs
from mpigd.optim.newton_steps import SecondOrderOracle
from mpigd.optim.preconditioner import Preconditioner, roots, with_penalty

MAX_PRODUCTS = 30  # if more are needed, the Hessian of all rows is computed
RTOL = 0.1  # on the residual: the decrement is then accurate to about a hundredth
ROWS_PER_PARAMETER = 8  # rows per parameter of the sample whose Hessian preconditions


def newton_decrement(
    w: Array,
    g: Array,
    oracle: SecondOrderOracle,
    penalty: Penalty,
    dot: Dot,
    n: int,
    pairs: Pairs,
    dense: bool,
) -> float:
    """Return g'H^-1 g, with H the Hessian of objective plus smooth penalty at w. Collective.

    Half of it is what a quadratic has left to gain; all of it if losses fall off like exponentials
    (separated data). It is computed by conjugate gradients, preconditioned by the Hessian of a
    sample of the rows, or if not `dense` by the diagonal and the pairs of an L-BFGS. If these do
    not converge, the Hessian of all rows is used.

    Parameters
    ----------
    w : array (p,) of float64
        Parameters.
    g : array (p,) of float64
        Gradient of objective plus smooth penalty at w.
    oracle : SecondOrderOracle
        Objective without its penalty.
    penalty : Penalty
        Smooth penalty.
    dot : Dot
        Inner product.
    n : int
        Number of rows.
    pairs : Pairs
        Pairs of an L-BFGS.
    dense : bool
        Whether there is room for a Hessian.

    Returns
    -------
    float
        The decrement, infinite if it cannot be computed.

    References
    ----------
    Boyd and Vandenberghe, "Convex Optimization" (2004), section 9.5.1.
    """
    m = ROWS_PER_PARAMETER * w.size
    sampled = dense and 2 * m <= n
    if dense and not sampled:
        return _by_factor(w, g, oracle, penalty, dot)
    oracle.look_at(w)
    if sampled:
        M = _factorised(w, oracle.sample(m), penalty)
    else:
        M = Preconditioner(
            roots(oracle, penalty), Pairs(pairs.memory, pairs.moves, pairs.changes), dot
        )
    s, _, products = conjugate_gradients(g, M, oracle, penalty, dot, RTOL, MAX_PRODUCTS)
    if products < MAX_PRODUCTS:
        return -dot(g, s)
    return _by_factor(w, g, oracle, penalty, dot) if dense else math.inf


def _by_factor(w: Array, g: Array, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot) -> float:
    M = _factorised(w, oracle, penalty)
    return dot(g, M.solve(g)) if M.trusted else math.inf


def _factorised(w: Array, oracle: SecondOrderOracle, penalty: Penalty) -> Preconditioner:
    oracle.look_at(w)
    return factorise(
        with_penalty(oracle.hessian(), penalty, w.size), w, oracle, penalty, Basis.none(w.size)
    )
