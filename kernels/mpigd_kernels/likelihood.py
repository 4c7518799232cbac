"""What a log-likelihood has beside half the deviance: the logarithm of the density where the mean is y itself."""

from mpigd_kernels.compiled import compiled
from mpigd_kernels.elementary import log

LOG_TWO_PI = 1.8378770664093453
LARGE = 10.0  # from where six terms of Stirling's series have all digits


@compiled
def _stirling(x):
    """log(Gamma(x + 1)) - (x log x - x) for x >= LARGE (Abramowitz and Stegun, 6.1.41)."""
    q = 1.0 / (x * x)
    tail = (
        (((-691.0 / 360360.0 * q + 1.0 / 1188.0) * q - 1.0 / 1680.0) * q + 1.0 / 1260.0) * q
        - 1.0 / 360.0
    ) * q + 1.0 / 12.0
    return 0.5 * (LOG_TWO_PI + log(x)) + tail / x


@compiled
def poisson(y, out):
    """y log y - y - log(Gamma(y + 1)) for y (m,) >= 0."""
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
    """-log y for y (m,) > 0; what depends on the dispersion is added once for all rows."""
    for i in range(y.size):
        out[i] = -log(y[i])
