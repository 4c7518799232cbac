"""predict and evaluate on raw tables with rows that do not fit, on the command line.

The advice of messages is followed.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpigd.__main__ import main
from mpigd.config.schema import Config
from mpigd.errors import UsageError
from mpigd.parallel.comm import Comm
from mpigd.scoring.fitted_model import load
from mpigd.scoring.predict import evaluate, predict
from mpigd.scoring.prediction_files import Targets
from mpigd.tables.policies import Policies
from tests.threadcomm import run

TRAIN = "a,city,t\n" + "".join(
    f"{i % 7},{'rome' if i % 3 else 'oslo'},{i % 7 + 2 * (i % 3 > 0)}\n" for i in range(60)
)
NEW = [
    "1,rome,3",
    ",oslo,2",
    "2,kiel,4",
    "x,oslo,1",
    "inf,rome,1",
    "3,rome,5",
    "4,rome",
    "5,oslo,5",
]
WRONG = [2, 3, 4, 6]  # and row 1 has a gap


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text(TRAIN)
    assert (
        main(["import", "train.csv", "-o", "train.h5", "--target", "t", "--missing", "mean"]) == 0
    )
    assert main(["train", "train.h5", "--quiet", "-o", "model.h5"]) == 0
    return "model.h5"


def table(name: str, rows: list[str]) -> str:
    Path(name).write_text("\n".join(["a,city,t", *rows]) + "\n")
    return name


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_bad_rows_are_named_and_the_others_predicted(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source, good = (
        table("new.csv", NEW),
        table("good.csv", [row for i, row in enumerate(NEW) if i not in WRONG]),
    )
    assert main(["predict", model, source, "--csv", "p.csv", "--on-bad-row", "skip"]) == 0
    told = capfd.readouterr().err
    assert "note: 4 rows were left out (--on-bad-row skip)" in told
    places = (
        "row 2: column 'city' is 'kiel'",
        "row 3: column 'a' is 'x'",
        "row 4: column 'a' is inf",
        "row 6 has 2 fields",
    )
    for place in places:
        assert f"note: {source} {place}" in told
    assert "predictions.h5: 4 predictions" in told
    found = rows_of("p.csv")
    assert [int(row["row"]) for row in found] == [0, 1, 5, 7] and {
        row["file"] for row in found
    } == {source}
    assert main(["predict", model, good, "--csv", "good.out.csv"]) == 0
    assert [row["prediction"] for row in found] == [
        row["prediction"] for row in rows_of("good.out.csv")
    ]
    assert "row" not in rows_of("good.out.csv")[0]
    assert main(["evaluate", model, source, "--on-bad-row", "skip"]) == 0
    assert "rows               4" in capfd.readouterr().out


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_advice_is_followed(
    model: str, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    for i in (*WRONG, 1):
        source = table("one.csv", [NEW[0], NEW[i], NEW[-1]])
        policy = ["--missing", "refuse"] if i == 1 else []
        assert main([command, model, source, *policy]) == 65
        message = capfd.readouterr().err
        assert "one.csv row 1" in message
        advised = re.findall(r"--[a-z-]+ [a-z]+", message)
        assert "--on-bad-row skip" in advised
        for option in advised:
            assert main([command, model, source, *policy, *option.split()]) == 0, option
            told = capfd.readouterr().err
            assert ("one.csv row 1" in told) == (option == "--on-bad-row skip")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_leaves_out_the_same_rows(model: str, size: int) -> None:
    source, fitted = table("new.csv", NEW * 5), load(model)
    for command in ("predict", "evaluate"):
        notes: list[str] = []
        policies = Policies(on_bad_row="skip", command=command)

        def each(
            comm: Comm,
            command: str = command,
            notes: list[str] = notes,
            policies: Policies = policies,
        ) -> float:
            if command == "evaluate":
                return float(
                    evaluate(fitted, [source], Config(), comm, policies, notes.append)["rows"]
                )
            targets = Targets("out.h5")
            return float(
                predict(
                    fitted, [source], targets, Config(), comm, note=notes.append, policies=policies
                )
            )

        assert run(size, each) == [20.0] * size
        assert notes[0] == "20 rows were left out (--on-bad-row skip)"
        assert len(notes) == 12  # said once, by one rank
    with h5py.File("out.h5") as file:
        assert file["row"][...].tolist() == [8 * i + j for i in range(5) for j in (0, 1, 5, 7)]
    with pytest.raises(UsageError, match="--unseen zero: for raw tables"):
        run(
            size,
            lambda comm: evaluate(
                fitted, ["train.h5"], Config(), comm, Policies(unseen="zero", command="evaluate")
            ),
        )


def test_only_bad_rows(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = table("bad.csv", [NEW[i] for i in WRONG])
    assert main(["predict", model, source, "--on-bad-row", "skip"]) == 65
    assert "no row can be encoded: 4 rows were left out" in capfd.readouterr().err
    assert not Path("predictions.h5").exists() and not list(Path().glob(".mpigd-*"))


def test_policies_are_for_raw_tables(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    for policy in (["--missing", "zero"], ["--unseen", "zero"], ["--on-bad-row", "skip"]):
        assert main(["predict", model, "train.h5", *policy]) == 2
        assert (
            f"{' '.join(policy)}: for raw tables (CSV, Parquet); train.h5 has been imported"
            in capfd.readouterr().err
        )


def test_the_policy_of_the_import_holds_and_can_be_overridden(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = ["1,rome,1"] * 20 + ["2,oslo,2"] * 20 + ["3,nice,3", "4,bonn,4"]
    table("rare.csv", rows)
    levels = ["--min-count", "5", "--unseen", "other"]
    assert main(["import", "rare.csv", "-o", "rare.h5", "--target", "t", *levels]) == 0
    assert main(["train", "rare.h5", "--quiet", "-o", "rare.model.h5"]) == 0
    new = table("new.csv", ["1,kiel,0", "1,bonn,0", "1,rome,0"])
    predicted = {}
    for policy in ("", "other", "zero"):
        assert (
            main(["predict", "rare.model.h5", new, *(["--unseen", policy] if policy else [])]) == 0
        )
        with h5py.File("predictions.h5") as file:
            predicted[policy] = file["prediction"][...]
    assert predicted[""][0] == predicted[""][1] and np.array_equal(
        predicted[""], predicted["other"]
    )
    assert predicted["zero"][0] != predicted["zero"][1]
    assert main(["predict", "rare.model.h5", new, "--unseen", "error"]) == 65
    assert "new.csv row 0: column 'city' is 'kiel'" in capfd.readouterr().err


def test_ids_go_with_predictions(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("ids.csv").write_text("who,a,t\n" + "".join(f"p{i},{i},{i}\n" for i in range(9)))
    assert main(["import", "ids.csv", "-o", "ids.h5", "--target", "t", "--id", "who"]) == 0
    assert main(["train", "ids.h5", "--quiet", "-o", "ids.model.h5"]) == 0
    Path("new.csv").write_text("a,who\n3,zoë\nx,bad\n5,q\n")
    assert (
        main(["predict", "ids.model.h5", "new.csv", "--csv", "p.csv", "--on-bad-row", "skip"]) == 0
    )
    assert [row["id"] for row in rows_of("p.csv")] == ["zoë", "q"]
    Path("bare.csv").write_text("a\n3\n")
    assert main(["predict", "ids.model.h5", "bare.csv"]) == 0
    assert "note: no column 'who', so there are no ids" in capfd.readouterr().err


def test_a_target_that_a_prediction_does_not_need_may_be_anything(model: str) -> None:
    assert main(["predict", model, table("new.csv", ["1,rome,", "2,oslo,unknown"])]) == 0
