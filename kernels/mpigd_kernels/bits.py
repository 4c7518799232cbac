"""A look at the bits of numbers that are read from files: whether all are zero or of a normal size.

Integer minima and maxima fill whole vectors, so a number in the cache costs almost nothing; comparing and rewriting floats takes
several times as long, and is left to the rare data that need it (dense.scrub).
"""

import numpy as np

from mpigd_kernels.compiled import compiled


@compiled
def all_normal_32(words):
    """Whether none of the float32 with these bits (n,) uint32 is subnormal, infinite or NaN."""
    low, high = np.uint32(0xFFFFFFFF), np.uint32(0)
    for i in range(words.size):
        size = np.uint32(words[i] << np.uint32(1))  # without the sign
        high = max(high, size)
        low = min(low, np.uint32(size - np.uint32(1)))  # a zero becomes the largest of all
    return low >= np.uint32(0x00FFFFFF) and high < np.uint32(0xFF000000)


@compiled
def all_normal_64(words):
    """Whether none of the float64 with these bits (n,) uint64 is subnormal, infinite or NaN."""
    low, high = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)
    for i in range(words.size):
        size = np.uint64(words[i] << np.uint64(1))
        high = max(high, size)
        low = min(low, np.uint64(size - np.uint64(1)))
    return low >= np.uint64(0x001FFFFFFFFFFFFF) and high < np.uint64(0xFFE0000000000000)
