"""train, evaluate, predict and info as people type them, on one, two and three ranks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics

import mpigd
from mpigd.config.schema import FIELDS
from mpigd.scoring.fitted_model import load
from tests.cli.driver import Done, run_commands
from tests.launch import mpiexec, python
from tests.scenarios import write
from tests.truths import Table, generate

RANKS = [1, 2, 3]
KINDS = {
    "full": "--loss logistic --l2 1e-3 --epochs 30 --partition range",
    "mini": "--loss softmax --mode minibatch --batch-size 32 --epochs 3 --partition hash",
    "stochastic": "--loss poisson --mode stochastic --batch-size 4 --partition file",
    "hinge": "--loss hinge --mode minibatch --batch-size 32 --threads 2",
}
LOSS = {"full": "logistic", "mini": "softmax", "stochastic": "poisson", "hinge": "hinge"}
LABELS = {"full": np.array([2.0, 5.0])}  # of class 0 and 1


def rows(kind: str, n: int) -> Table:
    """With weights; the logistic labels are no codes, the counts have an exposure."""
    table = generate(LOSS[kind], n=n, weights=True)
    y = LABELS["full"][table.y.astype(int)] if kind == "full" else table.y
    return Table(table.X, y, table.c, np.linspace(-1, 1, n) if kind == "stochastic" else None)


TRAIN, TEST = ({kind: rows(kind, n) for kind in LOSS} for n in (300, 170))
SUMMARY = [
    "digest",
    "state_digest",
    "objective",
    "gradient_norm",
    "gap",
    "reads",
    "steps",
    "epochs",
    "stop_reason",
    "config",
]
Records = Callable[[int], list[dict[str, Done]]]


def margins(model: Any, table: Table) -> Any:
    z = table.X @ model.coef.T + model.intercept
    return z if table.offset is None else z + table.offset[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("commands")
    for kind in LOSS:
        for name, table, files in (("train", TRAIN[kind], 3), ("test", TEST[kind], 2)):
            (where / kind / name).mkdir(parents=True)
            write(table, where / kind / name, files, as_csr=kind == "hinge")
    return where


@pytest.fixture(scope="module")
def records(folder: Path) -> Records:
    """All commands on so many ranks, once."""
    known: dict[int, list[dict[str, Done]]] = {}

    def of(ranks: int) -> list[dict[str, Done]]:
        if ranks not in known:
            commands = {}
            for kind, options in KINDS.items():
                model, test = f"{kind}/model{ranks}.h5", f"{kind}/test/*.h5"
                commands[f"train {kind}"] = (
                    f"train {kind}/train/*.h5 -o {model} {options} --log {kind}/log{ranks}.jsonl"
                )
                commands[f"evaluate {kind}"] = f"evaluate {model} {test} --json"
                commands[f"predict {kind}"] = (
                    f"predict {model} {test} -o {kind}/pred{ranks}.h5 --csv"
                )
            commands["backwards"] = (
                f"predict full/model{ranks}.h5 full/test/part1.h5 full/test/part0.h5 "
                f"-o back{ranks}.h5"
            )
            commands["shown"] = f"evaluate mini/model{ranks}.h5 mini/test/*.h5 --partition hash"
            known[ranks] = run_commands(ranks, commands, folder)
        return known[ranks]

    return of


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", KINDS)
def test_train(kind: str, ranks: int, records: Records, folder: Path) -> None:
    for rank, record in enumerate(records(ranks)):
        done = record[f"train {kind}"]
        assert (done.code, done.out) == (0, ""), done.err
        assert bool(done.err) == (rank == 0), "rank 0 alone reports"
    records(1)
    model, alone = load(f"{folder}/{kind}/model{ranks}.h5"), load(f"{folder}/{kind}/model1.h5")
    assert model.digest == alone.digest
    assert model.summary["state_digest"] == alone.summary["state_digest"]
    assert model.history == alone.history
    assert f"digest {model.digest[:16]}" in records(ranks)[0][f"train {kind}"].err


@pytest.mark.parametrize("kind", KINDS)
def test_python_trains_the_same_model(kind: str, records: Records, folder: Path) -> None:
    records(1)
    model, table = load(f"{folder}/{kind}/model1.h5"), TRAIN[kind]
    options = dict(model.config.items()) | dict(log=None, threads=1)
    for data in (f"{folder}/{kind}/train/*.h5", (table.X, table.y, table.c, table.offset)):
        if kind == "hinge" and isinstance(data, tuple):
            continue  # stored sparse: the same rows in a dense array differ in the last bits
        assert mpigd.train(data, **options).digest == model.digest


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate(kind: str, ranks: int, records: Records, folder: Path) -> None:
    done = records(ranks)[0][f"evaluate {kind}"]
    assert (done.code, done.err) == (0, "")
    assert all(record[f"evaluate {kind}"].out == "" for record in records(ranks)[1:])
    scores = json.loads(done.out)
    assert done.out == records(1)[0][f"evaluate {kind}"].out, "to the last digit"
    model, table = load(f"{folder}/{kind}/model{ranks}.h5"), TEST[kind]
    truth = expected_scores(kind, table, margins(model, table))
    assert set(truth) | {"objective", "rows"} == set(scores) - {"classes"}
    for name, value in truth.items():
        assert scores[name] == pytest.approx(value, rel=1e-9), name
    assert scores["rows"] == 170


def expected_scores(kind: str, table: Table, z: Any) -> dict[str, float]:
    y, c = np.searchsorted(LABELS["full"], table.y) if kind == "full" else table.y, table.c
    if kind in ("full", "hinge"):
        scores = {
            "accuracy": metrics.accuracy_score(y, z[:, 0] > 0, sample_weight=c),
            "auc": metrics.roc_auc_score(y, z[:, 0], sample_weight=c),
            "average_precision": metrics.average_precision_score(y, z[:, 0], sample_weight=c),
        }
        if kind == "full":
            loss = metrics.log_loss(y, expit(z[:, 0]), sample_weight=c)
            scores |= {"log_loss": loss, "deviance": 2 * loss}
        return scores
    if kind == "mini":
        p = softmax(z, axis=1)
        loss = metrics.log_loss(y, p, sample_weight=c)
        each = [metrics.roc_auc_score(y == q, p[:, q], sample_weight=c) for q in range(3)]
        precision = [
            metrics.average_precision_score(y == q, p[:, q], sample_weight=c) for q in range(3)
        ]
        accuracy = metrics.accuracy_score(y, p.argmax(axis=1), sample_weight=c)
        means = {"auc": float(np.mean(each)), "average_precision": float(np.mean(precision))}
        return {"log_loss": loss, "accuracy": accuracy, "deviance": 2 * loss, **means}
    mean = np.exp(z[:, 0])
    return {
        "rmse": metrics.root_mean_squared_error(y, mean, sample_weight=c),
        "mae": metrics.mean_absolute_error(y, mean, sample_weight=c),
        "r2": metrics.r2_score(y, mean, sample_weight=c),
        "deviance": metrics.mean_poisson_deviance(y, mean, sample_weight=c),
    }


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", KINDS)
def test_predict_in_row_order(kind: str, ranks: int, records: Records, folder: Path) -> None:
    done = records(ranks)[0][f"predict {kind}"]
    assert (done.code, done.out) == (0, ""), done.err
    model = load(f"{folder}/{kind}/model{ranks}.h5")
    z = margins(model, TEST[kind])
    with h5py.File(folder / kind / f"pred{ranks}.h5") as file:
        found = {name: file[name][...] for name in file}
    if kind == "stochastic":
        assert set(found) == {"prediction"}
        np.testing.assert_allclose(found["prediction"], np.exp(z[:, 0]), rtol=1e-12)
    elif kind == "mini":
        np.testing.assert_allclose(found["probability"], softmax(z, axis=1), rtol=1e-11)
        np.testing.assert_array_equal(found["prediction"], z.argmax(axis=1))
    else:
        second, truth = ("margin", z[:, 0]) if kind == "hinge" else ("probability", expit(z[:, 0]))
        assert set(found) == {"prediction", second}
        np.testing.assert_allclose(found[second], truth, rtol=1e-11, atol=1e-14)
        np.testing.assert_array_equal(
            found["prediction"], LABELS.get(kind, np.arange(2))[(z[:, 0] > 0).astype(int)]
        )
    with open(folder / kind / f"pred{ranks}.csv", encoding="utf-8") as table:
        lines = list(csv.DictReader(table))
    assert [float(line["prediction"]) for line in lines] == found["prediction"].tolist()


@pytest.mark.parametrize("ranks", RANKS)
def test_predictions_follow_the_order_of_the_files(
    ranks: int, records: Records, folder: Path
) -> None:
    records(ranks)
    with h5py.File(folder / "full/test/part0.h5") as first:
        length = first["y"].shape[0]
    with (
        h5py.File(folder / f"full/pred{ranks}.h5") as file,
        h5py.File(folder / f"back{ranks}.h5") as back,
    ):
        forth = file["probability"][...]
        np.testing.assert_array_equal(back["probability"], np.r_[forth[length:], forth[:length]])


def test_a_table_for_people(records: Records) -> None:
    out = records(2)[0]["shown"].out
    assert out == records(1)[0]["shown"].out
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["log_loss", "accuracy"]
    assert out.count("support") == 3


def test_the_log_has_every_number(records: Records, folder: Path) -> None:
    for ranks in RANKS:
        records(ranks)
        lines = [
            json.loads(line)
            for line in (folder / f"mini/log{ranks}.jsonl").read_text().splitlines()
        ]
        assert [line["event"] for line in lines] == ["start", "epoch", "epoch", "epoch", "end"]
        assert lines[0]["config"]["batch_size"] == 32
        assert lines[-1]["digest"] == load(f"{folder}/mini/model{ranks}.h5").digest
        assert [line["step"] for line in lines[1:4]] == [10, 20, 30]


# info, and one process.


def info(path: Path, *words: str) -> Any:
    done = python("-m", "mpigd", "info", "--json", path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_info(records: Records, folder: Path) -> None:
    records(1)
    about = info(folder / "full/model1.h5")
    assert set(SUMMARY) <= set(about)
    assert about["digest"] == load(f"{folder}/full/model1.h5").digest
    assert set(about["config"]) == set(FIELDS)
    data = info(folder / "hinge/train/part0.h5")
    with h5py.File(folder / "hinge/train/part0.h5") as file:
        size = file["X/data"].shape[0]
    assert (data["kind"], data["layout"], data["nonzeros"], data["columns"]) == (
        "data",
        "csr",
        size,
        4,
    )
    assert data["extras"] == ["sample_weight"]
    shown = python("-m", "mpigd", "info", folder / "full/model1.h5").stdout
    assert f"{about['objective']:.8g}" in shown
    assert len(shown.splitlines()) < 45, "a screen"


def test_checkpoints_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    full = [*KINDS["full"].split(), "--optimizer", "nesterov"]
    words = [
        "-m",
        "mpigd",
        "train",
        f"{folder}/full/train/*.h5",
        "-o",
        "m.h5",
        *full,
        "--checkpoint",
        "saved",
    ]
    first = mpiexec(2, *words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    digest = load(str(tmp_path / "m.h5")).digest
    about = info(next((tmp_path / "saved").glob("*.h5")))
    assert (about["kind"], about["step"], about["reason"]) == ("checkpoint", 30, "epochs")
    again = python(*words, cwd=tmp_path)
    assert again.returncode == 0
    assert "complete already" in again.stderr
    assert load(str(tmp_path / "m.h5")).digest == digest
    refused = mpiexec(2, *words, "--seed", "3", cwd=tmp_path)
    assert refused.returncode == 2
    assert "was made with --seed 0, not 3" in refused.stderr


def test_precedence(folder: Path, tmp_path: Path) -> None:
    """Options come from the command line, the environment, a file or the default, in this order.

    Files and the environment use the same names.
    """
    (tmp_path / "run.toml").write_text(
        f'data = ["{folder}/full/train/*.h5"]\noutput = "m.h5"\nloss = "logistic"\nl2 = 0.1\n'
        "epochs = 7\nbatch-size = 9\n"
        'mode = "minibatch"\nlr = 0.5\nquiet = true\n'
    )
    variables = {"MPIGD_L2": "0.2", "MPIGD_EPOCHS": "8", "MPIGD_INTERCEPT": "no"}
    done = python(
        "-m",
        "mpigd",
        "train",
        "--config",
        "run.toml",
        "--epochs",
        "2",
        "--seed",
        "5",
        cwd=tmp_path,
        env=variables,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    config = load(str(tmp_path / "m.h5")).config
    assert (config.epochs, config.seed, config.l2, config.intercept) == (2, 5, 0.2, False)
    assert (config.loss, config.batch_size, config.mode, config.learning_rate) == (
        "logistic",
        9,
        "minibatch",
        0.5,
    )
    assert (config.momentum, config.optimizer, config.lr_schedule) == (0.9, "adam", "cosine")


def test_dry_run(folder: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "mpigd",
        "train",
        f"{folder}/mini/train/*.h5",
        *KINDS["mini"].split(),
        "--dry-run",
    ]
    done = mpiexec(2, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "300 rows x 4 columns (dense) in 3 file(s), 2 rank(s)" in done.stdout
    assert "up to 30 steps" in done.stdout
    assert "batch_size=32" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        ("--help", "mpi4py numba tomllib"),
        ("--version", "mpi4py numba"),
        ("info {}", "mpi4py"),
    ],
)
def test_what_is_not_needed_is_not_loaded(words: str, spared: str, folder: Path) -> None:
    """Also under a launcher."""
    script = (
        "import sys; from mpigd.__main__ import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        f"print(code, [name for name in {spared.split()} if name in sys.modules], file=sys.stderr)"
    )
    path = folder / "full/train/part0.h5"
    done = mpiexec(1, "-c", script, *words.format(path).split())
    assert done.stderr.strip() == "0 []", done.stderr
    assert done.stdout


# Modules that a training rank imports. Every rank looks for each one in every folder of the path.
MODULES = 850
OTHERS = 620  # those of them that are not part of mpigd: one import may bring hundreds


def test_a_rank_imports_few_modules(folder: Path, tmp_path: Path) -> None:
    """If this fails, find the new import on the way to training, and move it into a function."""
    root = Path(__file__).resolve().parents[2]
    words = [
        str(root / "scripts/bench/inside.py"),
        str(tmp_path / "note"),
        "train",
        str(folder / "full/train/part0.h5"),
    ]
    done = mpiexec(2, *words, "-o", "model.h5", "--quiet", "--epochs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notes = [json.loads((tmp_path / f"note.{rank}").read_text()) for rank in range(2)]
    assert all(note["modules"] <= MODULES and note["others"] <= OTHERS for note in notes), notes
