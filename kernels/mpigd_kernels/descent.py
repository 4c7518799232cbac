"""Coordinate descent on a quadratic model with kinks and bounds, in a fixed order and without BLAS."""

from math import sqrt

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import fma

FLAT = 1e-12  # of the largest diagonal element: less curvature than that is none


@compiled
def sweep_coordinates(H, l1, low, high, u, s, everything):
    """One cyclic pass that lowers s . (u - u0) + (u - u0) H (u - u0) / 2 + sum l1 |u| within the bounds.

    u (p,) and the smooth slope s (p,) at u are updated in place, H (p, p) is symmetric. everything: also the coordinates
    that rest at zero. Returns the largest move times the root of its curvature (Friedman, Hastie, Tibshirani 2010).
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
    """s += H d, row by row of the symmetric H (p, p)."""
    for j in range(d.size):
        if d[j] != 0.0:
            for i in range(d.size):
                s[i] = fma(d[j], H[j, i], s[i])
