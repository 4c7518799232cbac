"""Coordinate descent on a quadratic model with L1 terms and bounds, in a fixed order, no BLAS."""

from math import sqrt

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import fma

# Curvature below this part of the largest diagonal element is replaced by it.
FLAT = 1e-12


@compiled
def sweep_coordinates(H, l1, low, high, u, s, everything):
    """Do one cyclic pass of coordinate descent on a quadratic model.

    The model is s . (u - u0) + (u - u0) H (u - u0) / 2 + sum l1 |u|, within the bounds.

    Parameters
    ----------
    H : (p, p) float64
        The Hessian, symmetric.
    l1 : (p,) float64
        L1 penalties.
    low, high : (p,) float64
        Bounds.
    u : (p,) float64
        The point; updated.
    s : (p,) float64
        The gradient of the smooth part at u; updated.
    everything : bool
        Whether to visit coordinates that are zero and have an L1 penalty too.

    Returns
    -------
    float
        The largest move times the root of its curvature.

    References
    ----------
    Friedman, Hastie, Tibshirani, "Regularization paths for generalized linear models" (2010).
    """
    p, largest, top = u.size, 0.0, 0.0
    for j in range(p):
        top = max(top, H[j, j])
    for j in range(p):
        if u[j] == 0.0 and l1[j] > 0.0 and not everything:
            continue
        bend = max(H[j, j], FLAT * top)
        if not bend > 0.0:
            continue
        t, v = l1[j] / bend, u[j] - s[j] / bend
        v = v - t if v > t else (v + t if v < -t else 0.0)
        v = min(max(v, low[j]), high[j])
        move = v - u[j]
        if move != 0.0:
            u[j] = v
            for i in range(p):
                s[i] = fma(move, H[j, i], s[i])
            largest = max(largest, abs(move) * sqrt(bend))
    return largest


@compiled
def add_product(H, d, s):
    """Do s += H d, row by row of the symmetric H (p, p)."""
    for j in range(d.size):
        if d[j] != 0.0:
            for i in range(d.size):
                s[i] = fma(d[j], H[j, i], s[i])
