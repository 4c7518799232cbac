"""--on-failure shrink: ranks die, and the run goes on with the others, to the same bits.

The model does not depend on the number of ranks, and a run can be continued after any step. So what is left to do after a
failure is what a new job would do with a checkpoint, in memory and in the same processes: read the rows for the new number of
ranks, restore the state after the last step that all survivors have completed, and go on.
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
    """The positions after the last two steps. Two: a rank may have left the Allreduce of a step in which another one died."""

    def __init__(self) -> None:
        self.kept: list[Checkpoint] = []
        self._now: Callable[[], Checkpoint]

    def of(self, now: Callable[[], Checkpoint]) -> Memory:
        """Keep what `now` returns. Not collective."""
        self._now = now
        return self

    def after(self, step: Step, words: Array) -> str | None:
        self.kept = [*self.kept[-1:], self._now().copy()]
        return None

    @property
    def last(self) -> int:
        """How many steps are done; -1 if nothing is kept."""
        return self.kept[-1].step if self.kept else -1

    def back(self, step: int) -> None:
        """Forget what came later than `step`."""
        self.kept = [position for position in self.kept if position.step <= step]


def check(config: Config, data: object, comm: Comm) -> None:
    """LaunchError, on all ranks, where --on-failure shrink is asked of a launch that cannot do it."""
    if config.on_failure != "shrink" or comm.size == 1:
        return
    if isinstance(data, Shard):
        raise UsageError(
            "--on-failure shrink goes with data in files: the rows of a rank that is gone are read again"
        )
    if not isinstance(comm, ElasticComm):
        error = LaunchError(
            "--on-failure shrink needs Open MPI, started as: mpirun --with-ft ulfm ... (not so here)"
        )
        error.agreed = True
        raise error


def survive(
    once: Callable[[Memory | None], T], config: Config, comm: Comm, progress: Progress
) -> T:
    """What `once` returns; where ranks die, what it returns on the others after another try, from what they remember."""
    if config.on_failure != "shrink":
        return once(None)
    memory = Memory()
    while True:
        try:
            return once(memory)
        except Exception as error:
            if not lost(comm, error):
                raise
        # Not within the except: the rows and all else that the error still refers to are to go first.
        _go_on(memory, config, comm, progress)


def _go_on(memory: Memory, config: Config, comm: Comm, progress: Progress) -> None:
    """Make `comm` and `memory` those of the ranks that are left. Raises MpigdError where the run is not to go on."""
    assert isinstance(comm, ElasticComm)
    before = comm.size
    try:
        memory.back(comm.mend(memory.last))
    except CutOff as error:  # what others know of it, this rank cannot know: it ends alone
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
