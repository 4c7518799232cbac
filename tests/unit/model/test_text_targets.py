"""Text targets: the losses that fit them, class names in messages, and weights of any class."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mpigd
from mpigd.__main__ import main
from mpigd.config.schema import Config
from mpigd.errors import DataError, UsageError
from mpigd.model.losses import LOSSES
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.scoring.predict import evaluate
from tests.scenarios import fit
from tests.threadcomm import run

REGRESSIONS = [name for name, loss in LOSSES.items() if not loss.classifies]
TWO_CLASS = [name for name, loss in LOSSES.items() if loss.classifies and loss.kind != "multiclass"]
ODD = ("Smith, John", "a=b", ' "quoted"', "two\nlines", "Ünïcode", "-", "0", "x y")


def imported(folder: Path, words: Sequence[str], n: int = 240, name: str = "data") -> str:
    """An imported data set whose target is one of the words, which two columns tell well."""
    rng = np.random.default_rng(1)
    given = np.arange(n) % len(words)
    with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["x", "z", "label"])
        for code in given:
            noise = rng.standard_normal(2)
            lines.writerow(
                [repr(float(code + noise[0])), repr(float(code * code + noise[1])), words[code]]
            )
    path = str(folder / f"{name}.h5")
    mpigd.import_data(folder / f"{name}.csv", path, target="label", dtype="float64")
    return path


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("loss", REGRESSIONS)
def test_regression_losses_are_refused(loss: str, size: int, tmp_path: Path) -> None:
    two, three = (
        imported(tmp_path, ("no", "yes")),
        imported(tmp_path, ("a", "b", "c"), name="three"),
    )

    def attempt(comm: Comm, path: str) -> str:
        with pytest.raises(DataError) as caught:
            fit([path], comm, loss=loss)
        assert caught.value.agreed
        return str(caught.value)

    (message,) = set(run(size, attempt, two))
    assert message == (
        f"{two}: the target 'label' is text, with 2 classes (no, yes): "
        f"the {loss} loss would take their positions in the "
        "alphabet for numbers: use --loss logistic or softmax"
    )
    (message,) = set(run(size, attempt, three))
    assert message.endswith(
        "3 classes (a, b, c): the " + f"{loss} loss would take their positions in the "
        "alphabet for numbers: use --loss softmax"
    )


def test_refused_before_rows_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = imported(tmp_path, ("no", "yes"))
    with h5py.File(path, "r+") as file:
        file["X"][5, 0] = np.nan  # which reading the rows would find
    with pytest.raises(DataError, match="is text, with 2 classes"):
        mpigd.train(path, loss="poisson")
    with pytest.raises(DataError, match="is text, with 2 classes"):
        mpigd.cv(path, loss="squared")
    for words in (
        ["plan", path],
        ["train", path, "--dry-run"],
        ["train", path, "--dry-run", "--loss", "huber"],
    ):
        assert main(words) == 65
        assert "is text, with 2 classes" in capsys.readouterr().err


def test_the_losses_that_are_named_do_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The advice, followed word for word."""
    for name, words in (("two", ("no", "yes")), ("three", ("a", "b", "c"))):
        path = imported(tmp_path, words, name=name)
        assert main(["train", path, "-o", str(tmp_path / "m.h5"), "--loss", "huber"]) == 65
        losses = capsys.readouterr().err.strip().partition("use --loss ")[2].split(" or ")
        assert losses
        for loss in losses:
            assert (
                main(["train", path, "-o", str(tmp_path / "m.h5"), "--loss", loss, "--l2", "1e-4"])
                == 0
            )
            assert mpigd.load(tmp_path / "m.h5").labels() == list(words)
        capsys.readouterr()


@pytest.mark.parametrize("loss", TWO_CLASS)
def test_three_classes_are_for_softmax(loss: str, tmp_path: Path) -> None:
    path = imported(tmp_path, ("high", "low", "mid, or so"))
    with pytest.raises(DataError) as caught:
        mpigd.train(path, loss=loss)
    assert str(caught.value) == (
        f"{path}: the {loss} loss needs exactly two different values in the target, found 3: "
        "'high', 'low', 'mid, or so': "
        "--loss softmax takes more than two classes"
    )
    assert mpigd.train(path, loss="softmax", l2=1e-3).labels() == ["high", "low", "mid, or so"]


