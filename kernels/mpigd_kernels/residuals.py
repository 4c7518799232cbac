"""What a sweep makes of margins: the residuals and losses of a loss that is chosen when the sweep is compiled."""

from collections import namedtuple

from numba.extending import overload

from mpigd_kernels import curvature, pointwise
from mpigd_kernels.compiled import inlined

# What a sweep makes of margins: residuals and losses, those of folds, or one of two products of the Hessian.
LOSS, FOLDS, PRODUCT, SQUARES = range(4)
# The losses, each a type that holds its parameter a, so that a sweep is compiled with the one it needs, not with all nine, for
# seconds (a is a pair for the smoothed ones). Types, because functions as arguments would be compiled again in every process.
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
    """z (k, m), y (q, m), c (m,) -> r (k, m), l (m,): of `loss` where `what` is LOSS; of its curvature, in place of y, PRODUCT.

    FOLDS: of k models of one output: column q does not see the rows whose fold y[1] is q; l is the sum over columns.
    spare (2, m or more): room for them.
    """
    if what == PRODUCT:
        product(loss, z, y, c, r, l)
        return
    if what == SQUARES:
        curvature.squares(z, y, c, loss.a, r, l)
        return
    folds, m = what == FOLDS, l.size
    # One call for both, in a loop of one column or of k: two calls would be two copies of the loss.
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
    """The pointwise function of a loss (pointwise.py)."""
    raise NotImplementedError("for compiled code")


@overload(pointwise_of)
def _pointwise_of(loss, z, y, c, r, l):
    kernel = KERNELS[loss.instance_class]
    return lambda loss, z, y, c, r, l: kernel(z, y, c, loss.a, r, l)


def product(loss, z, h, c, r, l):
    """The Hessian's product for the curvature h of a loss (curvature.py)."""
    raise NotImplementedError("for compiled code")


@overload(product)
def _product(loss, z, h, c, r, l):
    kernel = curvature.softmax_product if loss.instance_class is Softmax else curvature.product
    return lambda loss, z, h, c, r, l: kernel(z, h, c, loss.a, r, l)
