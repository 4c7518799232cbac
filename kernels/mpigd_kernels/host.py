"""What this CPU can do, asked before numba is imported, and arrays as it likes them."""

import numpy as np
from llvmlite import binding

_LINE = 64  # bytes of a cache line


def features():
    """Its instruction sets for numba's NUMBA_CPU_FEATURES.

    LLVM would use half of a 512-bit vector for fear of lower clocks, which few CPUs have now: a quarter of the logistic loss.
    """
    return f"{binding.get_host_cpu_features().flatten()},-prefer-256-bit"


def wide():
    """Whether it has 32 vector registers of 512 bits."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


def aligned(shape, dtype=np.float64):
    """np.empty(shape, dtype) from the beginning of a cache line on: numpy's begin anywhere, and each vector lies in two lines.

    A tenth of the time of a gradient at 32 columns, where accumulators do. Not for what every step makes: it takes 15 us.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)
