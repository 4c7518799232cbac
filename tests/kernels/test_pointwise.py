"""Every loss against finite differences, closed forms, its own bounds, and other blocks.

The tests run over mpigd.model.losses.LOSSES: a new loss is tested as soon as it is a row there and
has a closed form here.
"""

import math

import numpy as np
import pytest
from scipy import special

from mpigd.config.schema import Config
from mpigd.model.losses import LOSSES
from mpigd_kernels import pointwise

CONFIGS = (Config(), Config(delta=0.3, quantile=0.05), Config(delta=7.0, quantile=0.9))
CASES = [
    pytest.param(loss, a, id=f"{loss.name}-{a:g}")
    for loss in LOSSES.values()
    for a in sorted({loss.parameter(config) for config in CONFIGS})
]
OF_ROW = 3  # outputs of a loss for many classes


def _margin(z, y):
    return 1 - (2 * y - 1) * z[0]


def _softmax(z, y, a):
    return special.logsumexp(z, axis=0) - z[y.astype(int), np.arange(y.size)]


CLOSED = {
    "squared": lambda z, y, a: (z[0] - y) ** 2 / 2,
    "logistic": lambda z, y, a: np.logaddexp(0, np.where(y > 0, -z[0], z[0])),
    "softmax": _softmax,
    "hinge": lambda z, y, a: np.maximum(0, _margin(z, y)),
    "squared_hinge": lambda z, y, a: np.maximum(0, _margin(z, y)) ** 2,
    "huber": lambda z, y, a: special.huber(a, z[0] - y),
    "quantile": lambda z, y, a: np.maximum(a * (y - z[0]), (a - 1) * (y - z[0])),
    "poisson": lambda z, y, a: np.exp(z[0]) - y + special.xlogy(y, y) - y * z[0],
    "gamma": lambda z, y, a: y * np.exp(-z[0]) - 1 - (np.log(y) - z[0]),
}


def targets(loss, m, rng):
    """m targets of a loss's domain, large and small ones among them."""
    if loss.kind == "multiclass":
        return rng.integers(0, OF_ROW, m).astype(np.float64)
    if loss.classifies:
        return rng.integers(0, 2, m).astype(np.float64)
    y = np.concatenate(
        [
            rng.normal(size=m),
            rng.integers(0, 5, m),
            rng.exponential(size=m),
            -rng.exponential(size=m),
        ]
    )
    y = y[loss.accepts(y)] if loss.accepts else y
    return rng.choice(y, m)


def sample(loss, m, rng, spread=2.0):
    k = OF_ROW if loss.kind == "multiclass" else 1
    return spread * rng.normal(size=(k, m)), targets(loss, m, rng)


def evaluate(loss, a, z, y, c=None):
    """Residuals (k, m) and losses (m,).

    The outputs start with arbitrary values, so that elements which are not written show.
    """
    r, l = np.full(z.shape, 99.0), np.full(y.shape, 99.0)
    loss.kernel(np.ascontiguousarray(z), y, np.ones(y.size) if c is None else c, a, r, l)
    return r, l


