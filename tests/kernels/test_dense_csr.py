"""Margins, accumulation and column measures of dense and CSR rows.

They are compared with each other and with numpy, scipy and exact fractions.
"""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse

from mpigd_kernels import csr, dense

DIMENSIONS = (
    0,
    1,
    2,
    7,
    15,
    16,
    17,
    31,
    32,
    33,
    47,
    48,
    49,
    64,
    100,
)  # around the lanes of a dot product
TYPES = [
    (np.float32, np.int32),
    (np.float32, np.int64),
    (np.float64, np.int32),
    (np.float64, np.int64),
]
AS_THEY_LIE = np.empty(0, np.int64)  # no order: rows 0, 1, ...
ROWS_PER_CALL = (0, 1, 3, 7, 8, 9, 16, 40)


def rows_of(rng, n, d, dtype=np.float64, filled=0.4):
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < filled)
    return X.astype(dtype)


def to_csr(X, index=np.int32):
    """(indptr, indices, data) of a dense matrix."""
    S = scipy.sparse.csr_matrix(X)
    return S.indptr.astype(np.int64), S.indices.astype(index), S.data


def dense_margins(X, w, b=0.0):
    z = np.full(len(X), 99.0)
    dense.margins(X, w, b, z)
    return z


def csr_margins(triple, w, b=0.0):
    z = np.full(triple[0].size - 1, 99.0)
    csr.margins(*triple, w, b, z)
    return z


def add_native(X, r, A):
    dense.add_all(X, AS_THEY_LIE, 0, r[np.newaxis], 0, len(X), A[np.newaxis])


def exact_margins(X, w, b):
    """X w + b, and the same of absolute values, as fractions."""
    W = [Fraction(float(v)) for v in w]
    products = [[Fraction(float(x)) * v for x, v in zip(row, W, strict=True)] for row in X]
    return [sum(p, Fraction(b)) for p in products], [
        sum(map(abs, p), abs(Fraction(b))) for p in products
    ]


@pytest.mark.parametrize("dtype, index", TYPES)
def test_margins_within_rounding_of_the_rational_truth(dtype, index):
    rng = np.random.default_rng(0)
    for d in DIMENSIONS:
        X, w = rows_of(rng, 4, d, dtype, 0.8), rng.normal(size=d) * 10.0 ** rng.integers(-3, 3, d)
        truth, size = exact_margins(X, w, 0.7)
        for z in (dense_margins(X, w, 0.7), csr_margins(to_csr(X, index), w, 0.7)):
            for found, exact, total in zip(z, truth, size, strict=True):
                assert abs(Fraction(found) - exact) <= (d + 2) * Fraction(2) ** -53 * total


