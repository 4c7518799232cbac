"""Exact accumulation against a model in rational arithmetic.

The data are rich in ties and are also summed in shuffled orders.
"""

from fractions import Fraction

import numpy as np
import pytest

from mpigd.reduction.base import grid, power_above
from mpigd_kernels import blocks, csr, dense, sums
from mpigd_kernels.sums import PANEL, SPLIT
from tests.kernels.test_dense_csr import to_csr

SHUFFLES = 40

AS_THEY_LIE = np.empty(0, np.int64)  # no order: rows 0, 1, ...


def odd(v):
    v = np.array(v, dtype=np.float64)
    sums.make_odd(v)
    return v


def unit(C):
    return C / (1.5 * 2.0**52)


def nearest(q):
    """The nearest integer of a fraction that is no tie."""
    whole, rest = divmod(q, 1)
    assert rest != Fraction(1, 2), "a tie: its rounding depends on the accumulator"
    return whole + (rest > Fraction(1, 2))


def model(terms, u):
    """The sum of all terms (fractions), each rounded to a multiple of u."""
    u = Fraction(float(u))
    return sum((nearest(term / u) for term in terms), Fraction(0)) * u


def fractions(values):
    return [Fraction(float(value)) for value in values]


def ends(X):
    """Starts and stops of compressed rows, and their entries."""
    indptr, *entries = to_csr(X)
    return indptr[:-1], indptr[1:], *entries


class Accumulator:
    """A, C and the two-word totals of one thread, over columns of at most `largest` |r_i x_ij|."""

    def __init__(self, largest, terms=PANEL, panel=PANEL):
        self.C, self.panel = grid(np.asarray(largest, dtype=np.float64), float(terms)), panel
        self.A, self.T, self.filled = self.C.copy(), np.zeros((2, self.C.size)), 0

    def dense(self, X, r):
        self.filled = dense.accumulate_exact(
            X,
            AS_THEY_LIE,
            0,
            r[np.newaxis],
            self.A[np.newaxis],
            self.C,
            self.T[:, np.newaxis],
            self.filled,
        )
        self._check()

    def csr(self, X, r):
        self.filled = csr.add_exact(*ends(X), r, self.A, self.C, self.T, self.filled, self.panel)
        self._check()

    def _check(self):
        in_units = self.A / unit(self.C)
        assert in_units.min() >= 2.0**52 and in_units.max() < 2.0**53, (
            "an accumulator left its binade"
        )
        assert 0 <= self.filled < self.panel

    def words(self):
        sums.flush(self.A, self.C, self.T)
        return self.T


def data(kind, n, d, rng):
    """Rows X (n, d) and residuals (n,) of a kind that is hard to add."""
    X, r = rng.normal(size=(n, d)), rng.normal(size=n)
    if kind == "ties":
        X, r = (
            rng.integers(-3, 4, (n, d)).astype(np.float64),
            rng.integers(-(2**43), 2**43, n) * 2.0**-43,
        )
        r[0] = 1.0
    elif kind == "worst":
        X, r = np.ones((n, d)), np.full(n, -1.0)
    elif kind in ("decades", "tiny"):
        X, r = X * 10.0 ** rng.uniform(-8, 8, (n, d)), r * 10.0 ** rng.uniform(-10, 0, n)
        X = X * 1e-290 if kind == "tiny" else X
    elif kind == "subnormal":
        X, r = X * 1e-310, r * 10.0 ** rng.uniform(-320, 0, n)
    return X, r


KINDS = ("plain", "ties", "worst", "decades", "tiny", "subnormal")


