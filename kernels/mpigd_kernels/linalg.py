"""Small dense linear algebra in a fixed order: Cholesky factors, triangular solves, null vectors.

LAPACK is not used, since OpenBLAS gives other bits with another number of threads.
"""

from math import sqrt

import numpy as np

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import fma
from mpigd_kernels.lanes import LANES
from mpigd_kernels.tiles import add_outer_tiles

# If a pivot is at most this part of its diagonal element, the column depends on those before it, up
# to rounding.
PIVOT = 1e-9


@compiled
def cholesky(H):
    """Factorise H (p, p), symmetric, in place: it becomes U with U'U = H.

    Parameters
    ----------
    H : (p, p) float64
        Its upper triangle is read. Below the diagonal of the result are zeros.

    Returns
    -------
    int
        The number of pivots that were replaced.

    Notes
    -----
    A pivot of at most PIVOT times its diagonal element becomes that element (1 if it is zero). A
    dependent column then keeps about its own right-hand side, and solves stay bounded for a
    singular H.

    Row by row (Golub and Van Loan, section 4.2). Every element is one chain of fma in the order of
    the rows above, whatever the width of the CPU's vectors.
    """
    p, replaced = H.shape[0], 0
    wide = -(-p // LANES) * LANES
    U, P = np.zeros((wide, wide)), np.empty((p, LANES))
    for i in range(p):
        for j in range(i, p):
            U[i, j] = H[i, j]
    for first in range(
        0, p, LANES
    ):  # LANES rows at a time, so that the rows above are read once for all of them
        for k in range(first):
            for t in range(LANES):
                P[k, t] = -U[k, first + t]
        add_outer_tiles(P[:first], U[:first], U, first)
        for i in range(first, min(p, first + LANES)):
            for k in range(first, i):
                u = -U[k, i]
                for j in range(i, p):
                    U[i, j] = fma(u, U[k, j], U[i, j])
            pivot, diagonal = U[i, i], H[i, i]
            if not pivot > PIVOT * diagonal or not diagonal > 0.0:
                pivot = diagonal if diagonal > 0.0 else 1.0
                replaced += 1
            root = sqrt(pivot)
            U[i, i] = root
            for j in range(i + 1, p):
                U[i, j] /= root
    for i in range(p):
        for j in range(p):
            H[i, j] = U[i, j] if j >= i else 0.0
    return replaced


@compiled
def eliminate(H, floor, kept):
    """Factorise H (p, p), symmetric, in place: U with U'U = H over the columns that are kept.

    Parameters
    ----------
    H : (p, p) float64
        Its upper triangle is read. Below the diagonal of the result are zeros.
    floor : (p,) float64
        A column whose pivot is not above its floor depends on those before it.
    kept : (p,) bool
        The result: which columns do not.

    Notes
    -----
    The row of U of a dependent column is zero, so the others are factorised as if it were absent.
    Its column of U holds its components along them. Every element is one chain of fma.
    """
    p = H.shape[0]
    for j in range(p):
        for l in range(j):
            H[j, l] = 0.0
        kept[j] = H[j, j] > floor[j]
        if not kept[j]:
            for l in range(j, p):
                H[j, l] = 0.0
            continue
        root = sqrt(H[j, j])
        for l in range(j, p):
            H[j, l] /= root
        for i in range(j + 1, p):
            u = -H[j, i]
            if u != 0.0:
                for l in range(i, p):
                    H[i, l] = fma(u, H[j, l], H[i, l])


@compiled
def invert(U, V):
    """Set V (p, p) = U^-1 for an upper triangle U with a nonzero diagonal; V must be all zeros."""
    for j in range(U.shape[0]):
        V[j, j] = 1.0 / U[j, j]
        for i in range(j - 1, -1, -1):
            s = 0.0
            for k in range(i + 1, j + 1):
                s = fma(U[i, k], V[k, j], s)
            V[i, j] = -s / U[i, i]


@compiled
def multiply(A, B, R):
    """Set R (p, p) = A B for upper triangles; R must be all zeros."""
    p = A.shape[0]
    for i in range(p):
        for k in range(i, p):
            a = A[i, k]
            if a != 0.0:
                for j in range(k, p):
                    R[i, j] = fma(a, B[k, j], R[i, j])


@compiled
def transform(U, Z):
    """Set Z (p, m) = (U')^-1 Z for an upper triangle U; a column of Z is a row of data."""
    for j in range(Z.shape[0]):
        for k in range(j):
            u = -U[k, j]
            if u != 0.0:
                for i in range(Z.shape[1]):
                    Z[j, i] = fma(u, Z[k, i], Z[j, i])
        for i in range(Z.shape[1]):
            Z[j, i] /= U[j, j]


@compiled
def solve(U, b, x):
    """Set x (p,) = (U'U)^-1 b for the factor U of `cholesky`. x may be b.

    Forward substitution goes by rows of U, backward substitution by dot products of rows, with four
    partial sums in a fixed order.
    """
    p = b.size
    for i in range(p):
        x[i] = b[i]
    for i in range(p):
        x[i] /= U[i, i]
        v = -x[i]
        for j in range(i + 1, p):
            x[j] = fma(v, U[i, j], x[j])
    for i in range(p - 1, -1, -1):
        s0 = s1 = s2 = s3 = 0.0
        first = i + 1
        whole = first + (p - first) // 4 * 4
        for j in range(first, whole, 4):
            s0 = fma(U[i, j], x[j], s0)
            s1 = fma(U[i, j + 1], x[j + 1], s1)
            s2 = fma(U[i, j + 2], x[j + 2], s2)
            s3 = fma(U[i, j + 3], x[j + 3], s3)
        for j in range(whole, p):
            s0 = fma(U[i, j], x[j], s0)
        x[i] = (x[i] - ((s0 + s1) + (s2 + s3))) / U[i, i]


@compiled
def dependence(U, i, v):
    """Set v (p,) to how column i depends on those before it.

    v_i = 1, elements behind it are zero, and U v is zero in the rows above i.
    """
    for r in range(v.size):
        v[r] = 1.0 if r == i else 0.0
    for r in range(i - 1, -1, -1):
        total = U[r, i]
        for j in range(r + 1, i):
            total = fma(U[r, j], v[j], total)
        v[r] = -total / U[r, r]


@compiled
def stationary(T):
    """Return the stationary distribution, up to its scale, of a Markov chain: t > 0 with t' T = 0.

    Parameters
    ----------
    T : (k, k) float64
        Rates, at least 0 off the diagonal. The diagonal is not read: rows add up to zero.
        Overwritten.

    Returns
    -------
    (k,) float64
        t, with its largest element 1; all zeros if a class cannot be left.

    Notes
    -----
    Elimination without subtractions, so that t is accurate in every element (Grassmann, Taksar,
    Heyman, Operations Research 1985).
    """
    k = T.shape[0]
    t = T[0] * 0.0
    for m in range(k - 1, 0, -1):
        out = 0.0
        for j in range(m):
            out += T[m, j]
        if not out > 0.0:
            return t
        for i in range(m):
            T[i, m] /= out
            for j in range(m):
                if i != j:
                    T[i, j] += T[i, m] * T[m, j]
    t[0] = top = 1.0
    for m in range(1, k):
        for i in range(m):
            t[m] += t[i] * T[i, m]
        top = max(top, t[m])
    for m in range(k):
        t[m] /= top
    return t