def test_numbers_with_more_than_two_values() -> None:
    y = np.arange(30.0) % 3
    with pytest.raises(
        DataError,
        match=(
            "found 3: 0, 1, 2: --loss softmax takes more than two classes, --loss squared numbers"
        ),
    ):
        mpigd.train((np.random.default_rng(0).standard_normal((30, 2)), y), loss="logistic")


def test_messages_name_classes(tmp_path: Path) -> None:
    """A data set of the same classes, of which the model has seen two."""
    path = imported(tmp_path, ("a", "b", "c"))
    with h5py.File(path) as file, h5py.File(tmp_path / "two.h5", "w") as some:
        keep = file["y"][...] > 0
        some["X"], some["y"], some["encoding"] = (
            file["X"][...][keep],
            file["y"][...][keep],
            file["encoding"][...],
        )
    model = mpigd.train(tmp_path / "two.h5", loss="logistic", l2=1e-3)
    assert model.labels() == ["b", "c"]
    with pytest.raises(
        DataError, match=r"data\.h5 row 0: label 'a' is none of the model's classes \(b, c\)"
    ):
        evaluate(model, [path], Config(), SelfComm())
    with h5py.File(path, "r+") as file:
        file["y"][7] = 3
    with pytest.raises(
        DataError, match="the target is 3 in some row, but there are 3 class names, for 0 to 2"
    ):
        mpigd.train(path, loss="softmax")


def test_each_data_set_numbers_its_own_names(tmp_path: Path) -> None:
    """Scores use the names of classes, not the positions in each data set.

    A file without the first class that is imported on its own counts its classes from 0; by
    position, scores would be silently wrong.
    """
    model = mpigd.train(imported(tmp_path, ("a", "b", "c")), loss="softmax", l2=1e-3)
    other = imported(tmp_path, ("b", "d", "c"), name="other")
    words = r"other\.h5 row 1: label 'd' is none of the model's classes \(a, b, c\)"
    with pytest.raises(DataError, match=words):
        evaluate(model, [other], Config(), SelfComm())
    with pytest.raises(DataError, match=words):
        mpigd.train(tmp_path / "data.h5", loss="softmax", validation=(other,))
    fewer = imported(tmp_path, ("b", "c"), name="fewer")
    own = evaluate(model, [fewer], Config(), SelfComm())
    assert [record["support"] for record in own["classes"]] == [0, 120, 120]
    model.save(str(tmp_path / "model.h5"))
    for like in (tmp_path / "model.h5", tmp_path / "data.h5"):
        mpigd.import_data(tmp_path / "fewer.csv", fewer, like=str(like))
        assert repr(evaluate(model, [fewer], Config(), SelfComm())) == repr(own)
    numbers = mpigd.train(([[0.0], [1.0], [2.0]] * 9, [0, 1, 2] * 9), loss="softmax", l2=1e-3)
    with pytest.raises(DataError, match=r"fewer\.h5: .*but the model was trained on numbers"):
        evaluate(
            Model(np.zeros((3, 2)), numbers.intercept, numbers.classes, numbers.config),
            [fewer],
            Config(),
            SelfComm(),
        )


def test_class_weights_of_odd_names(tmp_path: Path) -> None:
    """Class weights of every name equal row weights made by hand, to the bit.

    The names are given in Python, on the command line and in TOML.
    """
    path = imported(tmp_path, ODD, n=400)
    with h5py.File(path) as file:
        X, y = file["X"][...], file["y"][...]
    names = sorted(ODD)
    for place, name in enumerate(names):
        by_hand = mpigd.train((X, y, np.where(y == place, 2.5, 1.0)), loss="softmax", l2=1e-2)
        model = mpigd.train(path, loss="softmax", l2=1e-2, class_weight={name: 2.5})
        assert model.labels() == names
        assert model.digest == by_hand.digest, name
        written = model.config.class_weight
        assert written is not None
        out = str(tmp_path / "m.h5")
        assert (
            main(
                [
                    "train",
                    path,
                    "-o",
                    out,
                    "--loss",
                    "softmax",
                    "--l2",
                    "1e-2",
                    f"--class-weight={written}",
                ]
            )
            == 0
        )
        assert mpigd.load(out).digest == by_hand.digest, name


