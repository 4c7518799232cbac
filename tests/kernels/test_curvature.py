"""Second derivatives of every smooth loss against finite differences.

Sums of outer products are compared with exact integers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from mpigd.model.losses import LOSSES, Loss
from mpigd_kernels import curvature

Array = np.ndarray[Any, Any]
SMOOTH = [loss for loss in LOSSES.values() if loss.smooth]
EVERY = pytest.mark.parametrize("loss", SMOOTH, ids=lambda loss: loss.name)
A = 1.35


def rows(loss: Loss, m: int = 200) -> tuple[Array, Array, Array]:
    """Margins, targets, weights; a weight of zero among them."""
    rng = np.random.default_rng(m)
    k = 4 if loss.kind == "multiclass" else 1
    z, c = rng.normal(size=(k, m)) * 2, rng.exponential(size=m)
    c[3] = 0.0
    y = {
        "regression": np.abs(z[0] + rng.normal(size=m)) + 0.1,
        "multiclass": rng.integers(0, 4, m).astype(float),
    }.get(loss.kind, (rng.random(m) < 0.5).astype(float))
    return z, y, c


def residuals(loss: Loss, z: Array, y: Array, c: Array) -> Array:
    r, l = np.empty_like(z), np.empty(y.size)
    loss.kernel(z, y, c, A, r, l)
    return r


def second(loss: Loss, z: Array, y: Array, c: Array) -> Array:
    h = np.empty_like(z)
    assert loss.second is not None
    loss.second(z, y, c, A, h)
    return h


def test_every_smooth_loss_has_one_and_no_other() -> None:
    assert {loss.name for loss in LOSSES.values() if loss.second is not None} == {
        loss.name for loss in SMOOTH
    }


@EVERY
def test_products_are_finite_differences_of_the_residuals(loss: Loss) -> None:
    z, y, c = rows(loss)
    v, step = np.random.default_rng(1).normal(size=z.shape), 1e-6
    h, r, l = second(loss, z, y, c), np.empty_like(z), np.empty(y.size)
    kernel = curvature.softmax_product if loss.kind == "multiclass" else curvature.product
    kernel(v, h, c, A, r, l)
    ahead, behind = (residuals(loss, z + side * step * v, y, c) for side in (1.0, -1.0))
    kinks = (
        np.abs(np.abs(z[0] - y) - A) < 1e-4
        if loss.name == "huber"
        else np.zeros(y.size, dtype=bool)
    )
    np.testing.assert_allclose(
        r[:, ~kinks], ((ahead - behind) / (2 * step))[:, ~kinks], rtol=2e-7, atol=1e-7
    )
    assert (l == 1.0).all()


@EVERY
def test_a_row_does_not_know_where_it_lies(loss: Loss) -> None:
    z, y, c = rows(loss)
    whole = second(loss, z, y, c)
    for size in (1, 3, 8, 17):
        for at in range(0, 60, size):
            part = slice(at, at + size)
            alone = second(loss, np.ascontiguousarray(z[:, part]), y[part], c[part])
            np.testing.assert_array_equal(alone, whole[:, part])


@EVERY
def test_bounds_and_extremes(loss: Loss) -> None:
    z, y, c = rows(loss)
    h = second(loss, z, y, c)
    assert (h >= 0.0).all()
    if loss.curvature is not None and loss.kind != "multiclass":
        assert (h <= loss.curvature(A) * c * (1 + 1e-15)).all()
    far = second(loss, np.where(z > 0, 700.0, -700.0), y, c)
    assert np.isfinite(far).all()


def test_the_pairs_of_softmax() -> None:
    loss = LOSSES["softmax"]
    z, y, c = rows(loss)
    p, out = second(loss, z, y, c), np.empty(y.size)
    np.testing.assert_allclose(p.sum(axis=0), 1.0, rtol=1e-15)
    for q in range(4):
        for s in range(4):
            curvature.softmax_pair(p, c, q, s, out)
            np.testing.assert_allclose(out, c * np.abs(p[q] * ((q == s) - p[s])), rtol=1e-14)


def outer(Z: Array, h: Array, panels: list[slice]) -> Array:
    """The upper triangle of sum h z z' by the kernels, with a flush after every panel."""
    p = Z.shape[1]
    wide = -(-p // curvature.LANES) * curvature.LANES
    padded = np.zeros((len(Z), wide))
    padded[:, :p] = Z
    total, T = np.full((wide, wide), curvature.BIAS), np.zeros((2, p, p))
    for panel in panels:
        curvature.add_outer(padded[panel], h[panel], total)
        curvature.flush_outer(total, T)
    return np.triu(T[0] + T[1])


def test_outer_sums_are_right() -> None:
    rng = np.random.default_rng(0)
    Z, h = rng.uniform(-1, 1, size=(1000, 25)), rng.uniform(0, 1, 1000)
    found = outer(Z, h, [slice(a, a + 256) for a in range(0, 1000, 256)])
    np.testing.assert_allclose(found, np.triu((Z * h[:, None]).T @ Z), rtol=0, atol=1000 * 2.0**-43)
    exact = sum(
        (Fraction(float(h[i])) * Fraction(float(Z[i, 0])) ** 2 for i in range(1000)), Fraction(0)
    )
    assert abs(Fraction(float(found[0, 0])) - exact) < Fraction(1000, 2**43)


def test_outer_sums_do_not_know_the_order_of_rows() -> None:
    """Numbers on a coarse grid meet every rounding tie that there is."""
    rng = np.random.default_rng(1)
    Z, h = rng.integers(-3, 4, size=(700, 7)) / 4.0, rng.integers(0, 8, 700) * 2.0**-43
    Z[:, 6] = 1.0
    truth = outer(Z, h, [slice(0, 256), slice(256, 512), slice(512, 700)])
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(700)
        width = [8, 13, 64, 200, 256][seed % 5]
        panels = [slice(a, a + width) for a in range(0, 700, width)]
        np.testing.assert_array_equal(outer(Z[order], h[order], panels), truth)


@pytest.mark.parametrize("intercept", [0, 1])
def test_rows_made_dense(intercept: int) -> None:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(40, 6)) * (rng.random((40, 6)) < 0.4)
    center, scale = rng.normal(size=6), rng.uniform(0.5, 2, 6 + intercept)
    S = sparse.csr_matrix(X)
    expected = np.column_stack([X - center, np.ones((40, intercept))]) * scale
    for first, last in ((0, 40), (7, 23)):
        dense, csr = (
            np.empty((last - first, 6 + intercept)),
            np.empty((last - first, 6 + intercept)),
        )
        curvature.dense_rows(X[first:last], center, scale, dense)
        curvature.csr_rows(
            S.indptr[first : last + 1].astype(np.int64), S.indices, S.data, center, scale, csr
        )
        np.testing.assert_array_equal(dense, expected[first:last])
        np.testing.assert_array_equal(csr, dense)