def largest(X, r):
    return np.abs(X).max(axis=0).astype(np.float64) * np.abs(r).max(initial=0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_is_the_rational_model(kind, layout, dtype):
    rng = np.random.default_rng(0)
    for n, d in ((1, 1), (7, 5), (PANEL, 3), (PANEL + 1, 2), (600, 2)):
        X, r = data(kind, n, d, rng)
        if dtype == np.float32:
            X = np.clip(X, -3e38, 3e38)
        X, r = X.astype(dtype), odd(r)
        accumulator = Accumulator(largest(X, r))
        getattr(accumulator, layout)(X, r)
        total = accumulator.words()
        R = fractions(r)
        for j in range(d):
            terms = [p * x for p, x in zip(R, fractions(X[:, j]), strict=True)]
            expected = model(terms, unit(accumulator.C[j]))
            assert Fraction(total[0, j]) + Fraction(total[1, j]) == expected
            assert abs(expected - sum(terms)) <= n * Fraction(float(unit(accumulator.C[j]))) / 2


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_totals_of_the_two_grids_are_the_rational_model(layout):
    """accumulate_fine: the first grid as before, and what it cuts off on the second."""
    rng = np.random.default_rng(1)
    for kind in ("plain", "ties", "decades"):
        X, r = data(kind, 600, 3, rng)
        r = odd(r)
        C = grid(largest(X, r), float(PANEL))
        D = grid(unit(C), float(PANEL))
        A, B, T, U = C.copy(), D.copy(), np.zeros((2, 3)), np.zeros((2, 3))
        if layout == "dense":
            dense.accumulate_fine(X, AS_THEY_LIE, 0, r, A, B, C, D, T, U, 0)
        else:
            csr.add_fine(*ends(X), r, A, B, C, D, T, U, 0, PANEL)
        sums.flush(A, C, T)
        sums.flush(B, D, U)
        for j in range(3):
            terms = [p * x for p, x in zip(fractions(r), fractions(X[:, j]), strict=True)]
            assert sum(fractions(T[:, j])) == model(terms, unit(C[j]))
            error = sum(fractions(T[:, j])) + sum(fractions(U[:, j])) - sum(terms)
            assert abs(error) <= 600 * Fraction(float(unit(D[j])))


def shuffled(X, r, accumulators, add, rng):
    """The sum over a random order of the rows, in blocks of random size.

    The blocks are split over several accumulators.
    """
    parts = np.array_split(
        rng.permutation(r.size), np.sort(rng.integers(0, r.size + 1, len(accumulators) - 1))
    )
    for accumulator, part in zip(accumulators, parts, strict=True):
        while part.size:
            m = int(rng.integers(1, 500))
            add(accumulator, np.ascontiguousarray(X[part[:m]]), r[part[:m]])
            part = part[m:]
    total = sum(accumulator.words() for accumulator in accumulators)
    return (total[0] + total[1]).tobytes()


def distinct(X, r, layout, rng, shuffles=SHUFFLES):
    bound, found = largest(X, r), set()
    for _ in range(shuffles):
        accumulators = [Accumulator(bound) for _ in range(rng.integers(1, 7))]
        found.add(shuffled(X, r, accumulators, lambda a, x, q: getattr(a, layout)(x, q), rng))
    return len(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_result_under_shuffles_and_splits(kind, layout, dtype):
    rng = np.random.default_rng(2)
    X, r = data(kind, 1500, 11, rng)
    shuffles = SHUFFLES if kind == "ties" else 8
    assert distinct(np.clip(X, -3e38, 3e38).astype(dtype), odd(r), layout, rng, shuffles) == 1


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_without_odd_residuals_ties_follow_the_order(layout):
    """That the test above can fail."""
    rng = np.random.default_rng(3)
    X, r = data("ties", 1500, 11, rng)
    assert distinct(X, r, layout, rng) > 5


def test_sparse_columns_with_a_long_panel():
    """A column's grid may count its own entries, where they are fewer than the rows of a panel."""
    rng = np.random.default_rng(4)
    X, r = data("ties", 1500, 6, rng)
    X[:, 1:] *= rng.random((1500, 5)) < [0.3, 0.1, 0.01, 0.003, 0.001]
    r, panel = odd(r), 1024
    terms = np.minimum(power_above(np.count_nonzero(X, axis=0).astype(np.float64)), panel)
    found = set()
    for _ in range(SHUFFLES):
        accumulators = [Accumulator(largest(X, r), 1, panel) for _ in range(3)]
        for accumulator in accumulators:
            accumulator.C = grid(largest(X, r), terms)
            accumulator.A = accumulator.C.copy()
        found.add(shuffled(X, r, accumulators, Accumulator.csr, rng))
    assert len(found) == 1


def test_worst_case_at_the_bound_stays_in_the_binade():
    """Full panels of terms that all have the largest size and one sign, on either side."""
    for size in (1.0, 2.0**-30, 0.7, 1 - 9 * 2.0**-43, 1 - 2.0**-53, 3e5):
        for sign in (1.0, -1.0):
            X, r = np.full((PANEL - 1, 2), size), odd(np.full(PANEL - 1, sign))
            accumulator = Accumulator(largest(X, np.ones(1)))
            accumulator.dense(X, r)
            accumulator.dense(X[:1], r[:1])
            assert accumulator.filled == 0
            assert accumulator.words().sum() == pytest.approx(2 * sign * size * PANEL, rel=1e-12)


@pytest.mark.parametrize("kind", ["plain", "ties", "worst", "decades", "tiny"])
def test_add_vector_is_the_rational_model(kind):
    rng = np.random.default_rng(5)
    for n in (0, 1, 15, 16, 17, 16 * 255, 16 * 255 + 1, 16 * 256 + 15, 10000):
        v = odd(data(kind, max(n, 1), 1, rng)[1][:n])
        c, T = float(grid(np.abs(v).max(initial=0.0), float(PANEL))), np.zeros(2)
        sums.add_vector(v, c, T)
        assert sum(fractions(T)) == model(fractions(v), unit(c))
        again = np.zeros(2)
        order = rng.permutation(n)
        for part in np.array_split(order, 3):
            sums.add_vector(v[part], c, again)
        assert T[0] + T[1] == again[0] + again[1]


@pytest.mark.parametrize("size", [1.0, 1 - 9 * 2.0**-43, -(1 - 9 * 2.0**-43), 0.7])
def test_add_vector_at_the_bound(size):
    """Before a flush, each lane takes as many terms of the largest size as the grid allows.

    1 - 9 * 2**-43 leaves the least room, and is an odd number of units: one term too many would be
    rounded.
    """
    for n in (16 * 255, 16 * 256, 16 * 257, 16 * 512 + 15, 3 * 16 * 255 + 15):
        v, T = odd(np.full(n, size)), np.zeros(2)
        c = float(grid(abs(size), float(PANEL)))
        sums.add_vector(v, c, T)
        assert sum(fractions(T)) == n * model(fractions(v[:1]), unit(c))


def test_flush_is_exact_and_two_words_never_round():
    rng = np.random.default_rng(6)
    C = grid(10.0 ** rng.uniform(-20, 20, 50), float(PANEL))
    T, exact = np.zeros((2, 50)), [Fraction(0)] * 50
    for _ in range(300):
        A = C + unit(C) * np.round(rng.uniform(-1, 1, 50) * 2.0**51)
        exact = [total + Fraction(a) - Fraction(c) for total, a, c in zip(exact, A, C, strict=True)]
        sums.flush(A, C, T)
        assert A.tobytes() == C.tobytes()
    assert [Fraction(high) + Fraction(low) for high, low in T.T] == exact
    assert np.all(np.fmod(T[0], SPLIT * unit(C)) == 0)


def test_make_odd():
    v = odd(
        [
            0.0,
            -0.0,
            2.0**-1000,
            -(2.0**-1000),
            np.nextafter(2.0**-1000, 0),
            5e-324,
            1.0,
            -3.0,
            np.nan,
        ]
    )
    assert v[[0, 1, 4, 5]].tolist() == [0.0] * 4 and np.isnan(v[8])
    assert np.all(v[[2, 3, 6, 7]].view(np.int64) & 1 == 1)
    v = np.ones((3, 4))
    sums.make_odd(v)
    assert np.all(v == np.nextafter(1.0, 2.0))


def take(r, l, limits, S, counts, tops, c=None):
    c = grid(np.array(limits)[::-1], float(PANEL)) if c is None else c
    return sums.take_block(r, l, np.array(limits), c, S, counts, tops)


def test_take_block_adds_odd_residuals_and_losses():
    rng = np.random.default_rng(7)
    r, l, S, counts, tops = (
        rng.uniform(-1, 1, (3, 500)),
        rng.uniform(0, 4, 500),
        np.zeros((4, 2)),
        np.zeros(5),
        np.zeros(3),
    )
    given, c = (odd(r), odd(l)), grid(np.array([4.0, 1.0]), float(PANEL))
    for rows in (slice(0, 123), slice(123, 500)):
        part = np.ascontiguousarray(r[:, rows])
        assert take(part, l[rows], (1.0, 4.0), S, counts, tops)
        assert part.tobytes() == np.ascontiguousarray(given[0][:, rows]).tobytes(), (
            "what goes on must be odd"
        )
    sizes, losses = np.abs(given[0]), given[1]
    expected = [
        0,
        *(
            (sizes > 1 / 16).sum(),
            (losses > 4 / 16).sum(),
            (sizes > 1 / 4096).sum(),
            (losses > 4 / 4096).sum(),
        ),
    ]
    assert counts.tolist() == expected and not tops.any()
    assert sum(fractions(S[0])) == model(fractions(losses), unit(c[0]))
    for q in range(3):
        assert sum(fractions(S[1 + q])) == model(fractions(given[0][q]), unit(c[1]))


@pytest.mark.parametrize("wrong, over, tops", [
    ([1.5, 3.0], 2, (3.0, 0.5, 0)), ([np.nan, 0.5], 1, (1.0, 0.5, 1)),
    ([-np.inf, -7.0], 2, (7.0, 0.5, 1)),
])  # fmt: skip
def test_take_block_refuses_what_is_over_its_limit(wrong, over, tops):
    S, counts, found = np.zeros((2, 2)), np.zeros(5), np.zeros(3)
    r, l = np.array([[1.0, *wrong, 0.0]]), np.full(4, 0.5)
    assert not take(r, l, (1.0, 1.0), S, counts, found)
    assert counts[0] == over and found == pytest.approx(tops, rel=1e-15)
    assert not take(np.full((1, 4), 0.5), l, (1.0, 1.0), S, counts, found), (
        "one bad block spoils the sweep"
    )
    assert not take(np.full((1, 4), 2.0), 20 * l, (1.0, 1.0), S, counts, found)
    assert counts[0] == over + 8 and found[1] == pytest.approx(10.0) and not S.any()


def test_a_limit_itself_is_not_over_it():
    S, counts, tops = np.zeros((2, 2)), np.zeros(5), np.zeros(3)
    assert take(np.full((1, 256), -2.0), np.full(256, 2.0), (2.0, 2.0), S, counts, tops)
    assert S.sum(axis=1) == pytest.approx([512.0, -512.0]) and counts.tolist() == [
        0,
        256,
        256,
        256,
        256,
    ]


def test_largest_and_plain_sum():
    v = np.array([0.5, -3.0, np.nan, np.inf, -np.inf, 0.0])
    assert sums.largest(v) == (3.0, 3)
    assert sums.largest(v[:0]) == (0.0, 0)
    assert sums.largest(np.array([np.nan, -np.inf])) == (0.0, 2)
    assert sums.add_plain(np.array([1e16, 1.0, -1e16]), 1.0) == 0.0


@pytest.mark.parametrize("rows", [1, 7, 64, 1024])
def test_accumulators_of_scalars_are_moved_before_they_are_full(rows):
    """Blocks of terms of the largest size that the grid allows.

    Their sum is exact for any number of terms.
    """
    c = np.full(2, grid(np.ones(1), float(PANEL))[0])
    lanes, S, terms, v = np.empty((2, sums.WIDTH)), np.zeros((2, 2)), 0, odd(np.full(rows, 0.999))
    blocks.open_lanes(lanes, c)
    before = lanes.copy()
    for _ in range(6000 // rows):
        for lane in lanes:
            sums.spread(v, lane)
        assert np.all(lanes - before < float(PANEL)), (
            "the accumulator has left the binade of its grid"
        )
        terms = blocks.keep_lanes_low(lanes, c, S, c, terms, rows)
    blocks.collect_all(lanes, c, S, c)
    term = nearest(Fraction(float(v[0])) / Fraction(float(unit(c[0])))) * Fraction(
        float(unit(c[0]))
    )
    assert Fraction(float(S[0, 0])) + Fraction(float(S[0, 1])) == 6000 // rows * rows * term
    assert S[0].tobytes() == S[1].tobytes()
