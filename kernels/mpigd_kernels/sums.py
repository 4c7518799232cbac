"""Sums that do not depend on the order of their terms.

Every term is rounded on its own to a grid u that all ranks agree on, so that float64 additions are exact, and exact
additions are associative. The accumulator starts at C = 1.5 * 2**52 * u: while it stays in that binade, adding p rounds p
to a multiple of u whatever the accumulator holds, except at ties, and a term whose last significand bit is set (`odd`)
never is one. Every PANEL terms the accumulator's excess over C moves, exactly, into two words.
"""

import numpy as np
from numpy import int64

from mpigd_kernels.compiled import compiled, inlined
from mpigd_kernels.elementary import set_odd
from mpigd_kernels.packed import LANES, count, load, store, where

PANEL = 256  # terms an accumulator takes before it is flushed: part of the grid's definition (mpigd/reduction/base.py)
WIDTH = LANES  # accumulators of a sum over a vector
TINY = 2.0**-1000
SPLIT = 2.0**27  # between the units of the two words


@compiled
def flush(A, C, T):
    """Move A - C into the two-word totals T (2, h) of the first h columns, both exactly, and set A back to C."""
    for j in range(T.shape[1]):
        excess = A[j] - C[j]
        shift = SPLIT * C[j]
        high = (excess + shift) - shift
        T[0, j] += high
        T[1, j] += excess - high
        A[j] = C[j]


@compiled
def flush_all(A, C, D, T):
    """flush every output: A (1 or 2, k, d), T (2 or 4, k, d), biases C (d,) and, of a finer grid, D (d,) or None."""
    for q in range(A.shape[1]):
        flush(A[0, q], C, T[:2, q])
        if D is not None:
            flush(A[1, q], D, T[2:, q])


@compiled
def join_words(T, q, out):
    """The numbers that totals of output q hold: T (1, 2 or 4, k, h), one word, two, or two on each of two grids -> out (h,)."""
    for j in range(T.shape[2]):
        out[j] = T[0, q, j]
    if T.shape[0] > 1:
        for j in range(T.shape[2]):
            out[j] += T[1, q, j]
    if T.shape[0] == 4:
        for j in range(T.shape[2]):
            out[j] += T[2, q, j] + T[3, q, j]


@compiled
def join(T, S, gradient, scalars):
    """join_words of T (1, 2 or 4, k, h) -> gradient (k, d >= h), and S (1 + k, 2) -> scalars (1 + k,)."""
    for q in range(gradient.shape[0]):
        join_words(T, q, gradient[q])
    for q in range(scalars.size):
        scalars[q] = S[q, 0] + S[q, 1]


@compiled
def make_odd(v):
    """Set the last significand bit of every element of v (any shape, contiguous); below 2**-1000 it becomes zero."""
    flat = v.ravel()
    for i in range(flat.size):
        x = flat[i]
        flat[i] = set_odd(x) if abs(x) >= TINY else x * 0.0


@compiled
def add_vector(v, c, T):
    """Add the sum of v (n,), odd terms, on the grid of C = c into T (2,)."""
    lanes, panel = np.full(WIDTH, c), WIDTH * PANEL
    for start in range(0, v.size, panel):
        spread(v[start : start + panel], lanes)
        collect(lanes, c, T)


@inlined
def spread(v, lanes):
    """Add v (n,) to the accumulators lanes (WIDTH,) of its sum: to each at most n // WIDTH + 1 terms."""
    total = load(lanes, 0, 0.0)
    for i in range(0, v.size, WIDTH):
        total = total + load(v, i, 0.0)
    store(lanes, 0, total)


@compiled
def collect(lanes, c, T):
    """flush() of the accumulators of one sum, on the grid of C = c, into T (2,)."""
    shift = SPLIT * c
    for j in range(WIDTH):
        excess = lanes[j] - c
        high = (excess + shift) - shift
        T[0] += high
        T[1] += excess - high
        lanes[j] = c


@compiled
def largest(v):
    """The largest finite |v_i|, and how many are not finite."""
    top, bad = 0.0, int64(0)
    for i in range(v.size):
        x = abs(v[i])
        if x < np.inf:
            top = max(top, x)
        else:
            bad += 1
    return top, bad


@compiled
def add_plain(v, total):
    """total plus the elements of v in float64, in the order given: cutting v into blocks changes nothing."""
    for i in range(v.size):
        total += v[i]
    return total


@compiled
def take_block(r, l, limits, C, S, counts, tops):
    """What an exact sweep does with a block's residuals r (k, m) and losses l (m,), in one call.

    If `within_limits`, adds their sums on the grids of C (2,) (loss, residual) into S (1 + k, 2); returns whether.
    """
    if not within_limits(r, l, limits, counts, tops):
        return False
    add_vector(l, C[0], S[0])
    for q in range(r.shape[0]):
        add_vector(r[q], C[1], S[1 + q])
    return True


@inlined
def within_limits(r, l, limits, counts, tops):
    """Make residuals r (k, m) and losses l (m,) odd; whether none of them, nor any before, exceeds its limit (2,).

    Adds to counts (5,) how many do, and how many of r, l exceed a sixteenth and a 4096th of theirs. With any over a limit,
    raises tops (3,): largest |r|, largest |l|, and how many values are not finite.
    """
    over, counts[2], counts[4] = _odd_and_count(l, limits[1], counts[2], counts[4])
    for q in range(
        r.shape[0]
    ):  # not r.ravel(): of a strided r that is a copy, and r would stay as it was
        more, counts[1], counts[3] = _odd_and_count(r[q], limits[0], counts[1], counts[3])
        over += more
    counts[0] += over
    if over > 0:
        top_r, bad_r = largest(r.ravel())
        top_l, bad_l = largest(l)
        tops[0], tops[1], tops[2] = (
            max(tops[0], top_r),
            max(tops[1], top_l),
            tops[2] + bad_r + bad_l,
        )
    return counts[0] == 0


@inlined
def _odd_and_count(v, limit, large, visible):
    """make_odd(v), and how many |v_i| are not <= limit (NaN counts); `large`, `visible` plus those over 1/16, 1/4096 of it."""
    over, sixteenth, least = int64(0), int64(0), int64(0)
    for i in range(0, v.size, LANES):
        x = load(v, i, 0.0)
        size = abs(x)
        over += LANES - count(size <= limit)
        sixteenth += count(size > limit / 16)
        least += count(size > limit / 4096)
        store(v, i, where(size >= TINY, set_odd(x), x * 0.0))
    return over, large + sixteenth, visible + least
