"""The watchdog of a rank, with processes of its own to observe.

Some are gone, some are stopped, and some do not end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from mpigd.parallel import watchdog
from mpigd.parallel.flight_recorder import Recorder
from mpigd.parallel.watchdog import Watch, place, state, within
from tests.launch import CEILING


@pytest.fixture
def peer() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def seen(
    recorder: Recorder, peers: dict[int, int], limit: float, seconds: float = 10
) -> tuple[str, int] | None:
    """Return what the watch says within so many seconds."""
    said: list[tuple[str, int]] = []
    heard = threading.Event()

    def end(text: str, code: int) -> None:
        said.append((text, code))
        dog.stop()
        heard.set()

    dog = Watch(recorder, peers, limit, end)
    dog.code = lambda: 75
    dog.start()
    heard.wait(seconds)
    dog.stop()
    dog.join()
    return said[0] if said else None


def test_states(peer: subprocess.Popen[bytes]) -> None:
    assert state(peer.pid) in ("R", "S", "D")
    peer.kill()
    os.waitid(os.P_PID, peer.pid, os.WEXITED | os.WNOWAIT)
    assert state(peer.pid) == "Z"
    peer.wait()
    assert state(peer.pid) is None


def test_a_rank_of_this_host_is_gone(peer: subprocess.Popen[bytes]) -> None:
    threading.Timer(0.2, peer.kill).start()
    said = seen(Recorder(0, 2), {1: peer.pid}, 100)
    assert said is not None
    assert f"(process {peer.pid}) is gone (seen by rank 0" in said[0]
    assert said[1] == 75


def test_a_collective_that_does_not_end(peer: subprocess.Popen[bytes]) -> None:
    peer.send_signal(signal.SIGSTOP)
    recorder = Recorder(0, 2)
    recorder.mark(7)
    recorder.enter(b"allreduce", 8)
    said = seen(recorder, {1: peer.pid}, 0.1)
    assert said is not None
    assert f"(--hang-timeout): rank 1 (process {peer.pid}) is stopped" in said[0]
    assert "at step 7, in " in said[0]


def test_work_between_collectives_may_take_its_time(peer: subprocess.Popen[bytes]) -> None:
    assert seen(Recorder(0, 2), {1: peer.pid}, 0.1, 1.2) is None


def test_the_place_is_in_our_package() -> None:
    inside = threading.Event()

    def ours() -> None:
        within(60, lambda: inside.wait(60), False)

    thread = threading.Thread(target=ours, daemon=True)
    thread.start()
    until = time.monotonic() + CEILING
    while not place(thread.ident).endswith(" within") and time.monotonic() < until:
        time.sleep(0.01)
    told = place(thread.ident)
    inside.set()
    thread.join()
    assert told.startswith("watchdog.py:")
    assert told.endswith(" within")
    assert place(thread.ident) == place(None) == "no Python code"


def test_a_file_system_that_hangs_is_not_waited_for() -> None:
    assert within(5, lambda: 3, 4) == 3
    never = threading.Event()
    assert within(0.1, lambda: never.wait() or 3, 4) == 4
    never.set()
    assert watchdog.POLL < 1
