"""Parameter updates against the formulas in numpy, bit for bit.

No compiler may fuse or reorder the operations of the formulas.
"""

import math
from fractions import Fraction

import numpy as np
import pytest

from mpigd_kernels import vector

SIZES = (0, 1, 3, 4, 5, 8, 31, 100)


def vectors(p, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, p)) * 10.0 ** rng.integers(-6, 6, (count, p))


def descend(w, g, lr):
    return w - lr * g


def momentum(w, g, v, lr, mu):
    v = mu * v + g
    return w - lr * v, v


def adagrad(w, g, s, lr, eps):
    s = s + g * g
    return w - lr * g / (np.sqrt(s) + eps), s


def rmsprop(w, g, s, lr, rho, eps):
    s = rho * s + (1.0 - rho) * g * g
    return w - lr * g / (np.sqrt(s) + eps), s


def adam(w, g, m, s, lr, beta1, beta2, rise1, rise2, eps):
    m = beta1 * m + (1.0 - beta1) * g
    s = beta2 * s + (1.0 - beta2) * g * g
    return w - lr * (m / rise1) / (np.sqrt(s / rise2) + eps), m, s


UPDATES = [
    (descend, 0, (0.1,)),
    (momentum, 1, (0.1, 0.9)),
    (adagrad, 1, (0.1, 1e-8)),
    (rmsprop, 1, (0.1, 0.99, 1e-8)),
    (adam, 2, (0.1, 0.9, 0.999, 1 - 0.9**3, 1 - 0.999**3, 1e-8)),
]


@pytest.mark.parametrize(
    "formula, states, numbers", UPDATES, ids=lambda v: getattr(v, "__name__", None)
)
def test_update_is_its_formula(formula, states, numbers):
    for p in SIZES:
        w, g, *state = vectors(p, 2 + states)
        state = [np.abs(s) for s in state]  # sums of squares
        expected = formula(w, g, *state, *numbers)
        expected = expected if isinstance(expected, tuple) else (expected,)
        kept = g.copy()
        getattr(vector, formula.__name__)(w, g, *state, *numbers)
        for found, value in zip((w, *state), expected, strict=True):
            assert found.tobytes() == value.tobytes()
        assert g.tobytes() == kept.tobytes(), "the gradient is the caller's"


def test_adam_starts_with_a_step_of_the_learning_rate():
    """The first step of Adam has the size of the learning rate in each coordinate.

    This follows from rise = 1 - beta**t, whatever the gradient's size.
    """
    w, m, s = np.zeros((3, 6))
    g = np.array([1e-5, -1e-5, 1.0, -1.0, 1e8, -1e8])
    vector.adam(w, g, m, s, 0.01, 0.9, 0.999, 1 - 0.9, 1 - 0.999, 0.0)
    np.testing.assert_allclose(w, -0.01 * np.sign(g), rtol=1e-12)


def test_extrapolate_and_shrink():
    for p in SIZES:
        w, previous, out, weights = vectors(p, 4)
        vector.extrapolate(w, previous, 0.7, out)
        assert out.tobytes() == (w + 0.7 * (w - previous)).tobytes()
        expected = w - 0.3 * weights * w
        vector.shrink(w, 0.3, weights)
        assert w.tobytes() == expected.tobytes()


def in_fours(a, b):
    """The order that dot documents: four partial sums by fma, the rest into the first."""
    partial = [0.0] * 4
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        at = i % 4 if i < a.size // 4 * 4 else 0
        partial[at] = float(Fraction(x) * Fraction(y) + Fraction(partial[at]))
    return (partial[0] + partial[1]) + (partial[2] + partial[3])


def test_dot_adds_in_its_documented_order():
    for p in SIZES:
        a, b = vectors(p, 2, seed=p)
        assert vector.dot(a, b) == in_fours(a, b)
        exact = float(sum(Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)))
        assert vector.dot(a, b) == pytest.approx(
            exact, abs=1e-15 * (p + 1) * float(np.abs(a) @ np.abs(b))
        )
    assert math.isnan(vector.dot(np.array([1.0, np.nan]), np.ones(2)))


def test_logarithm():
    for x in (1e-300, 0.3, 1.0, 2.5, 1e9):
        assert vector.logarithm(x) == pytest.approx(math.log(x), rel=4e-16)


@pytest.mark.parametrize("words", (1, 2, 4))
@pytest.mark.parametrize("intercept", (False, True))
def test_totals_become_a_gradient(words, intercept):
    """Of one word, of two, and of two on each of two grids, for each of three outputs."""
    k, d, factor = 3, 13, 0.3
    rng = np.random.default_rng(words)
    T, S = rng.normal(size=(words, k, d)), rng.normal(size=(1 + k, 2))
    center, inverse = rng.normal(size=d), rng.random(d)
    g = T[0] if words == 1 else T[0] + T[1]
    g = g + (T[2] + T[3]) if words == 4 else g
    r = (S[1:, 0] + S[1:, 1])[:, np.newaxis]
    expected = factor * ((g - r * center) * inverse)
    expected = np.hstack([expected, factor * r]) if intercept else expected
    G = np.empty(expected.size)
    assert vector.to_gradient(T, S, center, inverse, intercept, factor, G) == factor * (
        S[0, 0] + S[0, 1]
    )
    np.testing.assert_array_equal(G.reshape(k, -1), expected)


@pytest.mark.parametrize("intercept", (False, True))
def test_coefficients_of_flat_parameters(intercept):
    k, d = 2, 9
    w, center, inverse = np.random.default_rng(0).normal(size=(k, d + intercept)), *vectors(d, 2)
    coef, b = np.empty((k, d)), np.empty(k)
    vector.to_raw(w.reshape(-1), center, inverse, intercept, coef, b)
    np.testing.assert_array_equal(coef, w[:, :d] * inverse)
    shift = [vector.dot(row, center) for row in coef]
    np.testing.assert_array_equal(b, w[:, d] - shift if intercept else np.zeros(k))
