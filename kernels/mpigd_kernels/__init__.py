"""Compiled kernels: numba and arithmetic only; no MPI, no files, no classes, no state."""
