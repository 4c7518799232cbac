"""The progress output of a run.

It has few lines in a log and enough on a terminal, its numbers are right, and it never ends a run.
"""

from __future__ import annotations

import io
import math
import os
from typing import Any

import pytest

from mpigd.training.callbacks.progress import ERASE, Progress, closing, duration, quantity


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Flushed(io.StringIO):
    """Knows what had been flushed: only that passes a launcher's pipe at once."""

    passed = ""

    def flush(self) -> None:
        self.passed = self.getvalue()


def run(
    stream: io.StringIO,
    steps: int,
    seconds: float,
    every: float = 2.0,
    quiet: bool = False,
    **changes: Any,
) -> None:
    """`steps` steps that take `seconds` each."""
    clock = Clock()
    progress = Progress(stream, quiet=quiet, every=every, clock=clock)
    for step in range(1, steps + 1):
        clock.now += seconds
        state = dict(
            epoch=1,
            epochs=1,
            step=step,
            steps=steps,
            loss=1 / step,
            gradient_norm=0.1 / step,
            rows_per_second=1.2e6,
        )
        progress.update(**{**state, **changes})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 ms"), (0.0032, "3.2 ms"), (0.9994, "999.4 ms"), (0.9996, "1 s"),
        (4.512, "4.51 s"), (59.94, "59.9 s"), (60, "1m 00s"), (200, "3m 20s"),
        (3599.4, "59m 59s"), (3599.6, "1h 00m"), (18432, "5h 07m"), (86399.9, "1d 00h"),
        (183600, "2d 03h"), (math.inf, "?"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (999.4, "999"), (999.6, "1.0k"), (1234, "1.2k"), (9960, "10k"), (1.2e6, "1.2M"),
        (34e9, "34G"), (999_600_000, "1.0G"), (5e15, "5000T"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_quantity(number: float, text: str) -> None:
    assert quantity(number) == text


def test_a_log_gets_a_line_every_few_seconds_and_the_last_step() -> None:
    stream = Flushed()
    run(stream, steps=1000, seconds=1 / 64)
    lines = stream.getvalue().splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == [
        "1",
        "129",
        "257",
        "385",
        "513",
        "641",
        "769",
        "897",
        "1,000",
    ]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert stream.passed == stream.getvalue()


def test_a_line_shows_everything_asked_for() -> None:
    stream = io.StringIO()
    run(stream, steps=7, seconds=3.0, epochs=5)
    assert stream.getvalue().splitlines()[2] == (
        "epoch 1/5  step 3/7  loss 0.333333  gradient 3.33e-02  1.2M rows/s  at most 12 s left"
    )


@pytest.mark.parametrize(("epochs", "shown"), [(5, "2.5"), (8, "4")])
def test_the_loss_of_a_line(epochs: int, shown: str) -> None:
    """A line shows the mean loss since the last line, here of steps 1 to 4.

    The loss of one batch is noise. Full mode shows the newest loss.
    """
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    for step in range(5):
        clock.now += 0.5
        progress.update(
            epoch=1,
            epochs=epochs,
            step=step + 1,
            steps=8,
            loss=float(step),
            gradient_norm=1.0,
            rows_per_second=1.0,
        )
    assert f"loss {shown} " in stream.getvalue().splitlines()[1]


def test_time_left_counts_from_the_first_step_of_this_run() -> None:
    """A continued run begins at step 901: what came before took no time of this one."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    for step in range(901, 951):
        clock.now += 1.0
        progress.update(
            epoch=1,
            epochs=1,
            step=step,
            steps=1000,
            loss=1.0,
            gradient_norm=1.0,
            rows_per_second=1.0,
        )
    assert stream.getvalue().splitlines()[-1].endswith("at most 51 s left")


def test_ends_of_epochs_show_but_do_not_flood() -> None:
    seldom, often = io.StringIO(), io.StringIO()
    run(seldom, steps=5, seconds=1.0, force=True)
    assert len(seldom.getvalue().splitlines()) == 5
    run(often, steps=10_000, seconds=0.001, force=True)
    assert 40 <= len(often.getvalue().splitlines()) <= 55


def test_a_terminal_has_one_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(stream, "fileno", lambda: 0)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((50, 20)))
    run(stream, steps=100, seconds=1 / 16)
    states = stream.getvalue().split(ERASE)[1:]
    assert "\n" not in stream.getvalue()
    assert all(20 < len(state) < 50 for state in states)
    assert len(states) == 51  # every second step, and the last
    Progress(stream).note("saved")
    assert stream.getvalue().endswith(ERASE + "saved\n")


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    run(stream, steps=10, seconds=5.0, quiet=True)
    progress = Progress(stream, quiet=True)
    progress.note("a note")
    progress.close({"objective": 1.0, "time": {"load": 1.0}})
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed file")]
)
def test_a_stream_that_fails_does_not_end_the_run(error: Exception) -> None:
    class Broken(io.StringIO):
        calls = 0

        def write(self, text: str) -> int:
            self.calls += 1
            raise error

    stream = Broken()
    run(stream, steps=10, seconds=5.0)
    assert stream.calls == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 5e-324])
def test_odd_numbers_are_shown(value: float) -> None:
    stream = io.StringIO()
    run(stream, steps=1, seconds=1.0, loss=value, gradient_norm=value, rows_per_second=value)
    assert f"loss {value:.6g}" in stream.getvalue()


SUMMARY = {
    "objective": 0.4231, "gradient_norm": 1.2e-7, "stop_reason": "tolerance", "epochs": 63.0,
    "steps": 1000, "reads": 65, "seconds": 9.0, "rows_per_second": 2e6,
    "time": {"load": 1.0, "compute": 6.0, "wait": 3.0},
    "ranks": [{"compute": 5.0, "wait": 4.0}, {"compute": 7.0, "wait": 2.0}],
}  # fmt: skip


def test_the_closing_summary() -> None:
    assert closing(SUMMARY) == [
        "done: objective 0.4231  gradient 1.20e-07  63 epochs  1,000 steps  65 reads  in 9 s  2.0M "
        "rows/s  stop: tolerance",
        "  load           1 s  10.0%",
        "  compute        6 s  60.0%   from 5 s (rank 0) to 7 s (rank 1)",
        "  wait           3 s  30.0%   from 2 s (rank 1) to 4 s (rank 0)",
        "  30% of the time is waiting: steps too small for 2 ranks, or cores that others use too",
    ]


def test_the_summary_names_a_rank_that_holds_up_the_others() -> None:
    ranks = [
        {"compute": 2.0, "wait": 6.0},
        {"compute": 7.0, "wait": 1.0},
        {"compute": 3.0, "wait": 5.0},
    ]
    time = {"load": 0.0, "compute": 4.0, "wait": 4.0}
    hint = "  rank 1 computes 1.8 times as long as the mean: mpigd doctor shows the ranks' cores"
    assert closing({"time": time, "ranks": ranks})[-1] == hint
    assert hint not in closing({"time": time | {"wait": 1.0}, "ranks": ranks})


def test_the_closing_summary_takes_what_there_is() -> None:
    assert closing({}) == ["done: "]
    alone = closing(
        {
            **SUMMARY,
            "time": {"load": 0.5, "compute": 1.5, "wait": 0.0},
            "ranks": [{"compute": 1.5, "wait": 0.0}],
        }
    )
    assert [line.split() for line in alone[1:]] == [
        ["load", "500.0", "ms", "25.0%"],
        ["compute", "1.5", "s", "75.0%"],
        ["wait", "0.0", "ms", "0.0%"],
    ]


def test_showing_costs_little() -> None:
    """A step that is not shown may cost a few microseconds at most.

    A run can do 175,000 steps a second.
    """
    import time

    progress = Progress(io.StringIO(), every=1e9)
    begin = time.process_time()  # of this process: what else the machine does is not counted
    for step in range(1, 20_001):
        progress.update(
            epoch=1,
            epochs=1,
            step=step,
            steps=10**9,
            loss=1.0,
            gradient_norm=1.0,
            rows_per_second=1.0,
        )
    assert (time.process_time() - begin) / 20_000 < 20e-6
