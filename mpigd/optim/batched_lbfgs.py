"""L-BFGS for several objectives at once, all evaluated in one pass over the data.

The parameters of each objective are a row of W (k, p), called a column in the code of its caller.
Each has its own pairs, direction and step length. A pass gives the losses of all objectives as one
sum, so steps are judged by slopes, which convex objectives allow. Along a path of ridge penalties
the pairs are kept: y = H s gains the change of the penalty times s. The initial inverse Hessian is
a preconditioner that all objectives share, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpigd.errors import NumericalError
from mpigd.optim.base import Array, Dot
from mpigd.optim.lbfgs_memory import Pairs

Evaluate = Callable[[Array], tuple[float, Array]]  # W (k, p) -> mean value, gradients (k, p)
# The most passes over the data.
STEPS = 500
UPHILL = 0.5  # relative to the slope at the start: a step that ends steeper uphill was too long


def minimise(
    evaluate: Evaluate,
    W: Array,
    pairs: list[Pairs],
    solve: Callable[[Array], Array] | None,
    tol: float,
    dot: Dot,
) -> tuple[Array, bool]:
    """Minimise k objectives. Collective.

    An objective that is near its minimum stays in the pass, and its parameters do not move. The
    last call of `evaluate` is at the result.

    Parameters
    ----------
    evaluate : Evaluate
        Returns the mean value of the objectives and their gradients (k, p) at W (k, p).
    W : array (k, p) of float64
        Initial parameters, changed in place.
    pairs : list of Pairs
        L-BFGS pairs of each objective, changed in place.
    solve : callable or None
        Applies the initial inverse Hessian to a vector (p,); None: a multiple of the identity.
    tol : float
        Tolerance on the decrease g'Hg / 2 that the model of each objective predicts, relative to
        the mean value.
    dot : Dot
        Inner product.

    Returns
    -------
    tuple (array, bool)
        The parameters (k, p), and whether all objectives reached the tolerance.
    """
    k = W.shape[0]
    value, G = evaluate(W)
    lengths, D = np.ones(k), np.zeros_like(W)
    fresh = [True] * k
    for _ in range(STEPS):
        for q in (q for q in range(k) if fresh[q]):
            D[q] = pairs[q].direction(G[q], solve, dot)
            lengths[q] = 1.0 if pairs[q].moves or solve else 1.0 / max(1.0, dot(G[q], G[q]) ** 0.5)
        slopes = [dot(G[q], D[q]) for q in range(k)]
        moving = [q for q in range(k) if -0.5 * slopes[q] > tol * abs(value)]
        if not moving and all(fresh[q] for q in range(k)):
            return W, True
        there = W.copy()
        for q in moving:
            there[q] += lengths[q] * D[q]
        try:
            value, new = evaluate(there)
        except NumericalError:  # all ranks raise it together: the step is too long
            lengths[moving], fresh = 0.25 * lengths[moving], [q not in moving for q in range(k)]
            continue
        for q in moving:
            slope = dot(new[q], D[q])
            fresh[q] = slope <= -UPHILL * slopes[q]
            if fresh[q]:
                pairs[q].remember(there[q] - W[q], new[q] - G[q], dot)
                W[q], G[q] = there[q], new[q]
            else:  # to where the secant of the slopes crosses zero
                lengths[q] *= min(0.7, max(0.1, -slopes[q] / (slope - slopes[q])))
    evaluate(W)
    return W, False
