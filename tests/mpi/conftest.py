"""One pytest run over the ranks of ``mpiexec -n N python -m pytest tests/mpi``.

After every phase of a test (set-up, call, tear-down) the ranks agree on its outcome: a test that
fails on one rank fails on all, and rank 0, the only one that reports, shows the traceback of the
lowest failing rank. A rank that failed while the others sit in a collective cannot agree: after
GRACE seconds it prints its traceback and ends the job. So does a test that takes longer than LIMIT
seconds. Without a launcher none of this happens.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

from mpigd.parallel.comm import Comm
from mpigd.parallel.session import connect

GRACE = float(os.environ.get("TEST_MPI_GRACE", "20"))
LIMIT = float(os.environ.get("TEST_MPI_LIMIT", "120"))
PASSED, SKIPPED, FAILED = range(3)


class Ranks:
    """The ranks of this run.

    `tests` is the communicator of the tests; another one is used to agree on their outcomes.
    """

    def __init__(self) -> None:
        self.tests: Comm = connect()
        self.rank, self.size = self.tests.rank, self.tests.size
        self._judges = self.tests.split(0)
        self.stderr = 2

    def agree(self, nodeid: str, state: int, text: str) -> tuple[list[int], str]:
        """Every rank's state, and the text of the lowest rank that failed. Collective."""
        with self.limit(
            GRACE,
            lambda: f"rank {self.rank} failed, the others did not come along: {nodeid}\n{text}",
            text,
        ):
            states = self._judges.allgather(np.array([state], dtype=np.int64))[:, 0].tolist()
        if FAILED not in states:
            return states, ""
        root, data = (
            states.index(FAILED),
            np.frombuffer(text.encode(errors="replace"), dtype=np.uint8),
        )
        length = np.array([data.size], dtype=np.int64)
        self._judges.bcast(length, root)
        body = data.copy() if self.rank == root else np.empty(int(length[0]), dtype=np.uint8)
        self._judges.bcast(body, root)
        self.tests = self._judges.split(
            0
        )  # a message that the failed test left behind must not reach the next one
        return states, f"rank {root} of {self.size}: {body.tobytes().decode()}"

    @contextmanager
    def limit(
        self, seconds: float, last_words: Callable[[], str], wanted: object = True
    ) -> Iterator[None]:
        """End the job with `last_words` if the block takes longer than `seconds`.

        There is no limit unless `wanted`.
        """
        if not wanted:
            yield
            return
        timer = threading.Timer(seconds, lambda: self.die(last_words()))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def die(self, last_words: str) -> None:
        os.write(self.stderr, f"\n{last_words}\n".encode(errors="replace"))
        time.sleep(0.5)  # for the launcher to pass it on, and the other ranks to say the same
        self.tests.abort(1)

    def stacks(self, nodeid: str) -> str:
        os.write(self.stderr, f"\nrank {self.rank} is here:\n".encode())
        faulthandler.dump_traceback(self.stderr, all_threads=True)
        return f"rank {self.rank}: {nodeid} takes longer than {LIMIT:g} s"


RANKS = Ranks()


@pytest.fixture
def comm() -> Comm:
    """The world's communicator, as mpigd.parallel.comm.connect() gives it."""
    return RANKS.tests


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if RANKS.size == 1:
        return
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        RANKS.stderr = os.dup(2)  # the launcher's, wherever pytest points number 2 during a test
    if RANKS.rank > 0:
        config.pluginmanager.unregister(name="terminalreporter")


def pytest_collection_finish(session: pytest.Session) -> None:
    """End the run if ranks collected different tests.

    They would wait for each other, also if an import failed on one rank only.
    """
    if RANKS.size == 1:
        return
    names = "\n".join([str(session.testsfailed), *(item.nodeid for item in session.items)])
    digest = np.frombuffer(hashlib.sha256(names.encode()).digest(), dtype=np.int64)
    if len(np.unique(RANKS.tests.allgather(digest), axis=0)) > 1:
        RANKS.die(
            f"rank {RANKS.rank} collected {len(session.items)} tests, "
            f"with errors: {_errors or 'none'}"
        )


_errors: list[str] = []


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _errors.append(str(report.longrepr))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Leave together.

    A launcher may end the rank that still reports once another has left with an exit code.
    """
    if RANKS.size > 1:
        sys.stdout.flush()
        RANKS.agree("the end", PASSED, "")


def pytest_keyboard_interrupt() -> None:
    _leave("was interrupted")


def pytest_internalerror(excrepr: object) -> None:
    _leave(f"met an error inside pytest:\n{excrepr}")


def _leave(why: str) -> None:
    if RANKS.size > 1:
        RANKS.die(f"rank {RANKS.rank} {why}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    with RANKS.limit(LIMIT, lambda: RANKS.stacks(item.nodeid), RANKS.size > 1):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _together(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _together(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _together(item))


def _together(item: pytest.Item) -> Generator[None, Any, Any]:
    """One phase of a test, which ends alike on all ranks."""
    if RANKS.size == 1:
        return (yield)
    error: BaseException | None = None
    state, text = PASSED, ""
    try:
        result = yield
    except (KeyboardInterrupt, pytest.exit.Exception):
        raise
    except pytest.skip.Exception as caught:
        error, state = caught, SKIPPED
    except BaseException as caught:
        error, state = caught, FAILED
        info = pytest.ExceptionInfo.from_exception(caught)
        text = f"{info.exconly().splitlines()[0]}\n{item.repr_failure(info)}"
    states, story = RANKS.agree(item.nodeid, state, text)
    if error is not None and (state == FAILED or len(set(states)) == 1):
        raise error
    if len(set(states)) > 1:
        skipped = ", ".join(str(rank) for rank, other in enumerate(states) if other == SKIPPED)
        pytest.fail(story or f"skipped on rank {skipped} only", pytrace=False)
    return result
