"""Features of this CPU, and arrays that are aligned to its cache lines.

They are asked for before numba is imported, so this module must not import it.
"""

import numpy as np
from llvmlite import binding

_LINE = 64  # bytes of a cache line


def features():
    """Return the CPU's instruction sets, for numba's option NUMBA_CPU_FEATURES.

    LLVM would use only half of a 512-bit vector, since those lowered the clock of older CPUs; few
    current ones do so. The whole vector saves a quarter of the time of the logistic loss.
    """
    return f"{binding.get_host_cpu_features().flatten()},-prefer-256-bit"


def wide():
    """Return whether the CPU has 32 vector registers of 512 bits."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


def aligned(shape, dtype=np.float64):
    """Return np.empty(shape, dtype) that starts at the beginning of a cache line.

    Arrays of numpy start anywhere, and each vector of theirs then lies in two lines. For
    accumulators this saves a tenth of the time of a gradient at 32 columns. The call takes 15 us,
    too long for what every step makes.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)
