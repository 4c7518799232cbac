"""Second derivatives of the losses by the linear predictor, and sums over rows for Hessians.

Margins z (k, m), targets y (m,), weights c (m,) and the loss's own parameter a give curvatures h
(k, m), all float64. With one output h is c times d2loss/dz2. For softmax h holds the probabilities,
from which products with a direction are made.

The docstring of a loss below states d2loss/dz2 of one row with weight 1.
"""

import numpy as np
from numpy import float64, uint64

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import exp, set_odd
from mpigd_kernels.lanes import LANES
from mpigd_kernels.sums import SPLIT, TINY
from mpigd_kernels.tiles import add_outer_tiles

PANEL = 256  # rows that the accumulators of a Hessian take before they are flushed
BIAS = 1.5 * 2.0**10  # 1.5 * 2**52 * u with 256 * (1 + u) <= 2**51 * u: u = 2**-42


@compiled
def squared(z, y, c, a, h):
    """1."""
    for i in range(y.size):
        h[0, i] = c[i]


@compiled
def logistic(z, y, c, a, h):
    """p (1 - p), p = 1 / (1 + exp(-z))."""
    for i in range(y.size):
        e = exp(-abs(z[0, i]))
        h[0, i] = c[i] * (e / ((1.0 + e) * (1.0 + e)))


@compiled
def softmax(z, y, c, a, h):
    """The probabilities p (k, m). The Hessian of a row is c (diag(p) - p p')."""
    k = z.shape[0]
    for i in range(y.size):
        top = z[0, i]
        for q in range(1, k):
            top = z[q, i] if z[q, i] > top else top
        total = 0.0
        for q in range(k):
            h[q, i] = exp(z[q, i] - top)
            total += h[q, i]
        for q in range(k):
            h[q, i] /= total


@compiled
def squared_hinge(z, y, c, a, h):
    """2 inside the margin, 0 beyond."""
    for i in range(y.size):
        h[0, i] = 2.0 * c[i] if (2.0 * y[i] - 1.0) * z[0, i] < 1.0 else 0.0


@compiled
def huber(z, y, c, a, h):
    """1 if |z - y| <= a, 0 beyond."""
    for i in range(y.size):
        h[0, i] = c[i] if abs(z[0, i] - y[i]) <= a else 0.0


@compiled
def poisson(z, y, c, a, h):
    """exp(z)."""
    for i in range(y.size):
        h[0, i] = c[i] * exp(z[0, i])


@compiled
def gamma(z, y, c, a, h):
    """y exp(-z)."""
    for i in range(y.size):
        h[0, i] = c[i] * (y[i] * exp(-z[0, i]))


@compiled
def product(z, h, c, a, r, l):
    """Set r = h z, the product of the Hessian and a direction, for the margins z of the direction.

    l = 1: a loss whose size is known beforehand, for the limits of the sums.
    """
    for i in range(c.size):
        r[0, i] = h[0, i] * z[0, i]
        l[i] = 1.0


@compiled
def softmax_product(z, h, c, a, r, l):
    """Set r_q = c p_q (z_q - sum_s p_s z_s), the product of the Hessian of softmax and a direction.

    z (k, m) are the margins of the direction, p = h (k, m) the probabilities. l = 1, as in product.
    """
    k = z.shape[0]
    for i in range(c.size):
        mean = 0.0
        for q in range(k):
            mean += h[q, i] * z[q, i]
        for q in range(k):
            r[q, i] = c[i] * (h[q, i] * (z[q, i] - mean))
        l[i] = 1.0


@compiled
def squares(z, y, c, a, r, l):
    """Set r = c z for every output, and l = c z**2 of the first.

    These are the gradient and twice the value of half the squared margins, whose Hessian is X'CX.
    """
    for q in range(z.shape[0]):
        for i in range(c.size):
            r[q, i] = c[i] * z[q, i]
    for i in range(c.size):
        l[i] = r[0, i] * z[0, i]


@compiled
def softmax_pair(p, c, q, s, out):
    """Set out (m,) to the size of d2loss / dz_q dz_s.

    It is c p_q (1 - p_q) for q = s, and c p_q p_s else, for which the derivative itself is
    negative.
    """
    for i in range(c.size):
        other = 1.0 - p[q, i] if q == s else p[s, i]
        out[i] = c[i] * (p[q, i] * other)


@compiled
def dense_rows(X, center, scale, Z):
    """Set Z (m, p or more) = (X - center) * scale (p,).

    A column of Z beyond those of X (the intercept's) becomes 1 * scale.
    """
    d = X.shape[1]
    for i in range(X.shape[0]):
        for j in range(d):
            Z[i, j] = (float64(X[i, j]) - center[j]) * scale[j]
        for j in range(d, scale.size):
            Z[i, j] = scale[j]


@compiled
def csr_rows(indptr, indices, data, center, scale, Z):
    """Do dense_rows for compressed rows, whose missing entries are zeros."""
    d = center.size
    for i in range(indptr.size - 1):
        for j in range(d):
            Z[i, j] = (0.0 - center[j]) * scale[j]
        for j in range(d, scale.size):
            Z[i, j] = scale[j]
        for k in range(uint64(indptr[i]), uint64(indptr[i + 1])):
            j = uint64(indices[k])
            Z[i, j] = (float64(data[k]) - center[j]) * scale[j]


@compiled
def _odd_product(h, z):
    x = h * z
    return set_odd(x) if abs(x) >= TINY else 0.0


@compiled
def add_outer(Z, h, A):
    """Add sum_i h_i Z_i Z_i' to the upper triangle of A (p, p), for m <= PANEL rows.

    Each term is rounded to the grid of BIAS (sums.py). |Z| (m, p) and |h| (m,) are at most 1, A
    starts at BIAS, and p is a multiple of LANES. Below the diagonal A may hold anything.
    """
    # A panel of LANES columns of h Z, made odd, is multiplied by all columns of Z at once.
    P = np.empty((Z.shape[0], LANES))
    for j in range(0, Z.shape[1], LANES):
        for i in range(Z.shape[0]):
            for t in range(LANES):
                P[i, t] = _odd_product(h[i], Z[i, j + t])
        add_outer_tiles(P, Z, A, j)


@compiled
def flush_outer(A, T):
    """Move A - BIAS, upper triangle of p columns, into the totals T (2, p, p); set A back to BIAS.

    Both words are exact, as in sums.flush.
    """
    shift = SPLIT * BIAS
    for j in range(T.shape[1]):
        for q in range(j, T.shape[1]):
            excess = A[j, q] - BIAS
            high = (excess + shift) - shift
            T[0, j, q] += high
            T[1, j, q] += excess - high
            A[j, q] = BIAS


@compiled
def smoothed_hinge(z, y, c, a, h):
    """1 / width if |1 - s z| < width / 2, else 0, with s = 2 y - 1 and a = (quantile, width)."""
    for i in range(y.size):
        h[0, i] = c[i] / a[1] if abs(1.0 - (2.0 * y[i] - 1.0) * z[0, i]) < 0.5 * a[1] else 0.0


@compiled
def smoothed_quantile(z, y, c, a, h):
    """1 / width if |z - y| < width / 2, else 0, with a = (quantile, width)."""
    for i in range(y.size):
        h[0, i] = c[i] / a[1] if abs(y[i] - z[0, i]) < 0.5 * a[1] else 0.0
