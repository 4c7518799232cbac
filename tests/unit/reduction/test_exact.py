"""The exact reducer on virtual ranks.

The result is the same for any split, limits are repaired, and bounds hold.
"""

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse

from mpigd.matrix.base import CSR, Dense
from mpigd.parallel.comm import SelfComm
from mpigd.reduction.base import NativeReducer, NotFinite, power_above
from mpigd.reduction.exact import Bounds, ExactReducer
from mpigd_kernels import sums
from tests.threadcomm import run

RANKS = (1, 2, 3, 5)


class Data:
    """Rows X (n, d) as a matrix, residuals r (k, n) and losses l (n,).

    `sweep` runs a reducer over some of the rows.
    """

    def __init__(self, kind="plain", sparse=False, n=900, d=7, k=1, seed=0):
        rng = np.random.default_rng(seed)
        X, r, l = rng.normal(size=(n, d)), rng.uniform(-1, 1, (k, n)), rng.uniform(0, 1, n)
        if kind == "ties":
            X, r = (
                rng.integers(-3, 4, (n, d)).astype(np.float64),
                rng.integers(-(2**43), 2**43, (k, n)) * 2.0**-43,
            )
        elif kind == "outliers":  # a million times the rest, and weights over ten decades
            X[::97], r = X[::97] * 1e6, r * 10.0 ** rng.uniform(-10, 0, n)
        if sparse:
            X = X * (rng.random((n, d)) < np.linspace(0.01, 0.6, d))
        if kind == "indicators":  # each column has two rows
            X, r = np.zeros((n, d)), np.abs(r)
            X[np.arange(n), np.arange(n) % d] = rng.uniform(0.5, 1, n)
        self.x, self.r, self.l, self.n = X, r, l, n
        S = scipy.sparse.csr_matrix(X)
        self.X = CSR(S.indptr.astype(np.int64), S.indices, S.data, d) if sparse else Dense(X)
        columns = self.X.columns()
        self.bounds = Bounds.of(np.abs(X).max(axis=0), columns.count, self.X.entries, n)

    def reducer(self, comm, bound=1.0, fine=False):
        return ExactReducer(comm, self.bounds, len(self.r), self.n, bound, fine)

    def sweep(self, reducer, rows, threads=1, block=200, scale=1.0, spoil=None):
        """Sweep over rows with `scale` times the residuals and losses.

        spoil: (row, value) of a residual that is replaced.
        """
        cuts = np.arange(0, rows.size + block, block)
        items = [rows[a : a + block] for a in cuts if a < rows.size]

        def visit(share, into):
            for item in share:
                r = self.r[:, item] * scale
                if spoil is not None:
                    r[0, item == spoil[0]] = spoil[1]
                self.X.rows(item).accumulate(r, self.l[item] * scale, into)

        return reducer.sweep([items[t::threads] for t in range(threads)], visit, float(self.n))


def bits(result):
    return result.gradient.tobytes() + result.residual.tobytes() + np.float64(result.loss).tobytes()


def state_bits(reducer):
    return b"".join(value.tobytes() for value in reducer.state().values())


def split(size, n, seed):
    """Rows of each rank: a random split in random order; the last rank of five has none."""
    rng = np.random.default_rng([seed, size])
    owner = rng.integers(0, 4 if size == 5 else size, n)
    return [rng.permutation(np.flatnonzero(owner == rank)) for rank in range(size)]


