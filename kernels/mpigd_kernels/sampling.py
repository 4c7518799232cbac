"""Counter-based random numbers: permutations, draws, hashes.

Every number is a function of (seed, epoch, step, row), so there is no generator state to save or to
pass on.

References
----------
Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import numpy as np
from numpy import int64, uint64

from mpigd_kernels.compiled import compiled

_LOW = uint64(0xFFFFFFFF)
_M0, _M1 = uint64(0xD2511F53), uint64(0xCD9E8D57)
_W0, _W1 = uint64(0x9E3779B9), uint64(0xBB67AE85)
_32 = uint64(32)
ROUNDS = 6  # rounds of the permutation's Feistel network
CHUNK = 1024  # rows that are permuted together


@compiled
def philox(c0, c1, c2, c3, k0, k1):
    """Return two 64-bit words of Philox4x32-10.

    c0 to c3 are the counter and k0, k1 the key: 32-bit words, all as uint64.
    """
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return (c0 << _32) | c1, (c2 << _32) | c3


@compiled
def mix(x):
    """Return a bijection of 64-bit words that scatters their bits (the finaliser of splitmix64)."""
    x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    return x ^ (x >> uint64(31))


@compiled
def _scatter(x, key, half):
    """Apply a Feistel network to a word of 2 * half bits: a bijection for every key."""
    mask = (uint64(1) << half) - uint64(1)
    left, right = x >> half, x & mask
    for round_number in range(ROUNDS):
        left, right = (
            right,
            left ^ (mix(right + key + uint64(round_number) * uint64(0x9E3779B97F4A7C15)) & mask),
        )
    return (left << half) | right


@compiled
def positions(rows, n, seed, epoch, out):
    """Set out_i to the place of global row rows_i in the epoch's permutation of 0 to n - 1.

    Parameters
    ----------
    rows : (m,) int64
        Global row numbers.
    n : int
        The number of all rows.
    seed, epoch : int
        They choose the permutation.
    out : (m,) int64
        The result.

    Notes
    -----
    A Feistel network permutes the numbers below the next power of four. Results of n and above are
    sent through again (cycle walking). All rows of a chunk take a turn together, since their turns
    then overlap in the processor: a row on its own waits for each of its products.
    """
    key, _ = philox(
        uint64(epoch) & _LOW,
        uint64(epoch) >> _32,
        uint64(0),
        uint64(1),
        uint64(seed) & _LOW,
        uint64(seed) >> _32,
    )
    half = uint64(1)
    while (uint64(1) << (half * uint64(2))) < uint64(n):
        half += uint64(1)
    held, places = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.int64)
    for start in range(0, rows.size, CHUNK):
        m = min(CHUNK, rows.size - start)
        for i in range(m):
            held[i], places[i] = uint64(rows[start + i]), start + i
        while m > 0:
            for i in range(m):
                held[i] = _scatter(held[i], key, half)
            m = _settle(held, places, m, uint64(n), out)


@compiled
def _settle(held, places, m, n, out):
    """Write m numbers to their places; return how many are not below n and take another turn.

    These are moved to the front of `held` and `places`.
    """
    left = 0
    for i in range(m):
        x, place = held[i], places[i]
        out[place] = int64(x)
        held[left], places[left] = x, place
        left += 1 if x >= n else 0
    return left


@compiled
def draws(n, seed, epoch, first, out):
    """Set out[t, q] to the global row of draw q in step first + t: uniform, with replacement.

    Parameters
    ----------
    n : int
        Rows are drawn from 0 to n - 1; n < 2**31 * 2**31.
    seed, epoch, first : int
        The seed, the epoch, and the first step.
    out : (steps, draws) int64
        The result.
    """
    for t in range(out.shape[0]):
        step = uint64(first + t)
        for q in range(out.shape[1]):
            word, _ = philox(
                uint64(q),
                step & _LOW,
                (step >> _32) ^ (uint64(epoch) << uint64(16)) & _LOW,
                uint64(epoch) & _LOW,
                uint64(seed) & _LOW,
                uint64(seed) >> _32,
            )
            out[t, q] = int64(_multiply_high(word, uint64(n)))


@compiled
def _multiply_high(a, b):
    """Return the upper 64 bits of the product of two 64-bit words."""
    a0, a1, b0, b1 = a & _LOW, a >> _32, b & _LOW, b >> _32
    middle = a1 * b0 + ((a0 * b0) >> _32)
    lower = a0 * b1 + (middle & _LOW)
    return a1 * b1 + (middle >> _32) + (lower >> _32)


@compiled
def owners(keys, size, out):
    """Set out_i to the rank, of 0 to size - 1, that keys_i hashes to."""
    for i in range(keys.size):
        out[i] = int64(
            _multiply_high(mix(uint64(keys[i]) + uint64(0x9E3779B97F4A7C15)), uint64(size))
        )


@compiled
def bucket(steps, starts, order):
    """Sort indices by step (counting sort).

    Parameters
    ----------
    steps : (n,) int
        Values from 0 to k - 1.
    starts : (k + 1,) int64
        The result: where each step begins in `order`.
    order : (n,) int64
        The result: the indices of `steps` by step, and within a step in ascending order.
    """
    starts[:] = 0
    for i in range(steps.size):
        starts[steps[i] + 1] += 1
    for s in range(starts.size - 1):
        starts[s + 1] += starts[s]
    for i in range(steps.size):
        s = steps[i]
        order[starts[s]] = i
        starts[s] += 1
    for s in range(starts.size - 1, 0, -1):
        starts[s] = starts[s - 1]
    starts[0] = 0


@compiled
def absorb(hashes, words):
    """Update hashes (n,) uint64 with words (n, q): row i takes in its q 64-bit words."""
    q = words.shape[1]
    whole = q // 4 * 4
    for i in range(words.shape[0]):
        h0 = h1 = h2 = h3 = hashes[i]
        for j in range(0, whole, 4):
            h0 = _stir((h0 ^ words[i, j]) * uint64(0x9E3779B97F4A7C15))
            h1 = _stir((h1 ^ words[i, j + 1]) * uint64(0xBF58476D1CE4E5B9))
            h2 = _stir((h2 ^ words[i, j + 2]) * uint64(0x94D049BB133111EB))
            h3 = _stir((h3 ^ words[i, j + 3]) * uint64(0xD6E8FEB86659FD93))
        for j in range(whole, q):
            h0 = _stir((h0 ^ words[i, j]) * uint64(0x9E3779B97F4A7C15))
        hashes[i] = mix(h0 + mix(h1 + mix(h2 + mix(h3))))


@compiled
def _stir(h):
    """Mix the upper bits into the lower ones.

    A product carries changes to higher bits only, so two changed sign bits would cancel without
    this.
    """
    return h ^ (h >> uint64(32))


@compiled
def absorb_sparse(hashes, indptr, indices, words):
    """Update hashes (n,) uint64 with the stored entries of row i: column and value.

    words (nnz,) are the values as unsigned integers.
    """
    for i in range(hashes.size):
        h = hashes[i]
        for k in range(indptr[i], indptr[i + 1]):
            column = uint64(indices[k]) * uint64(0xD6E8FEB86659FD93)
            h = _stir((h ^ uint64(words[k]) ^ column) * uint64(0x9E3779B97F4A7C15))
        hashes[i] = mix(h)


@compiled
def wrapping_sum(hashes):
    """Return the sum of 64-bit words modulo 2**64, which does not depend on their order."""
    total = uint64(0)
    for i in range(hashes.size):
        total += hashes[i]
    return total
