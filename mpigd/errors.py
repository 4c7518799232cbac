"""One family of errors. Each carries the exit code that a batch script sees."""

from __future__ import annotations


class MpigdError(Exception):
    """A problem the user can act on: one line saying what is wrong, where, and what to do.

    ``agreed`` is set once every rank has raised the same error, so that rank 0 alone prints it and all
    ranks may leave in an orderly way; an error that only one rank knows of must end the world instead.
    """

    code = 70
    agreed = False


class UsageError(MpigdError):
    """The command or configuration cannot be carried out as written: every rank sees the same one."""

    code = 2
    agreed = True


class DataError(MpigdError):
    """Input is missing, damaged, or outside what was asked of it."""

    code = 65


class LaunchError(MpigdError):
    """The launcher and the MPI library do not fit together."""

    code = 69


class LimitError(LaunchError):
    """The system gives this process too little: file descriptors or memory. Input is not to blame."""


class NumericalError(MpigdError):
    """Training met a value that is not finite."""

    code = 70


class WorseError(NumericalError):
    """A run ended above the objective that it began with."""


class StorageError(MpigdError):
    """A file could not be written."""

    code = 74


class Unfinished(MpigdError):
    """Work was saved before its end; the same command continues it."""

    code = 75


class ReplicaError(MpigdError):
    """Ranks hold different parameters."""

    code = 76


BY_CODE: dict[int, type[MpigdError]] = {
    error.code: error
    for error in (
        UsageError,
        DataError,
        LaunchError,
        NumericalError,
        StorageError,
        Unfinished,
        ReplicaError,
    )
}