def on_ranks(size, data, work, seed=0):
    """work(comm, rows) on virtual ranks; whatever it returns must be equal on all."""
    parts = split(size, data.n, seed)
    results = run(size, lambda comm: work(comm, parts[comm.rank]))
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind, k", [("plain", 1), ("ties", 1), ("ties", 3), ("outliers", 2)])
def test_same_bits_on_any_ranks_threads_and_blocks(kind, k, sparse, fine):
    data = Data(kind, sparse, k=k)
    expected = bits(
        data.sweep(data.reducer(SelfComm(), fine=fine), np.arange(data.n), block=data.n)
    )
    for size in RANKS:
        for threads, block in ((1, 64), (2, 33), (3, 300)):

            def work(comm, rows, threads=threads, block=block):
                return bits(data.sweep(data.reducer(comm, fine=fine), rows, threads, block))

            assert on_ranks(size, data, work, seed=block) == expected


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["plain", "ties", "outliers"])
def test_error_bound_holds(kind, sparse):
    data = Data(kind, sparse, n=500)
    sums.make_odd(data.r)  # as every sweep does: a change of one unit in the last place
    sums.make_odd(data.l)
    R = [Fraction(v) for v in data.r[0]]
    exact = [
        sum(p * Fraction(x) for p, x in zip(R, column, strict=True)) for column in data.x.T.tolist()
    ]
    for fine in (False, True):
        reducer = data.reducer(SelfComm(), fine=fine)
        bounds = reducer.error_bound()
        assert np.all(bounds <= data.n * data.bounds.largest * 2.0 ** (-82 if fine else -41))
        found = data.sweep(reducer, np.arange(data.n))
        for value, true, bound in zip(found.gradient[0], exact, bounds, strict=True):
            assert abs(Fraction(value) - true) <= bound + 2.0**-52 * abs(true)
        for value, true in ((found.loss, sum(map(Fraction, data.l))), (found.residual[0], sum(R))):
            assert abs(Fraction(value) - true) <= data.n * 2.0**-43 + 2.0**-52 * abs(true)


@pytest.mark.parametrize("size", RANKS)
def test_a_limit_that_is_exceeded_is_mended_on_all_ranks(size):
    data = Data("ties", k=2)
    large = data.reducer(SelfComm(), None)
    large.restore(
        {
            "limits": power_above(3e5 * np.array([np.abs(data.r).max(), data.l.max()])),
            "calm": np.zeros(2),
        }
    )
    expected = bits(data.sweep(large, np.arange(data.n), scale=3e5))
    assert large.repeats == 0

    def work(comm, rows):
        reducer = data.reducer(comm, None)
        first = bits(data.sweep(reducer, rows, threads=2, scale=3e5))
        assert reducer.repeats == 1
        assert bits(data.sweep(reducer, rows, scale=3e5)) == first
        assert reducer.repeats == 1, "the limit was not kept"
        return first, state_bits(reducer)

    assert on_ranks(size, data, work) == (expected, state_bits(large))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stops_all_ranks_and_changes_nothing(value):
    data = Data()
    expected = bits(data.sweep(data.reducer(SelfComm(), None), np.arange(data.n)))

    def work(comm, rows):
        reducer = data.reducer(comm, None)
        before = state_bits(reducer)
        with pytest.raises(NotFinite) as caught:
            data.sweep(reducer, rows, threads=2, scale=1e9, spoil=(17, value))
        assert caught.value.agreed and state_bits(reducer) == before
        return bits(data.sweep(reducer, rows))

    for size in RANKS:
        assert on_ranks(size, data, work) == expected


def test_sums_that_would_overflow_stop_all_ranks():
    data = Data(n=50)
    data.bounds.largest[2] = 1e200

    def work(comm, rows):
        reducer = data.reducer(comm, None)
        for scale in (1e120, 1e305):
            with pytest.raises(NotFinite, match="scale the data down"):
                data.sweep(reducer, rows, scale=scale)
        return bits(data.sweep(reducer, rows))

    assert len({on_ranks(size, data, work) for size in RANKS}) == 1


