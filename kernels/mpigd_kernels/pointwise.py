"""Losses as functions of the margin alone: margins z (k, m), targets y (m,), weights c (m,) -> residuals, losses.

Residuals r (k, m) are c times the derivative of the loss by the margin; losses l (m,) are c times the loss; `a` is the
loss's own parameter, where it has one. All float64. Losses are at least zero: half deviances, with their constants.
"""

import numpy as np
from numba import njit

from mpigd_kernels.elementary import exp, expit_and_log1p, log

_OPTIONS = dict(nogil=True, cache=True, error_model="numpy")


@njit(**_OPTIONS)
def squared(z, y, c, a, r, l):
    """(z - y)**2 / 2."""
    for i in range(y.size):
        e = z[0, i] - y[i]
        v = c[i] * e
        r[0, i] = v
        l[i] = 0.5 * v * e


@njit(**_OPTIONS)
def logistic(z, y, c, a, r, l):
    """log(1 + exp(z)) - y z for y in {0, 1}."""
    for i in range(y.size):
        x = z[0, i]
        e = exp(-abs(x))
        p, softplus = expit_and_log1p(e)
        p = e * p if x < 0.0 else p
        r[0, i] = c[i] * (p - y[i])
        # max(x, 0) - y x, written so that the right class at a large margin gives zero, not a rounding error
        l[i] = c[i] * ((x if x > 0.0 else 0.0) - y[i] * x + softplus)


@njit(**_OPTIONS)
def _exponentials(z, e, top, total):
    """top_i = max_q z_qi, e_qi = exp(z_qi - top_i), total_i = sum_q e_qi: class by class, so that rows vectorise."""
    k, m = z.shape
    for i in range(m):
        top[i], total[i] = z[0, i], 0.0
    for q in range(1, k):
        for i in range(m):
            top[i] = z[q, i] if z[q, i] > top[i] else top[i]
    for q in range(k):
        for i in range(m):
            e[q, i] = exp(z[q, i] - top[i])
            total[i] += e[q, i]


@njit(**_OPTIONS)
def softmax(z, y, c, a, r, l):
    """log(sum_q exp(z_q)) - z_y for class codes y."""
    k, m = z.shape
    top, total = np.empty(m), np.empty(m)
    _exponentials(z, r, top, total)
    for q in range(k):
        for i in range(m):
            r[q, i] *= c[i] / total[i]
    for i in range(m):
        own = int(y[i])
        l[i] = c[i] * (log(total[i]) - (z[own, i] - top[i]))
        r[own, i] -= c[i]


@njit(**_OPTIONS)
def hinge(z, y, c, a, r, l):
    """max(0, 1 - s z) with s = 2 y - 1, y in {0, 1}."""
    for i in range(y.size):
        s = 2.0 * y[i] - 1.0
        gap = 1.0 - s * z[0, i]
        r[0, i] = -c[i] * s if gap > 0.0 else gap * 0.0
        l[i] = gap * 0.0 if gap <= 0.0 else c[i] * gap


@njit(**_OPTIONS)
def squared_hinge(z, y, c, a, r, l):
    """max(0, 1 - s z)**2 with s = 2 y - 1, y in {0, 1}."""
    for i in range(y.size):
        s = 2.0 * y[i] - 1.0
        gap = 1.0 - s * z[0, i]
        gap = 0.0 if gap < 0.0 else gap
        r[0, i] = -2.0 * c[i] * s * gap
        l[i] = c[i] * gap * gap


@njit(**_OPTIONS)
def huber(z, y, c, a, r, l):
    """(z - y)**2 / 2 where |z - y| <= a, a |z - y| - a**2 / 2 beyond."""
    for i in range(y.size):
        e = z[0, i] - y[i]
        inside = -a if e < -a else (a if e > a else e)
        r[0, i] = c[i] * inside
        l[i] = c[i] * inside * (e - 0.5 * inside)


@njit(**_OPTIONS)
def quantile(z, y, c, a, r, l):
    """max(a (y - z), (1 - a) (z - y)): the pinball loss of the quantile a."""
    for i in range(y.size):
        e = y[i] - z[0, i]
        slope = a if e > 0.0 else (a - 1.0 if e < 0.0 else e * 0.0)
        r[0, i] = -c[i] * slope
        l[i] = c[i] * slope * e


@njit(**_OPTIONS)
def poisson(z, y, c, a, r, l):
    """mu - y + y log(y / mu) with mu = exp(z): half the Poisson deviance."""
    for i in range(y.size):
        mu = exp(z[0, i])
        yi = y[i]
        r[0, i] = c[i] * (mu - yi)
        own = yi * (log(yi if yi > 0.0 else 1.0) - z[0, i]) if yi > 0.0 else 0.0
        value = (mu - yi) + own
        l[i] = c[i] * (0.0 if value < 0.0 else value)


@njit(**_OPTIONS)
def gamma(z, y, c, a, r, l):
    """y / mu - 1 - log(y / mu) with mu = exp(z): half the gamma deviance."""
    for i in range(y.size):
        ratio = y[i] * exp(-z[0, i])
        value = (ratio - 1.0) - (log(y[i]) - z[0, i])
        r[0, i] = c[i] * (1.0 - ratio)
        l[i] = c[i] * (0.0 if value < 0.0 else value)


@njit(**_OPTIONS)
def logistic_mean(z, out):
    """1 / (1 + exp(-z)) for z (m,)."""
    for i in range(z.size):
        e = exp(-abs(z[i]))
        p = 1.0 / (1.0 + e)
        out[i] = e * p if z[i] < 0.0 else p


@njit(**_OPTIONS)
def exponential_mean(z, out):
    """exp(z) for z (m,)."""
    for i in range(z.size):
        out[i] = exp(z[i])


@njit(**_OPTIONS)
def softmax_mean(z, out):
    """Class probabilities: z (k, m) -> out (k, m)."""
    k, m = z.shape
    top, total = np.empty(m), np.empty(m)
    _exponentials(z, out, top, total)
    for q in range(k):
        for i in range(m):
            out[q, i] /= total[i]
