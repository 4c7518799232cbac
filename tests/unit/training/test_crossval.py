"""Cross-validation in one pass.

It is compared with scikit-learn on the same folds, with fits one after another, and over ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge

import mpigd
from mpigd.__main__ import main
from mpigd.config.schema import from_mapping
from mpigd.errors import LaunchError, UsageError
from mpigd.model import cv_objective as folds
from mpigd.model.cv_objective import fold_numbers
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.training import cross_validation
from mpigd.training.callbacks.progress import Progress
from tests.scenarios import fit, shard, write
from tests.threadcomm import run
from tests.truths import Table, generate, objective

PENALTIES = [10.0, 1.0, 0.1, 1e-3]
SMOOTH = ("squared", "logistic", "poisson", "gamma", "huber", "squared_hinge")


def cv(
    table: Table,
    comm: Comm | None = None,
    place: str = "range",
    as_csr: bool = False,
    folds: int = 4,
    **options: Any,
) -> Any:
    comm = comm or SelfComm()
    choose, penalties = options.pop("choose", "best"), options.pop("l2", PENALTIES)
    config, quiet = from_mapping(options), Progress(__import__("io").StringIO(), quiet=True)
    return cross_validation.cross_validate(
        shard(table, comm, place, as_csr), config, penalties, folds, choose, comm, quiet
    )


def scored(loss: str, table: Table, l2: float, k: int, seed: int = 0) -> list[float]:
    """scikit-learn on columns standardised over all rows."""
    X = (table.X - np.average(table.X, 0, table.c)) / np.sqrt(
        np.average((table.X - np.average(table.X, 0, table.c)) ** 2, 0, table.c)
    )
    c, scores = np.ones(len(X)) if table.c is None else table.c, []
    folds = fold_numbers(np.arange(len(X)), len(X), k, seed)
    for q in range(k):
        inside, held = folds != q, folds == q
        W = c[inside].sum()
        model: Any = {
            "squared": lambda W=W: Ridge(alpha=l2 * W, tol=1e-12),
            "logistic": lambda W=W: LogisticRegression(
                C=1 / (l2 * W), solver="newton-cholesky", tol=1e-12
            ),
            "poisson": lambda: PoissonRegressor(alpha=l2, solver="newton-cholesky", tol=1e-12),
        }[loss]()
        model.fit(X[inside], table.y[inside], sample_weight=c[inside])
        y, d = table.y[held], c[held]
        if loss == "squared":
            scores.append(np.sqrt(np.average((model.predict(X[held]) - y) ** 2, weights=d)))
        elif loss == "logistic":
            scores.append(
                np.average(
                    -np.log(model.predict_proba(X[held])[np.arange(len(y)), y.astype(int)]),
                    weights=d,
                )
            )
        else:
            from sklearn.metrics import mean_poisson_deviance

            scores.append(mean_poisson_deviance(y, model.predict(X[held]), sample_weight=d))
    return scores


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson"])
def test_scores_are_those_of_scikit_learn(loss: str, as_csr: bool) -> None:
    table = generate(loss, n=203, weights=True)
    found = cv(table, as_csr=as_csr, loss=loss, tol=1e-10)
    for l2, scores in zip(PENALTIES, found.scores, strict=True):
        np.testing.assert_allclose(scores, scored(loss, table, l2, 4), rtol=1e-4)
    assert found.best == int(np.argmin(found.mean)) and found.one_se <= found.best
    np.testing.assert_allclose(found.error, np.std(found.scores, axis=1, ddof=1) / 2)


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("loss", SMOOTH)
def test_columns_reach_the_optima_of_fits_one_by_one(
    loss: str, precondition: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the model of a fold, fitted with weights of zero for its held-out rows.

    Its columns are standardised in the same way.
    """
    monkeypatch.setattr(cross_validation, "MOST_COLUMNS", 1000 if precondition else 0)
    table = generate(loss, n=160)
    X = (table.X - table.X.mean(0)) / table.X.std(0)
    table = Table(X, table.y)
    found = cv(table, folds=3, loss=loss, tol=1e-9, standardize=False)
    folds = fold_numbers(np.arange(160), 160, 3, 0)
    for l2, scores in zip(PENALTIES, found.scores, strict=True):
        for q in range(3):
            weighted = Table(table.X, table.y, (folds != q).astype(float))
            model = fit(weighted, loss=loss, l2=l2, tol=1e-10, standardize=False)
            held = table.take(folds == q)
            config = model.config.replace(l2=0.0)
            mean = objective(held, config, model.coef, model.intercept)[0]
            np.testing.assert_allclose(
                scores[q],
                cross_validation.SCORES.get(loss, cross_validation.OTHERS)[1](mean),
                rtol=1e-4,
            )