def test_limits_follow_the_residuals_down_and_back_from_a_wild_step():
    data, scales = Data("outliers"), [1.0, 1e12, 1.0, 1e-3, 1e-3, 1e-3, 1e-3, 0.0, 1.0]
    one = data.reducer(SelfComm(), None).error_bound()

    def work(comm, rows):
        reducer, found = data.reducer(comm, None), []
        for scale in scales:
            sums = data.sweep(reducer, rows, scale=scale)
            bound = reducer.error_bound() / one
            found.append((bits(sums), state_bits(reducer), float(bound.max())))
        return found

    results = [on_ranks(size, data, work) for size in RANKS]
    assert all(result == results[0] for result in results)
    accuracy = [bound for _, _, bound in results[0]]
    assert accuracy[2] <= 2.0, "after a wild step the grid stayed coarse"
    assert accuracy[6] < 0.02 and accuracy[7] < 1e-200, (
        "the grid does not follow the residuals down"
    )
    first, last = (np.frombuffer(results[0][i][0]) for i in (0, 8))
    np.testing.assert_allclose(first, last, rtol=1e-9, atol=float(one.max()))


def test_a_known_residual_bound_is_never_lowered():
    data = Data()
    reducer = data.reducer(SelfComm(), 3.0)
    for _ in range(6):
        data.sweep(reducer, np.arange(data.n), scale=1e-6)
    assert reducer.state()["limits"][0] == 4.0 and reducer.state()["limits"][1] < 1e-5


def test_a_restored_reducer_continues_with_the_same_bits():
    data, rows = Data("outliers"), np.arange(900)
    reducer = data.reducer(SelfComm(), None)
    for scale in (1e4, 1e-2):
        data.sweep(reducer, rows, scale=scale)
    other = data.reducer(SelfComm(), None)
    other.restore(reducer.state())
    for scale in (1e-2, 1e-3, 10.0):
        assert bits(data.sweep(other, rows, scale=scale)) == bits(
            data.sweep(reducer, rows, scale=scale)
        )
        assert state_bits(other) == state_bits(reducer)


@pytest.mark.parametrize(
    "make", [Data.reducer, lambda data, comm: NativeReducer(comm, 1, 7)], ids=["exact", "native"]
)
def test_extra_words_travel_once_even_when_a_sweep_is_repeated(make):
    data = Data()

    def work(comm, rows):
        reducer = make(data, comm)
        mine, summed = reducer.reserve(2)
        mine[:] = 1.0, comm.rank
        data.sweep(reducer, rows, scale=100.0)
        return summed.tolist()

    assert on_ranks(5, data, work) == [5.0, 10.0]


def test_rows_drawn_several_times_need_the_bounds_that_allow_it():
    data, rng, found = Data("indicators", sparse=True, n=14), np.random.default_rng(1), []
    drawn = rng.integers(0, data.n, 4000)
    for bounds in (data.bounds, data.bounds.with_replacement()):
        reducer = ExactReducer(SelfComm(), bounds, 1, data.n, 1.0)
        found.append(
            {bits(data.sweep(reducer, rng.permutation(drawn), block=97)) for _ in range(15)}
        )
    assert len(found[0]) > 1, "this data cannot show it"
    assert len(found[1]) == 1


def test_bounds_flush_wide_sparse_rows_less_often():
    count = np.array([0, 1, 2, 3, 1000, 10**6])
    dense = Bounds.of(np.ones(6), count, 6 * 10**6, 10**6)
    assert dense.panel == 256 and dense.terms.tolist() == [1, 2, 4, 4, 256, 256]
    wide = Bounds.of(np.ones(10**5), np.full(10**5, 300), 10**7, 10**6)
    assert (
        wide.panel == 512 and wide.head == 0 and set(wide.terms) == {512.0}
    )  # no column ever fills up
    count = 10**6 // np.arange(1, 10**5 + 1)
    mixed = Bounds.of(np.ones(10**5), count, 10**7, 10**6)
    assert np.all(count[mixed.head :] <= mixed.panel) and np.all(count[: mixed.head] > mixed.panel)
    assert mixed.panel >= 64 * mixed.head / 10 and set(mixed.with_replacement().terms) == {131072.0}
    assert set(wide.with_replacement().terms) == {131072.0}
    assert Bounds.of(np.ones(0), count[:0], 0, 0).panel == 256
