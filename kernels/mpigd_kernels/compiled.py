"""How kernels are compiled: decorators."""

from contextlib import suppress

from numba import njit

_OPTIONS = dict(nogil=True, cache=True, error_model="numpy")


def _forgiving(decorate):
    """The decorator, of functions that run all the same where their code cannot be kept, or what is kept cannot be read.

    A full disk costs the time of compiling again; numba would let its OSError end the run.
    """

    def compiled(function):
        made = decorate(function)
        made._cache._guard_against_spurious_io_errors = lambda: suppress(OSError)
        return made

    return compiled


compiled = _forgiving(njit(**_OPTIONS))
inlined = _forgiving(njit(**_OPTIONS, forceinline=True))
