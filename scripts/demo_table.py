"""Puts the demo's results together: a table on the terminal, and as JSON.

    python scripts/demo_table.py FOLDER OUTPUT

FOLDER has info_MODE.json and scores_MODE.json, OUTPUT is demo.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MODES = ("full", "minibatch", "stochastic")
# name, width and format of each column
TRAINED = {"epochs": (8, ".0f"), "seconds": (9, ".2f"), "rows_per_second": (17, ",.0f")}
SCORED = {"log_loss": (10, ".4f"), "auc": (8, ".4f")}


def row(folder: Path, mode: str) -> dict[str, Any]:
    info = json.loads((folder / f"info_{mode}.json").read_text())
    scores = json.loads((folder / f"scores_{mode}.json").read_text())
    return {
        "mode": mode,
        **{name: info[name] for name in TRAINED},
        **{name: scores[name] for name in SCORED},
    }


def table(rows: list[dict[str, Any]]) -> str:
    columns = TRAINED | SCORED
    lines = [
        f"{'mode':12}"
        + "".join(f"{name.replace('_', ' '):>{width}}" for name, (width, _) in columns.items())
    ]
    for values in rows:
        cells = (format(values[name], f"{width}{form}") for name, (width, form) in columns.items())
        lines.append(f"{values['mode']:12}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    rows = [row(Path(sys.argv[1]), mode) for mode in MODES]
    Path(sys.argv[2]).write_text(json.dumps(rows, indent=1) + "\n")
    print(
        "\nMore than 15 minutes late? Learned from months 1 to 10; "
        "log loss and AUC of months 11 and 12.\n"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
