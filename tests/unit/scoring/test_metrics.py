"""Metrics against scikit-learn, and against themselves on other ranks."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from mpigd.errors import DataError, NumericalError, UsageError
from mpigd.parallel.comm import SelfComm
from mpigd.scoring.metrics import METRICS, PRIMARY, _log, better, score
from tests.threadcomm import run

KINDS = ("binary", "margin", "multiclass", "regression")


def problem(kind, n=800, seed=0, k=4):
    """y, output, c, half deviances; c with zeros, outputs with ties."""
    rng = np.random.default_rng(seed)
    c = np.where(rng.random(n) < 0.1, 0.0, rng.gamma(1.0, size=n))
    if kind == "regression":
        y = rng.poisson(3.0, n).astype(np.float64)
        return y, y * 0.5 + rng.random(n) + 0.1, c, rng.random(n)
    if kind == "multiclass":
        y = rng.integers(0, k, n)
        logits = np.round(rng.normal(size=(n, k)) + 1.5 * (y[:, None] == np.arange(k)), 1)
        output = np.exp(logits)
        return y.astype(np.float64), output / output.sum(axis=1, keepdims=True), c, rng.random(n)
    y = (rng.random(n) < 0.3).astype(np.float64)
    z = np.round(rng.normal(size=n) + y, 2)
    return y, (z if kind == "margin" else 1 / (1 + np.exp(-z))), c, rng.random(n)


def on_ranks(size, owner, kind, y, output, c, loss_values=None, **options):
    """The scores when rank owner[i] of `size` holds row i; all ranks must return the same."""

    def work(comm):
        mine = owner == comm.rank
        losses = None if loss_values is None else loss_values[mine]
        return score(kind, y[mine], output[mine], c[mine], comm, loss_values=losses, **options)

    results = run(size, work)
    assert all(repr(result) == repr(results[0]) for result in results)
    return results[0]


def close(found, expected):
    assert found == pytest.approx(expected, rel=1e-12)


def test_binary_agrees_with_sklearn():
    y, p, c, _ = problem("binary")
    found = on_ranks(3, np.arange(y.size) % 2, "binary", y, p, c)
    assert list(found) == ["log_loss", "accuracy", "auc", "average_precision"]
    close(found["log_loss"], sk.log_loss(y, np.column_stack((1 - p, p)), sample_weight=c))
    close(found["accuracy"], sk.accuracy_score(y, p > 0.5, sample_weight=c))
    close(found["auc"], sk.roc_auc_score(y, p, sample_weight=c))
    close(found["average_precision"], sk.average_precision_score(y, p, sample_weight=c))


def test_margin_agrees_with_sklearn():
    y, z, c, _ = problem("margin")
    z[:5] = 0.0  # on the boundary: class 0
    found = on_ranks(3, np.arange(y.size) % 3, "margin", y, z, c)
    assert list(found) == ["accuracy", "auc", "average_precision"]
    close(found["accuracy"], sk.accuracy_score(y, z > 0, sample_weight=c))
    close(found["auc"], sk.roc_auc_score(y, z, sample_weight=c))


def test_multiclass_agrees_with_sklearn():
    y, p, c, _ = problem("multiclass")
    names = ["ant", "bee", "cat", "dog"]
    found = on_ranks(3, np.arange(y.size) % 3, "multiclass", y, p, c, classes=names)
    close(found["log_loss"], sk.log_loss(y, p, sample_weight=c))
    close(found["accuracy"], sk.accuracy_score(y, p.argmax(axis=1), sample_weight=c))
    close(found["auc"], sk.roc_auc_score(y, p, multi_class="ovr", sample_weight=c))
    close(found["average_precision"], sk.average_precision_score(y, p, sample_weight=c))
    expected = sk.precision_recall_fscore_support(y, p.argmax(axis=1), sample_weight=c)
    for q, row in enumerate(found["classes"]):
        assert row["class"] == names[q]
        close(
            [row[key] for key in ("precision", "recall", "f1")],
            [figures[q] for figures in expected[:3]],
        )
        close(row["support"], c[y == q].sum())
        close(row["auc"], sk.roc_auc_score(y == q, p[:, q], sample_weight=c))


def test_regression_agrees_with_sklearn():
    y, f, c, _ = problem("regression")
    found = on_ranks(3, np.arange(y.size) % 3, "regression", y, f, c)
    assert list(found) == ["rmse", "mae", "r2"]
    close(found["rmse"], math.sqrt(sk.mean_squared_error(y, f, sample_weight=c)))
    close(found["mae"], sk.mean_absolute_error(y, f, sample_weight=c))
    close(found["r2"], sk.r2_score(y, f, sample_weight=c))


@pytest.mark.parametrize("family", ["squared", "poisson", "gamma"])
def test_deviance_agrees_with_sklearn(family):
    y, f, c, _ = problem("regression")
    y = y + 1.0 if family == "gamma" else y
    logs = np.log(np.where(y > 0, y, 1.0) / f)
    losses, expected = {
        "squared": ((y - f) ** 2 / 2, sk.mean_squared_error),
        "poisson": (f - y + y * logs, sk.mean_poisson_deviance),
        "gamma": (y / f - 1 - logs, sk.mean_gamma_deviance),
    }[family]
    found = on_ranks(2, np.arange(y.size) % 2, "regression", y, f, c, losses)
    close(found["deviance"], expected(y, f, sample_weight=c))


def test_deviance_of_the_logistic_loss_is_twice_the_log_loss():
    y, p, c, _ = problem("binary")
    found = score("binary", y, p, c, SelfComm(), loss_values=-np.log(np.where(y == 1, p, 1 - p)))
    close(found["deviance"], 2 * found["log_loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_on_any_ranks_in_any_order(kind):
    y, output, c, losses = problem(kind, n=300, seed=1)
    rng = np.random.default_rng(2)
    expected = repr(score(kind, y, output, c, SelfComm(), loss_values=losses))
    for size in (1, 2, 3, 5):
        for used in {1, size, max(1, size - 2)}:  # some ranks may be empty
            by_target = np.argsort(np.argsort(y)) * used // y.size
            for owner in (rng.integers(0, used, y.size), by_target):
                order = rng.permutation(y.size)
                found = on_ranks(
                    size, owner[order], kind, y[order], output[order], c[order], losses[order]
                )
                assert repr(found) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_with_outliers_and_weights_over_decades(kind):
    y, output, _, losses = problem(kind, n=400, seed=3)
    rng = np.random.default_rng(4)
    c = 10.0 ** rng.uniform(-10, 5, y.size)
    losses[7] *= 1e9
    if kind == "regression":
        y, output = y * 10.0 ** rng.uniform(-8, 8, y.size), output * 1e3
    expected = repr(score(kind, y, output, c, SelfComm(), loss_values=losses))
    for size in (2, 5):
        order, owner = rng.permutation(y.size), rng.integers(0, size, y.size)
        assert (
            repr(on_ranks(size, owner, kind, y[order], output[order], c[order], losses[order]))
            == expected
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 6])
def test_no_weight_gives_nan_for_every_key(kind, rows):
    full = problem(kind)
    y, output, _, losses = (array[:rows] for array in full)
    found = on_ranks(2, np.arange(rows) % 2, kind, y, output, np.zeros(rows), losses)
    assert list(found) == list(score(kind, *full[:3], SelfComm(), loss_values=full[3]))
    for name, value in found.items():
        if name == "classes":
            assert all(row["support"] == 0 and math.isnan(row["auc"]) for row in value)
        else:
            assert math.isnan(value), name


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_do_not_count(kind):
    y, output, c, losses = problem(kind, seed=5)
    used = c > 0
    assert not used.all()
    found = score(kind, y, output, c, SelfComm(), loss_values=losses)
    assert repr(found) == repr(
        score(kind, y[used], output[used], c[used], SelfComm(), loss_values=losses[used])
    )


def test_probabilities_of_zero_and_one_are_clipped_as_in_sklearn():
    y, p = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0, 0.0])
    found = score("binary", y, p, np.ones(4), SelfComm())["log_loss"]
    close(found, sk.log_loss(y, np.column_stack((1 - p, p))))
    assert found == pytest.approx(-math.log(np.finfo(np.float64).eps) / 2)
    codes, rows = (
        np.array([0.0, 1.0, 2.0]),
        np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]),
    )
    close(
        score("multiclass", codes, rows, np.ones(3), SelfComm())["log_loss"],
        sk.log_loss(codes, rows),
    )


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_one_class_leaves_auc_undefined_and_the_rest_defined(only):
    _, p, c, _ = problem("binary")
    y = np.full(p.size, only)
    found = on_ranks(2, np.arange(y.size) % 2, "binary", y, p, c)
    assert math.isnan(found["auc"])
    assert math.isnan(found["average_precision"]) == (only == 0.0)
    close(
        found["log_loss"],
        sk.log_loss(y, np.column_stack((1 - p, p)), sample_weight=c, labels=[0, 1]),
    )


def test_a_class_without_rows_or_predictions():
    y, p, c, _ = problem("multiclass")
    p = np.insert(p, 2, 0.0, axis=1)
    y = np.where(y >= 2, y + 1, y)
    found = on_ranks(2, np.arange(y.size) % 2, "multiclass", y, p, c)
    empty = found["classes"][2]
    assert [empty[key] for key in ("class", "support", "precision", "recall", "f1")] == [
        2,
        0,
        0,
        0,
        0,
    ]
    assert math.isnan(empty["auc"])
    assert math.isnan(found["auc"])
    expected = sk.precision_recall_fscore_support(
        y, p.argmax(axis=1), sample_weight=c, labels=range(5), zero_division=0
    )
    close([row["f1"] for row in found["classes"]], list(expected[2]))


def test_right_everywhere_is_exactly_one():
    y, _, c, _ = problem("multiclass")
    found = on_ranks(
        3, np.arange(y.size) % 3, "multiclass", y, (y[:, None] == np.arange(4)) * 1.0, c
    )
    assert found["accuracy"] == found["auc"] == found["average_precision"] == 1.0
    assert all(row[key] == 1.0 for row in found["classes"] for key in ("precision", "recall", "f1"))
    exact = score("regression", y, y, c, SelfComm())
    assert exact == {"rmse": 0.0, "mae": 0.0, "r2": 1.0}


@pytest.mark.parametrize("shift, expected", [(0.0, 1.0), (0.25, 0.0)])
def test_r2_of_a_constant_target_follows_sklearn(shift, expected):
    c = problem("regression")[2]
    y = np.full(c.size, 0.1)
    found = on_ranks(3, np.arange(c.size) % 3, "regression", y, y + shift, c)["r2"]
    assert found == expected == sk.r2_score(y, y + shift)


def failures(size, kind, y, output, c, losses=None):
    """Return the error of each rank; rank 0 holds no rows."""

    def work(comm):
        mine = np.arange(y.size) % (size - 1) + 1 == comm.rank
        try:
            score(
                kind,
                y[mine],
                output[mine],
                c[mine],
                comm,
                loss_values=None if losses is None else losses[mine],
            )
        except Exception as error:
            return type(error), str(error), error.agreed
        return None

    return run(size, work)


@pytest.mark.parametrize(
    "place, value, error, text",
    [
        (0, 2.0, DataError, "y of 1 rows is not a class code from 0 to 1"),
        (0, 0.5, DataError, "y of 1 rows is not a class code"),
        (0, math.nan, DataError, "y of 1 rows is not a class code"),
        (1, math.nan, NumericalError, "1 predictions are not finite"),
        (1, math.inf, NumericalError, "1 predictions are not finite"),
        (2, -1.0, DataError, "sample weights of 1 rows are negative or not finite"),
        (2, math.nan, DataError, "sample weights of 1 rows"),
        (3, math.inf, NumericalError, "1 losses are not finite"),
    ],
)
def test_a_bad_row_on_one_rank_is_the_same_error_on_all(place, value, error, text):
    arrays = [array.copy() for array in problem("margin", n=30)]
    arrays[place][4] = value
    outcomes = failures(3, "margin", *arrays)
    assert len(set(outcomes)) == 1
    assert outcomes[0][0] is error
    assert text in outcomes[0][1]
    assert outcomes[0][2]


def test_a_class_code_beyond_the_columns_is_refused():
    y, p, c, _ = problem("multiclass", n=30)
    y[3] = 4.0
    assert {outcome[0] for outcome in failures(3, "multiclass", y, p, c)} == {DataError}


def test_overflow_is_an_error_on_all_ranks_and_not_a_number():
    y, f, c, _ = problem("regression", n=30)
    f[c.argmax()] = 1e200
    outcomes = failures(3, "regression", y, f, c)
    assert all(issubclass(outcome[0], NumericalError) for outcome in outcomes)


def test_unknown_kind_is_named():
    with pytest.raises(UsageError, match=r"ranking.*binary, margin, multiclass, regression"):
        score("ranking", np.zeros(1), np.zeros(1), np.ones(1), SelfComm())


def test_every_metric_has_a_direction_and_every_kind_a_primary_one():
    seen = set()
    for kind in KINDS:
        y, output, c, losses = problem(kind)
        found = set(score(kind, y, output, c, SelfComm(), loss_values=losses)) - {"classes"}
        assert PRIMARY[kind] in found
        seen |= found
    assert seen == set(METRICS)
    assert set(METRICS.values()) == {"higher", "lower"}


def test_better_knows_the_direction_and_nan():
    assert better("rmse", 1.0, 2.0) and not better("rmse", 2.0, 1.0)
    assert better("auc", 0.9, 0.8) and not better("auc", 0.8, 0.9)
    for metric in METRICS:
        assert not better(metric, 0.5, 0.5)
        assert better(metric, 0.5, math.nan)
        assert not better(metric, math.nan, 0.5)
        assert not better(metric, math.nan, math.nan)


def test_log_is_accurate_and_does_not_depend_on_position():
    rng = np.random.default_rng(8)
    x = 2.0 ** -np.concatenate(
        [rng.uniform(0, 52, 20000), 2.0 ** rng.uniform(-52, 0, 20000), [0, 1, 1074]]
    )
    expected = np.array([math.log(value) for value in x])
    assert np.all(np.abs(_log(x) - expected) <= 4.5e-16 * np.abs(expected))
    for start in range(70):
        assert _log(x[start : start + 1])[0] == _log(x)[start] == _log(x[::-1])[::-1][start]
