"""Preconditioned conjugate gradients on a Hessian, for Newton steps and the Newton decrement."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot
from mpigd.optim.preconditioner import Preconditioner
from mpigd_kernels import vector

# The most Hessian-vector products, unless the caller sets another limit.
MAX_PRODUCTS = 200


class Curved(Protocol):
    def hessian_vector(self, v: Array) -> Array:
        """Return the Hessian times v (p,)."""


def conjugate_gradients(
    g: Array,
    M: Preconditioner,
    oracle: Curved,
    penalty: Penalty,
    dot: Dot,
    rtol: float,
    most: int = MAX_PRODUCTS,
) -> tuple[Array, float, int]:
    """Return -H^-1 g, to a relative tolerance on the residual in the norm of M^-1. Collective.

    Parameters
    ----------
    g : array (p,) of float64
        Gradient.
    M : Preconditioner
        Approximates the Hessian.
    oracle : Curved
        Convex objective without its penalty, whose Hessian is H.
    penalty : Penalty
        Its curvature is added to H.
    dot : Dot
        Inner product.
    rtol : float
        Relative tolerance on the residual.
    most : int
        The most products.

    Returns
    -------
    tuple (array, float, int)
        The step (p,), the least eigenvalue of M^-1 H that was seen (a Ritz value), and the number
        of products.

    References
    ----------
    Nocedal and Wright, "Numerical Optimization" (2006), algorithm 5.3; the eigenvalues from the
    coefficients as in Golub and Van Loan, "Matrix Computations" (2013), section 11.3.
    """
    s, r = np.zeros_like(g), -g
    y = M.solve(r)
    d, ry = y, dot(r, y)
    first, products = ry, 0
    diagonal, off = list[float](), list[float]()
    share, before = 0.0, 1.0
    while products < most and ry > rtol * rtol * first and ry > 0.0:
        Hd = oracle.hessian_vector(d)
        penalty.add_curvature(d, Hd)
        M.learn(d, Hd)
        products += 1
        bend = dot(d, Hd)
        # Rounding leaves no curvature along d. If there is no other step, take that of the
        # preconditioner.
        if not bend > 0.0:
            s = s if products > 1 else d.copy()
            break
        alpha = ry / bend
        vector.add_scaled(s, alpha, d)
        vector.add_scaled(r, -alpha, Hd)
        del Hd  # frees memory, which counts with many columns
        diagonal.append(1.0 / alpha + (share / before if share else 0.0))
        y = M.solve(r)
        ry, last = dot(r, y), ry
        share, before = ry / last, alpha
        off.append(max(0.0, share) ** 0.5 / alpha)
        vector.add_scaled(y, share, d)
        d = y
    return s, _least_eigenvalue(diagonal, off[:-1]), products


def _least_eigenvalue(diagonal: list[float], off: list[float]) -> float:
    """Return the least eigenvalue of a symmetric tridiagonal matrix, or 1 if it is empty.

    It is found by bisection on the signs of the pivots.
    """
    if not diagonal:
        return 1.0
    low, high = 0.0, min(diagonal)
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _is_positive([a - middle for a in diagonal], off):
            low = middle
        else:
            high = middle
    return high


def _is_positive(diagonal: list[float], off: list[float]) -> bool:
    pivot = diagonal[0]
    for a, b in zip(diagonal[1:], off, strict=True):
        if not pivot > 0.0:
            return False
        pivot = a - b * b / pivot
    return pivot > 0.0
