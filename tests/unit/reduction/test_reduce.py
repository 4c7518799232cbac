"""Plain sums, grids, and totals of a few numbers that are a function of the set of rows."""

import threading
from fractions import Fraction

import numpy as np
import pytest

from mpigd.parallel.comm import SelfComm
from mpigd.reduction.base import NativeReducer, NotFinite, Threads, grid, power_above, total
from tests.threadcomm import run
from tests.unit.reduction.test_exact import RANKS, Data, bits, on_ranks, split


def test_native_sums_are_close_but_not_the_same_everywhere():
    data = Data("plain")
    exact = data.sweep(data.reducer(SelfComm()), np.arange(data.n))
    different = set()
    for seed in range(8):

        def work(comm, rows):
            found = data.sweep(NativeReducer(comm, 1, data.X.d), rows, threads=2)
            np.testing.assert_allclose(found.gradient, exact.gradient, rtol=1e-12, atol=1e-10)
            np.testing.assert_allclose(
                [found.residual[0], found.loss], [exact.residual[0], exact.loss], rtol=1e-10
            )
            return bits(found)

        different.add(on_ranks(3, data, work, seed))
    assert len(different) > 1


def decades(rng, m):
    return rng.normal(size=m) * 10.0 ** rng.uniform(-12, 6, m)


@pytest.mark.parametrize("kind", ["plain", "decades", "cancelling", "tiny", "empty"])
def test_total_is_accurate_and_a_function_of_the_set(kind):
    rng = np.random.default_rng(2)
    values = {
        "plain": rng.normal(size=1000), "decades": decades(rng, 1000),
        "tiny": decades(rng, 1000) * 1e-250,
        "cancelling": np.concatenate([v := decades(rng, 500), -v * (1 + 2.0**-52)]),
        "empty": np.zeros(0),
    }[kind]  # fmt: skip
    exact = sum(map(Fraction, values.tolist()), Fraction(0))
    tolerance = 2.0**-52 * abs(float(exact)) + values.size * 2.0**-90 * np.abs(values).max(
        initial=0.0
    )
    found = set()
    for size in RANKS:
        parts = split(size, values.size, 3)
        results = run(
            size, lambda comm, parts=parts: total(values[parts[comm.rank]], comm).tobytes()
        )
        assert len(set(results)) == 1
        found.add(results[0])
    assert len(found) == 1
    assert abs(Fraction(float(np.frombuffer(found.pop())[0])) - exact) <= tolerance


def test_total_of_columns_and_of_what_is_not_finite():
    values = np.array([[1.0, 7.0, -3.0], [2.0**-60, 7.0, 0.5]])
    columns = run(2, lambda comm: total(values[comm.rank : comm.rank + 1, ::2], comm).tolist())
    assert columns == [[1.0, -2.5]] * 2
    for bad in (np.nan, np.inf, -np.inf, 1e305):

        def work(comm, bad=bad):
            with pytest.raises(NotFinite):
                total(np.array([1.0, bad]) if comm.rank == 1 else np.ones(3), comm)
            return True

        assert run(3, work) == [True] * 3


def test_grid_is_the_smallest_power_of_two_that_holds_its_terms():
    rng = np.random.default_rng(8)
    largest = np.concatenate(
        [10.0 ** rng.uniform(-260, 250, 300), 2.0 ** np.arange(-800, 800, 37), [1 - 2.0**-53]]
    )
    for terms in (1.0, 2.0, 16.0, 256.0, 2.0**20):
        u = grid(largest, terms) / (1.5 * 2.0**52)
        assert np.all(np.frexp(u)[0] == 0.5)
        for top, size in zip(map(Fraction, largest), map(Fraction, u), strict=True):
            assert int(terms) * (top + size) <= 2**51 * size
            assert int(terms) * (top + size / 2) > 2**51 * size / 2


def test_grid_of_nothing_and_of_too_much():
    C = grid(np.array([0.0, 5e-324, 2.0**-900]), 256.0)
    assert np.ptp(C) == 0 and C[0] > 0 and C[0] / 2.0**53 > np.finfo(float).tiny
    for top in (1e299, 1e300, np.finfo(float).max, np.inf, np.nan):
        with pytest.raises(NotFinite, match="scale the data down"):
            grid(np.array([1.0, top]), 256.0)


def test_power_above():
    values = [0.5, 1.0, 1.5, 2.0, 3e-320, 2.0**-900, 1e300]
    assert all(p / 2 <= v < p for p, v in zip(power_above(np.array(values)), values, strict=True))


def test_threads_run_every_share_at_once():
    """A barrier that all must reach: shares one after another would not end."""
    for count in (1, 2, 3):
        barrier, seen = threading.Barrier(count, timeout=20), []

        def work(thread, barrier=barrier, seen=seen):
            barrier.wait()
            seen.append(thread)

        Threads().run(work, count)
        assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_a_thread_raises_is_raised(failing):
    def work(thread):
        if thread == failing:
            raise ZeroDivisionError(thread)

    with pytest.raises(ZeroDivisionError, match=str(failing)):
        Threads().run(work, 3)


def test_native_sums_that_are_not_finite_stop_all_ranks():
    data = Data()

    def work(comm, rows):
        with pytest.raises(NotFinite):
            data.sweep(NativeReducer(comm, 1, data.X.d), rows, spoil=(3, np.nan))

    on_ranks(3, data, work)
