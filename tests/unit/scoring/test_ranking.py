"""AUC and average precision.

They are compared with scikit-learn, with exact rational arithmetic, and over ranks.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mpigd.parallel.comm import SelfComm
from mpigd.scoring.ranking import rank_scores
from tests.threadcomm import run

RANKS = (1, 2, 3, 5)


def on_ranks(size, owner, positive, score, c, wrap=lambda comm: comm):
    """The result of rank_scores if rank owner[i] of `size` holds row i.

    All ranks must return the same bits.
    """

    def work(comm):
        mine = owner == comm.rank
        return rank_scores(positive[mine], score[mine], c[mine], wrap(comm))

    results = run(size, work)
    assert len({np.array(result).tobytes() for result in results}) == 1
    return results[0]


def scores_with(rng, n, ties):
    score = rng.normal(size=n)
    return np.round(score * 3) if ties else score


def weights_of(rng, n, kind):
    return {
        "ones": np.ones(n),
        "equal": np.full(n, 0.3),
        "whole": rng.integers(0, 9, n).astype(np.float64),
        "uniform": rng.random(n),
        "decades": 10.0 ** rng.uniform(-10, 0, n),
    }[kind]


@pytest.mark.parametrize("kind", ["ones", "equal", "whole", "uniform", "decades"])
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_sklearn(kind, ties):
    rng = np.random.default_rng(1)
    n = 3000
    positive, score, c = rng.random(n) < 0.3, scores_with(rng, n, ties), weights_of(rng, n, kind)
    auc, average_precision = on_ranks(3, rng.integers(0, 3, n), positive, score + positive, c)
    assert auc == pytest.approx(
        roc_auc_score(positive, score + positive, sample_weight=c), rel=1e-12
    )
    assert average_precision == pytest.approx(
        average_precision_score(positive, score + positive, sample_weight=c), rel=1e-12
    )


def exact(positive, score, c):
    """AUC and average precision as rational numbers, by comparing all pairs of rows."""
    minus, plus = (
        [(Fraction(s), Fraction(w)) for s, w in zip(score[side], c[side], strict=True)]
        for side in (~positive, positive)
    )
    plus_sum, minus_sum = sum(w for _, w in plus), sum(w for _, w in minus)
    pairs = sum(w * v * (2 if s > t else s == t) for s, w in plus for t, v in minus)
    true, false = (
        {s: sum(w for t, w in side if t >= s) for s, _ in plus} for side in (plus, minus)
    )
    relevant = sum(w * true[s] / (true[s] + false[s]) for s, w in plus if w)
    return float(pairs / (2 * plus_sum * minus_sum)), float(relevant / plus_sum)


@pytest.mark.parametrize("kind", ["ones", "whole", "uniform"])
def test_within_rounding_of_the_rational_truth(kind):
    rng = np.random.default_rng(2)
    for ties in (False, True):
        positive, score, c = (
            rng.random(70) < 0.4,
            scores_with(rng, 70, ties),
            weights_of(rng, 70, kind),
        )
        found = on_ranks(2, rng.integers(0, 2, 70), positive, score, c)
        assert found == pytest.approx(exact(positive, score, c), rel=1e-15, abs=0)


@pytest.mark.parametrize("kind", ["equal", "uniform", "decades"])
@pytest.mark.parametrize("ties", [False, True])
def test_same_bits_on_any_ranks_in_any_order(kind, ties):
    rng = np.random.default_rng(3)
    n = 1000
    positive, score, c = rng.random(n) < 0.5, scores_with(rng, n, ties), weights_of(rng, n, kind)
    expected = rank_scores(positive, score, c, SelfComm())
    for size in RANKS:
        by_score = np.argsort(np.argsort(score)) * size // n
        owners = [rng.integers(0, size, n), by_score, size - 1 - by_score, np.full(n, size - 1)]
        for owner in owners:
            order = rng.permutation(n)
            assert on_ranks(size, owner[order], positive[order], score[order], c[order]) == expected


@pytest.mark.parametrize("kind", ["ones", "equal", "uniform", "decades"])
def test_perfect_reversed_and_tied_orders_are_exact(kind):
    rng = np.random.default_rng(4)
    n = 500
    positive, c = rng.random(n) < 0.3, weights_of(rng, n, kind)
    owner, score = rng.integers(0, 3, n), rng.random(n)
    assert on_ranks(3, owner, positive, score + positive, c) == (1.0, 1.0)
    assert on_ranks(3, owner, positive, score - positive, c)[0] == 0.0
    auc, average_precision = on_ranks(3, owner, positive, np.ones(n), c)
    assert auc == 0.5
    assert average_precision == pytest.approx(c[positive].sum() / c.sum(), rel=1e-12)


def test_undefined_without_a_class():
    some, none = np.ones(4, dtype=bool), np.zeros(4, dtype=bool)
    score, c, owner = np.arange(4.0), np.ones(4), np.array([0, 0, 2, 2])
    auc, average_precision = on_ranks(3, owner, some, score, c)
    assert math.isnan(auc)
    assert average_precision == 1.0
    assert all(math.isnan(value) for value in on_ranks(3, owner, none, score, c))
    assert all(math.isnan(value) for value in on_ranks(3, owner, some, score, np.zeros(4)))
    assert all(math.isnan(value) for value in on_ranks(3, owner[:0], some[:0], score[:0], c[:0]))


def test_rows_of_weight_zero_do_not_count():
    rng = np.random.default_rng(5)
    positive, score, c = rng.random(20000) < 0.5, rng.normal(size=20000), rng.random(20000)
    c[::2] = 0.0
    used = c > 0
    assert rank_scores(positive, score, c, SelfComm()) == rank_scores(
        positive[used], score[used], c[used], SelfComm()
    )
    only_positives_weigh = positive.astype(np.float64)
    assert math.isnan(rank_scores(positive, score, only_positives_weigh, SelfComm())[0])


def test_zeros_of_both_signs_tie():
    positive = np.array([True, False])
    for score in (np.array([0.0, -0.0]), np.array([-0.0, 0.0])):
        assert on_ranks(2, np.array([0, 1]), positive, score, np.ones(2)) == (0.5, 0.5)


def test_infinite_scores_are_ordered():
    positive, score = (
        np.array([True, False, True, False]),
        np.array([math.inf, 3.0, -math.inf, -math.inf]),
    )
    assert on_ranks(2, np.array([0, 1, 0, 1]), positive, score, np.ones(4))[0] == 0.625


@pytest.mark.parametrize(
    "low, high", [(1e-12, 1.0), (1.0, 1e-12), (5e-324, 1e308), (1e308, 5e-324)]
)
def test_classes_of_very_different_weight(low, high):
    """Each class has its own unit: the weights of one do not round away those of the other."""
    rng = np.random.default_rng(6)
    positive, score = rng.random(300) < 0.4, rng.normal(size=300)
    c = np.where(positive, low, high)
    auc, average_precision = on_ranks(2, rng.integers(0, 2, 300), positive, score, c)
    assert auc == pytest.approx(roc_auc_score(positive, score), rel=1e-14)
    if 1e-300 < low < 1e300:
        expected = average_precision_score(positive, score, sample_weight=c)
        assert average_precision == pytest.approx(expected, rel=1e-12)
    assert 0.0 <= average_precision <= 1.0


class Spy:
    """A communicator that notes how many elements each call gives this rank."""

    def __init__(self, comm):
        self.comm, self.sent, self.received, self.gathered = comm, [], [], []

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def alltoallv(self, buffer, counts):
        result = self.comm.alltoallv(buffer, counts)
        self.sent.append(len(buffer))
        self.received.append(len(result[0]))
        return result

    def allgather(self, buffer):
        result = self.comm.allgather(buffer)
        self.gathered.append(result.size)
        return result


def watched(size, owner, positive, score):
    spies = []

    def wrap(comm):
        spies.append(Spy(comm))
        return spies[-1]

    on_ranks(size, owner, positive, score, np.ones(score.size), wrap)
    return spies


def test_a_frequent_score_travels_once_per_rank():
    n = 4000
    score = np.where(np.arange(n) < 7, np.arange(n), 100.0)
    for spy in watched(4, np.arange(n) % 4, np.arange(n) % 3 == 0, score):
        assert sum(spy.sent) <= 3
        assert sum(spy.received) <= 11


def test_scores_are_spread_evenly_and_never_gathered():
    rng = np.random.default_rng(7)
    n, size = 20000, 4
    score = rng.normal(size=n) ** 5
    rank_of = np.argsort(np.argsort(score)) * size // n
    uneven = np.minimum(rng.geometric(0.6, n) - 1, size - 1)
    for owner in (rng.integers(0, size, n), rank_of, uneven, np.zeros(n, dtype=int)):
        for spy in watched(size, owner, rng.random(n) < 0.5, score):
            assert sum(spy.received) <= 1.5 * n / size
            assert sum(spy.gathered) < 100 * size
