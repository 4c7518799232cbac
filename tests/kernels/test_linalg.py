"""Cholesky factors, solves and stationary distributions against scipy and closed forms.

Singular matrices are included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import linalg as truth

from mpigd_kernels import linalg

Array = np.ndarray[Any, Any]
SIZES = [1, 2, 3, 4, 5, 8, 17, 64, 131]


def definite(p: int, condition: float = 1e4) -> Array:
    rng = np.random.default_rng(p)
    Q = np.linalg.qr(rng.normal(size=(p, p)))[0]
    H = Q * np.geomspace(1.0, 1.0 / condition, p) @ Q.T
    return np.ascontiguousarray(0.5 * (H + H.T))


@pytest.mark.parametrize("p", SIZES)
def test_the_factor_is_that_of_lapack(p: int) -> None:
    H = definite(p)
    U = H.copy()
    assert linalg.cholesky(U) == 0
    np.testing.assert_allclose(U, truth.cholesky(H), rtol=1e-9, atol=1e-12)
    assert not np.tril(U, -1).any()


@pytest.mark.parametrize("p", SIZES)
def test_only_the_upper_triangle_is_read(p: int) -> None:
    H = definite(p)
    U, V = H.copy(), np.triu(H) + np.tril(np.full((p, p), np.nan), -1)
    linalg.cholesky(U)
    linalg.cholesky(V)
    np.testing.assert_array_equal(U, V)


@pytest.mark.parametrize("p", SIZES)
def test_solve(p: int) -> None:
    H, b = definite(p), np.random.default_rng(1).normal(size=p)
    U, x = H.copy(), np.empty(p)
    linalg.cholesky(U)
    linalg.solve(U, b, x)
    np.testing.assert_allclose(H @ x, b, rtol=0, atol=1e-10)
    linalg.solve(U, b, b)
    np.testing.assert_array_equal(b, x)


def test_a_dependent_column_takes_no_part() -> None:
    """Twice the same column, one of zeros: consistent systems are solved, and nothing grows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 6))
    X[:, 3], X[:, 4] = X[:, 1], 0.0
    H = X.T @ X
    b = H @ rng.normal(size=6)
    U, x = H.copy(), np.empty(6)
    assert linalg.cholesky(U) == 2
    linalg.solve(U, b, x)
    assert np.abs(x).max() < 20
    rest = [0, 1, 2, 5]
    alone = np.linalg.solve(H[np.ix_(rest, rest)], b[rest])
    np.testing.assert_allclose(H @ x, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())
    assert np.isfinite(alone).all()


@pytest.mark.parametrize("k", [2, 3, 5, 20])
def test_stationary(k: int) -> None:
    rng = np.random.default_rng(k)
    rates = rng.exponential(size=(k, k)) * 10.0 ** rng.uniform(-3, 3, size=(k, 1))
    np.fill_diagonal(rates, 0.0)
    T = rates - np.diag(rates.sum(axis=1))
    null = truth.null_space(T.T)[:, 0]
    found = linalg.stationary(T.copy())
    np.testing.assert_allclose(found, null / null[np.abs(null).argmax()], rtol=1e-8)
    assert found.max() == 1.0


def test_stationary_of_two_is_a_ratio_to_the_last_digits() -> None:
    T = np.array([[-3e-9, 3e-9], [5e-9, -5e-9]])
    np.testing.assert_allclose(linalg.stationary(T), [1.0, 0.6], rtol=1e-15)
    balanced = linalg.stationary(np.array([[-1.0, 1.0], [1.0 + 1e-15, -1.0]]))
    assert 0.0 < 1.0 - balanced.min() < 2e-15


def test_a_class_that_cannot_be_left_has_no_distribution() -> None:
    assert not linalg.stationary(np.array([[-1.0, 1.0], [0.0, 0.0]])).any()


@pytest.mark.parametrize("p", SIZES)
def test_elimination_leaves_dependent_columns_out(p: int) -> None:
    """The kept columns' factor is that of their own matrix, whatever is beside them; a dropped
    one's column is Q'x."""
    rng = np.random.default_rng(p)
    X = rng.normal(size=(2 * p + 3, p))
    for j in range(2, p, 3):
        X[:, j] = X[:, :j] @ rng.normal(size=j)
    H, kept = X.T @ X, np.empty(p, dtype=bool)
    U = np.triu(H) + np.tril(np.full((p, p), np.nan), -1)
    linalg.eliminate(U, 1e-9 * H.diagonal(), kept)
    assert kept.tolist() == [j % 3 != 2 for j in range(p)]
    own = np.ix_(kept, kept)
    np.testing.assert_allclose(U[own], truth.cholesky(H[own]), rtol=1e-9, atol=1e-9)
    assert not U[~kept].any() and not np.tril(U, -1).any()
    np.testing.assert_allclose(U[kept].T @ U[kept], H, atol=1e-9 * H.max())


@pytest.mark.parametrize("p", SIZES)
def test_triangles(p: int) -> None:
    U, W = truth.cholesky(definite(p)), truth.cholesky(definite(p, 10.0) + np.eye(p))
    V, R, Z = np.zeros_like(U), np.zeros_like(U), np.random.default_rng(p).normal(size=(p, 7))
    linalg.invert(U, V)
    np.testing.assert_allclose(V, truth.inv(U), rtol=1e-8, atol=1e-8)
    linalg.multiply(U, W, R)
    np.testing.assert_allclose(R, U @ W, rtol=1e-12, atol=1e-13)
    Q = Z.copy()
    linalg.transform(U, Q)
    np.testing.assert_allclose(U.T @ Q, Z, rtol=1e-9, atol=1e-9)
    for i in range(7):  # every row of data on its own
        alone = np.ascontiguousarray(Z[:, i : i + 1])
        linalg.transform(U, alone)
        np.testing.assert_array_equal(alone[:, 0], Q[:, i])
