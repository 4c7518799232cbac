"""Stopping in time: a signal, a budget of wall time, or the end of the batch job. Saved, and to be continued by the same command.

What one rank has seen becomes a word in the step's one buffer, so that all ranks stop after the same step.
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
SIGNALS = (
    signal.SIGUSR1,
    signal.SIGTERM,
)  # and HUP. USR1 reaches the ranks through every launcher; after TERM there may be no time
REASONS = ("signal", "time")  # why a run was stopped that is not at its end
MARGIN = 5.0  # seconds kept for saving, beside the longest step so far
END_TIMES = ("SLURM_JOB_END_TIME",)  # seconds since 1970, as batch systems tell it


class Interruption(Callback):
    """Stops the run after a step during which a rank met a signal, or that no other step would fit behind.

    Made when the run begins, for --max-time counts from there. Without --checkpoint nothing could be saved: then it does nothing.
    """

    def __init__(self, comm: Comm, config: Config, env: Mapping[str, str] = os.environ) -> None:
        self._comm, self._saves, self._caught, self._longest = (
            comm,
            config.checkpoint is not None,
            0,
            0.0,
        )
        self.words = (
            2 if self._saves else 0
        )  # a step of one row takes some 20 microseconds: nothing that is not needed
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
        """Take notice of signals within the block. Outside the main thread no handler can be set."""
        before: dict[signal.Signals, Any] = {}
        if self._saves and threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
            heard = SIGNALS if ignored else (*SIGNALS, signal.SIGHUP)
            before = {number: signal.signal(number, self._catch) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: Any) -> None:
        self._caught = number  # nothing else: a step is under way

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
