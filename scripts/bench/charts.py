"""Pictures of a run: the roofline, bars of the same measured rows, and every target at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt

from scripts.bench.harness import Row

OURS, PEER, MISSED, LINE = "#1b6ca8", "#9aa5b1", "#c0392b", "#444444"


def plotted(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Measured rows whose plot data hold all the keys."""
    return [
        row
        for row in rows
        if all(key in row.plot for key in keys) and not isinstance(row.value, str)
    ]


def roofline(axes: Any, rows: Sequence[Row]) -> bool:
    """Plot GFLOP/s over flops per byte of X read.

    Memory bandwidth limits the points under the slope, and the multipliers limit those under the
    flat part.
    """
    reads, products, points = (
        plotted(rows, "read"),
        plotted(rows, "flops"),
        plotted(rows, "speed", "intensity"),
    )
    if not reads or not points:
        return False
    top = max(row.plot["flops"] for row in products) if products else float("inf")
    grid = [2.0 ** (e / 4) for e in range(-8, 25)]
    for row in reads:
        style = "-" if row.plot["ranks"] > 1 else ":"
        label = f"read-only sum, {row.plot['ranks']} rank(s): {row.plot['read']:.0f} GB/s"
        axes.plot(
            grid, [min(x * row.plot["read"], top) for x in grid], style, color=LINE, label=label
        )
    for row in points:
        mark, color = ("s", PEER) if row.plot.get("peer") else ("o", OURS)
        x, y = row.plot["intensity"], row.plot["intensity"] * row.plot["speed"]
        axes.plot([x], [y], mark, color=color)
        side = {"xytext": (-6, -3), "ha": "right"} if row.plot.get("peer") else {"xytext": (6, -3)}
        axes.annotate(row.plot["label"], (x, y), textcoords="offset points", fontsize=7, **side)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="flops per byte of X",
        ylabel="GFLOP/s, two ranks",
        title="Roofline",
    )
    axes.legend(fontsize=8)
    return True


def bars(
    axes: Any,
    names: Sequence[str],
    values: Sequence[float],
    colors: Sequence[str],
    title: str,
    start: float = 0.0,
) -> bool:
    """Horizontal bars from `start` to the values, the first on top; False if there are none."""
    if not names:
        return False
    axes.barh(range(len(names)), [value - start for value in values], left=start, color=colors)
    axes.set(title=title)
    axes.margins(y=0.02)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    return True


def kernels(axes: Any, rows: Sequence[Row]) -> bool:
    found = plotted(rows, "gradient")
    for place, row in enumerate(found):
        goal = float(row.target.split()[1])
        axes.plot([goal, goal], [place - 0.45, place + 0.45], color=LINE)
    values = [float(row.value) for row in found]
    labels = [row.plot["label"] for row in found]
    return bars(
        axes,
        labels,
        values,
        [OURS] * len(found),
        "Loss and gradient: fraction of a bare read (line: target)",
    )


def steps(axes: Any, rows: Sequence[Row]) -> bool:
    found = plotted(rows, "steps")
    colors = [OURS if row.plot["label"] == "ours" else PEER for row in found]
    axes.set_xscale("log")
    return bars(
        axes,
        [row.plot["label"] for row in found],
        [row.plot["steps"] for row in found],
        colors,
        "Steps per second",
    )


def peers(axes: Any, rows: Sequence[Row]) -> bool:
    found = plotted(rows, "peer_speed")
    colors = [OURS if row.plot["label"] == "ours" else PEER for row in found]
    values = [row.plot["peer_speed"] for row in found]
    return bars(
        axes,
        [row.plot["label"] for row in found],
        values,
        colors,
        "Logistic gradient, d = 128, float32: GB/s of X",
    )


def reached(row: Row) -> float:
    """Return the ratio of a row to its target: 1 is just met, 2 twice as good."""
    bound, value = float(row.target.split()[1]), max(float(row.value), 1e-6)
    return value / bound if row.target.startswith(">=") else bound / value


def targets(axes: Any, rows: Sequence[Row]) -> bool:
    found = [
        row
        for row in rows
        if row.target and not isinstance(row.value, str) and float(row.target.split()[1]) > 0
    ]
    axes.set_xscale("log")
    axes.axvline(1.0, color=LINE)
    axes.figure.set_size_inches(11, 1.5 + 0.22 * len(found))
    values = [min(max(reached(row), 0.01), 100.0) for row in found]
    colors = [OURS if row.met else MISSED for row in found]
    return bars(
        axes,
        [row.name for row in found],
        values,
        colors,
        "Measured over target (right of the line: met)",
        1.0,
    )


PICTURES: dict[str, Callable[[Any, Sequence[Row]], bool]] = {
    "roofline": roofline, "kernels": kernels, "steps": steps, "peers": peers, "targets": targets,
}  # fmt: skip


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write a PNG for each picture that these rows have the data for."""
    made = []
    for name, picture in PICTURES.items():
        figure, axes = plt.subplots(figsize=(8, 5))
        path = folder / f"{name}.png"
        if picture(axes, rows):
            figure.tight_layout()
            figure.savefig(path, dpi=120)
            made.append(path)
        else:
            path.unlink(missing_ok=True)  # of an earlier run
        plt.close(figure)
    return made
