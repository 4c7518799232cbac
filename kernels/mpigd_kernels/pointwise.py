"""Losses as functions of the linear predictor z: per-sample derivatives (residuals) and losses.

Arguments of a kernel: margins (linear predictors) z (k, m), targets y (m,), weights c (m,), the
loss's own parameter a if it has one, and the results. Residuals r (k, m) are c times the derivative
of the loss by z, losses l (m,) are c times the loss. All are float64. Losses are at least zero:
half deviances, with their constants.

A docstring below states the loss of one row with weight 1.
"""

from numba import njit

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import exp, expit_and_log1p, log
from mpigd_kernels.packed import LANES, load, store, where


def _row_by_row(loss):
    """Return the kernel of a loss of one margin, which handles LANES rows at once.

    `loss`(z, y, c, a) -> (residual, loss) is an expression of numbers, compiled here for packed
    ones (packed.py). Rows behind the last are filled with z = 0, y = 1, c = 0.
    """
    of_rows = njit(inline="always", error_model="numpy")(loss)

    def kernel(z, y, c, a, r, l):
        for i in range(0, y.size, LANES):
            residual, value = of_rows(load(z[0], i, 0.0), load(y, i, 1.0), load(c, i, 0.0), a)
            store(r[0], i, residual)
            store(l, i, value)

    kernel.__name__ = kernel.__qualname__ = loss.__name__
    kernel.__doc__ = loss.__doc__
    return compiled(kernel)


@_row_by_row
def squared(z, y, c, a):
    """(z - y)**2 / 2."""
    e = z - y
    v = c * e
    return v, 0.5 * v * e


@_row_by_row
def logistic(z, y, c, a):
    """log(1 + exp(z)) - y z for y in {0, 1}."""
    e = exp(-abs(z))
    p, softplus = expit_and_log1p(e)
    p = where(z < 0.0, e * p, p)
    # max(z, 0) - y z + log(1 + exp(-|z|)), in this order: at a large margin of the right class the
    # first two cancel to zero, without a rounding error.
    return c * (p - y), c * (where(z > 0.0, z, 0.0) - y * z + softplus)


@_row_by_row
def hinge(z, y, c, a):
    """max(0, 1 - s z) with s = 2 y - 1, y in {0, 1}."""
    s = 2.0 * y - 1.0
    gap = 1.0 - s * z
    return where(gap > 0.0, -c * s, gap * 0.0), where(gap <= 0.0, gap * 0.0, c * gap)


@_row_by_row
def squared_hinge(z, y, c, a):
    """max(0, 1 - s z)**2 with s = 2 y - 1, y in {0, 1}."""
    s = 2.0 * y - 1.0
    gap = 1.0 - s * z
    gap = where(gap < 0.0, 0.0, gap)
    return -2.0 * c * s * gap, c * gap * gap


@_row_by_row
def huber(z, y, c, a):
    """(z - y)**2 / 2 if |z - y| <= a, a |z - y| - a**2 / 2 beyond."""
    e = z - y
    inside = where(e < -a, -a, where(e > a, a, e))
    return c * inside, c * inside * (e - 0.5 * inside)


@_row_by_row
def quantile(z, y, c, a):
    """max(a (y - z), (1 - a) (z - y)): the pinball loss of the quantile a."""
    e = y - z
    slope = where(e > 0.0, a, where(e < 0.0, a - 1.0, e * 0.0))
    return -c * slope, c * slope * e


@_row_by_row
def poisson(z, y, c, a):
    """mu - y + y log(y / mu) with mu = exp(z): half the Poisson deviance."""
    mu = exp(z)
    own = where(y > 0.0, y * (log(where(y > 0.0, y, 1.0)) - z), 0.0)
    value = (mu - y) + own
    return c * (mu - y), c * where(value < 0.0, 0.0, value)


@_row_by_row
def gamma(z, y, c, a):
    """y / mu - 1 - log(y / mu) with mu = exp(z): half the gamma deviance."""
    ratio = y * exp(-z)
    value = (ratio - 1.0) - (log(y) - z)
    return c * (1.0 - ratio), c * where(value < 0.0, 0.0, value)


@compiled
def softmax(z, y, c, a, r, l):
    """log(sum_q exp(z_q)) - z_y for class codes y."""
    k = z.shape[0]
    for i in range(0, y.size, LANES):
        own, weight = load(y, i, 0.0), load(c, i, 0.0)
        top = _largest(z, i)
        total = _exponentials(z, i, top, r)
        scale = weight / total
        margin = top - top
        for q in range(k):
            mine = own == float(q)
            margin = where(mine, load(z[q], i, 0.0) - top, margin)
            store(r[q], i, load(r[q], i, 0.0) * scale - where(mine, weight, 0.0))
        store(l, i, weight * (log(total) - margin))


@njit(inline="always", error_model="numpy")
def _largest(z, i):
    """Return max_q z_q of LANES rows from i on."""
    top = load(z[0], i, 0.0)
    for q in range(1, z.shape[0]):
        own = load(z[q], i, 0.0)
        top = where(own > top, own, top)
    return top


@njit(inline="always", error_model="numpy")
def _exponentials(z, i, top, out):
    """Set out_q = exp(z_q - top) of LANES rows from i on; return their sum over q."""
    total = top * 0.0
    for q in range(z.shape[0]):
        e = exp(load(z[q], i, 0.0) - top)
        store(out[q], i, e)
        total = total + e
    return total


@compiled
def logistic_mean(z, out):
    """Set out = 1 / (1 + exp(-z)) for z (m,)."""
    for i in range(z.size):
        e = exp(-abs(z[i]))
        p = 1.0 / (1.0 + e)
        out[i] = e * p if z[i] < 0.0 else p


@compiled
def exponential_mean(z, out):
    """Set out = exp(z) for z (m,)."""
    for i in range(z.size):
        out[i] = exp(z[i])


@compiled
def softmax_mean(z, out):
    """Set out (k, m) to the class probabilities of z (k, m)."""
    for i in range(0, z.shape[1], LANES):
        total = _exponentials(z, i, _largest(z, i), out)
        for q in range(z.shape[0]):
            store(out[q], i, load(out[q], i, 0.0) / total)


# Smoothed losses: a loss with a kink, rounded off over a width; a = (quantile, width). The
# residuals are those of the smoothed loss, whose slope rises linearly within half a width of the
# kink. The losses are those without smoothing, so that one sweep measures the true objective too.


@_row_by_row
def smoothed_hinge(z, y, c, a):
    """The slope of the smoothed hinge; the loss max(0, 1 - s z) itself, with s = 2 y - 1."""
    s = 2.0 * y - 1.0
    gap = 1.0 - s * z
    share = 0.5 + gap / a[1]
    share = where(share < 0.0, 0.0, where(share > 1.0, 1.0, share))
    return -c * s * share, where(gap <= 0.0, gap * 0.0, c * gap)


@_row_by_row
def smoothed_quantile(z, y, c, a):
    """The slope of the smoothed pinball loss; the loss max(a (y - z), (1 - a) (z - y)) itself."""
    e = y - z
    share = 0.5 + e / a[1]
    share = where(share < 0.0, 0.0, where(share > 1.0, 1.0, share))
    return -c * (share - (1.0 - a[0])), c * where(e > 0.0, a[0], a[0] - 1.0) * e
