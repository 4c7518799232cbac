"""Tables of the zoo: counts by loss and penalty, reads against the best optimiser, offenders."""

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

    best = f"{number('best_reads', '.4g')} {row.get('best') or ''}"
    reads = f"reads {number('reads', '.4g')} (best {best})"
    text = row.get("error") or "; ".join(row.get("said", []))
    where = f"{row['package']}/{row['item']} {row['target']} {row['loss']} {row['l2']:g}"
    why = row.get("cause") or row["status"]
    size = f"{row['rows']}x{row['features']}" if "rows" in row else ""
    if row.get("near"):
        why += f"; {row['near']} nearly aliased, without them {number('excess_aliased', '.1e')}"
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
    fitted = [row for row in rows if row["loss"] != "import"]
    body = []
    for loss, l2 in keys:
        own = [row for row in fitted if (row["loss"], row["l2"]) == (loss, l2)]
        body.append([loss, f"{l2:g}", *_figures(own)])
    return [list(HEAD), *body, ["all", "", *_figures(fitted)]]


def text(rows: Sequence[Row]) -> str:
    """The table and the offenders by cause, for a terminal."""
    found = lines(rows)
    widths = [max(len(line[at]) for line in found) for at in range(len(HEAD))]
    shown = ["  ".join(map(str.rjust, words, widths)) for words in found]
    fitted = [row for row in rows if row["loss"] != "import"]
    parts = ["\n".join(shown)]
    for title, group in sorted(_offenders(fitted).items()):
        parts.append(f"{title}: {len(group)}\n" + "\n".join(map(line, group)))
    refused = Counter(row["error"][:70] for row in rows if row["loss"] == "import")
    if refused:
        parts.append(f"{sum(refused.values())} targets could not be imported")
        parts.append("\n".join(f"{count:5} {why}" for why, count in refused.most_common(12)))
    return "\n\n".join(parts)


def _offenders(fitted: Sequence[Row]) -> dict[str, list[Row]]:
    """Fits that are not right, by status and cause; and those above the bar of reads."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(fitted, key=lambda row: -row.get("excess", 0.0)):
        if row["status"] != "right":
            title = f"{row['status']}: {row.get('cause') or row['status']}"
            groups.setdefault(title, []).append(row)
    slow = [row for row in fitted if row.get("within") is False]
    if slow:
        slow.sort(key=lambda row: -row["reads"] / row["best_reads"])
        groups["~ above the bar of reads"] = slow
    return groups


def markdown(rows: Sequence[Row]) -> str:
    found = lines(rows)
    sets = len({(row["package"], row["item"]) for row in rows})
    head = "| " + " | ".join(found[0]) + " |\n" + "|---" * 2 + "|---:" * (len(HEAD) - 2) + "|\n"
    body = "".join("| " + " | ".join(line) + " |\n" for line in found[1:])
    imports = sum(row["loss"] == "import" for row in rows)
    caption = f"{len(rows) - imports:,} fits on {sets:,} data sets ({imports} targets not imported)."
    return f"{caption}\n\n{head}{body}"


def update(page: Path, rows: Sequence[Row]) -> None:
    """Replace what is between the marks of the page."""
    before, found, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not found or not end:
        raise SystemExit(f"{page}: has no marks for the table")
    table = f"{MARKS[0]}\n{markdown(rows)}\n{MARKS[1]}"
    page.write_text(before + table + after, encoding="utf-8")
