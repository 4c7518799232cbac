"""The watchdog: a thread that ends the job if a rank, the launcher or a collective fails.

MPI waits for ever for a rank that has died or hangs. The watchdog therefore ends the job if the
process of another rank on this host is gone, if the launcher is gone, or if a collective takes
longer than --hang-timeout. Its message names the ranks that did not enter the collective, and where
in their code they were; it reads this from the files of the flight recorder
(mpigd/parallel/flight_recorder.py).
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from mpigd.errors import DataError, MpigdError
from mpigd.parallel.flight_recorder import Recorder, behind, flights

# Seconds between two checks.
POLL = 0.5
# Seconds in a collective after which a missing rank can no longer be one that passed the collective
# and then exited.
LENIENT = 2.0
# A rank waits ORDER seconds per lower rank, at most LAST, before it reports: one message is enough.
ORDER, LAST = (0.6, 5.0)
# Time limit, in seconds, for reading the files that show which ranks are late.
PATIENCE = 3.0
# The folder of the package, as the file names of frames spell it. It is not made absolute, since
# the working directory may be gone by the time it is needed.
PACKAGE = os.path.dirname(os.path.dirname(__file__))
T = TypeVar("T")


class Watch(threading.Thread):
    """A daemon thread that checks twice a second whether the job can still continue.

    Parameters
    ----------
    recorder : Recorder
        The flight recorder of this rank, which shows whether the rank is in a collective.
    peers : mapping of int to int
        Process ids of the other ranks on this host, by rank.
    limit : float
        Seconds that a collective may take.
    end : callable
        Writes a text and ends the job with an exit code: ``end(text, code)``.
    pulse : callable
        Called at every check.

    Attributes
    ----------
    folder : str
        The folder with the files of the flight recorder, or "".
    tolerant : bool
        Whether missing ranks are no reason to end the job.
    lenient : bool
        Whether missing ranks are no reason as long as this rank does not wait for them.
    entrance : str
        The name of the function that all ranks must call, while this rank waits for the others at
        its beginning; otherwise "".
    code : callable
        Returns the exit code with which the job is ended.
    """

    def __init__(
        self,
        recorder: Recorder,
        peers: Mapping[int, int],
        limit: float,
        end: Callable[[str, int], None],
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="mpigd-watch", daemon=True)
        self.limit, self.folder, self.tolerant, self.lenient, self.entrance = (
            limit,
            "",
            False,
            False,
            "",
        )
        self.code: Callable[[], int] = lambda: MpigdError.code
        self.recorder, self.pulse, self._end = recorder, pulse, end
        self.peers = peers
        self._parent, self._main = os.getppid(), threading.main_thread().ident
        self._over = threading.Event()

    @property
    def peers(self) -> Mapping[int, int]:
        """Process ids of the other ranks on this host, by rank, as far as they are visible."""
        return self._peers

    @peers.setter
    def peers(self, found: Mapping[int, int]) -> None:
        self._peers = {rank: pid for rank, pid in found.items() if state(pid) is not None}

    def stop(self) -> None:
        """End the checks: from now on the other ranks may exit."""
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(POLL) and not self.recorder.closed:
            self.recorder.beat(place(self._main))
            self.pulse()
            trouble = self._trouble()
            if trouble and not self._over.wait(min(ORDER * self.recorder.rank, LAST)):
                where = f"rank {self.recorder.rank} on {self.recorder.host}"
                text = (
                    f"{trouble} (seen by {where}, at step {self.recorder.step:,}, "
                    f"in {place(self._main)})"
                )
                self._end(text, within(PATIENCE, self.code, MpigdError.code))

    def _trouble(self) -> str:
        if os.getppid() != self._parent:
            return "the launcher is gone"
        inside = self.recorder.inside()
        if not self.tolerant and not (self.lenient and inside < LENIENT):
            for rank, pid in self._peers.items():
                if state(pid) in (None, "Z"):
                    return f"rank {rank} on {self.recorder.host} (process {pid}) is gone"
        if inside > self.limit:
            if self.entrance:
                return self._alone(inside)
            return (
                f"a collective has not ended after {inside:.0f} s (--hang-timeout): "
                f"{self._culprits()}"
            )
        return ""

    def _alone(self, inside: float) -> str:
        text = (
            f"{self.entrance} has waited {inside:.0f} s (--hang-timeout) "
            "for the other ranks to call it too: "
            f"all {self.recorder.size} ranks must call it, not some of them alone"
        )
        return "; ".join([text, *self._stopped()])

    def _stopped(self) -> list[str]:
        return [
            f"rank {rank} (process {pid}) is stopped"
            for rank, pid in self._peers.items()
            if state(pid) in ("T", "t")
        ]

    def _culprits(self) -> str:
        stopped = self._stopped()
        late = within(PATIENCE, self._late, list[str]()) if self.folder else []
        return "; ".join([*stopped, *late[:3]]) or "no rank of this host is known to be late"

    def _late(self) -> list[str]:
        with suppress(DataError):
            return behind(flights(self.folder))
        return []


def within(seconds: float, work: Callable[[], T], otherwise: T) -> T:
    """Return the result of `work`, or `otherwise` if it fails or takes too long.

    The time limit is necessary because the file system may be the reason why the job hangs.

    Parameters
    ----------
    seconds : float
        The time limit.
    work : callable
        The function to call, without arguments, in a thread of its own.
    otherwise : Any
        The result after an error or after the time limit.
    """
    found = [otherwise]

    def help() -> None:
        with suppress(Exception):  # an uncaught exception would end the job by itself
            found.append(work())

    helper = threading.Thread(target=help, daemon=True)
    helper.start()
    helper.join(seconds)
    return found[-1]


def state(pid: int) -> str | None:
    """Return the state letter of a process, or None if it is gone.

    The letters are those of /proc/PID/stat: R running, S sleeping, T stopped, Z dead, and others;
    "?" on a system without /proc.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "?"


def place(thread: int | None) -> str:
    """Return where a thread is: file, line and function of its innermost frame in mpigd's code."""
    frame = sys._current_frames().get(thread or 0)
    if frame is None:
        return "no Python code"
    stack = traceback.extract_stack(frame)
    ours = [entry for entry in stack if entry.filename.startswith(PACKAGE)] or list(stack)
    deepest = ours[-1]
    return f"{os.path.basename(deepest.filename)}:{deepest.lineno} {deepest.name}"
