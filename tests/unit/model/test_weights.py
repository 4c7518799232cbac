"""Identities that hold for every loss: of weights, of columns, of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpigd.config.schema import Config, from_mapping
from mpigd.errors import DataError, MpigdError, UsageError
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.predict import evaluate
from tests.scenarios import fit, shard, write
from tests.threadcomm import run
from tests.truths import ALL_LOSSES, SMOOTH, TWO_CLASSES, Table, generate, optimum

# Weights.


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_whole_weights_are_repeated_rows(loss: str, as_csr: bool) -> None:
    table = generate(loss, n=80)
    times = np.random.default_rng(5).integers(0, 4, 80)
    weighted = Table(table.X, table.y, times.astype(float))
    repeated = table.take(np.repeat(np.arange(80), times))
    smooth = loss in SMOOTH
    options = dict(loss=loss, l2=1e-2, tol=1e-9 if smooth else 0, epochs=1000 if smooth else 20)
    one, other = (fit(shard(t, SelfComm(), as_csr=as_csr), **options) for t in (weighted, repeated))
    np.testing.assert_allclose(one.coef, other.coef, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(one.intercept, other.intercept, rtol=1e-6, atol=1e-7)
    assert one.summary["objective"] == pytest.approx(other.summary["objective"], rel=1e-10)


@pytest.mark.parametrize("wild", [0.1, 1 / 3, 1e6 + 0.1, 123.456])
def test_rows_without_weight_do_not_exist(wild: float) -> None:
    """Also where they are the only ones in which a column varies."""
    table = generate("squared", n=100, weights=True)
    assert table.c is not None
    ghosts = np.arange(100) < 20
    X = np.column_stack([table.X, np.where(ghosts, 5.0, wild)])
    seen = Table(X, np.where(ghosts, 1e6, table.y), np.where(ghosts, 0.0, table.c))
    with_them, without = fit(seen, l2=1e-3), fit(seen.take(~ghosts), l2=1e-3)
    np.testing.assert_allclose(with_them.coef, without.coef, rtol=1e-9)
    np.testing.assert_allclose(with_them.intercept, without.intercept, rtol=1e-9)
    assert with_them.coef[0, -1] == 0.0


@pytest.mark.parametrize("mode", ["full", "minibatch", "stochastic"])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_no_weight_at_all_is_refused(loss: str, mode: str) -> None:
    """A model of zeros would come out, without a word."""
    table = generate(loss)
    with pytest.raises(DataError, match="all weights are zero: there is nothing to fit"):
        fit(Table(table.X, table.y, np.zeros(200)), loss=loss, mode=mode)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("loss", [*TWO_CLASSES, "softmax"])
def test_a_class_without_weight_is_refused(loss: str, size: int) -> None:
    table = generate(loss)
    weights = np.where(table.y == 1, 0.0, 1.0)

    def attempt(comm: Comm) -> str:
        with pytest.raises(DataError) as caught:
            fit(shard(Table(table.X, table.y, weights), comm), comm, loss=loss)
        assert caught.value.agreed
        return str(caught.value)

    assert set(run(size, attempt)) == {
        "the data: all weights of class 1 are zero: leave its rows out, or give it weight"
    }
    with pytest.raises(DataError, match="all weights of class 0 are zero"):
        fit(table, loss=loss, class_weight="0=0")


def test_scores_of_data_without_weight_are_refused(tmp_path: Path) -> None:
    table = generate("logistic")
    (held_out,) = write(Table(table.X, table.y, np.zeros(200)), tmp_path)
    model = fit(table, loss="logistic")
    with pytest.raises(DataError, match=r"part0\.h5: all weights are zero"):
        evaluate(model, [held_out], Config(), SelfComm())
    with pytest.raises(DataError, match=r"part0\.h5: all weights are zero"):
        fit(table, loss="logistic", validation=(held_out,))


@pytest.mark.parametrize("loss", TWO_CLASSES)
def test_class_weights_multiply_sample_weights(loss: str) -> None:
    table = generate(loss, weights=True)
    assert table.c is not None
    by_hand = Table(table.X, table.y, table.c * np.where(table.y == 1, 2.5, 0.5))
    options = dict(loss=loss, epochs=30, tol=0)
    assert (
        fit(table, class_weight="0=0.5,1=2.5", **options).digest == fit(by_hand, **options).digest
    )


def test_balanced_classes_weigh_the_same() -> None:
    table = generate("softmax", weights=True)
    assert table.c is not None
    sums = np.array([table.c[table.y == q].sum() for q in range(3)])
    by_hand = Table(table.X, table.y, table.c * (table.c.sum() / (3 * sums))[table.y.astype(int)])
    one, other = (
        fit(table, loss="softmax", l2=1e-2, class_weight="balanced"),
        fit(by_hand, loss="softmax", l2=1e-2),
    )
    np.testing.assert_allclose(one.coef, other.coef, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("2=1", "no class '2'; the classes are 0, 1"),
        ("1=heavy", "'heavy' is not a number"),
        ("1=-1", "at least 0"),
        ("1=nan", "finite"),
        ("", "expected balanced, or LABEL=WEIGHT"),
        ("balance", "--class-weight balance: expected balanced, or LABEL=WEIGHT"),
    ],
)
def test_bad_class_weights(weight: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(generate("logistic"), loss="logistic", class_weight=weight)
    with pytest.raises(UsageError, match="classes"):
        fit(generate("squared"), class_weight="balanced")


# Columns.


@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson"])
def test_columns_far_from_zero(loss: str) -> None:
    """Mean 1e6, deviation about 1: without centring the condition number would be 1e12."""
    table = generate(loss, n=150, weights=True, holes=0.0)
    far = Table(table.X + 1e6, table.y, table.c)
    near, model = fit(table, loss=loss, l2=1e-3, tol=1e-9), fit(far, loss=loss, l2=1e-3)
    np.testing.assert_allclose(model.coef, near.coef, rtol=1e-4)
    assert model.summary["objective"] == pytest.approx(near.summary["objective"], rel=1e-8)
    assert model.summary["stop_reason"] == "tolerance"


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e6 + 0.1, -1 / 3])
def test_constant_columns(constant: float, standardize: bool) -> None:
    table = generate("logistic", weights=True)
    X = np.insert(table.X, 1, constant, axis=1)
    options = dict(loss="logistic", l2=1e-2, standardize=standardize, tol=1e-9)
    model, plain = fit(Table(X, table.y, table.c), **options), fit(table, **options)
    assert model.coef[0, 1] == 0.0
    np.testing.assert_allclose(np.delete(model.coef, 1, 1), plain.coef, rtol=1e-7)
    np.testing.assert_allclose(model.intercept, plain.intercept, rtol=1e-7)


def test_without_intercept_and_standardisation_a_constant_column_is_one() -> None:
    table = generate("squared")
    X = np.column_stack([table.X, np.ones(200)])
    model = fit(Table(X, table.y), intercept=False, standardize=False, tol=1e-9)
    expected = np.linalg.lstsq(X, table.y, rcond=None)[0]
    np.testing.assert_allclose(model.coef[0], expected, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_unit_of_a_column_changes_its_coefficient_alone(scale: float) -> None:
    table = generate("logistic")
    scaled = Table(table.X * [scale, 1, 1, 1], table.y)
    one, other = (
        fit(table, loss="logistic", l2=1e-2, tol=1e-9),
        fit(scaled, loss="logistic", l2=1e-2, tol=1e-9),
    )
    np.testing.assert_allclose(other.coef * [scale, 1, 1, 1], one.coef, rtol=1e-6)


def test_float32_columns() -> None:
    table = generate("logistic")
    single = Table(table.X.astype(np.float32), table.y)
    one, other = (
        fit(single, loss="logistic"),
        fit(Table(single.X.astype(np.float64), table.y), loss="logistic"),
    )
    np.testing.assert_allclose(one.coef, other.coef, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("loss", ["squared", "huber", "poisson", "gamma"])
def test_fewer_rows_than_columns(loss: str, n: int) -> None:
    table, options = generate(loss, n=200).take(slice(0, n)), dict(loss=loss, l2=1e-2)
    model, best = fit(table, **options), optimum(table, from_mapping(options))[0]
    assert model.summary["objective"] == pytest.approx(best, rel=1e-6, abs=1e-11)


# Targets.


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), (3.5, 7), (-2, -1)])
@pytest.mark.parametrize("loss", TWO_CLASSES)
def test_any_two_labels(loss: str, labels: tuple[float, float]) -> None:
    """The larger is the positive class, and both come back."""
    table = generate(loss)
    options = dict(loss=loss, epochs=20, tol=0)
    model = fit(Table(table.X, np.where(table.y == 1, labels[1], labels[0])), **options)
    assert model.digest == fit(table, **options).digest
    assert model.classes is not None
    assert model.classes.tolist() == list(labels)
    assert model.labels() == list(labels)


def test_labels_of_a_softmax_need_not_be_codes() -> None:
    table = generate("softmax")
    model = fit(
        Table(table.X, np.array([-5.0, 2.5, 100.0])[table.y.astype(int)]), loss="softmax", epochs=20
    )
    assert model.digest == fit(table, loss="softmax", epochs=20).digest
    assert model.labels() == [-5, 2.5, 100]


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("logistic", [1, 1, 1, 1], "exactly two different values in the target, found 1: 1"),
        ("hinge", [0, 1, 2, 1], "exactly two different values in the target, found 3: 0, 1, 2"),
        ("softmax", [4, 4, 4, 4], "2 to 10000 different values in the target, found 1: 4"),
        ("poisson", [0, 1, -2, 1], "row 2: y is -2: the poisson loss needs numbers of at least 0"),
        ("gamma", [1, 2, 3, 0], "row 3: y is 0: the gamma loss needs numbers above 0"),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_targets_outside_the_domain(loss: str, y: list[float], message: str, size: int) -> None:
    table = Table(np.arange(8.0).reshape(4, 2), np.array(y, dtype=float))

    def attempt(comm: Comm) -> MpigdError:
        with pytest.raises(DataError) as caught:
            fit(shard(table, comm), comm, loss=loss)
        return caught.value

    errors = run(size, attempt)
    assert {str(error) for error in errors} == {str(errors[0])}, "every rank raises the same"
    assert message in str(errors[0])
    assert all(error.agreed for error in errors)


def test_more_classes_than_anybody_has() -> None:
    n = 10_001
    with pytest.raises(DataError, match="found more: 0, 1, 2, 3, 4, \\.\\.\\."):
        fit(Table(np.ones((n, 1)), np.arange(n, dtype=float)), loss="softmax")
