"""The exceptions of mpigd. Each class has the exit code with which a command ends."""

from __future__ import annotations


class MpigdError(Exception):
    """The base class: a problem that the user can solve.

    Its text is one line that says what is wrong, where, and what to do.

    Attributes
    ----------
    code : int
        The exit code of the command.
    agreed : bool
        Whether every rank has raised the same error. Then rank 0 alone prints it, and all ranks
        exit in an orderly way. An error of one rank alone must abort the whole job instead.
    """

    code = 70
    agreed = False


class UsageError(MpigdError):
    """The command or the configuration is invalid; every rank finds the same error."""

    code = 2
    agreed = True


class DataError(MpigdError):
    """Input data are missing, damaged, or outside the allowed range."""

    code = 65


class LaunchError(MpigdError):
    """The launcher does not belong to the MPI library, or the job was started wrongly."""

    code = 69


class LimitError(LaunchError):
    """The system limits this process too much (file descriptors or memory); the input is valid."""


def out_of_memory(error: MemoryError) -> LimitError:
    """Return the LimitError for an allocation that failed in Python, numpy or numba."""
    why = " ".join(str(error).split()) or "memory allocation failed"
    return LimitError(f"not enough memory: {why} (use fewer ranks on a host, or more hosts)")


class NumericalError(MpigdError):
    """A value in training is not finite."""

    code = 70


class WorseError(NumericalError):
    """A run ended with a larger objective than it began with."""


class StorageError(MpigdError):
    """A file cannot be written."""

    code = 74


class Unfinished(MpigdError):
    """A run was saved before its end; the same command continues it."""

    code = 75


class ReplicaError(MpigdError):
    """The parameters of the model differ between ranks."""

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
