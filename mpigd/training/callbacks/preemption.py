"""Stop a run in time: at a signal, at a wall-time limit, or before the end of the batch job.

The run is saved, and the same command continues it. What one rank has seen becomes a number in the
step's buffer, which is summed over the ranks, so that all ranks stop after the same step.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.config.units import seconds_of
from mpigd.parallel.comm import Comm
from mpigd.training.callbacks.base import Callback, Step

Array = np.ndarray[Any, Any]
# HUP is handled too, unless it is ignored. USR1 reaches the ranks through every launcher; after
# TERM there may be no time left.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
REASONS = ("signal", "time")  # reasons to stop a run that is not at its end
MARGIN = 5.0  # seconds reserved for saving, beyond the longest step so far
END_TIMES = ("SLURM_JOB_END_TIME",)  # seconds since 1970, set by batch systems


class Interruption(Callback):
    """Stop the run after a step if a rank met a signal, or if no time is left for another step.

    It is made when the run begins, since --max-time counts from there. Without --checkpoint it does
    nothing, since nothing could be saved.

    Parameters
    ----------
    comm : Comm
        Communicator of all ranks of the run.
    config : Config
        Options of the run.
    env : mapping
        Environment variables, among which END_TIMES are looked up.
    """

    def __init__(self, comm: Comm, config: Config, env: Mapping[str, str] = os.environ) -> None:
        self._comm, self._saves, self._caught, self._longest = (
            comm,
            config.checkpoint is not None,
            0,
            0.0,
        )
        # A step of one row takes some 20 microseconds, so nothing is added that is not needed.
        self.words = 2 if self._saves else 0
        now = self._last = time.monotonic()
        ends = [now + seconds_of(config.max_time)] if config.max_time is not None else []
        ends += [
            now + float(env[name]) - time.time()
            for name in END_TIMES
            if env.get(name, "").isdigit()
        ]
        self._end = min(ends) if ends and self._saves else math.inf

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals within the block. Outside the main thread no handler can be set."""
        before: dict[signal.Signals, Any] = {}
        if self._saves and threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup sets it
            heard = SIGNALS if ignored else (*SIGNALS, signal.SIGHUP)
            before = {number: signal.signal(number, self._catch) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: Any) -> None:
        self._caught = number  # nothing else, since a step may be running

    def before(self, words: Array) -> None:
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        words[0] = float(self._caught > 0)
        words[1] = float(now + 2.0 * self._longest + MARGIN > self._end)

    def after(self, step: Step, words: Array) -> str | None:
        self._comm.record(step.batch.step + 1)
        if self._saves:
            for reason, word in zip(REASONS, words, strict=True):
                if word > 0:
                    return reason
        return None
