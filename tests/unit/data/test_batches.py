"""Batches on virtual partitions.

An epoch has every row once, and a step has the same rows whichever ranks hold them.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

from mpigd.data.batches import WINDOW, Batch, FullBatch, MiniBatch, Stochastic
from mpigd_kernels import sampling

SCHEDULES = [MiniBatch, Stochastic]
SHAPES = [(1, 1), (10, 3), (10, 10), (97, 32), (100, 25), (64, 1), (7, 50)]  # n, batch size


def partitions(n):
    """Ascending global rows of each rank.

    The partitions are ranges, rows dealt out in turn, and random ones; some ranks hold no rows.
    """
    rows, owner = np.arange(n), np.random.default_rng(n).integers(0, 3, n)
    return [
        [rows],
        np.array_split(rows, 3),
        [rows[i::4] for i in range(4)],
        [rows[owner == i] for i in range(3)],
        [rows[:0], rows[: n // 3], rows[:0], rows[n // 3 :]],
    ]


def take(schedule, first, count):
    return list(itertools.islice(schedule.batches(first), count))


def steps_of(kind, partition, n, size, first, count, seed=5):
    """The sorted global rows of all ranks, for each step.

    What the batches say about a step must be equal on all ranks.
    """
    ranks = [take(kind(rows, n, size, seed), first, count) for rows in partition]
    for together in zip(*ranks, strict=True):
        assert len({(b.size, b.epoch, b.step, b.ends_epoch) for b in together}) == 1
    pieces = [
        [rows[b.rows] for rows, b in zip(partition, together, strict=True)]
        for together in zip(*ranks, strict=True)
    ]
    return [np.sort(np.concatenate(piece)) for piece in pieces], ranks[0]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_full_batches_are_all_rows():
    schedule = FullBatch(10)
    assert schedule.steps_per_epoch == 1
    assert take(schedule, 0, 2) == [
        Batch(slice(None), 10, 0, 0, True),
        Batch(slice(None), 10, 1, 1, True),
    ]
    assert take(schedule, 41, 1) == [Batch(slice(None), 10, 41, 41, True)]


@pytest.mark.parametrize("n, size", SHAPES)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_steps_hold_the_same_rows_for_any_partition(kind, n, size):
    steps = kind(np.arange(n), n, size, 5).steps_per_epoch
    assert steps == -(-n // size)
    expected, _ = steps_of(kind, [np.arange(n)], n, size, 0, 2 * steps)
    for partition in partitions(n):
        found, batches = steps_of(kind, partition, n, size, 0, 2 * steps)
        assert same(found, expected)
        assert [b.size for b in batches] == [rows.size for rows in found]
        assert [b.step for b in batches] == list(range(2 * steps))
        assert [b.epoch for b in batches] == [0] * steps + [1] * steps
        assert [b.ends_epoch for b in batches] == ([False] * (steps - 1) + [True]) * 2


@pytest.mark.parametrize("n, size", SHAPES)
def test_minibatches_take_every_row_once_an_epoch(n, size):
    steps = -(-n // size)
    for partition in partitions(n):
        found, batches = steps_of(MiniBatch, partition, n, size, 0, 3 * steps)
        for epoch in range(3):
            assert np.array_equal(
                np.sort(np.concatenate(found[epoch * steps : (epoch + 1) * steps])), np.arange(n)
            )
        assert all(b.size == size for b in batches if not b.ends_epoch)
        assert {b.size for b in batches if b.ends_epoch} == {n - (steps - 1) * size}


@pytest.mark.parametrize("n, size", SHAPES)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_starting_at_a_later_step_gives_the_same_batches(kind, n, size):
    rows = np.arange(n)[::2]
    steps = -(-n // size)
    whole = take(kind(rows, n, size, 5), 0, 4 * steps)
    for first in {0, 1, steps - 1, steps, steps + 1, 3 * steps - 1}:
        later = take(kind(rows, n, size, 5), first, 4 * steps - first)
        for a, b in zip(whole[first:], later, strict=True):
            assert (a.size, a.epoch, a.step, a.ends_epoch) == (
                b.size,
                b.epoch,
                b.step,
                b.ends_epoch,
            )
            assert np.array_equal(a.rows, b.rows)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_seeds_and_epochs_give_other_batches(kind):
    n, size = 1000, 100
    two_epochs, _ = steps_of(kind, [np.arange(n)], n, size, 0, 20)
    other_seed, _ = steps_of(kind, [np.arange(n)], n, size, 0, 10, seed=6)
    for a, b in itertools.combinations([two_epochs[:10], two_epochs[10:], other_seed], 2):
        assert all(np.intersect1d(x, y).size < 40 for x, y in zip(a, b, strict=True))


def test_stochastic_rows_are_the_draws_and_repeat():
    n, size = 50, 20
    drawn = np.empty((3, size), dtype=np.int64)
    sampling.draws(n, 5, 0, 0, drawn)
    batches = take(Stochastic(np.arange(n), n, size, 5), 0, 3)
    assert all(np.array_equal(b.rows, row) for b, row in zip(batches, drawn, strict=True)), (
        "in the order drawn"
    )
    counts = np.bincount(
        np.concatenate([b.rows for b in take(Stochastic(np.arange(n), n, size, 5), 0, 600)]),
        minlength=n,
    )
    assert stats.chisquare(counts).pvalue > 1e-6
    assert any(np.unique(b.rows).size < size for b in batches)


def test_draws_do_not_depend_on_the_window_they_are_made_in():
    n, size = WINDOW + 1000, 1
    rows = np.arange(n)
    first = WINDOW - 3
    late = take(Stochastic(rows, n, size, 9), first, 6)
    from_zero = itertools.islice(Stochastic(rows, n, size, 9).batches(0), first, first + 6)
    assert [(b.step, b.rows.tolist()) for b in late] == [
        (b.step, b.rows.tolist()) for b in from_zero
    ]
    assert len(take(Stochastic(rows, n, 2 * WINDOW, 9), 0, 1)[0].rows) == 2 * WINDOW


def test_draw_gives_where_each_step_begins():
    rows = np.array([3, 4, 8, 11])
    schedule = Stochastic(rows, 12, 6, 1)
    local, starts = schedule.draw(7, 2, 5)
    drawn = np.empty((5, 6), dtype=np.int64)
    sampling.draws(12, 1, 7, 2, drawn)
    for i, step in enumerate(drawn):
        assert rows[local[starts[i] : starts[i + 1]]].tolist() == [
            row for row in step.tolist() if row in rows
        ]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_rank_without_rows_keeps_step(kind):
    batches = take(kind(np.empty(0, dtype=np.int64), 10, 4, 5), 0, 7)
    assert [b.rows.size for b in batches] == [0] * 7
    assert [b.step for b in batches] == list(range(7))
    assert [b.ends_epoch for b in batches] == [False, False, True] * 2 + [False]


def test_rows_of_a_data_set_beyond_32_bits():
    n, size = 2**40, 2**37
    rows = np.sort(np.random.default_rng(0).choice(2**40, 4000, replace=False))
    batches = take(MiniBatch(rows, n, size, 5), 0, 8)
    assert np.array_equal(np.sort(np.concatenate([b.rows for b in batches])), np.arange(4000))
    assert stats.chisquare([b.rows.size for b in batches]).pvalue > 1e-6
    assert [b.size for b in batches] == [size] * 8
