"""What this CPU can do, asked before numba is imported."""

from llvmlite import binding


def features():
    """Its instruction sets for numba's NUMBA_CPU_FEATURES.

    LLVM would use half of a 512-bit vector for fear of lower clocks, which few CPUs have now: a quarter of the logistic loss.
    """
    return f"{binding.get_host_cpu_features().flatten()},-prefer-256-bit"


def wide():
    """Whether it has 32 vector registers of 512 bits."""
    return bool(binding.get_host_cpu_features().get("avx512f"))
