"""Vectors of parameters: updates by optimisers, dot products in a fixed order, changes of units.

All arrays are float64; w (p,) are parameters, g (p,) a gradient. Updates are in place. Each
docstring gives the formula of the update.
"""

from math import sqrt

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import exp, fma, log
from mpigd_kernels.sums import join_words


@compiled
def dot(a, b):
    """Return a . b, as four partial sums in a fixed order.

    BLAS is not used, since it gives other bits with another number of threads.
    """
    s0 = s1 = s2 = s3 = 0.0
    whole = a.size // 4 * 4
    for i in range(0, whole, 4):
        s0 = fma(a[i], b[i], s0)
        s1 = fma(a[i + 1], b[i + 1], s1)
        s2 = fma(a[i + 2], b[i + 2], s2)
        s3 = fma(a[i + 3], b[i + 3], s3)
    for i in range(whole, a.size):
        s0 = fma(a[i], b[i], s0)
    return (s0 + s1) + (s2 + s3)


@compiled
def add_scaled(w, a, v):
    """w += a v."""
    for i in range(w.size):
        w[i] += a * v[i]


@compiled
def descend(w, g, lr):
    """w -= lr g."""
    for i in range(w.size):
        w[i] -= lr * g[i]


@compiled
def momentum(w, g, v, lr, mu):
    """v = mu v + g; w -= lr v (Polyak, 1964)."""
    for i in range(w.size):
        v[i] = mu * v[i] + g[i]
        w[i] -= lr * v[i]


@compiled
def extrapolate(w, previous, beta, out):
    """out = w + beta (w - previous)."""
    for i in range(w.size):
        out[i] = w[i] + beta * (w[i] - previous[i])


@compiled
def adagrad(w, g, s, lr, eps):
    """s += g**2; w -= lr g / (sqrt(s) + eps) (Duchi, Hazan, Singer, JMLR 2011)."""
    for i in range(w.size):
        s[i] += g[i] * g[i]
        w[i] -= lr * g[i] / (sqrt(s[i]) + eps)


@compiled
def rmsprop(w, g, s, lr, rho, eps):
    """s = rho s + (1 - rho) g**2; w -= lr g / (sqrt(s) + eps) (Tieleman and Hinton, 2012)."""
    for i in range(w.size):
        s[i] = rho * s[i] + (1.0 - rho) * g[i] * g[i]
        w[i] -= lr * g[i] / (sqrt(s[i]) + eps)


@compiled
def adam(w, g, m, s, lr, beta1, beta2, rise1, rise2, eps):
    """w -= lr (m / rise1) / (sqrt(s / rise2) + eps), with rise = 1 - beta**t (Kingma and Ba, 2015).

    m = beta1 m + (1 - beta1) g and s = beta2 s + (1 - beta2) g**2 are updated first.
    """
    for i in range(w.size):
        m[i] = beta1 * m[i] + (1.0 - beta1) * g[i]
        s[i] = beta2 * s[i] + (1.0 - beta2) * g[i] * g[i]
        w[i] -= lr * (m[i] / rise1) / (sqrt(s[i] / rise2) + eps)


@compiled
def shrink(w, rate, weights):
    """w -= rate weights w: decoupled weight decay (Loshchilov and Hutter, 2019)."""
    for i in range(w.size):
        w[i] -= rate * weights[i] * w[i]


@compiled
def soft_threshold(w, step, weights, low, high):
    """w = argmin_u |u - w|**2 / 2 + step weights |u|, subject to low <= u <= high.

    Each element is shrunk towards zero, then clipped.
    """
    for i in range(w.size):
        t, v = step * weights[i], w[i]
        v = v - t if v > t else (v + t if v < -t else 0.0)
        w[i] = min(max(v, low[i]), high[i])


@compiled
def logarithm(x):
    """Return log(x) for a number x > 0, the same with every version of libm."""
    return log(x)


@compiled
def exponential(x):
    """Return exp(x) for a number x, the same with every version of libm."""
    return exp(x)


@compiled
def to_raw(w, center, inverse, intercept, coef, b):
    """Convert parameters w (k * p,) in scaled coordinates to coefficients in the units of the data.

    coef (k, d) = W inverse for W = w as (k, p), without its last column if there is an intercept. b
    (k,) is then W_last - coef . center, else zero.
    """
    d = center.size
    p = d + 1 if intercept else d
    for q in range(b.size):
        for j in range(d):
            coef[q, j] = w[q * p + j] * inverse[j]
        b[q] = w[q * p + d] - dot(coef[q], center) if intercept else 0.0


@compiled
def to_gradient(T, S, center, inverse, intercept, factor, G):
    """Convert totals to the gradient in scaled coordinates; return the loss times `factor`.

    Parameters
    ----------
    T : (1, 2 or 4, k, d) float64
        Totals of X'r, see sums.join_words.
    S : (1 + k, 2) float64
        Totals of the losses, then of each output's residuals r.
    center, inverse : (d,) float64
        The scaling of the columns.
    intercept : bool
        Whether each output has an intercept, as its last parameter.
    factor : float
        The factor of losses and gradient.
    G : (k * p,) float64
        The result: factor (g_j - center_j r) inverse_j, and factor r for the intercept.
    """
    d = center.size
    p = d + 1 if intercept else d
    for q in range(T.shape[1]):
        own, residual = G[q * p : q * p + p], S[1 + q, 0] + S[1 + q, 1]
        join_words(T, q, own)
        for j in range(d):
            own[j] = factor * ((own[j] - residual * center[j]) * inverse[j])
        if intercept:
            own[d] = factor * residual
    return factor * (S[0, 0] + S[0, 1])
