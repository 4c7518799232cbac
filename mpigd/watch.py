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
from mpigd.recorder import Recorder, behind, flights

POLL = 0.5  # seconds between two looks
ORDER, LAST = 0.6, 5.0  # seconds by which a rank lets each lower one speak first, at most: one message is enough
PATIENCE = 3.0  # seconds for the files that tell who is late
PACKAGE = os.path.dirname(os.path.abspath(__file__))
T = TypeVar("T")


class Watch(threading.Thread):
    """Looks twice a second. `peers`: process ids of the other ranks of this host. `end` says a text and ends the job.

    pulse: called at every look.
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
        self.limit, self.folder, self.tolerant = limit, "", False
        self.code: Callable[[], int] = lambda: MpigdError.code
        self._recorder, self._end, self._pulse = recorder, end, pulse
        self.peers = {rank: pid for rank, pid in peers.items() if state(pid) is not None}
        self._parent, self._main = os.getppid(), threading.main_thread().ident
        self._over = threading.Event()

    def stop(self) -> None:
        """From now on others may leave."""
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(POLL):
            self._recorder.beat(place(self._main))
            self._pulse()
            trouble = self._trouble()
            if trouble and not self._over.wait(min(ORDER * self._recorder.rank, LAST)):
                where = f"rank {self._recorder.rank} on {self._recorder.host}"
                text = f"{trouble} (seen by {where}, at step {self._recorder.step:,}, in {place(self._main)})"
                self._end(text, within(PATIENCE, self.code, MpigdError.code))

    def _trouble(self) -> str:
        if os.getppid() != self._parent:
            return "the launcher is gone"
        for rank, pid in {} if self.tolerant else self.peers.items():
            if state(pid) in (None, "Z"):
                return f"rank {rank} on {self._recorder.host} (process {pid}) is gone"
        inside = self._recorder.inside()
        if inside > self.limit:
            return f"a collective has not ended after {inside:.0f} s (--hang-timeout): {self._culprits()}"
        return ""

    def _culprits(self) -> str:
        stopped = [f"rank {rank} (process {pid}) is stopped" for rank, pid in self.peers.items() if state(pid) in ("T", "t")]
        late = within(PATIENCE, self._late, list[str]()) if self.folder else []
        return "; ".join([*stopped, *late[:3]]) or "no rank of this host is known to be late"

    def _late(self) -> list[str]:
        with suppress(DataError):
            return behind(flights(self.folder))
        return []


def within(seconds: float, work: Callable[[], T], otherwise: T) -> T:
    """What `work` returns, or `otherwise` if that takes too long: a file system that hangs may be what the job hangs in."""
    found = [otherwise]
    helper = threading.Thread(target=lambda: found.append(work()), daemon=True)
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
    ours = [entry for entry in stack if os.path.abspath(entry.filename).startswith(PACKAGE)] or list(stack)
    deepest = ours[-1]
    return f"{os.path.basename(deepest.filename)}:{deepest.lineno} {deepest.name}"
