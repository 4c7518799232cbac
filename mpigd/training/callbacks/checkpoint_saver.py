"""Save checkpoints while the training goes on.

Rank 0 copies what a checkpoint holds, and a thread writes the copy while the next steps run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from mpigd.config.schema import Config
from mpigd.errors import DataError, MpigdError, StorageError, Unfinished
from mpigd.parallel.comm import Comm, agree
from mpigd.training import checkpoint
from mpigd.training.callbacks.base import Array, Callback, Step
from mpigd.training.checkpoint import Checkpoint

SECONDS = 60.0  # between two saves, unless --checkpoint-every counts steps


class Writer:
    """Write the checkpoints of a run, one at a time, on a thread that never calls MPI.

    `step` is that of the last complete checkpoint in the folder, -1 if there is none of this run.

    Parameters
    ----------
    folder : str
        Where checkpoints are saved.
    epoch : int or None
        `Comm.epoch` if the other ranks may go on without this rank, else None.
    """

    def __init__(self, folder: str, epoch: int | None = None) -> None:
        self.step, self._before = -1, -1  # of the last two complete files; older ones are removed
        self._folder, self._epoch = folder, epoch
        self._thread: threading.Thread | None = None
        self._failures: list[Exception] = []

    def free(self) -> bool:
        """Return whether no file is being written."""
        return self._thread is None or not self._thread.is_alive()

    def start(self, copied: Checkpoint) -> None:
        """Begin to write a copy that does not change any more; only if `free`."""
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(copied,), name="mpigd-save", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def failed(self) -> bool:
        """True if a write has failed and `failures` has not returned its error yet."""
        return bool(self._failures)

    def failures(self) -> list[Exception]:
        """Return and clear pending write errors.

        There can be two if a second save failed before the first error was reported.
        """
        told, self._failures = self._failures, []
        return told

    def _write(self, copied: Checkpoint) -> None:
        try:
            copied.save(self._folder, self._epoch)
            if copied.step != self.step:
                self.step, self._before = copied.step, self.step
            checkpoint.prune(self._folder, self._before)
        except DataError as error:  # the folder cannot be listed
            self._failures.append(StorageError(str(error)))
        except Exception as error:  # reported by the run after its next step
            self._failures.append(error)


class Saver(Callback):
    """Save every `--checkpoint-every` steps, or when a minute has passed on rank 0's clock.

    Nothing is saved while the last save is still being written.

    Parameters
    ----------
    collect : callable
        Returns what to save, after a check that it is the same on all ranks. Collective.
    config : Config
        Options of the run.
    comm : Comm
        Communicator of all ranks of the run.
    warn : callable
        Shows a warning.
    """

    words = 2  # whether a save is due by the clock, and whether a save has failed

    def __init__(
        self,
        collect: Callable[[], Checkpoint],
        config: Config,
        comm: Comm,
        warn: Callable[[str], None],
    ) -> None:
        self._collect, self._comm, self._warn = collect, comm, warn
        self._every, self._strict = config.checkpoint_every, config.on_save_error == "stop"
        self._clock = self._every is None and comm.rank == 0
        self._last = time.monotonic()
        self._folder = config.checkpoint or "."
        self.writer = Writer(self._folder, comm.epoch if config.on_failure == "shrink" else None)

    def before(self, words: Array) -> None:
        words[0] = float(
            self._clock and time.monotonic() - self._last > SECONDS and self.writer.free()
        )
        words[1] = float(self.writer.failed)

    def after(self, step: Step, words: Array) -> str | None:
        if words[1] > 0:
            self._tell()
        due = words[0] > 0 if self._every is None else (step.batch.step + 1) % self._every == 0
        if due:
            self._save()
            self._last = time.monotonic()
        return None

    def _save(self) -> None:
        """Let rank 0 copy the state and its thread write it. Collective."""
        saved = self._collect()
        if self._comm.rank == 0 and self.writer.free():
            self.writer.start(saved.copy())

    def _tell(self) -> None:
        """Report pending write errors. Collective.

        An error is a warning, since the last good checkpoint is there, or with --on-save-error stop
        a StorageError on all ranks.
        """
        ends = None
        for error in self.writer.failures():
            if isinstance(error, StorageError) and not self._strict:
                self._warn(f"{error}; going on without this checkpoint")
            else:
                ends = ends or error
        agree(self._comm, ends)

    def finish(self) -> None:
        """Save once more, and wait until the file is written. Collective."""
        self.writer.wait()
        self._tell()
        self._save()
        self.writer.wait()
        self._tell()

    def unfinished(self, why: str, step: int) -> MpigdError:
        """Return the error to raise on all ranks after an interruption. Collective.

        `finish` must have been called before.

        Parameters
        ----------
        why : str
            What stopped the run.
        step : int
            Number of steps completed.

        Returns
        -------
        MpigdError
            Unfinished, or StorageError if there is no checkpoint: the same command would then
            begin, and be stopped, for ever.
        """
        saved = self._whole()
        error: MpigdError
        if saved < 0:
            error = StorageError(
                f"stopped by {why} after step {step:,}, and nothing could be saved in "
                f"{self._folder}"
            )
        else:
            where = (
                f"saved in {self._folder}"
                if saved == step
                else f"of which step {saved:,} is the last in {self._folder}"
            )
            error = Unfinished(
                f"stopped by {why} after step {step:,}, {where}: run the same command again"
            )
        error.agreed = True
        return error

    def rescue(self, step: int) -> str:
        """Save the parameters with which the run cannot go on; return a note on it. Collective."""
        try:
            self.finish()
        except StorageError as error:  # the note accompanies a worse error
            return str(error)
        what = f"the parameters before it are {'saved' if self._whole() == step else 'not saved'}"
        return f"{what} in {self._folder}"

    def _whole(self) -> int:
        """Return the step of the last complete checkpoint, -1 if there is none. Collective."""
        step = np.array([self.writer.step], dtype=np.int64)
        self._comm.bcast(step)
        return int(step[0])
