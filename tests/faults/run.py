"""mpigd with faults that are injected at given steps or places.

    python -m tests.faults.run '{"3": [[1, "kill"]]}' train data.h5 ...

Here rank 1 kills itself before step 3. Places beside step numbers:

    "load"          a rank reads its rows
    "7 done"        with --on-failure shrink: the sums of step 7 are there, and not yet remembered
    "save"          within the writing of a checkpoint
    "model"         after the last step
    "mend", "agree" ranks are gone, and the others meet
    "leave"         all work is done
    "exit"          no rank is watched any more
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from mpigd.parallel import kernel_cache, launcher


def gone() -> None:
    """The working directory is removed, as where somebody cleans a scratch folder."""
    aside = f"{os.getcwd()}.old"
    os.rename(os.getcwd(), aside)
    while os.path.exists(aside):  # a checkpoint may be being written in it
        shutil.rmtree(aside, ignore_errors=True)


def renewed() -> None:
    """It is there again, under the same name."""
    folder = os.getcwd()
    gone()
    os.mkdir(folder)


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


def nap() -> None:
    """Stand still until the others have given this rank up, and then go on."""
    subprocess.Popen(["sh", "-c", f"sleep {os.environ['TEST_NAP']}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def miss() -> None:
    """As MPI may say it to one rank alone: the last sum came, and to this one did not."""
    from mpi4py import MPI

    raise MPI.Exception(MPI.ERR_PROC_FAILED)


def told() -> None:
    """Wait until MPI knows of a dead rank."""
    from mpi4py import MPI

    while not MPI.COMM_WORLD.Get_failed().Get_size():
        MPI.COMM_SELF.Iprobe()
        time.sleep(0.001)


def saved() -> None:
    """Wait until there is a checkpoint.

    A disk may take longer for the first one than all steps do.
    """
    from mpigd.training.checkpoint import found

    while not found(sys.argv[sys.argv.index("--checkpoint") + 1]):
        time.sleep(0.01)


ACTIONS: dict[str, Callable[[], Any]] = {
    "busy": lambda: time.sleep(9),
    "exception": fail,
    "sys.exit": lambda: sys.exit(3),
    "sys.exit(0)": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(3),
    "os._exit(0)": lambda: os._exit(0),
    "_exit(0)": lambda: ctypes.CDLL(None)._exit(0),
    "segv": lambda: ctypes.string_at(0),
    "gone": gone,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "nap": nap,
    "renewed": renewed,
    "saved": saved,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "usr1": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "loop": loop,
    "miss": miss,
    "thread": in_a_thread,
    "told": told,
    "slow": lambda: time.sleep(0.3),
}


def inject(schedule: dict[str, list[tuple[int, str]]]) -> None:
    """Let the actions happen where the schedule says."""
    from mpigd.parallel import elastic, session
    from mpigd.parallel.comm import SelfComm
    from mpigd.training import checkpoint, recovery, run_guard, trainer
    from mpigd.training.callbacks import preemption

    run_guard.PATIENCE = float(os.environ.get("TEST_PATIENCE", run_guard.PATIENCE))

    rank, size = launcher.launched() or (0, 1)
    if os.environ.get("TEST_ELSEWHERE") == str(rank):  # the others cannot reach its process
        socket.gethostname = lambda: "elsewhere"

    def at(place: str) -> None:
        for who, action in schedule.get(place, []) + schedule.get("always", []):
            if who == rank:
                ACTIONS[action]()

    def before(self: Any, words: Any) -> None:
        if size == 1 or not isinstance(self._comm, SelfComm):  # no rehearsal
            at(str(steps[0]))
            steps[0] += 1
        usual_before(self, words)

    def after(self: Any, step: Any, words: Any) -> Any:
        if step.batch.step not in done:  # it may be done again
            done.add(step.batch.step)
            at(f"{step.batch.step} done")
        return usual_after(self, step, words)

    def leave() -> None:
        at("leave")
        usual_leave()
        at("exit")

    def first(place: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **more: (at(place), usual(*given, **more))[1]

    done = set[int]()
    steps, usual_before, usual_after, usual_leave = (
        [0],
        preemption.Interruption.before,
        recovery.Memory.after,
        session.leave,
    )
    preemption.Interruption.before = before  # type: ignore[method-assign]
    recovery.Memory.after = after  # type: ignore[method-assign]
    trainer.read = first("load", trainer.read)
    trainer.Run.model = first("model", trainer.Run.model)  # type: ignore[method-assign]
    checkpoint.Checkpoint._fill = first("save", checkpoint.Checkpoint._fill)  # type: ignore[method-assign]
    elastic.ElasticComm.mend = first("mend", elastic.ElasticComm.mend)  # type: ignore[method-assign]
    elastic.ElasticComm._agreed = first("agree", elastic.ElasticComm._agreed)  # type: ignore[method-assign]
    session.leave = leave


if __name__ == "__main__":
    kernel_cache.prepare()  # before numba is imported
    inject(json.loads(sys.argv[1]))
    from mpigd.__main__ import main

    sys.exit(main(sys.argv[2:]))
