"""Counter-based random numbers: published answers and uniformity.

The numbers must depend on nothing but their counter.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

from mpigd_kernels import sampling
from mpigd_kernels.sampling import absorb, absorb_sparse, bucket, wrapping_sum

# philox4x32-10 of Random123's kat_vectors: counter, key and output, which have four, two and four
# words of 32 bits.
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
LEVEL = 1e-6  # of the tests for uniformity; the seeds are fixed, so they pass always or never


def words(text):
    return [np.uint64(int(word, 16)) for word in text.split()]


def positions(n, seed=0, epoch=0, rows=None):
    rows = np.arange(n) if rows is None else rows
    out = np.empty(rows.size, dtype=np.int64)
    sampling.positions(rows, n, seed, epoch, out)
    return out


def draws(n, seed, epoch, first, steps, size):
    out = np.empty((steps, size), dtype=np.int64)
    sampling.draws(n, seed, epoch, first, out)
    return out


def looks_uniform(values, n, bins=50):
    """Chi-square test that integers 0..n-1 are equally frequent."""
    bins = min(n, bins)
    counts = np.bincount(values * bins // n, minlength=bins)
    widths = (
        np.bincount(np.arange(n) * bins // n, minlength=bins) / n
        if n < 10**6
        else np.full(bins, 1 / bins)
    )
    return stats.chisquare(counts, widths * values.size).pvalue > LEVEL


@pytest.mark.parametrize("counter, key, output", KNOWN)
def test_philox_gives_the_published_answers(counter, key, output):
    w0, w1, w2, w3 = (int(word) for word in words(output))
    assert sampling.philox(*words(counter), *words(key)) == (w0 << 32 | w1, w2 << 32 | w3)


def test_mix_is_a_bijection_that_scatters():
    """`mix` reproduces splitmix64, and each bit of its input flips about half of all bits.

    splitmix64's published first outputs for seed 0 are mix(i * golden ratio).
    """
    golden, known = 0x9E3779B97F4A7C15, (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    for i, expected in enumerate(known, 1):
        assert sampling.mix(np.uint64(i * golden % 2**64)) == expected
    x = np.uint64(0x0123456789ABCDEF)
    flips = [
        bin(int(sampling.mix(x) ^ sampling.mix(x ^ np.uint64(1 << b)))).count("1")
        for b in range(64)
    ]
    assert min(flips) > 15 and max(flips) < 49 and 30 < np.mean(flips) < 34


def test_positions_is_a_permutation():
    for n in (*range(1, 201), 255, 256, 257, 1023, 1024, 1025, 4097, 65536, 100_003):
        for seed, epoch in ((0, 0), (7, 3)):
            assert np.array_equal(np.sort(positions(n, seed, epoch)), np.arange(n)), n


def test_positions_of_few_rows_of_very_many():
    n = 10**12 + 39
    rows = np.concatenate([np.arange(50_000), n - 1 - np.arange(50_000)])
    places = positions(n, 5, 1, rows)
    assert np.unique(places).size == rows.size and places.min() >= 0 and places.max() < n
    assert looks_uniform(places[:50_000], n) and looks_uniform(places[50_000:], n)


@pytest.mark.parametrize("n", [sampling.CHUNK, 3 * sampling.CHUNK + 1, 4**6 + 1])
def test_a_row_finds_the_same_place_alone_and_among_others(n):
    together, alone = np.empty((2, n), dtype=np.int64)
    sampling.positions(np.arange(n), n, 5, 2, together)
    for row in range(n):
        sampling.positions(np.array([row]), n, 5, 2, alone[row : row + 1])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(np.sort(together), np.arange(n))


def test_positions_are_a_function_of_row_seed_and_epoch():
    n, rng = 5000, np.random.default_rng(0)
    whole = positions(n, 3, 9)
    rows = rng.permutation(n)[:700]
    assert np.array_equal(positions(n, 3, 9, rows), whole[rows])
    others = [
        positions(n, s, e)
        for s, e in ((4, 9), (3, 10), (9, 3), (3, 9 + 2**32), (3 + 2**32, 9), (0, 9), (3, 0))
    ]
    for other in others:
        assert np.count_nonzero(other == whole) < 10, "two permutations share about one place"
        assert abs(np.corrcoef(other, whole)[0, 1]) < 0.08


@pytest.mark.parametrize("n", [3, 5, 10, 33, 100])
def test_each_row_goes_everywhere_equally_often(n):
    places = np.array([positions(n, 1, epoch) for epoch in range(3000)])
    for row in {0, 1, n // 2, n - 1}:
        assert looks_uniform(places[:, row], n)
    neighbours = (places[:, 1] - places[:, 0]) % n
    assert stats.chisquare(np.bincount(neighbours, minlength=n)[1:]).pvalue > LEVEL


def test_all_permutations_of_four_rows_occur_equally_often():
    seen = [tuple(positions(4, seed, epoch)) for seed in range(40) for epoch in range(120)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert counts.size == 24 and stats.chisquare(counts).pvalue > LEVEL


def test_positions_look_random_within_an_epoch():
    n = 100_000
    places = positions(n, 2, 4)
    for rows in (slice(0, n, 2), slice(0, 2000), slice(n - 2000, n), slice(0, n, 1024)):
        assert looks_uniform(places[rows], n, 20)
    assert abs(stats.spearmanr(places[:-1], places[1:]).statistic) < 0.02


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50, 1000, 2**40, 2**61 + 12345])
def test_draws_are_uniform(n):
    drawn = draws(n, 11, 2, 0, 40, 1000)
    assert drawn.min() >= 0 and drawn.max() < n
    assert n == 1 or looks_uniform(
        np.array([int(v) * 50 // n for v in drawn.ravel()]) if n > 50 else drawn.ravel(), min(n, 50)
    )
    if n >= 50:
        assert abs(np.corrcoef(drawn[:, :-1].ravel() / n, drawn[:, 1:].ravel() / n)[0, 1]) < 0.03
        assert abs(np.corrcoef(drawn[:-1].ravel() / n, drawn[1:].ravel() / n)[0, 1]) < 0.03


def test_draws_are_a_function_of_seed_epoch_step_and_number():
    whole = draws(10**9, 3, 1, 0, 30, 20)
    for first, steps, size in ((0, 1, 20), (5, 25, 20), (29, 1, 3), (7, 3, 1)):
        assert np.array_equal(
            draws(10**9, 3, 1, first, steps, size), whole[first : first + steps, :size]
        )
    late = 2**32 - 2  # a step number beyond 32 bits
    assert np.array_equal(draws(10**9, 3, 1, late, 5, 4)[2:], draws(10**9, 3, 1, late + 2, 3, 4))
    counters = itertools.product((0, 1, 2**31, 2**63 - 1), (0, 1, 2**16, 2**31), (0, 2**33))
    streams = [draws(2**61, seed, epoch, first, 5, 50) for seed, epoch, first in counters]
    assert np.unique(np.concatenate([s.ravel() for s in streams])).size == sum(
        s.size for s in streams
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 1000])
def test_owners_are_balanced_and_stay(size):
    keys = {
        "rows": np.arange(100_000),
        "spaced": np.arange(100_000) * 4096,
        "negative": -np.arange(100_000) * 7,
    }
    for values in keys.values():
        out = np.empty(values.size, dtype=np.int64)
        sampling.owners(values, size, out)
        counts = np.bincount(out, minlength=size)
        assert counts.size == size and (size == 1 or stats.chisquare(counts).pvalue > LEVEL)
        again = np.empty(100, dtype=np.int64)
        sampling.owners(values[-100:], size, again)
        assert np.array_equal(again, out[-100:])


def test_bucket_is_a_stable_sort():
    rng = np.random.default_rng(1)
    for m, k in ((0, 1), (0, 5), (1, 1), (10, 1), (1000, 7), (1000, 5000)):
        steps, order, starts = rng.integers(0, k, m), np.full(m, -1), np.full(k + 1, -1)
        bucket(steps, starts, order)
        assert np.array_equal(order, np.argsort(steps, kind="stable"))
        assert np.array_equal(starts, np.searchsorted(np.sort(steps), np.arange(k + 1)))


def hashes_of(words, start=0):
    hashes = np.full(len(words), start, dtype=np.uint64)
    absorb(hashes, words)
    return hashes


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("q", [1, 3, 4, 5, 8, 11])
def test_absorb_changes_with_any_bit(q, dtype):
    rng = np.random.default_rng(2)
    row = rng.integers(0, np.iinfo(dtype).max, q, dtype=dtype, endpoint=True)
    flipped = [row]
    for j in range(q):
        for bit in range(8 * row.itemsize):
            other = row.copy()
            other[j] ^= dtype(1) << dtype(bit)
            flipped.append(other)
    table = np.array(flipped)
    assert np.unique(hashes_of(table)).size == len(table)
    assert np.array_equal(hashes_of(table[5:6]), hashes_of(table)[5:6]), (
        "a row's hash depends on its place"
    )
    assert hashes_of(table[:1], 1)[0] != hashes_of(table[:1])[0]
    if q > 1:
        assert hashes_of(row[None, ::-1].copy())[0] != hashes_of(row[None])[0]


@pytest.mark.parametrize("d", [2, 5, 8, 16])
def test_absorb_sees_changed_signs(d):
    """In several columns at once: the top bits of two words must not cancel."""
    X = np.random.default_rng(2).normal(size=(50, d))
    expected = hashes_of(X.view(np.uint64))
    for changed in ([0, 1], [0, d - 1], list(range(d))):
        Y = X.copy()
        Y[:, changed] *= -1
        assert not np.any(hashes_of(Y.view(np.uint64)) == expected)
        swapped = X.copy()
        swapped[:, changed] = X[:, changed[::-1]]
        assert not np.any(hashes_of(swapped.view(np.uint64)) == expected)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_absorb_sparse_changes_with_any_bit_column_or_length(dtype):
    rng = np.random.default_rng(3)
    values, columns = rng.integers(0, np.iinfo(dtype).max, 4, dtype=dtype), np.array([0, 5, 6, 100])
    rows = [
        (columns, values),
        (columns[:3], values[:3]),
        (columns[1:], values[1:]),
        (columns[:0], values[:0]),
    ]
    for j in range(4):
        for bit in range(8 * values.itemsize):
            other = values.copy()
            other[j] ^= dtype(1) << dtype(bit)
            rows.append((columns, other))
        for bit in range(31):
            rows.append((columns ^ (np.arange(4) == j) * (1 << bit), values))
    indptr = np.cumsum([0] + [c.size for c, _ in rows])
    hashes = np.zeros(len(rows), dtype=np.uint64)
    absorb_sparse(
        hashes, indptr, np.concatenate([c for c, _ in rows]), np.concatenate([v for _, v in rows])
    )
    assert np.unique(hashes).size == len(rows)
    part = np.zeros(3, dtype=np.uint64)
    absorb_sparse(
        part,
        indptr[7:11],
        np.concatenate([c for c, _ in rows]),
        np.concatenate([v for _, v in rows]),
    )
    assert np.array_equal(part, hashes[7:10])


def test_wrapping_sum_does_not_depend_on_the_order():
    rng = np.random.default_rng(4)
    hashes = rng.integers(0, 2**64 - 1, 999, dtype=np.uint64)
    expected = sum(int(h) for h in hashes) % 2**64
    for _ in range(5):
        assert int(wrapping_sum(rng.permutation(hashes))) == expected
    assert int(wrapping_sum(hashes[:0])) == 0
