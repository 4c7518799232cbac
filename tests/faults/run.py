"""mpigd with faults: python -m tests.faults.run '{"3": [[1, "kill"]]}' train data.h5 ...: before step 3 rank 1 kills itself.

Places beside step numbers: "load" (a rank reads its rows), "leave" (all work is done), and "thread" actions run beside the main thread.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from mpigd import cache

cache.prepare()  # before numba is imported
from mpigd import interrupt, launch, trainer, world
from mpigd.__main__ import main


def loop() -> None:
    while True:
        time.sleep(0.01)


def fail() -> None:
    raise RuntimeError("injected")


def in_a_thread() -> None:
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    loop()


ACTIONS: dict[str, Callable[[], Any]] = {
    "exception": fail,
    "sys.exit": lambda: sys.exit(3),
    "sys.exit(0)": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(3),
    "os._exit(0)": lambda: os._exit(0),
    "segv": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "usr1": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "loop": loop,
    "thread": in_a_thread,
    "slow": lambda: time.sleep(0.3),
}


def inject(schedule: dict[str, list[tuple[int, str]]]) -> None:
    """Let the actions happen where the schedule says."""
    rank = (launch.launched() or (0, 1))[0]

    def at(place: str) -> None:
        for who, action in schedule.get(place, []):
            if who == rank:
                ACTIONS[action]()

    def before(self: Any, words: Any) -> None:
        at(str(steps[0]))
        steps[0] += 1
        usual_before(self, words)

    steps, usual_before, usual_read, usual_leave = [0], interrupt.Interruption.before, trainer.read, world.leave
    interrupt.Interruption.before = before  # type: ignore[method-assign]
    trainer.read = lambda *given: (at("load"), usual_read(*given))[1]
    world.leave = lambda: (at("leave"), usual_leave())[1]


if __name__ == "__main__":
    inject(json.loads(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
