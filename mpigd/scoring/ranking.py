"""Area under the ROC curve and average precision over all ranks.

Both are exact functions of the set of rows. A distributed sample sort (Blelloch et al. 1991; Shi
and Schaeffer 1992, "Parallel sorting by regular sampling") brings equal scores to one rank. Each
rank first merges its own equal scores, so that no rank receives more than one entry per rank for a
score however often it occurs, and nothing of the size of the data is gathered anywhere.

Weights become integers, so that the sums inside a group of equal scores and below it are exact in
any order. Each group's terms are then functions of the set of rows, whichever rank holds the group,
and `total` adds them exactly.
"""

from __future__ import annotations

import math

import numpy as np

from mpigd.parallel.comm import Array, Comm
from mpigd.reduction.base import total

WEIGHT_BITS = 62  # bits of a class's sum of weights: twice this sum still fits into an int64
SAMPLES = 1 << 20  # the most scores that all ranks together offer as splitters: 8 MiB on each rank


def rank_scores(positive: Array, score: Array, c: Array, comm: Comm) -> tuple[float, float]:
    """Return area under the ROC curve and average precision of `score`. Collective.

    Parameters
    ----------
    positive : (n,) bool
        Whether this rank's row is of the positive class. A rank may hold no rows.
    score : (n,) float64
        Without NaN, higher for rows that look positive.
    c : (n,) float64
        Sample weights >= 0.
    comm
        The communicator of these ranks.

    Returns
    -------
    auc : float
        NaN unless both classes are present.
    average_precision : float
        NaN unless the positive class is present.

    Notes
    -----
    With P, N the weights of the two classes, and for each distinct score g its own weights P_g,
    N_g:

        AUC = sum_g P_g (N_below + N_g / 2) / (P N)     (Mann and Whitney 1947; ties count half)
        AP  = sum_g P_g / P * TP_g / (TP_g + FP_g)      (sklearn.metrics.average_precision_score)

    TP_g, FP_g are the weights of the rows with a score >= g. Rows of weight zero do not count. A
    weight is kept to 2**-(62 - log2 n) of the largest weight of its class, with n the rows of that
    class: 2**-42 for a million rows. Equal weights are kept exactly.
    """
    used = c > 0
    weights, shift = _integer_weights(positive[used], c[used], comm)
    score, weights = _merge_equal(score[used], weights)
    score, weights = _merge_equal(*_exchange(score, weights, comm))
    return _areas(weights, shift, comm)


def _integer_weights(positive: Array, c: Array, comm: Comm) -> tuple[Array, Array]:
    """Return weights (2, n) int64 of [negatives, positives], and the exponents (2,) of their units.

    Weights were multiplied by these powers of two.
    """
    rows = np.array([np.count_nonzero(~positive), np.count_nonzero(positive)], dtype=np.int64)
    largest = np.array([c[~positive].max(initial=0.0), c[positive].max(initial=0.0)])
    comm.allreduce(rows)
    comm.allreduce(largest, "max")
    bits = WEIGHT_BITS - np.array([int(count).bit_length() for count in rows], dtype=np.int64)
    shift = bits - np.frexp(largest)[1]
    # The unit is a power of two, not the largest weight, so that whole numbers stay exact.
    units = np.rint(np.ldexp(c, shift[positive.astype(np.int64)])).astype(np.int64)
    return np.stack((np.where(positive, 0, units), np.where(positive, units, 0))), shift


def _merge_equal(score: Array, weights: Array) -> tuple[Array, Array]:
    """Return distinct scores in rising order (g,), and the sums of their weights (2, g)."""
    order = np.argsort(score, kind="stable")
    score = score[order]
    first = np.flatnonzero(
        np.concatenate((np.ones(min(score.size, 1), dtype=bool), score[1:] != score[:-1]))
    )
    if not first.size:
        return score, weights
    return score[first], np.stack([np.add.reduceat(row[order], first) for row in weights])


def _exchange(score: Array, weights: Array, comm: Comm) -> tuple[Array, Array]:
    """Send each score to the one rank that owns its interval; intervals rise with the ranks."""
    edges = np.searchsorted(score, _splitters(score, comm))
    counts = np.diff(np.concatenate(([0], edges, [score.size])))
    entries, _ = comm.alltoallv(np.stack((score.view(np.int64), *weights), axis=1), counts)
    return entries[:, 0].copy().view(np.float64), entries[:, 1:].T


def _splitters(score: Array, comm: Comm) -> Array:
    """Return size - 1 rising scores that cut all ranks' scores into parts of about equal size.

    They are equal on all ranks. Every rank offers a regular sample of its distinct, rising scores;
    each offer stands for an equal share of them. A part then holds at most 1 / size + 2 / samples
    of all entries, and usually 1 / size.
    """
    samples = max(1, min(4 * comm.size, SAMPLES // comm.size))
    offer = score[np.arange(samples) * score.size // samples] if score.size else np.zeros(samples)
    offers = comm.allgather(offer).ravel()
    shares = np.repeat(comm.allgather(np.array([score.size], dtype=np.int64)).ravel(), samples)
    order = np.argsort(offers, kind="stable")
    reached = np.cumsum(shares[order])
    wanted = reached[-1] // comm.size * np.arange(1, comm.size)
    return np.asarray(offers[order][np.searchsorted(reached, wanted)])


def _areas(weights: Array, shift: Array, comm: Comm) -> tuple[float, float]:
    """Return AUC and average precision from this rank's distinct scores.

    weights (2, g) are those of [negatives, positives].
    """
    sums = comm.allgather(weights.sum(axis=1))
    every = sums.sum(axis=0)
    up_to = sums[: comm.rank].sum(axis=0)[:, np.newaxis] + np.cumsum(weights, axis=1)
    some = weights[1] > 0  # every term has the factor P_g
    (own_n, own_p), (up_to_n, up_to_p) = weights[:, some], up_to[:, some]
    below, above = up_to_n - own_n, every[0] - up_to_n
    true, false = (
        (every[1] - up_to_p + own_p).astype(np.float64),
        (above + own_n).astype(np.float64),
    )
    # Both in one unit. If the units differ by more than 2**900, one class is negligible anyway.
    false = np.ldexp(false, int(np.clip(shift[1] - shift[0], -900, 900)))
    precision, rest = true / (true + false), false / (true + false)
    share = np.ldexp(own_p.astype(np.float64), -WEIGHT_BITS)
    parts = np.stack(
        (share * (2 * below + own_n), share * (2 * above + own_n), share * precision, share * rest)
    )
    concordant, discordant, relevant, irrelevant = (float(value) for value in total(parts.T, comm))
    # part / (part + complement) is exactly 1 for a perfect order, and never above 1.
    auc = concordant / (concordant + discordant) if every.all() else math.nan
    return auc, relevant / (relevant + irrelevant) if every[1] else math.nan
