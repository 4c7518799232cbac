"""Threads by default, and the warning when there are more of them than cores."""

from __future__ import annotations

import os

import pytest

from mpigd.parallel import affinity
from mpigd.parallel.comm import SelfComm
from tests.threadcomm import run


def on_cores(monkeypatch: pytest.MonkeyPatch, bound: int, host: int) -> None:
    monkeypatch.setattr(affinity, "cores", lambda: set(range(bound)))
    monkeypatch.setattr(os, "cpu_count", lambda: host)


@pytest.mark.parametrize(
    ("bound", "ranks", "threads"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 3, 1)]
)
def test_cores_are_divided_fairly(
    bound: int, ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cores(monkeypatch, bound, 64)
    assert run(ranks, affinity.fair_threads) == [threads] * ranks


@pytest.mark.parametrize(
    ("bound", "host", "ranks", "threads", "where"),
    [
        (4, 4, 3, 2, "on a host with 4 cores"),
        (1, 64, 2, 1, "on the 1 core(s) that they are bound to"),
        (2, 2, 2, 1, None),
    ],
)
def test_too_many_threads_are_warned_of(
    bound: int,
    host: int,
    ranks: int,
    threads: int,
    where: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cores(monkeypatch, bound, host)
    (warning,) = set(run(ranks, lambda comm: affinity.crowded(comm, threads)))
    assert warning is None if where is None else where in str(warning)


def test_one_rank_with_its_own_cores_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cores(monkeypatch, 3, 3)
    assert affinity.crowded(SelfComm(), affinity.fair_threads(SelfComm())) is None
