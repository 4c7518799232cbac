"""Checks of the bits of numbers read from files: whether each is zero or a normal number.

Integer minima and maxima fill whole vectors, so checking a number in the cache costs almost
nothing. Comparing and rewriting floats takes several times as long, and is left to the rare data
that need it (dense.scrub).
"""

import numpy as np

from mpigd_kernels.compiled import compiled


@compiled
def all_normal_32(words):
    """Return whether no float32 with these bits (n,) uint32 is subnormal, infinite or NaN."""
    low, high = np.uint32(0xFFFFFFFF), np.uint32(0)
    for i in range(words.size):
        size = np.uint32(words[i] << np.uint32(1))  # the sign bit is shifted out
        high = max(high, size)
        low = min(
            low, np.uint32(size - np.uint32(1))
        )  # 0 - 1 wraps to the largest number, so zeros pass
    return low >= np.uint32(0x00FFFFFF) and high < np.uint32(0xFF000000)


@compiled
def all_normal_64(words):
    """Return whether no float64 with these bits (n,) uint64 is subnormal, infinite or NaN."""
    low, high = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)
    for i in range(words.size):
        size = np.uint64(words[i] << np.uint64(1))
        high = max(high, size)
        low = min(low, np.uint64(size - np.uint64(1)))
    return low >= np.uint64(0x001FFFFFFFFFFFFF) and high < np.uint64(0xFFE0000000000000)
