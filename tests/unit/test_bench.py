"""The arithmetic of the benchmark, and a tiny run of some subjects.

The tests check that subjects measure something, not what they measure.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from mpigd.parallel.comm import SelfComm
from scripts.bench import data, harness, problems, run, solve, solvers, solving
from scripts.bench.common import Common
from scripts.bench.harness import ABSENT, MISSING, Row, Size
from tests import launch, scenarios, truths

Array = np.ndarray[Any, Any]
TINY = Size(megabytes=0.5, repeats=5)


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (0.9, ">= 0.9", True), (0.8999, ">= 0.9", False), (1.5, "<= 1.5", True),
        (1.6, "<= 1.5", False), (math.nan, ">= 0", False),
        (math.nan, "<= 1", False), (60_000.0, ">= 50000", True),
    ],
)  # fmt: skip
def test_targets(value: float, target: str, met: bool) -> None:
    assert harness.meets(value, target) is met
    assert Row("a", value, target).met is met


@pytest.mark.parametrize("target", ["0.9", "> 0.9", ">= much", ">=0.9"])
def test_a_target_of_another_form_is_refused(target: str) -> None:
    with pytest.raises(ValueError):
        harness.meets(1.0, target)


def test_what_could_not_be_measured() -> None:
    """An absent peer does not count; a missing option or a failure is a missed target."""
    assert Row("a", ABSENT, ">= 1").met is None
    assert Row("a", MISSING, ">= 1").met is False
    assert Row("a", "failed: exit code 70", ">= 0").met is False
    assert Row("a", 3.0).met is None


def test_median_of_at_least_five() -> None:
    assert harness.median([5.0, 1.0, 100.0, 3.0, 2.0]) == 3.0
    with pytest.raises(ValueError, match="at least 5"):
        harness.median([1.0, 2.0, 3.0, 4.0])


def test_a_ratio_is_the_median_over_pairs() -> None:
    """A ratio is the median over pairs, not the quotient of medians.

    A slow minute that affects both runs of a pair does not change the quotient of that pair.
    """
    times = {"a": [2.0, 20.0, 2.0, 200.0, 2.0], "b": [1.0, 10.0, 1.0, 100.0, 4.0]}
    assert harness.ratio(times, "a", "b") == 2.0
    with pytest.raises(ValueError):
        harness.ratio({"a": [1.0] * 5, "b": [1.0] * 6}, "a", "b")


def test_pairs_are_taken_in_turn_after_a_warm_up() -> None:
    order: list[str] = []
    times = harness.paired(
        SelfComm(), {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 5
    )
    assert order == ["a", "b"] * 6
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5}


def test_json_is_a_list_of_four_keys(tmp_path: Path) -> None:
    rows = [Row("speed", 0.5, ">= 0.9", {"speed": 1.0}), Row("roof", 40.0)]
    rows += [Row("torch", ABSENT, ">= 10"), Row("lost", math.nan, "<= 1")]
    harness.write_json(rows, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == [
        {"name": "speed", "value": 0.5, "target": ">= 0.9", "met": False},
        {"name": "roof", "value": 40.0, "target": None, "met": None},
        {"name": "torch", "value": "not installed", "target": ">= 10", "met": None},
        {"name": "lost", "value": None, "target": "<= 1", "met": False},
    ]


def test_the_peers_blas_is_not_tuned_and_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OPENBLAS_CORETYPE": "Zen",
        "OPENBLAS_L2_SIZE": "1",
        "MPIGD_EPOCHS": "3",
        "MPIGD_CACHE_DIR": "here",
    }.items():
        monkeypatch.setenv(name, value)
    env = harness.environment({"EXTRA": "1"})
    assert not {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MPIGD_EPOCHS"} & set(env)
    assert (env["OPENBLAS_NUM_THREADS"], env["MPIGD_CACHE_DIR"], env["EXTRA"]) == ("1", "here", "1")


def test_a_command_that_fails_or_hangs_is_an_error_with_its_last_line() -> None:
    with pytest.raises(RuntimeError, match="exit code 3: no such thing"):
        harness.launch(0, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)")
    with pytest.raises(RuntimeError, match="ended after 1 s"):
        harness.launch(0, "-c", "import time; time.sleep(60)", limit=1)
    assert harness.launch(0, "-c", "print(6 * 7)").strip() == "42"


def test_a_subject_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "INSIDE", (*run.INSIDE, "nothing"))
    (row,) = run.subject("nothing", TINY, 30)
    assert (
        str(row.value)
        == "failed: exit code 70: ModuleNotFoundError: No module named 'scripts.bench.nothing'"
    )
    assert row.met is False


def test_a_broken_package_is_not_an_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is installed without one of its imports is a broken environment.

    The target is then missed.
    """
    (tmp_path / "broken_peer.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert harness.unusable("surely_not_installed") == ABSENT
    assert harness.unusable("json") == ""
    assert solve.peer("json") == []
    (row,) = solve.peer("broken_peer")
    assert str(row.value).endswith("ModuleNotFoundError: No module named 'surely_not_installed'")
    assert row.met is False
    (row,) = solve.peer("surely_not_installed")
    assert (row.value, row.met) == (ABSENT, None)


def test_data_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A problem is left out only if a package that it needs is not installed.

    Anything else is a failure.
    """

    def make(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

    needy = problems.Problem("needy", "logistic", (1e-4,), make, ("surely_not_installed", "json"))
    broken = problems.Problem("broken", "logistic", (1e-4,), make, ("json",))
    monkeypatch.setattr(solve, "PROBLEMS", (needy, broken))
    monkeypatch.setattr(solve, "PEERS", {False: ()})
    absent, failed = solve.drive(TINY)
    assert (absent.name, absent.value, absent.met) == (
        "solve: needy, surely_not_installed",
        ABSENT,
        None,
    )
    assert (failed.value, failed.met) == ("failed: No module named 'pkg_resources'", False)
    assert "pkg_resources" in capsys.readouterr().out


def test_every_subject_is_a_file_and_every_file_is_explained() -> None:
    folder = Path(run.__file__).parent
    assert all((folder / f"{name}.py").exists() for name in run.SUBJECTS)
    page = run.PAGE.read_text()
    assert [name for name in run.SUBJECTS if f"`{name}`" not in page] == []


def test_the_table_of_the_docs_is_rewritten_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"above\n{run.MARKS[0]}old\n{run.MARKS[1]}below\n")
    run.update_docs(
        {"plan": [Row("guess", 0.25)], "roof": [Row("read", 40.0)]}, "another machine", page
    )
    for value in (1234.5, 0.5):
        run.update_docs({"roof": [Row("speed", value, ">= 1")]}, "a machine", page)
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n")
    assert (
        "| speed | 0.5 | >= 1 | NO |" in text
        and "old" not in text
        and "1,234" not in text
        and "| read" not in text
    )
    assert "| guess | 0.25 |  |  |" in text, "results of a subject that was not run stay"
    assert (
        text.index("#### roof")
        < text.index("a machine")
        < text.index("#### plan")
        < text.index("another machine")
    )
    page.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        run.update_docs({}, "a machine", page)
    assert all(mark in run.PAGE.read_text() for mark in run.MARKS)


def test_the_profile_grows(tmp_path: Path) -> None:
    """The profile gives alpha and beta to `mpigd plan`.

    A subject that is measured again replaces its own numbers only.
    """
    path = tmp_path / "profile.json"
    for rows in (
        [Row("roof", 40.0, plot={"read": 40.0, "ranks": 1})],
        [Row("beta", 0.2, plot={"alpha": 2e-6, "beta": 2e-10})],
    ):
        run.keep_profile(run.profile(rows), path)
    run.keep_profile(run.profile([Row("d = 32", 0.5, plot={"gradient": True, "d": 32})]), path)
    assert json.loads(path.read_text()) == {
        "read_1": 4e10,
        "alpha": 2e-6,
        "beta": 2e-10,
        "fraction_32": 0.5,
    }
    assert run.profile([Row("no picture", 1.0)]) == {}


def test_made_rows(tmp_path: Path) -> None:
    """Made rows have the declared properties.

    Columns ascend without repetition, frequencies fall, every loss accepts its target, and the
    trainer can read the files.
    """
    from mpigd.data.loading import Layout, load

    indptr, indices, values = data.zipf(2000, 500, 20, 3)
    rows = np.split(indices, indptr[1:-1])
    assert all(np.all(np.diff(row) > 0) and 0 < row.size <= 20 for row in rows)
    counts = np.sort(np.bincount(indices, minlength=500))
    assert counts[-1] > 10 * counts[100]
    shard = load(
        [str(data.write_csr(tmp_path / "csr.h5", (indptr, indices, values), 500))],
        Layout(),
        SelfComm(),
    )
    assert (shard.X.n, shard.X.d, shard.X.entries) == (2000, 500, values.size)
    X = data.dense(300, 7, 0)
    shard = load(
        [str(data.write_dense(tmp_path / "dense.h5", X, 128, compression="gzip"))],
        Layout(),
        SelfComm(),
    )
    np.testing.assert_array_equal(shard.X.values, X)


@pytest.mark.parametrize("name", ["kernels", "softmax", "sparse", "minibatch", "exact_cost"])
def test_subjects_run_on_one_process(name: str) -> None:
    import importlib

    rows = importlib.import_module(f"scripts.bench.{name}").measure(SelfComm(), TINY)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.value in (ABSENT, MISSING) or math.isfinite(row.value)
        assert not row.target or row.met in (None, True, False)


def test_steps_and_peers_run_on_two_ranks() -> None:
    rows = [row for name in ("roof", "steps") for row in run.inside(name, TINY, limit=100)]
    assert [row for row in rows if row.name.startswith("steps: one row") and row.value > 0]
    told = run.profile(rows)
    assert told["read_1"] > 0 and told["read_2"] > 0


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip(
        "matplotlib",
        reason="the pictures need the extra [bench], which the tests' environment need not have",
    )
    from scripts.bench import charts

    assert charts.reached(Row("a", 1.8, ">= 0.9")) == pytest.approx(2.0)
    assert charts.reached(Row("a", 3.0, "<= 1.5")) == pytest.approx(0.5)
    rows = [
        Row("roof", 40.0, plot={"read": 40.0, "ranks": 2}),
        Row(
            "d = 32",
            0.5,
            ">= 0.6",
            {"speed": 20.0, "intensity": 1.0, "label": "d = 32", "gradient": True, "d": 32},
        ),
        Row("half", MISSING, ">= 1.6"),
    ]
    assert {path.name for path in charts.draw(rows, tmp_path)} == {
        "roofline.png",
        "kernels.png",
        "targets.png",
    }
    assert charts.draw([], tmp_path) == [] and not list(tmp_path.iterdir())


def test_the_harness_uses_this_python() -> None:
    assert harness.launch(0, "-c", "import sys; print(sys.executable)").strip() == sys.executable


@pytest.mark.parametrize("loss", ["logistic", "softmax", "poisson"])
def test_the_common_objective_is_ours(loss: str, tmp_path: Path) -> None:
    """What `solve` measures all contestants by; its own optimum, and the columns that peers get."""
    table = truths.generate(loss, n=300)
    table = truths.Table(
        table.X, table.y, None, np.linspace(-0.2, 0.2, 300) if loss == "poisson" else None
    )
    model = scenarios.fit(table, loss=loss, l2=1e-2, tol=1e-10)
    for X in (table.X, sparse.csr_matrix(table.X)):
        made = Common(X, table.y, loss, 1e-2, table.offset)
        assert made.value(model.coef, model.intercept) == pytest.approx(
            model.summary["objective"], rel=1e-12
        )
        assert made.optimum(model.coef * 1.01, model.intercept) == pytest.approx(
            model.summary["objective"], rel=1e-10
        )
        scaled = made.standardised()
        coef, intercept = made.from_standardised(model.coef, model.intercept)
        np.testing.assert_allclose(
            X @ coef.T + intercept, scaled @ model.coef.T + model.intercept, atol=1e-9
        )


def test_a_contest_is_judged_by_errors() -> None:
    ours = dict(reads=np.array([2.0, 4.0, 13.0]), seconds=np.array([0.1, 0.2, 0.3]))
    judged = dict(
        errors=np.array([1e-3, 1e-7, 1e-8]),
        names=np.array(["a", "b"]),
        seconds=np.array([0.1, 0.5]),
    )
    rows = solve.judge("p", ours, judged | dict(reached=np.array([1e-3, 1e-7])))
    assert [row.value for row in rows] == [4.0, "not reached", 0.2, pytest.approx(2.5)]
    assert [row.met for row in rows] == [True, False, None, False]
    assert rows[-1].name == "p: b's fit / ours, seconds"
    none = solve.judge("p", ours, judged | dict(reached=np.full(2, np.inf), limit=np.array(0.8)))
    assert none[-1].value == pytest.approx(4.0) and none[-1].met


def test_ours_in_a_contest_speaks_of_columns_as_the_data_number_them(tmp_path: Path) -> None:
    """Columns of compressed rows are renumbered by frequency: the judge must not see that."""
    table, path = truths.generate("logistic", n=400, d=4), tmp_path / "data.h5"
    rare_first = np.where(
        np.arange(400)[:, np.newaxis] % np.array([5, 3, 2, 1]) == 0, table.X[:, :4], 0.0
    )
    X = sparse.csr_matrix(rare_first)
    data.write_csr(path, (X.indptr.astype(np.int64), X.indices, X.data), 4)
    found = solving.steps(str(path), SelfComm(), 1, loss="logistic", l2=1e-2)
    common = Common.read(str(path), "logistic", 1e-2)
    best = common.optimum(found["coef"][-1], found["intercept"][-1])
    assert common.value(found["coef"][-1], found["intercept"][-1]) == pytest.approx(best, rel=1e-12)


def test_a_peer_is_given_its_time_and_no_more() -> None:
    table = truths.generate("squared", n=40)
    common = Common(table.X, (table.y > 0).astype(float), "logistic", 1e-2, None)
    X = common.standardised()
    known = LogisticRegression(C=1.0 / (1e-2 * 40), tol=1e-8).fit(X, common.y)
    best = common.value(*common.from_standardised(known.coef_, known.intercept_))

    def there(X: Array, y: Array, part: Any, tol: float) -> tuple[Array, Array]:
        return known.coef_, known.intercept_

    def late(X: Array, y: Array, part: Any, tol: float) -> tuple[Array, Array]:
        time.sleep(0.0 if tol == solvers.TOLERANCES[0] else 600.0)
        return np.zeros((1, X.shape[1])), np.zeros(1)

    def failing(X: Array, y: Array, part: Any, tol: float) -> tuple[Array, Array]:
        raise ValueError("no")

    spent, error = solvers.trial(there, common, X, best, 20.0)
    assert 0.0 < spent < 20.0 and abs(error) <= 1e-6
    begin = time.perf_counter()
    spent, error = solvers.trial(late, common, X, best, 2.0)
    assert spent < 2.0 and error > 1e-6  # its first fit came
    assert time.perf_counter() - begin < launch.CEILING  # its second is not waited for
    assert solvers.trial(failing, common, X, best, 0.5) == (np.inf, np.inf)
