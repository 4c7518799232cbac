"""Recover from rank failures (--on-failure shrink): the survivors continue to the same bits.

The model does not depend on the number of ranks, and a run can be continued after any step. So
recovery does what a new job would do with a checkpoint, but in memory and in the same processes:
read the rows for the new number of ranks, restore the state after the last step that all survivors
have completed, and continue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mpigd.config.schema import Config
from mpigd.data.shard import Shard
from mpigd.errors import BY_CODE, LaunchError, MpigdError, UsageError
from mpigd.parallel import session
from mpigd.parallel.comm import Comm
from mpigd.parallel.elastic import CutOff, ElasticComm, lost
from mpigd.training.callbacks.base import Array, Callback, Step
from mpigd.training.callbacks.progress import Progress
from mpigd.training.checkpoint import Checkpoint
from mpigd.training.run_guard import code_of_a_hang

T = TypeVar("T")


class Memory(Callback):
    """Keep the positions after the last two steps in memory.

    Two are needed: a rank may have left the Allreduce of a step in which another rank failed.
    """

    def __init__(self) -> None:
        self.kept: list[Checkpoint] = []
        self._now: Callable[[], Checkpoint]

    def of(self, now: Callable[[], Checkpoint]) -> Memory:
        """Set the function that returns the current position, and return self. Not collective."""
        self._now = now
        return self

    def after(self, step: Step, words: Array) -> str | None:
        self.kept = [*self.kept[-1:], self._now().copy()]
        return None

    @property
    def last(self) -> int:
        """The number of completed steps, -1 if no position is kept."""
        return self.kept[-1].step if self.kept else -1

    def back(self, step: int) -> None:
        """Drop the positions after `step`."""
        self.kept = [position for position in self.kept if position.step <= step]


def check(config: Config, data: object, comm: Comm) -> None:
    """Raise an error on all ranks if --on-failure shrink is not possible in this launch.

    Parameters
    ----------
    config : Config
        Options of the run.
    data : object
        What the run trains on, files or a Shard.
    comm : Comm
        Communicator of all ranks of the run.

    Raises
    ------
    UsageError
        If the data are not in files: the rows of a failed rank must be read again.
    LaunchError
        If the launch does not support recovery from rank failures.
    """
    if config.on_failure != "shrink" or comm.size == 1:
        return
    if isinstance(data, Shard):
        raise UsageError(
            "--on-failure shrink goes with data in files: the rows of a rank that is gone are "
            "read again"
        )
    if not isinstance(comm, ElasticComm):
        error = LaunchError(
            "--on-failure shrink needs Open MPI, started as: mpirun --with-ft ulfm ... (not so "
            "here)"
        )
        error.agreed = True
        raise error


def survive(
    once: Callable[[Memory | None], T], config: Config, comm: Comm, progress: Progress
) -> T:
    """Call `once`. After rank failures, retry on the survivors from the latest position in memory.

    Parameters
    ----------
    once : callable
        Trains, from the positions in a Memory (None: no recovery is wanted).
    config : Config
        Options of the run.
    comm : Comm
        Communicator of all ranks of the run. It shrinks to the survivors.
    progress : Progress
        Shows messages. It moves to the new rank 0.

    Returns
    -------
    T
        The result of `once`.

    Raises
    ------
    MpigdError
        If too few ranks are left, or this rank is cut off from the others.
    """
    if config.on_failure != "shrink":
        return once(None)
    memory = Memory()
    while True:
        try:
            return once(memory)
        except Exception as error:
            if not lost(comm, error):
                raise
        # Not within the except clause: the rows, and all else that the error refers to, must be
        # freed first.
        _go_on(memory, config, comm, progress)


def _go_on(memory: Memory, config: Config, comm: Comm, progress: Progress) -> None:
    """Shrink `comm` to the survivors and `memory` to their last common step.

    Raises MpigdError if the run must not continue.
    """
    assert isinstance(comm, ElasticComm)
    before = comm.size
    try:
        memory.back(comm.mend(memory.last))
    # This rank cannot find out what the others have decided, so it ends alone.
    except CutOff as error:
        raise _stopped(f"{error}: no more than half, and others may go on", config) from error
    if comm.size == before:
        none = _stopped("MPI says that ranks are gone, and all are here", config)
        none.agreed = True
        raise none
    session.give_up(comm, comm.gone)
    progress.quiet = config.quiet or comm.rank > 0
    if comm.size < config.min_ranks:
        few = _stopped(
            f"{comm.size} of {before} ranks are left, fewer than --min-ranks {config.min_ranks}",
            config,
        )
        few.agreed = True
        raise few
    where = f"after step {memory.last:,}" if memory.kept else "from where this job began"
    if comm.rank == 0:
        progress.warn(f"{before - comm.size} of {before} ranks are gone; {comm.size} go on {where}")


def _stopped(why: str, config: Config) -> MpigdError:
    code = code_of_a_hang(config.checkpoint)
    what = "run the same command again" if code == 75 else "nothing was saved"
    return BY_CODE.get(code, MpigdError)(f"{why}; {what}")
