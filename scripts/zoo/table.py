"""Tables of the zoo: counts by loss and penalty, reads against the best named optimiser, offenders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.zoo import fitting

Row = dict[str, Any]
MARKS = ("<!-- table: scripts/zoo/run.py --markdown -->\n", "<!-- end of table -->\n")
HEAD = (
    "loss", "l2", "fits", *fitting.STATUSES,
    "reads / best, median", "95 %", "within the bar", "judged", "seconds, median", "95 %",
)  # fmt: skip


def line(row: Row) -> str:
    """One row for people."""
    def number(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    reads = f"reads {number('reads', '.4g')} (best {number('best_reads', '.4g')} {row.get('best') or ''})"
    text = row.get("error") or "; ".join(row.get("said", []))
    where = f"{row['package']}/{row['item']} {row['target']} {row['loss']} {row['l2']:g}"
    why = row.get("cause") or row["status"]
    size = f"{row['rows']}x{row['features']}" if "rows" in row else ""
    return (
        f"{row['status']:8}{where:55} {size:10} excess {number('excess', '.2e')}  {reads}  "
        f"{number('seconds', '.2f')} s  [{why}; {row.get('stop_reason')}] {text[:160]}"
    )


def _figures(rows: Sequence[Row]) -> list[str]:
    counts = Counter(row["status"] for row in rows)
    judged = [row for row in rows if row.get("within") is not None]
    ratios = [row["reads"] / row["best_reads"] for row in judged]
    seconds = [row["seconds"] for row in rows if "seconds" in row]

    def share(values: Sequence[float], percent: float) -> str:
        return f"{np.percentile(values, percent):.2f}" if values else "-"

    return [
        str(len(rows)), *(str(counts[status]) for status in fitting.STATUSES),
        share(ratios, 50), share(ratios, 95), str(sum(row["within"] for row in judged)),
        str(len(judged)), share(seconds, 50), share(seconds, 95),
    ]  # fmt: skip


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """The table: a line for each loss and penalty, and for all fits."""
    keys = sorted({(row["loss"], row["l2"]) for row in rows if row["loss"] != "import"})
    body = [
        [loss, f"{l2:g}", *_figures([row for row in rows if (row["loss"], row["l2"]) == (loss, l2)])]
        for loss, l2 in keys
    ]
    fitted = [row for row in rows if row["loss"] != "import"]
    return [list(HEAD), *body, ["all", "", *_figures(fitted)]]


def text(rows: Sequence[Row]) -> str:
    """The table and the offenders, for a terminal."""
    found = lines(rows)
    widths = [max(len(line[at]) for line in found) for at in range(len(HEAD))]
    shown = ["  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)) for line in found]
    fitted = [row for row in rows if row["loss"] != "import"]
    bad = [row for row in fitted if row["status"] not in ("right", "said", "refused")]
    slow = [row for row in fitted if row.get("within") is False and row not in bad]
    refused = Counter(row["error"][:70] for row in rows if row["loss"] == "import")
    parts = ["\n".join(shown)]
    if bad:
        by_cause = sorted(bad, key=lambda row: (row.get("cause", ""), -row.get("excess", 0.0)))
        parts.append("Wrong, silent or hanging:\n" + "\n".join(map(line, by_cause)))
    if slow:
        by_ratio = sorted(slow, key=lambda row: -row["reads"] / row["best_reads"])
        parts.append("Right or said, but above the bar of reads:\n" + "\n".join(map(line, by_ratio)))
    if refused:
        parts.append(f"{sum(refused.values())} targets could not be imported")
        parts.append("\n".join(f"{count:5} {why}" for why, count in refused.most_common(8)))
    return "\n\n".join(parts)


def markdown(rows: Sequence[Row]) -> str:
    found = lines(rows)
    sets = len({(row["package"], row["item"]) for row in rows})
    head = "| " + " | ".join(found[0]) + " |\n" + "|---" * 2 + "|---:" * (len(HEAD) - 2) + "|\n"
    body = "".join("| " + " | ".join(line) + " |\n" for line in found[1:])
    imports = sum(row["loss"] == "import" for row in rows)
    return f"{len(rows) - imports:,} fits on {sets:,} data sets ({imports} targets not imported).\n\n{head}{body}"


def update(page: Path, rows: Sequence[Row]) -> None:
    """Replace what is between the marks of the page."""
    before, found, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not found or not end:
        raise SystemExit(f"{page}: has no marks for the table")
    page.write_text(before + MARKS[0] + "\n" + markdown(rows) + "\n" + MARKS[1] + after, encoding="utf-8")
