"""``python -m mpigd``: run a command, and report errors as one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mpigd.commands.parser import parser
from mpigd.errors import MpigdError, out_of_memory
from mpigd.parallel import session, standard_streams, working_directory

PIPE_CLOSED = 141  # the exit code that a shell reports for a program that SIGPIPE has killed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: sys.argv[1:]) and return the exit code.

    An error of one rank alone aborts the whole job.
    """
    standard_streams.prepare()
    try:
        return _run(argv)
    finally:
        standard_streams.end()


def _run(argv: Sequence[str] | None) -> int:
    arguments = None
    try:
        arguments = parser().parse_args(argv)
        with working_directory.settled():
            code = int(arguments.run(arguments))
        standard_streams.finish()
        session.leave()
        return code
    except MpigdError as error:
        return _failed(error)
    except MemoryError as error:
        return _failed(out_of_memory(error))
    except KeyboardInterrupt:
        session.end_all(130)
        return 130
    except SystemExit as left:
        if arguments is None:  # --help, or --version
            return _said(left)
        # A library has called sys.exit before the work was done.
        session.complain(left, f"sys.exit({left.code!r})")
        session.end_all(left.code if isinstance(left.code, int) and left.code else MpigdError.code)
        raise
    # The reader of the output has exited, as in `mpigd info FILE | head`: end without a message,
    # like other programs.
    except BrokenPipeError:
        standard_streams.silence(1, 2)
        session.end_all(PIPE_CLOSED)
        return PIPE_CLOSED
    except Exception as error:
        session.complain(error)
        session.end_all(MpigdError.code)
        return MpigdError.code


def _failed(error: MpigdError) -> int:
    """Print the error and end the session; return the exit code.

    An error that all ranks share is printed by rank 0 alone, and the ranks exit together. Any other
    error aborts the job.
    """
    rank, size = session.place()
    if rank == 0 or not error.agreed:
        standard_streams.say(
            f"mpigd: {error}\n"
            if error.agreed or size == 1
            else f"mpigd: {session.here()}: {error}\n"
        )
    if error.agreed or size == 1:
        session.leave()
    else:
        session.end_all(error.code)  # may return before the abort; no collective may follow
    return error.code


def _said(left: SystemExit) -> int:
    """Flush the output of --help or --version and return the exit code."""
    try:
        standard_streams.finish()
    except MpigdError as error:
        return _failed(error)
    except BrokenPipeError:
        standard_streams.silence(1, 2)
        return PIPE_CLOSED
    return left.code if isinstance(left.code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
