"""How kernels are compiled: decorators."""

from numba import njit

_OPTIONS = dict(nogil=True, cache=True, error_model="numpy")
compiled = njit(**_OPTIONS)
inlined = njit(**_OPTIONS, forceinline=True)
