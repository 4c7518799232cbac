"""Log-likelihoods: the terms that the half deviance leaves out.

A log-likelihood is these terms minus the half deviance; they are the logarithm of the density at a
mean equal to y.
"""

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import log

LOG_TWO_PI = 1.8378770664093453
LARGE = 10.0  # from here on six terms of Stirling's series have all digits


@compiled
def _stirling(x):
    """Return log(Gamma(x + 1)) - (x log x - x), x >= LARGE (Abramowitz and Stegun, 6.1.41)."""
    q = 1.0 / (x * x)
    tail = (
        (((-691.0 / 360360.0 * q + 1.0 / 1188.0) * q - 1.0 / 1680.0) * q + 1.0 / 1260.0) * q
        - 1.0 / 360.0
    ) * q + 1.0 / 12.0
    return 0.5 * (LOG_TWO_PI + log(x)) + tail / x


@compiled
def poisson(y, out):
    """Set out = y log y - y - log(Gamma(y + 1)) for y (m,) >= 0.

    Below LARGE, x is raised to it by Gamma(x + 1) = Gamma(x + n + 1) / ((x + 1) ... (x + n)).
    """
    for i in range(y.size):
        x, product = y[i], 1.0
        if x >= LARGE:
            out[i] = -_stirling(x)
            continue
        own = x * log(x) - x if x > 0.0 else 0.0
        while x < LARGE:
            x += 1.0
            product *= x
        out[i] = own - ((x * log(x) - x + _stirling(x)) - log(product))


@compiled
def gamma(y, out):
    """Set out = -log y for y (m,) > 0; terms of the dispersion are added once for all rows."""
    for i in range(y.size):
        out[i] = -log(y[i])
