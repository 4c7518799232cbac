"""In-place updates of parameters w (p,) and optimiser state, and dot products in a fixed order. All float64."""

from math import sqrt

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import exp, fma, log
from mpigd_kernels.sums import join_words


@compiled
def dot(a, b):
    """a . b: four partial sums in a fixed order (BLAS gives other bits with another number of threads)."""
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
    """Adam (Kingma and Ba, 2015) with rise = 1 - beta**t: w -= lr (m / rise1) / (sqrt(s / rise2) + eps)."""
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
    """w = argmin_u |u - w|**2 / 2 + step weights |u|, low <= u <= high: shrunk towards zero, then clipped."""
    for i in range(w.size):
        t, v = step * weights[i], w[i]
        v = v - t if v > t else (v + t if v < -t else 0.0)
        w[i] = min(max(v, low[i]), high[i])


@compiled
def logarithm(x):
    """log(x) for a number x > 0, the same in every version of libm."""
    return log(x)


@compiled
def exponential(x):
    """exp(x) for a number x, the same in every version of libm."""
    return exp(x)


@compiled
def to_raw(w, center, inverse, intercept, coef, b):
    """Coordinates w (k * p,), as W (k, p) -> coef (k, d) = W inverse and, with an intercept, b (k,) = W_last - coef . center."""
    d = center.size
    p = d + 1 if intercept else d
    for q in range(b.size):
        for j in range(d):
            coef[q, j] = w[q * p + j] * inverse[j]
        b[q] = w[q * p + d] - dot(coef[q], center) if intercept else 0.0


@compiled
def to_gradient(T, S, center, inverse, intercept, factor, G):
    """Totals of sums.join -> G (k * p,): factor (g_j - center_j r) inverse_j, and factor r for the intercept.

    T (1, 2 or 4, k, d) of X'r, S (1 + k, 2) of losses and r. Returns the loss times factor.
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