def test_class_weights_may_be_repeated(tmp_path: Path) -> None:
    path, out = imported(tmp_path, ("a, b", "c")), str(tmp_path / "m.h5")
    both = mpigd.train(path, loss="logistic", l2=1e-2, class_weight={"a, b": 2.5, "c": 0.5})
    words = [
        "train",
        path,
        "-o",
        out,
        "--loss",
        "logistic",
        "--l2",
        "1e-2",
        "--class-weight",
        '"a, b"=2.5',
    ]
    assert main([*words, "--class-weight", "c=0.5"]) == 0
    assert mpigd.load(out).digest == both.digest
    config = tmp_path / "run.toml"
    config.write_text(
        'loss = "logistic"\nl2 = 1e-2\n[class_weight]\n"a, b" = 2.5\nc = 0.5\n', encoding="utf-8"
    )
    assert main(["train", path, "-o", out, "--config", str(config)]) == 0
    assert mpigd.load(out).digest == both.digest


def test_old_spellings_of_class_weights(tmp_path: Path) -> None:
    """Equals signs, blanks around, and quotation marks that belong to the name."""
    path = imported(tmp_path, ('"q"', "a=b", "c d"))
    one = mpigd.train(path, loss="softmax", l2=1e-2, class_weight='"q"=2, a=b=3 ,c d=0.5')
    other = mpigd.train(
        path, loss="softmax", l2=1e-2, class_weight={'"q"': 2, "a=b": 3, "c d": 0.5}
    )
    assert one.digest == other.digest
    numbers = (np.arange(40.0).reshape(20, 2) % 7, np.arange(20) % 2 + 0.5)
    ways = [
        mpigd.train(numbers, loss="logistic", l2=1.0, class_weight=text)
        for text in ("0.5=2", "5e-1=2", {0.5: 2}, {np.float64(0.5): 2})
    ]
    assert len({model.digest for model in ways}) == 1


@pytest.mark.parametrize("wrong", ["Smith", "smith, john", "a = b", "two lines"])
def test_a_class_that_is_not_there(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The nearest one is named, and how to write it: that is taken."""
    path, out = imported(tmp_path, ODD), str(tmp_path / "m.h5")
    words = ["train", path, "-o", out, "--loss", "softmax", "--l2", "1e-2"]
    assert main([*words, "--class-weight", f"{wrong}=3"]) == 2 if "," not in wrong else True
    with pytest.raises(UsageError, match=r"no class .*did you mean") as caught:
        mpigd.train(path, loss="softmax", class_weight={wrong: 3})
    assert f"{wrong!r}" in str(caught.value)
    capsys.readouterr()
    assert main([*words, *shlex.split(str(caught.value).partition("Write ")[2])]) == 0


def test_class_weights_that_are_refused(tmp_path: Path) -> None:
    path = imported(tmp_path, ("no", "yes"))
    options: dict[str, Any] = dict(loss="logistic")
    with pytest.raises(UsageError, match="no class 'maybe'; the classes are no, yes"):
        mpigd.train(path, class_weight="maybe=1", **options)
    with pytest.raises(UsageError, match="class 'no' is given twice"):
        mpigd.train(path, class_weight="no=1,no=2", **options)
    for loss in REGRESSIONS:  # by the options alone: there is no such file
        with pytest.raises(
            UsageError, match="--class-weight goes with losses that have classes: logistic, softmax"
        ):
            mpigd.train(tmp_path / "none.h5", loss=loss, class_weight="balanced")
