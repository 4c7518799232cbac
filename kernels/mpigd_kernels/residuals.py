"""Residuals and losses within a sweep, with the loss chosen when the sweep is compiled.

The type of the argument `loss` decides which function of pointwise.py or curvature.py is called, so
the compiled code holds that one alone.
"""

from collections import namedtuple

from numba.extending import overload

from mpigd_kernels import curvature, pointwise
from mpigd_kernels.compiled import inlined

# What a sweep computes from margins: residuals and losses (LOSS), those of the models of
# cross-validation folds (FOLDS), or products of the Hessian and a direction (PRODUCT), or the
# residuals of half the squared margins (SQUARES).
LOSS, FOLDS, PRODUCT, SQUARES = range(4)
# The losses. Each is a type that holds its parameter a (a pair for the smoothed ones), so that a
# sweep is compiled with the one loss that it needs; all of them would take seconds more. They are
# types, because functions as arguments would be compiled again in every process.
Squared = namedtuple("Squared", "a")
Logistic = namedtuple("Logistic", "a")
Softmax = namedtuple("Softmax", "a")
Hinge = namedtuple("Hinge", "a")
SquaredHinge = namedtuple("SquaredHinge", "a")
Huber = namedtuple("Huber", "a")
Quantile = namedtuple("Quantile", "a")
Poisson = namedtuple("Poisson", "a")
Gamma = namedtuple("Gamma", "a")
SmoothedHinge = namedtuple("SmoothedHinge", "a")
SmoothedQuantile = namedtuple("SmoothedQuantile", "a")
KERNELS = {
    Squared: pointwise.squared,
    Logistic: pointwise.logistic,
    Softmax: pointwise.softmax,
    Hinge: pointwise.hinge,
    SquaredHinge: pointwise.squared_hinge,
    Huber: pointwise.huber,
    Quantile: pointwise.quantile,
    Poisson: pointwise.poisson,
    Gamma: pointwise.gamma,
    SmoothedHinge: pointwise.smoothed_hinge,
    SmoothedQuantile: pointwise.smoothed_quantile,
}


@inlined
def residuals(what, loss, z, y, c, r, l, spare):
    """Compute residuals r (k, m) and losses l (m,) of a block from its margins.

    Parameters
    ----------
    what : int
        LOSS: residuals and losses of `loss`. FOLDS: those of k models of one output; model q does
        not see the rows whose fold y[1] is q, and l is the sum over models. PRODUCT: the Hessian
        times a direction, with margins z of the direction and curvatures in place of y. SQUARES:
        curvature.squares.
    loss : one of KERNELS
        The loss and its parameter.
    z : (k, m) float64
        Margins.
    y : (q, m) float64
        Targets, and folds or curvatures.
    c : (m,) float64
        Weights.
    r, l : (k, m), (m,) float64
        The results.
    spare : (2, m or more) float64
        Scratch memory of FOLDS.
    """
    if what == PRODUCT:
        product(loss, z, y, c, r, l)
        return
    if what == SQUARES:
        curvature.squares(z, y, c, loss.a, r, l)
        return
    folds, m = what == FOLDS, l.size
    # One call for LOSS and FOLDS, in a loop over one column or k: the loss is inlined, so that two
    # calls would be two copies of it.
    for q in range(z.shape[0] if folds else 1):
        for i in range(m if folds else 0):
            spare[0, i] = 0.0 if y[1, i] == q else c[i]
        own, mine, weights, one = (
            (z[q : q + 1], r[q : q + 1], spare[0, :m], spare[1, :m]) if folds else (z, r, c, l)
        )
        pointwise_of(loss, own, y[0], weights, mine, one)
        for i in range(m if folds else 0):
            l[i] = one[i] if q == 0 else l[i] + one[i]


def pointwise_of(loss, z, y, c, r, l):
    """Call the pointwise function of a loss (pointwise.py)."""
    raise NotImplementedError("for compiled code")


@overload(pointwise_of)
def _pointwise_of(loss, z, y, c, r, l):
    kernel = KERNELS[loss.instance_class]
    return lambda loss, z, y, c, r, l: kernel(z, y, c, loss.a, r, l)


def product(loss, z, h, c, r, l):
    """Call the product with the Hessian for the curvature h of a loss (curvature.py)."""
    raise NotImplementedError("for compiled code")


@overload(product)
def _product(loss, z, h, c, r, l):
    kernel = curvature.softmax_product if loss.instance_class is Softmax else curvature.product
    return lambda loss, z, h, c, r, l: kernel(z, h, c, loss.a, r, l)
