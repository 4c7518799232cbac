"""Several objectives at once: L-BFGS for every column of parameters, all of them evaluated in one pass over the data.

Each column has its own pairs, direction and step length. A sweep gives the columns' losses as one sum, so steps are judged by
slopes, which convex objectives allow. Along a path of ridge penalties the pairs go with it: y = H s gains the penalty's
change times s. The first guess of the inverse Hessian is a preconditioner that all columns share, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpigd.errors import NumericalError
from mpigd.optim.base import Array, Dot
from mpigd.optim.lbfgs_memory import Pairs

Evaluate = Callable[[Array], tuple[float, Array]]  # W (k, p) -> mean value, gradients (k, p)
STEPS = 500
UPHILL = 0.5  # of the slope at the beginning: a step that ends so steep was too long


def minimise(
    evaluate: Evaluate,
    W: Array,
    pairs: list[Pairs],
    solve: Callable[[Array], Array] | None,
    tol: float,
    dot: Dot,
) -> tuple[Array, bool]:
    """Parameters (k, p) whose model decrease g'Hg / 2 is at most tol times the mean value, and whether all came so far.

    A column that is there stays in the pass and does not move. `evaluate` has seen the result last. Collective.
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
        except NumericalError:  # raised on all ranks together: too far
            lengths[moving], fresh = 0.25 * lengths[moving], [q not in moving for q in range(k)]
            continue
        for q in moving:
            slope = dot(new[q], D[q])
            fresh[q] = slope <= -UPHILL * slopes[q]
            if fresh[q]:
                pairs[q].remember(there[q] - W[q], new[q] - G[q], dot)
                W[q], G[q] = there[q], new[q]
            else:  # where the secant of the slopes crosses zero
                lengths[q] *= min(0.7, max(0.1, -slopes[q] / (slope - slopes[q])))
    evaluate(W)
    return W, False