@pytest.mark.parametrize("loss, a", CASES)
def test_residual_is_the_derivative(loss, a):
    rng = np.random.default_rng(0)
    z, y = sample(loss, 400, rng)
    c, h = rng.random(400) * 10.0 ** rng.integers(-5, 5, 400), 1e-5
    r, _ = evaluate(loss, a, z, y, c)
    for q in range(z.shape[0]):
        step = np.zeros_like(z)
        step[q] = h
        slope = (evaluate(loss, a, z + step, y, c)[1] - evaluate(loss, a, z - step, y, c)[1]) / (
            2 * h
        )
        np.testing.assert_allclose(r[q] / c, slope / c, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss, a", CASES)
def test_loss_is_the_closed_form(loss, a):
    rng = np.random.default_rng(1)
    z, y = sample(loss, 2000, rng)
    c = rng.random(2000)
    l = evaluate(loss, a, z, y, c)[1]
    np.testing.assert_allclose(l, c * CLOSED[loss.name](z, y, a), rtol=1e-12, atol=1e-13)


def extreme(loss):
    """All margins of a few extreme sizes with all kinds of targets."""
    rng = np.random.default_rng(2)
    values = [
        s * v
        for v in (0.0, 1e-300, 1e-8, 1.0, 36.0, 40.0, 700.0, 709.5, 745.0, 800.0, 1e6)
        for s in (-1, 1)
    ]
    y = np.unique(targets(loss, 40, rng))
    if loss.kind == "regression":
        y = np.append(y, [1e-10, 1e10])
    k = OF_ROW if loss.kind == "multiclass" else 1
    grids = np.meshgrid(*[values] * k, y, indexing="ij")
    return np.array([grid.ravel() for grid in grids[:k]]), grids[k].ravel()


@pytest.mark.parametrize("weight", [0.0, 1e-10, 1.0, 1e10])
@pytest.mark.parametrize("loss, a", CASES)
def test_extremes_are_right_where_the_loss_is_finite(loss, a, weight):
    z, y = extreme(loss)
    r, l = evaluate(loss, a, z, y, np.full(y.size, weight))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = weight * CLOSED[loss.name](z, y, a)
    finite = np.isfinite(expected)
    expected = expected[finite]
    assert np.isfinite(l[finite]).all() and np.isfinite(r[:, finite]).all()
    scale = weight * (np.abs(y) + np.abs(z).max(axis=0) + 1)[finite]
    assert np.all(np.abs(l[finite] - expected) <= 1e-12 * expected + 1e-14 * scale)
    assert not np.isfinite(l[~finite]).any(), "an infinite loss must show"


@pytest.mark.parametrize("loss, a", CASES)
def test_loss_is_never_negative(loss, a):
    rng = np.random.default_rng(3)
    near = sample(loss, 3000, rng)
    if loss.kind == "regression":  # at the optimum rounding would go below zero
        y = targets(loss, 3000, rng)
        link = np.log(np.where(y > 0, y, 1.0)) if loss.mean else y
        near = link[None] * (1 + rng.choice([0.0, 1e-16, 1e-12, 1e-8], 3000)), y
    for z, y in (
        near,
        extreme(loss),
        sample(loss, 3000, rng, spread=1e-9),
        sample(loss, 3000, rng, spread=100.0),
    ):
        assert np.all(evaluate(loss, a, z, y)[1] >= 0)


@pytest.mark.parametrize("loss, a", CASES)
def test_residual_bound_of_the_table_holds_and_is_reached(loss, a):
    z, y = extreme(loss)
    r = np.abs(evaluate(loss, a, z, y)[0])
    r = r[np.isfinite(r)]
    if loss.residual is None:
        assert r.max() > 1e5, "residuals are bounded: say so in the table, and no sweep is repeated"
    else:
        assert r.max() <= loss.residual(a)
        assert r.max() > 0.999 * loss.residual(a)


@pytest.mark.parametrize("loss, a", [case for case in CASES if case.values[0].curvature])
def test_curvature_bound_of_the_table_holds_and_is_reached(loss, a):
    rng = np.random.default_rng(4)
    steepest = 0.0
    for spread, step in ((1.0, 1e-3), (4.0, 1e-3), (1e-3, 1e-3), (3.0, 3.0)):
        z, y = sample(loss, 4000, rng, spread)
        if z.shape[0] > 1:
            z[-1] -= 100.0  # two classes alone compete
        v = step * rng.normal(size=z.shape)
        change = evaluate(loss, a, z + v, y)[0] - evaluate(loss, a, z, y)[0]
        ratio = np.sqrt((change**2).sum(axis=0) / (v**2).sum(axis=0))
        steepest = max(steepest, float(ratio.max()))
    assert 0.99 * loss.curvature(a) < steepest <= loss.curvature(a) * (1 + 1e-8)


@pytest.mark.parametrize("loss, a", CASES)
def test_loss_is_convex_and_smooth_where_it_says_so(loss, a):
    rng = np.random.default_rng(5)
    z0, y = sample(loss, 3000, rng, 3.0)
    z1 = z0 + 3.0 * rng.normal(size=z0.shape)
    (r0, l0), (r1, l1), (_, middle) = (evaluate(loss, a, z, y) for z in (z0, z1, (z0 + z1) / 2))
    assert np.all(middle <= (l0 + l1) / 2 * (1 + 1e-12) + 1e-14)
    assert np.all(((r1 - r0) * (z1 - z0)).sum(axis=0) >= -1e-14)
    assert np.all(l1 >= l0 + (r0 * (z1 - z0)).sum(axis=0) - 1e-12 * (1 + l0 + l1))
    t = np.linspace(-8, 8, 160001)[
        None
    ]  # from one point to the next, the residual jumps only at a kink
    if z0.shape[0] == 1:
        worst = max(
            np.abs(np.diff(evaluate(loss, a, t, np.full(t.size, v))[0])).max()
            for v in np.unique(y)[:3]
        )
        assert (worst < 0.5) == loss.smooth


@pytest.mark.parametrize("loss, a", CASES)
def test_nan_is_never_hidden(loss, a):
    rng = np.random.default_rng(6)
    z, y = sample(loss, 60, rng)
    for q in range(z.shape[0]):
        bad = z.copy()
        bad[q, ::2] = math.nan
        r, l = evaluate(loss, a, bad, y)
        assert np.isnan(r[:, ::2]).all() and np.isnan(l[::2]).all()
        assert np.isfinite(r[:, 1::2]).all() and np.isfinite(l[1::2]).all()
    if loss.kind == "regression":
        y[::2] = math.nan
        r, l = evaluate(loss, a, z, y)
        assert np.isnan(r[:, ::2]).all() and np.isnan(l[::2]).all()


@pytest.mark.parametrize("loss, a", CASES)
def test_row_alone_and_in_any_block_same_bits(loss, a):
    rng = np.random.default_rng(7)
    z, y = sample(loss, 88, rng, 4.0)
    z[:, ::9], c = 50 * z[:, ::9], rng.random(88)
    k = z.shape[0]
    alone = [evaluate(loss, a, z[:, i : i + 1], y[i : i + 1], c[i : i + 1]) for i in range(88)]
    r1, l1 = np.concatenate([r for r, _ in alone], axis=1), np.concatenate([l for _, l in alone])
    room = np.empty(3 * k * 88)
    for offset in range(8):
        for m in range(1, 81):
            rows = slice(offset, offset + m)
            block, r = (
                room[offset:][: k * m].reshape(k, m),
                room[100 * k + offset :][: k * m].reshape(k, m),
            )
            block[:], l = z[:, rows], np.empty(m)
            loss.kernel(block, y[rows], c[rows], a, r, l)
            assert r.tobytes() == r1[:, rows].tobytes() and l.tobytes() == l1[rows].tobytes()


@pytest.mark.parametrize("name", [loss.name for loss in LOSSES.values() if loss.mean])
def test_mean_is_the_inverse_link(name):
    rng = np.random.default_rng(8)
    z = np.concatenate([rng.normal(size=(OF_ROW, 500)) * s for s in (1, 10, 100, 300)], axis=1)
    truth = {"logistic": special.expit, "softmax": lambda z: special.softmax(z, axis=0)}.get(
        name, np.exp
    )
    z = z if name == "softmax" else np.clip(z[:1], -700, 700)
    out = np.full(z.shape, 99.0)
    LOSSES[name].mean(z, out)
    np.testing.assert_allclose(out, truth(z), rtol=1e-13, atol=1e-300)
    for i in (0, 7, 1999):
        one = np.empty((z.shape[0], 1))
        LOSSES[name].mean(np.ascontiguousarray(z[:, i : i + 1]), one)
        assert one.tobytes() == out[:, i].tobytes()


def test_mean_at_extremes():
    out = np.empty(5)
    pointwise.logistic_mean(np.array([-1e6, -800.0, 0.0, 800.0, 1e6]), out)
    assert out[2:].tolist() == [0.5, 1.0, 1.0] and np.all((out[:2] >= 0) & (out[:2] < 1e-300))
    pointwise.exponential_mean(np.array([-1e6, 0.0, 1.0, 800.0, math.nan]), out)
    assert out[0] < 1e-300 and out[1] == 1.0 and out[3] == math.inf and math.isnan(out[4])
    shares = np.empty((2, 3))
    pointwise.softmax_mean(np.array([[1e6, 5.0, math.nan], [-1e6, 5.0, 0.0]]), shares)
    assert shares[0, 0] == 1.0 and shares[1, 0] < 1e-300 and shares[:, 1].tolist() == [0.5, 0.5]
    assert np.isnan(shares[:, 2]).all()
