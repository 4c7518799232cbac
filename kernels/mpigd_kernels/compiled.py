"""Decorators that compile kernels: `compiled` and `inlined`."""

from contextlib import suppress

from numba import njit

_OPTIONS = dict(nogil=True, cache=True, error_model="numpy")


def _forgiving(decorate):
    """Return a decorator whose functions run even if compiled code cannot be written or read.

    With a full disk or an unreadable cache, the code is compiled again in each process. numba would
    let the OSError end the run.
    """

    def compiled(function):
        made = decorate(function)
        made._cache._guard_against_spurious_io_errors = lambda: suppress(OSError)
        return made

    return compiled


compiled = _forgiving(njit(**_OPTIONS))
inlined = _forgiving(njit(**_OPTIONS, forceinline=True))
