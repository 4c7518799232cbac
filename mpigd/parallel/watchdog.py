"""A thread of each rank that ends the job when it cannot go on: a rank that is gone, a launcher that is gone, a collective that
does not end.

MPI waits for ever for a rank that never comes. The other ranks of this host are watched as processes, and what is stuck is told
by the flight recorder: who did not enter the collective in which this rank waits, and where that one was in its code.
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

POLL = 0.5  # seconds between two looks
LENIENT = 2.0  # seconds in a collective after which a rank that is gone will not have been through it already
ORDER, LAST = (
    0.6,
    5.0,
)  # seconds by which a rank lets each lower one speak first, at most: one message is enough
PATIENCE = 3.0  # seconds for the files that tell who is late
PACKAGE = os.path.dirname(
    os.path.dirname(__file__)
)  # as frames have it: the working directory may be gone when it would be needed
T = TypeVar("T")


class Watch(threading.Thread):
    """Looks twice a second. `peers`: process ids of the other ranks of this host. `end` says a text and ends the job.

    pulse: called at every look. tolerant: other ranks may be gone. lenient: they may, while this one does not wait for them.
    entrance: the function that all ranks are to call, while this one waits for the others at its beginning.
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
        """Process ids of the other ranks of this host, by rank; those that can be seen."""
        return self._peers

    @peers.setter
    def peers(self, found: Mapping[int, int]) -> None:
        self._peers = {rank: pid for rank, pid in found.items() if state(pid) is not None}

    def stop(self) -> None:
        """From now on others may leave."""
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(POLL) and not self.recorder.closed:
            self.recorder.beat(place(self._main))
            self.pulse()
            trouble = self._trouble()
            if trouble and not self._over.wait(min(ORDER * self.recorder.rank, LAST)):
                where = f"rank {self.recorder.rank} on {self.recorder.host}"
                text = f"{trouble} (seen by {where}, at step {self.recorder.step:,}, in {place(self._main)})"
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
            return f"a collective has not ended after {inside:.0f} s (--hang-timeout): {self._culprits()}"
        return ""

    def _alone(self, inside: float) -> str:
        text = (
            f"{self.entrance} has waited {inside:.0f} s (--hang-timeout) for the other ranks to call it too: "
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
    """What `work` returns, or `otherwise` if it fails or takes too long: a file system may be what the job hangs in."""
    found = [otherwise]

    def help() -> None:
        with suppress(Exception):  # uncaught, it would be what ends the job
            found.append(work())

    helper = threading.Thread(target=help, daemon=True)
    helper.start()
    helper.join(seconds)
    return found[-1]


def state(pid: int) -> str | None:
    """The state letter of a process (R, S, T stopped, Z dead, ...), or None if it is gone."""
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
    """Where in our code a thread is: file, line and function of its innermost frame within the package."""
    frame = sys._current_frames().get(thread or 0)
    if frame is None:
        return "no Python code"
    stack = traceback.extract_stack(frame)
    ours = [entry for entry in stack if entry.filename.startswith(PACKAGE)] or list(stack)
    deepest = ours[-1]
    return f"{os.path.basename(deepest.filename)}:{deepest.lineno} {deepest.name}"
