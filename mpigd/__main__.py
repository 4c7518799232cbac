"""python -m mpigd: run a command, and turn errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mpigd import world
from mpigd.cli import parser
from mpigd.errors import MpigdError

PIPE_CLOSED = 141  # what a shell reports of a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit code. An error that one rank alone knows of ends the whole job."""
    arguments = None
    try:
        arguments = parser().parse_args(argv)
        code = int(arguments.run(arguments))
        world.leave()
        return code
    except MpigdError as error:
        rank, size = world.place()
        if rank == 0 or not error.agreed:
            print(f"mpigd: {error}" if error.agreed or size == 1 else f"mpigd: {world.here()}: {error}", file=sys.stderr)
        if error.agreed or size == 1:
            world.leave()
        else:
            world.end_all(error.code)  # may return before the end: no collective after it
        return error.code
    except KeyboardInterrupt:
        world.end_all(130)
        return 130
    except SystemExit as left:
        if arguments is not None:  # not --help, which every rank prints: some library leaves, and the work is not done
            world.complain(left, f"sys.exit({left.code!r})")
            world.end_all(left.code if isinstance(left.code, int) and left.code else MpigdError.code)
        raise
    except BrokenPipeError:  # the reader of our output has left, as in `mpigd info FILE | head`: as quiet as any other tool
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(null, stream.fileno())
        world.end_all(PIPE_CLOSED)
        return PIPE_CLOSED
    except Exception as error:
        world.complain(error)
        world.end_all(MpigdError.code)
        return MpigdError.code


if __name__ == "__main__":
    sys.exit(main())