@pytest.mark.parametrize("dtype, index", TYPES)
def test_dense_and_csr_agree(dtype, index):
    rng = np.random.default_rng(1)
    for d in DIMENSIONS:
        X, w, r = rows_of(rng, 41, d, dtype), rng.normal(size=d), rng.normal(size=41)
        triple = to_csr(X, index)
        np.testing.assert_allclose(
            csr_margins(triple, w, -3.0), dense_margins(X, w, -3.0), rtol=1e-12, atol=1e-12
        )
        A, B = np.ones(d), np.ones(d)
        add_native(X, r, A)
        csr.add_rows(triple[0][:-1], triple[0][1:], *triple[1:], r, B)
        np.testing.assert_allclose(A, 1 + X.T.astype(np.float64) @ r, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(A, B, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype, index", TYPES)
def test_row_alone_and_in_any_block_same_margin(dtype, index):
    rng = np.random.default_rng(2)
    for d in (5, 16, 33):
        X, w = rows_of(rng, 88, d, dtype), rng.normal(size=d)
        indptr, indices, data = to_csr(X, index)
        alone = np.concatenate([dense_margins(X[i : i + 1].copy(), w, 0.1) for i in range(88)])
        sparse = np.concatenate(
            [csr_margins(to_csr(X[i : i + 1], index), w, 0.1) for i in range(88)]
        )
        for offset in range(8):
            for m in range(1, 81):
                rows = slice(offset, offset + m)
                assert dense_margins(X[rows], w, 0.1).tobytes() == alone[rows].tobytes()
                part = indptr[offset : offset + m + 1], indices, data
                assert csr_margins(part, w, 0.1).tobytes() == sparse[rows].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_margins_do_not_depend_on_where_memory_lies(dtype):
    rng = np.random.default_rng(3)
    X, w = rows_of(rng, 20, 37, dtype), rng.normal(size=37)
    expected = dense_margins(X, w)
    for shift in range(16):
        room, weights = np.empty(X.size + 16, dtype), np.empty(w.size + 16)
        moved, v = room[shift:][: X.size].reshape(X.shape), weights[shift:][: w.size]
        moved[:], v[:] = X, w
        assert dense_margins(moved, v).tobytes() == expected.tobytes()


def test_native_accumulation_in_any_number_of_calls_is_the_same():
    rng = np.random.default_rng(4)
    X, r = rows_of(rng, sum(ROWS_PER_CALL), 11, np.float32), rng.normal(size=sum(ROWS_PER_CALL))
    A, B = np.zeros(11), np.zeros(11)
    add_native(X, r, A)
    for start, m in zip(np.cumsum((0, *ROWS_PER_CALL)), ROWS_PER_CALL, strict=False):
        add_native(X[start : start + m], r[start : start + m], B)
    assert A.tobytes() == B.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_several_outputs_have_the_bits_of_each_alone(dtype):
    rng = np.random.default_rng(9)
    for n, d, k in itertools.product((1, 3, 4, 9, 16), (1, 8, 13), (1, 3, 4, 5, 8, 10)):
        X, W, R, b = (
            rows_of(rng, n, d, dtype, 0.9),
            rng.normal(size=(k, d)),
            rng.normal(size=(k, n)),
            rng.normal(size=k),
        )
        Z, A = np.empty((k, n)), np.zeros((k, d))
        dense.margins_of_all(X, AS_THEY_LIE, 0, W, b, Z)
        dense.add_all(X, AS_THEY_LIE, 0, R, 0, n, A)
        for q in range(k):
            alone = np.zeros(d)
            add_native(X, R[q], alone)
            assert A[q].tobytes() == alone.tobytes()
            assert Z[q].tobytes() == dense_margins(X, W[q], b[q]).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_in_an_order_have_the_bits_of_copies_of_them(dtype):
    rng = np.random.default_rng(10)
    for m, d, k in itertools.product((1, 3, 8, 41), (1, 13, 32), (1, 5)):
        X, W, R, b = (
            rows_of(rng, 60, d, dtype),
            rng.normal(size=(k, d)),
            rng.normal(size=(k, m)),
            rng.normal(size=k),
        )
        order, first = rng.integers(0, 60, 5 + m), 5
        copies = np.ascontiguousarray(X[order[first:]])
        Z, A, Z2, A2 = np.empty((k, m)), np.zeros((k, d)), np.empty((k, m)), np.zeros((k, d))
        dense.margins_of_all(X, order, first, W, b, Z)
        dense.add_all(X, order, first, R, 0, m, A)
        dense.margins_of_all(copies, AS_THEY_LIE, 0, W, b, Z2)
        dense.add_all(copies, AS_THEY_LIE, 0, R, 0, m, A2)
        assert Z.tobytes() == Z2.tobytes() and A.tobytes() == A2.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_column_range_and_count(dtype):
    rng = np.random.default_rng(5)
    X = rows_of(rng, 50, 9, dtype)
    X[:, 4] = 0.0
    X[3, 2] = np.nan
    low, high = np.full(9, np.inf), np.full(9, -np.inf)
    dense.column_range(X[:20], low, high)
    dense.column_range(X[20:], low, high)
    assert low.tolist() == np.nanmin(X, axis=0).tolist()
    assert high.tolist() == np.nanmax(X, axis=0).tolist()
    low, high, count = np.full(9, np.inf), np.full(9, -np.inf), np.zeros(9, dtype=np.int64)
    csr.column_range(*to_csr(X)[1:], low, high, count)
    stored = [[x for x in column if x != 0 and x == x] for column in X.T.tolist()]
    assert low.tolist() == [min(values, default=np.inf) for values in stored]
    assert high.tolist() == [max(values, default=-np.inf) for values in stored]
    assert count.tolist() == np.count_nonzero(X, axis=0).tolist()


@pytest.mark.parametrize("dtype, index", TYPES)
def test_squared_deviation(dtype, index):
    rng = np.random.default_rng(6)
    X, center = rows_of(rng, 30, 7, dtype), rng.normal(size=7)
    expected, out = (X.astype(np.float64) - center) ** 2, np.empty((30, 7))
    dense.squared_deviation(X, center, out)
    assert out.tobytes() == expected.tobytes()
    _, indices, data = to_csr(X, index)
    stored = np.empty(data.size)
    csr.squared_deviation(indices, data, center, stored)
    assert stored.tobytes() == expected[X != 0].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scrub_takes_subnormals_and_finds_the_first_that_is_not_finite(dtype):
    info = np.finfo(dtype)
    small = [info.smallest_subnormal, -info.smallest_subnormal, info.tiny / 2, -info.tiny / 2]
    kept = [0.0, info.tiny, -info.tiny, 1.0, -2.5, info.max, -info.max]
    v = np.array(small + kept, dtype=dtype)
    assert dense.scrub(v, float(info.tiny)) == -1
    assert v.tolist() == [0.0] * 4 + np.array(kept, dtype=dtype).tolist()
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 17, 98):
            v = np.ones(100, dtype=dtype)
            v[[place, 99]] = bad
            assert dense.scrub(v, float(info.tiny)) == place
            assert np.array_equal(v[place], dtype(bad), equal_nan=True), (
                "what is wrong must stay to be seen"
            )
    assert dense.scrub(np.empty(0, dtype), float(info.tiny)) == -1


@pytest.mark.parametrize("dtype, index", TYPES)
def test_gather_copies_rows_in_the_order_given(dtype, index):
    rng = np.random.default_rng(7)
    X = rows_of(rng, 25, 8, dtype)
    X[4] = 0.0
    indptr, indices, data = to_csr(X, index)
    for chosen in (
        rng.integers(0, 25, 60),
        np.array([4, 4, 24, 0]),
        np.empty(0, dtype=np.int64),
        np.arange(25),
    ):
        size = int(np.diff(indptr)[chosen].sum())
        out = (
            np.empty(chosen.size + 1, dtype=np.int64),
            np.empty(size, index),
            np.empty(size, dtype),
        )
        csr.gather(indptr, indices, data, chosen, *out)
        found = scipy.sparse.csr_matrix((out[2], out[1], out[0]), shape=(chosen.size, 8))
        assert np.array_equal(found.toarray(), X[chosen])


@pytest.mark.parametrize("dtype, index", TYPES)
def test_sort_rows(dtype, index):
    rng = np.random.default_rng(8)
    X = rows_of(rng, 40, 30, dtype, 0.5)
    indptr, indices, data = to_csr(X, index)
    mixed_indices, mixed_data = indices.copy(), data.copy()
    for start, stop in itertools.pairwise(indptr):
        order = start + rng.permutation(stop - start)
        mixed_indices[start:stop], mixed_data[start:stop] = indices[order], data[order]
    assert csr.sort_rows(indptr, mixed_indices, mixed_data, 30) == -1
    assert mixed_indices.tobytes() == indices.tobytes() and mixed_data.tobytes() == data.tobytes()


@pytest.mark.parametrize(
    "row, wrong", [(0, [0, 3, 0]), (2, [5, 1, 5]), (1, [2, 2]), (3, [7, -1]), (0, [8]), (2, [-1])]
)
def test_sort_rows_names_the_first_bad_row(row, wrong):
    rows = [[3, 1, 0], [], [6, 7], [2]]
    rows[row] = wrong
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([j for entries in rows for j in entries], dtype=np.int32)
    assert csr.sort_rows(indptr, indices, np.ones(indices.size), 8) == row
