"""Show the progress of a run: a live line on a terminal, plain lines now and then in a batch log.

Rank 0 only. Progress receives numbers and shows them. It reads no communicator, so what it shows
cannot change what is trained.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

TERMINAL_SECONDS = 0.1  # between two updates of the live line
# Moves to the beginning of the line and erases it (ANSI escape sequence).
ERASE = "\r\x1b[K"
WAITING = 0.3  # share of waiting above which the summary gives advice


def duration(seconds: float) -> str:
    """Format seconds for people: 3.2 ms, 4.51 s, 3m 20s, 5h 07m, 2d 03h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
    whole = round(seconds)
    for big, small, names in ((86400, 3600, "dh"), (3600, 60, "hm")):
        if whole >= big:
            return f"{whole // big}{names[0]} {whole % big // small:02d}{names[1]}"
    return f"{whole // 60}m {whole % 60:02d}s"


def quantity(number: float) -> str:
    """Format a number of rows for people: 950, 1.2k, 1.2M, 34G."""
    if not math.isfinite(number):
        return "?"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if abs(scaled) < 9.95 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"


class Progress:
    """Show a run on a stream; only warnings if `quiet`.

    sys.stderr may be None or closed: then nothing is shown.

    Parameters
    ----------
    stream : TextIO or None
        Text stream, usually stderr.
    quiet : bool
        Show only warnings.
    every : float
        Seconds between two lines if the stream is no terminal.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        stream: TextIO | None,
        quiet: bool = False,
        every: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        quiet = quiet or stream is None or stream.closed
        self._stream, self.quiet, self._clock = stream or io.StringIO(), quiet, clock
        self._live = not quiet and self._stream.isatty()
        self._every = min(every, TERMINAL_SECONDS) if self._live else every
        # The time of the first step that was seen, and its number.
        self._first: tuple[float, int] | None = None
        self._shown_at = -math.inf
        self._losses, self._count = 0.0, 0  # since the last line

    def update(
        self,
        *,
        epoch: int,
        epochs: int,
        step: int,
        steps: int,
        loss: float,
        gradient_norm: float,
        rows_per_second: float,
        force: bool = False,
    ) -> None:
        """Show the state after a step.

        If a step sees only some of the rows, the mean loss since the last line is shown, since the
        loss of one step says little. This is called after every step, a hundred thousand times per
        second with small ones, so it must return quickly.

        Parameters
        ----------
        epoch, epochs : int
            Number of the epoch, counted from 1, and of all epochs.
        step, steps : int
            Number of the step, counted from 1, and of all steps.
        loss : float
            Objective at the step.
        gradient_norm : float
            Norm of its gradient.
        rows_per_second : float
            Rows seen by all ranks per second.
        force : bool
            An epoch ends: show it soon.
        """
        if self.quiet:
            return
        now, last = self._clock(), step == steps
        self._losses, self._count = (
            (self._losses + loss, self._count + 1) if steps != epochs else (loss, 1)
        )
        if self._first is None:
            self._first = now, step
        # Forced lines keep a distance too: a thousand short epochs must not flood the log.
        if now - self._shown_at < (self._every / 10 if force else self._every) and not last:
            return
        done = step - self._first[1]
        # "At most", since a tolerance or a validation may stop the run earlier.
        left = (
            f"  at most {duration((now - self._first[0]) / done * (steps - step))} left"
            if done and not last
            else ""
        )
        place = (
            f"epoch {epoch}/{epochs}  step {step:,}/{steps:,}  loss "
            f"{self._losses / self._count:.6g}"
        )
        self._line(
            f"{place}  gradient {gradient_norm:.2e}  {quantity(rows_per_second)} rows/s{left}"
        )
        self._shown_at, self._losses, self._count = now, 0.0, 0

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if not self.quiet:
            self._write((ERASE if self._live else "") + text + "\n")

    def warn(self, text: str) -> None:
        """Show a warning, even if `quiet`."""
        self._write((ERASE if self._live else "") + f"mpigd: warning: {text}\n")

    def close(self, summary: Mapping[str, Any]) -> None:
        """Show the end of a run: its result, and the parts of its time.

        Parameters
        ----------
        summary : mapping
            Mapping with `objective`, `gradient_norm`, `stop_reason`, `epochs`, `steps`, `reads`,
            `seconds`, `rows_per_second`, `time` (mean seconds per part: load, compute, wait, ...)
            and `ranks` (a list with each rank's seconds per part). Missing values are not shown.
        """
        for line in closing(summary):
            self.note(line)

    def _line(self, text: str) -> None:
        self._write(
            ERASE + text[: max(_width(self._stream) - 1, 20)] if self._live else text + "\n"
        )

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()  # a launcher's pipe shows only what has left this process
        # The reader is gone, or the disk of the log is full: the run is worth more than its
        # progress.
        except (OSError, ValueError):
            self.quiet = True


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


RESULTS: dict[str, Callable[[Any], str]] = {
    "objective": "objective {:.9g}".format,
    "gradient_norm": "gradient {:.2e}".format,
    "epochs": "{:.6g} epochs".format,
    "steps": "{:,} steps".format,
    "reads": "{:.6g} reads".format,
    "seconds": lambda x: f"in {duration(x)}",
    "rows_per_second": lambda x: f"{quantity(x)} rows/s",
    "stop_reason": "stop: {}".format,
}


def closing(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines at the end of a run; see Progress.close."""
    words = [show(summary[name]) for name, show in RESULTS.items() if summary.get(name) is not None]
    return [
        "done: " + "  ".join(words),
        *_proof(summary),
        *_where(summary.get("time", {}), summary.get("ranks", [])),
    ]


def _proof(summary: Mapping[str, Any]) -> list[str]:
    """Say how near the optimum is, or what is known instead."""
    if said := left_to_gain(summary):
        return [f"  {said}" if summary.get("converged") else f"  not converged: {said}"]
    if (lost := summary.get("gradient_error")) is None:
        return []
    norm = summary["gradient_norm"]
    return [
        f"  no finite bound on the distance from the optimum: gradient {norm:.2e}, of that "
        f"rounding at most {lost:.1e}"
    ]


def left_to_gain(summary: Mapping[str, Any]) -> str:
    """Say how far the optimum is, relative to the gain over the null model; "" if not known."""
    left, null, value = summary.get("left"), summary.get("null_objective"), summary.get("objective")
    if left is None or null is None or value is None:
        return ""
    gain = null - value
    if not 0.0 < gain < math.inf:
        return (
            f"at most {left:.1e} above the optimum, nothing was gained over the model without "
            "columns"
        )
    how = "proven: at most" if summary.get("gap") == left else "about"
    return (
        f"{how} {left / gain:.1e} of what there is to gain over the model without columns is left"
    )


def _where(time: Mapping[str, float], ranks: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a line per part of the time, with the ranks that spent least and most, and advice."""
    total, lines = sum(time.values()), list[str]()
    for part, seconds in time.items() if total > 0 else ():
        each = [rank[part] for rank in ranks if part in rank]
        ends = (
            [f"{duration(end)} (rank {each.index(end)})" for end in (min(each), max(each))]
            if len(each) > 1
            else []
        )
        spread = "   from " + " to ".join(ends) if ends else ""
        lines.append(f"  {part:8}{duration(seconds):>10} {seconds / total:6.1%}{spread}")
    return lines + _hint(
        time.get("wait", 0.0) / (total or 1.0), [rank.get("compute", 0.0) for rank in ranks]
    )


def _hint(waiting: float, compute: Sequence[float]) -> list[str]:
    """Return advice if ranks spent much of their time waiting for each other."""
    if len(compute) < 2 or waiting < WAITING:
        return []
    slowest, mean = max(compute), sum(compute) / len(compute)
    if slowest > 1.2 * mean:
        who, times = compute.index(slowest), slowest / mean
        return [
            f"  rank {who} computes {times:.1f} times as long as the mean: mpigd doctor shows "
            "the ranks' cores"
        ]
    return [
        f"  {waiting:.0%} of the time is waiting: steps too small for {len(compute)} ranks, or "
        "cores that others use too"
    ]