def test_one_weight_for_all_rows_is_what_the_kernels_of_other_runs_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the first cross-validation on a machine would compile the passes again."""
    seen, usual = [], folds.Task
    monkeypatch.setattr(folds, "Task", lambda *given: seen.append(given[3]) or usual(*given))
    cv(generate("logistic", n=80), loss="logistic")
    assert seen and all(c.flags.c_contiguous and c.flags.writeable for c in seen)


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_the_same_bits_on_all_ranks(loss: str) -> None:
    table = generate(loss, n=120, weights=True)
    truth = cv(table, loss=loss, as_csr=True)

    def scores(comm: Comm, place: str, threads: int) -> Any:
        found = cv(table, comm, place, True, loss=loss, threads=threads)
        return found.scores, found.reads, found.model.digest

    for size, place, threads in ((1, "range", 3), (2, "hash", 1), (5, "file", 2)):
        assert all(
            found == (truth.scores, truth.reads, truth.model.digest)
            for found in run(size, scores, place, threads)
        )


@pytest.mark.parametrize(
    "option", [dict(folds=3), dict(l2=[1.0]), dict(choose="one-se"), dict(seed=1), dict(l1=0.1)]
)
def test_ranks_with_other_options_are_refused(option: dict[str, Any]) -> None:
    """Before the folds are made: their number, and a refused option, would part the ranks."""
    table = generate("squared", n=60)

    def body(comm: Comm) -> None:
        with pytest.raises(LaunchError, match="rank 1 was given other options") as caught:
            cv(table, comm, **(option if comm.rank == 1 else {}))
        assert caught.value.agreed

    run(2, body)


def test_the_chosen_model_is_that_of_train() -> None:
    table = generate("logistic", n=150)
    found = cv(table, loss="logistic", choose="one-se")
    assert found.chosen == found.one_se
    assert found.model.digest == fit(table, loss="logistic", l2=PENALTIES[found.one_se]).digest


def test_folds_are_equal_parts_of_a_permutation() -> None:
    folds = fold_numbers(np.arange(103), 103, 5, 1)
    assert set(np.bincount(folds.astype(int))) == {20, 21}
    assert not np.array_equal(folds, np.sort(folds)) and not np.array_equal(
        folds, fold_numbers(np.arange(103), 103, 5, 2)
    )
    np.testing.assert_array_equal(folds[40:], fold_numbers(np.arange(40, 103), 103, 5, 1))


def test_penalties() -> None:
    assert cross_validation.penalties_of("1e-2:1e2:5") == [100.0, 10.0, 1.0, 0.1, 0.01]
    assert cross_validation.penalties_of("0,1,0.5") == [1.0, 0.5, 0.0]
    for text in ("1:2", "0:1:5", "2:1:5", "a", "-1,2", "1:2:1", "inf", "nan"):
        with pytest.raises(UsageError, match="--l2"):
            cross_validation.penalties_of(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(loss="hinge"), "not hinge"), (dict(loss="softmax"), "not softmax"),
        (dict(mode="minibatch"), "--mode full"), (dict(folds=1), "at least 2"),
        (dict(choose="worst"), "best, or one-se"), (dict(checkpoint="c"), "neither"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cv(generate("logistic"), **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write(generate("poisson", n=90), tmp_path)[0], str(tmp_path / "m.h5")
    words = [
        "cv",
        data,
        "--loss",
        "poisson",
        "--folds",
        "3",
        "--l2",
        "1e-3:10:4",
        "--quiet",
        "-o",
        output,
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "deviance" in shown and "<- best" in shown and "chosen: l2" in shown
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert np.shape(found["scores"]) == (4, 3) and found["digest"] == mpigd.load(output).digest
    other = mpigd.cv(data, "1e-3:10:4", folds=3, loss="poisson")
    assert other.scores == found["scores"]


def test_a_model_that_cannot_be_written_is_refused_before_the_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "none" / "model.h5")
    assert main(["cv", "none.h5", "-o", output]) == 2
    assert f"-o {output}: the folder does not exist" in capsys.readouterr().err


def test_the_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cv(generate("squared", n=60))
    monkeypatch.setattr("mpigd.commands.parser.find_spec", lambda name: None)
    assert main(["cv", "none.h5", "--chart", "c.png"]) == 2
    assert "--chart needs matplotlib" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    cross_validation.chart(found, str(tmp_path / "c.png"))
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
