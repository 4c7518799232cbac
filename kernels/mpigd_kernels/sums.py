"""Exact sums: their bits do not depend on the order of the terms.

Every term is rounded on its own to a multiple of u, the step of a grid that all ranks agree on.
float64 additions of such multiples are exact, and exact additions are associative.

The accumulator starts at the bias C = 1.5 * 2**52 * u. While it stays in that binade, its last bit
is worth u, so adding a term p rounds p to a multiple of u whatever the accumulator holds. The
exception is ties, which round to even and so depend on the accumulator: a term whose last
significand bit is set (`odd`) is never one.

Every PANEL terms the accumulator's excess over C moves, exactly, into two words (a flush).
"""

import numpy as np
from numpy import int64

from mpigd_kernels.compiled import compiled, inlined
from mpigd_kernels.elementary import set_odd
from mpigd_kernels.packed import LANES, count, load, store, where

# Terms that an accumulator takes before it is flushed: part of the grid's definition
# (mpigd/reduction/base.py).
PANEL = 256
WIDTH = LANES  # accumulators of a sum over a vector
TINY = 2.0**-1000  # terms below it in size are set to zero
SPLIT = 2.0**27  # ratio of the units of the two words


@compiled
def flush(A, C, T):
    """Move A - C into the totals T (2, h) of the first h columns, and set A back to C.

    Both words are exact: T[0] takes the excess rounded to multiples of SPLIT * u (by adding and
    subtracting SPLIT * C), T[1] takes the rest.
    """
    for j in range(T.shape[1]):
        excess = A[j] - C[j]
        shift = SPLIT * C[j]
        high = (excess + shift) - shift
        T[0, j] += high
        T[1, j] += excess - high
        A[j] = C[j]


@compiled
def flush_all(A, C, D, T):
    """Do flush for every output and both grids.

    Parameters
    ----------
    A : (1 or 2, k, d) float64
        Accumulators of the grid and of the finer one.
    C, D : (d,) float64
        Biases of the grid and of the finer one; D None: one grid.
    T : (2 or 4, k, d) float64
        Totals, two words for each grid.
    """
    for q in range(A.shape[1]):
        flush(A[0, q], C, T[:2, q])
        if D is not None:
            flush(A[1, q], D, T[2:, q])


@compiled
def join_words(T, q, out):
    """Set out (h,) to the numbers that the totals of output q hold.

    T (1, 2 or 4, k, h) has one word (plain sums), two, or two on each of two grids.
    """
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
    """Join the words of all totals.

    T (1, 2 or 4, k, h) becomes gradient (k, d >= h), and S (1 + k, 2) becomes scalars (1 + k,).
    """
    for q in range(gradient.shape[0]):
        join_words(T, q, gradient[q])
    for q in range(scalars.size):
        scalars[q] = S[q, 0] + S[q, 1]


@compiled
def make_odd(v):
    """Set the last significand bit of every element of v (any shape, contiguous).

    Elements below 2**-1000 in size become zero.
    """
    flat = v.ravel()
    for i in range(flat.size):
        x = flat[i]
        flat[i] = set_odd(x) if abs(x) >= TINY else x * 0.0


@compiled
def add_vector(v, c, T):
    """Add the sum of v (n,), odd terms, on the grid of bias c to the totals T (2,)."""
    lanes, panel = np.full(WIDTH, c), WIDTH * PANEL
    for start in range(0, v.size, panel):
        spread(v[start : start + panel], lanes)
        collect(lanes, c, T)


@inlined
def spread(v, lanes):
    """Add v (n,) to the WIDTH accumulators `lanes` of its sum, each at most n // WIDTH + 1 terms.

    The sum is exact, so how terms are divided among accumulators does not change it.
    """
    total = load(lanes, 0, 0.0)
    for i in range(0, v.size, WIDTH):
        total = total + load(v, i, 0.0)
    store(lanes, 0, total)


@compiled
def collect(lanes, c, T):
    """Flush the accumulators of one sum, on the grid of bias c, into T (2,)."""
    shift = SPLIT * c
    for j in range(WIDTH):
        excess = lanes[j] - c
        high = (excess + shift) - shift
        T[0] += high
        T[1] += excess - high
        lanes[j] = c


@compiled
def largest(v):
    """Return the largest finite |v_i|, and how many elements are not finite."""
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
    """Return total plus the elements of v in float64, in the order given.

    Cutting v into blocks does not change the result.
    """
    for i in range(v.size):
        total += v[i]
    return total


@compiled
def take_block(r, l, limits, C, S, counts, tops):
    """Add the sums of a block's residuals and losses, if none exceeds its limit.

    Parameters
    ----------
    r : (k, m) float64
        Residuals; they are made odd.
    l : (m,) float64
        Losses; they are made odd.
    limits : (2,) float64
        The largest |r| and |l| that the grids allow.
    C : (2,) float64
        Biases of the grids of losses and residuals.
    S : (1 + k, 2) float64
        Totals: of the losses, then of each output's residuals.
    counts, tops
        See within_limits.

    Returns
    -------
    bool
        Whether the sums were added.
    """
    if not within_limits(r, l, limits, counts, tops):
        return False
    add_vector(l, C[0], S[0])
    for q in range(r.shape[0]):
        add_vector(r[q], C[1], S[1 + q])
    return True


@inlined
def within_limits(r, l, limits, counts, tops):
    """Make r (k, m) and l (m,) odd; return whether no value, of these or before, exceeds its limit.

    Parameters
    ----------
    limits : (2,) float64
        Limits of |r| and |l|.
    counts : (5,) float64
        Updated: [0] values over their limit; [1], [2] how many of r, l exceed a sixteenth of it;
        [3], [4] how many exceed a 4096th.
    tops : (3,) float64
        Raised if any value is over its limit: the largest |r|, the largest |l|, and the number of
        values that are not finite.
    """
    over, counts[2], counts[4] = _odd_and_count(l, limits[1], counts[2], counts[4])
    for q in range(
        r.shape[0]
    ):  # not r.ravel(), which copies a strided r: r itself would stay as it is
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
    """Do make_odd(v), and count how many |v_i| are not <= limit (NaN counts).

    `large` and `visible` are raised by how many exceed 1/16 and 1/4096 of the limit.
    """
    over, sixteenth, least = int64(0), int64(0), int64(0)
    for i in range(0, v.size, LANES):
        x = load(v, i, 0.0)
        size = abs(x)
        over += LANES - count(size <= limit)
        sixteenth += count(size > limit / 16)
        least += count(size > limit / 4096)
        store(v, i, where(size >= TINY, set_odd(x), x * 0.0))
    return over, large + sixteenth, visible + least
