"""Sums of outer products of compressed rows.

They are compared with exact rational numbers, numpy, and other orders of the rows.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from mpigd_kernels import curvature, sparse_outer

Array = np.ndarray[Any, Any]
N, D, DENSE = 700, 23, 3


def rows(seed: int = 0, ones: bool = False) -> tuple[Any, Array]:
    """Three dense columns, some rare ones, an empty one; weights between zero and one."""
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((N, D)) < 0.2, rng.uniform(-1, 1, size=(N, D)), 0.0)
    X[:, :DENSE] = rng.uniform(-1, 1, size=(N, DENSE))
    X[:, 7] = 0.0
    X = (X != 0.0).astype(float) if ones else X
    h = rng.random(N)
    h[5] = 0.0
    return sparse.csr_matrix(X), h


def sums(
    X: Any, h: Array, center: Array, power: Array, cuts: list[int], values: bool = True
) -> tuple[Array, Array, Array]:
    """Add up rows that are visited in parts.

    Returns the totals of dense columns and the intercept, and both sets of integers.
    """
    rest, wide = D - DENSE, 8
    A, T = np.full((1, wide, wide), curvature.BIAS), np.zeros((1, 2, DENSE + 1, DENSE + 1))
    B, C = np.zeros((1, rest, wide), np.int64), np.zeros((1, rest * (rest + 1) // 2), np.int64)
    for a, b in pairwise(cuts):
        sparse_outer.add_outer_csr(
            X.indptr[a : b + 1].astype(np.int64), X.indices, X.data if values else None,
            h[np.newaxis, a:b].copy(),
            np.arange(D), np.full(rest, 0.5), center, np.full(DENSE + 1, 0.25), DENSE, power,
            A, T, B, C,
        )  # fmt: skip
    return T[0], B[0], C[0]


def powers(X: Any) -> Array:
    count = np.bincount(X.indices, minlength=D)[DENSE:]
    return np.ldexp(
        1.0, np.minimum(sparse_outer.FINEST, sparse_outer.ROOM - np.frexp(count + 1.0)[1])
    )


def test_every_term_is_rounded_on_its_own() -> None:
    X, h = rows()
    Z, power = X.toarray(), np.full(D - DENSE, 2.0**20)  # a coarse grid, on which rounding is seen
    _, B, C = sums(X, h, np.zeros(DENSE), power, [0, N])
    for j, k in ((0, 0), (1, 6), (11, 18), (4, 9)):
        left, right, column = Z[:, DENSE + j], Z[:, DENSE + k], Z[:, 1]
        factors = [Fraction(float(x)) for x in h * (right * 0.5) * 2.0**20]
        pairs = [round(r * Fraction(0.5 * x)) for r, x in zip(factors, left, strict=True)]
        assert C[k * (k + 1) // 2 + j] == sum(pairs)
        mixed = [round(r * Fraction(0.25 * x)) for r, x in zip(factors, column, strict=True)]
        assert B[k, 1] == sum(mixed)


@pytest.mark.parametrize("ones", [False, True])
def test_sums_do_not_know_the_order_of_rows_and_entries(ones: bool) -> None:
    """Numbers on a coarse grid meet every rounding tie that there is."""
    X, _ = rows(ones=ones)
    if not ones:
        X.data = np.ceil(4 * X.data) / 4
    h = np.random.default_rng(1).integers(0, 8, N) * 2.0**-43
    truth = sums(X, h, np.zeros(DENSE), powers(X), [0, N], not ones)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        order, cuts = rng.permutation(N), [0, *sorted(rng.integers(0, N, seed)), N]
        Y = X[order]
        for a, b in pairwise(Y.indptr):
            shuffled = rng.permutation(b - a) + a
            Y.indices[a:b], Y.data[a:b] = Y.indices[shuffled], Y.data[shuffled]
        T, B, C = sums(Y, h[order], np.zeros(DENSE), powers(X), cuts, not ones)
        np.testing.assert_array_equal(B, truth[1])
        np.testing.assert_array_equal(C, truth[2])
        np.testing.assert_array_equal(T.sum(axis=0), truth[0].sum(axis=0))


@pytest.mark.parametrize("intercept", [False, True])
def test_the_joined_matrix(intercept: bool) -> None:
    X, h = rows()
    rng = np.random.default_rng(3)
    center, inverse, power = (
        rng.uniform(-0.2, 0.2, D) * intercept,
        rng.uniform(0.5, 2.0, D),
        powers(X),
    )
    T, B, C = sums(X, h, center[:DENSE], power, [0, 300, N])
    p, head = D + intercept, DENSE + intercept
    T = np.ascontiguousarray(T[:, :head, :head])
    units = np.append(4.0 * inverse[:DENSE], [4.0] * intercept)  # the kernel's scale was a quarter
    H = np.full((p, p), np.nan)
    sparse_outer.join_outer(
        T, B, C, DENSE, power, units, np.full(D - DENSE, 2.0), center[DENSE:], inverse[DENSE:],
        0.1, H
    )  # fmt: skip
    Z = np.column_stack([(X.toarray() - center) * inverse, np.ones((N, int(intercept)))])
    expected = 0.1 * (Z * h[:, np.newaxis]).T @ Z
    np.testing.assert_allclose(
        H, expected, rtol=0, atol=0.1 * N * 64.0 * 2.0**-43
    )  # the grid of curvature.py
    np.testing.assert_allclose(
        H[DENSE:, DENSE:D], expected[DENSE:, DENSE:D], rtol=1e-12, atol=1e-13
    )
    np.testing.assert_array_equal(H, H.T)


def test_as_many_terms_as_there_may_be() -> None:
    """A sum of 2**20 largest terms stays below 2**63 on the grid that is made for so many."""
    count = 1 << 20
    power = np.ldexp(1.0, sparse_outer.ROOM - np.frexp(count + 1.0)[1])
    largest = float(np.nextafter(1.0, 0.0))
    one = round(Fraction(largest * largest * power) * Fraction(largest))
    assert count * one < 2**63 and 2.0**sparse_outer.FINEST < 2.0**51
