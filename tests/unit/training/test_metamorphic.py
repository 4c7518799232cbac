"""Units, order, names and spellings of the same data must not change a model, for every loss.

Each test trains on a table and on another spelling of it, maps the second model's coefficients back
and compares both on the first table with plain numpy (tests/truths.py): the objectives must agree
to the tolerance of the runs, relative to what there is to gain over the model without columns. For
smooth losses the predictions are compared too: for two models within e of the optimum the symmetric
Bregman distance of their margins, sum c (dl/dz - dl/dz') (z - z') / sum c, is at most about 8 e.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import mpigd
from mpigd.config.schema import from_mapping
from mpigd.model.losses import LOSSES
from tests.truths import Table, generate, objective, pointwise

Array = np.ndarray[Any, Any]
Options = dict[str, Any]
Back = Callable[
    [Array, Array], tuple[Array, Array]
]  # coef (k, d'), intercept (k,) of the other spelling -> those of the table
N, D = 300, 4
TIGHT, DEFAULT = 1e-10, 1e-6  # tolerances of losses that have a derivative
ROUGH = 1e-4  # of those that have none: asked for a tenth of it
ROUNDING = 1e-13  # of an objective
PENALTIES: dict[str, Options] = {"none": {}, "ridge": dict(l2=1e-2), "lasso": dict(l1=1e-2)}
CLASSES = [loss for loss in LOSSES if LOSSES[loss].classifies]
SCALABLE = (
    "squared",
    "huber",
    "quantile",
    "poisson",
    "gamma",
)  # losses whose target may have another unit
LOG_LINK = ("poisson", "gamma")
CASES = [
    (loss, penalty)
    for loss in LOSSES
    for penalty in PENALTIES
    if penalty != "lasso" or LOSSES[loss].smooth
]
FREE = [(loss, "none") for loss in LOSSES]
EVERY = pytest.mark.parametrize(("loss", "penalty"), CASES)
UNPENALISED = pytest.mark.parametrize(("loss", "penalty"), FREE)
LAYOUTS = pytest.mark.parametrize("layout", ["dense", "csr"])
SPARSE_LOSSES = ("poisson", "softmax")  # one output and several
pytestmark = pytest.mark.full(
    why=(
        "CSR rows reach a loss through the same margins as dense rows; "
        "two losses with CSR show that"
    ),
    when=lambda layout, loss: layout == "csr" and loss not in SPARSE_LOSSES,
)


def same(coef: Array, intercept: Array) -> tuple[Array, Array]:
    return coef, intercept


@dataclass(frozen=True)
class Spelling:
    """The same data written in another way: the table, the options that change with it, the way
    back for coefficients."""

    table: Table
    back: Back = same
    options: Options | None = None


@functools.cache
def table_of(loss: str) -> Table:
    """Rows of an ordinary problem: no separation, a signal, an outlier or two."""
    return generate(loss, n=N, d=D, seed=2)


def options_of(loss: str, penalty: str) -> Options:
    return (
        dict(loss=loss, tol=TIGHT if LOSSES[loss].smooth else ROUGH / 10, statistics="no")
        | PENALTIES[penalty]
    )


def trained(table: Table, layout: str, options: Options) -> tuple[Array, Array]:
    X = sparse.csr_matrix(table.X) if layout == "csr" else table.X
    model = mpigd.train((X, table.y, table.c, table.offset), **options)
    return model.coef, model.intercept


@functools.cache
def base(loss: str, penalty: str, layout: str) -> tuple[Array, Array]:
    return trained(table_of(loss), layout, options_of(loss, penalty))


@functools.cache
def null_value(loss: str, penalty: str) -> float:
    """The objective of the best model without columns."""
    table, options = table_of(loss), options_of(loss, "none")
    coef, intercept = trained(replace(table, X=np.zeros((N, 1))), "dense", options)
    return value_of(table, loss, "none", np.zeros((coef.shape[0], D)), intercept)


def value_of(
    table: Table, loss: str, penalty: str, coef: Array, intercept: Array, standardize: bool = True
) -> float:
    config = from_mapping(options_of(loss, penalty) | dict(standardize=standardize))
    scale = np.std(table.X, axis=0) if standardize else 1.0
    if loss == "softmax" and penalty == "none":  # what all classes have in common may be large
        coef, intercept = coef - coef.mean(axis=0), intercept - intercept.mean()
    return objective(table, config, coef, intercept)[0] + config.l1 * float(
        np.abs(coef * scale).sum()
    )


def distance(
    table: Table, loss: str, one: tuple[Array, Array], other: tuple[Array, Array]
) -> float:
    """Symmetric Bregman distance of two models' margins."""
    config = from_mapping(dict(loss=loss))
    z, t = (table.X @ coef.T + intercept for coef, intercept in (one, other))
    change = pointwise(loss, z, table.y, config)[1] - pointwise(loss, t, table.y, config)[1]
    apart = z - t
    if loss == "softmax":  # what all classes have in common changes no probability
        apart -= apart.mean(axis=1, keepdims=True)
    return float(np.mean(np.sum(change * apart, axis=1)))


def agree(
    loss: str,
    penalty: str,
    layout: str,
    spelling: Spelling,
    standardize: bool = True,
    tol: float = TIGHT,
) -> None:
    table, more = table_of(loss), {} if standardize else dict(standardize=False)
    options = options_of(loss, penalty) | more
    first = base(loss, penalty, layout) if standardize else trained(table, layout, options)
    options |= dict(tol=tol) if LOSSES[loss].smooth else {}
    second = spelling.back(*trained(spelling.table, layout, options | (spelling.options or {})))
    values = [value_of(table, loss, penalty, *model, standardize) for model in (first, second)]
    gain = null_value(loss, penalty) - min(values)
    tolerance = tol if LOSSES[loss].smooth else ROUGH
    allowed = tolerance * gain + ROUNDING * abs(values[0])
    assert abs(values[1] - values[0]) <= allowed, (
        f"objectives {values}: {(values[1] - values[0]) / gain:.1e} of the gain"
    )
    if LOSSES[loss].smooth:
        apart = distance(table, loss, first, second)
        assert apart <= 8.0 * allowed, f"predictions: {apart / gain:.1e} of the gain"


# Units.


@pytest.mark.parametrize("tol", [TIGHT, DEFAULT])
@pytest.mark.parametrize("unit", [1e-9, 0.37, 1e9])
@LAYOUTS
@pytest.mark.parametrize(("loss", "penalty"), [case for case in CASES if case[0] in SCALABLE])
def test_unit_of_the_target(loss: str, penalty: str, layout: str, unit: float, tol: float) -> None:
    agree(loss, penalty, layout, in_units(loss, penalty, unit), tol=tol)


def in_units(loss: str, penalty: str, unit: float) -> Spelling:
    """The target times `unit`, and the penalty such that the objective is multiplied as a whole."""
    table, asked = table_of(loss), PENALTIES[penalty]
    power = {
        "squared": (0.0, 1.0),
        "huber": (0.0, 1.0),
        "quantile": (-1.0, 0.0),
        "poisson": (1.0, 1.0),
        "gamma": (0.0, 0.0),
    }[loss]
    options: Options = {
        name: asked[name] * unit**p
        for name, p in zip(("l2", "l1"), power, strict=True)
        if name in asked
    }
    if loss == "huber":
        options["delta"] = from_mapping({}).delta * unit

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        return (
            (coef, intercept - np.log(unit))
            if loss in LOG_LINK
            else (coef / unit, intercept / unit)
        )

    return Spelling(replace(table, y=table.y * unit), back, options)


@pytest.mark.parametrize("tol", [TIGHT, DEFAULT])
@pytest.mark.parametrize("rate", [1e-6, 1e6])
def test_rates_and_exposures(rate: float, tol: float) -> None:
    """Events in units of a million, and exposures of a millionth or a million as offsets."""
    table = table_of("poisson")

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        return coef, intercept - np.log(rate)

    agree(
        "poisson",
        "none",
        "dense",
        Spelling(replace(table, offset=np.full(N, -np.log(rate))), back),
        tol=tol,
    )
    agree("poisson", "none", "dense", in_units("poisson", "none", rate), tol=tol)


@pytest.mark.parametrize("optimizer", ["newton", "newton-cholesky", "lbfgs"])
@pytest.mark.parametrize(
    ("loss", "unit"),
    [(loss, unit) for loss in SCALABLE for unit in (1e-9, 1e9) if LOSSES[loss].smooth],
)
def test_every_optimizer_has_the_unit_of_the_target(loss: str, unit: float, optimizer: str) -> None:
    spelling = in_units(loss, "none", unit)
    spelling = replace(spelling, options=(spelling.options or {}) | dict(optimizer=optimizer))
    agree(loss, "none", "dense", spelling, tol=DEFAULT)


@pytest.mark.parametrize("optimizer", ["newton", "newton-cholesky", "lbfgs"])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if LOSSES[loss].smooth])
def test_every_optimizer_finds_the_same(loss: str, optimizer: str) -> None:
    spelling = linear(
        table_of(loss), np.array([1e-6, -3.0, 1e3, 1e6]), np.array([0.0, 100.0, -5.0, 1e4])
    )
    agree(loss, "none", "dense", replace(spelling, options=dict(optimizer=optimizer)), tol=DEFAULT)


def linear(table: Table, scale: Array, shift: Array) -> Spelling:
    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        return coef * scale, intercept + coef @ shift

    return Spelling(replace(table, X=table.X * scale + shift), back)


@pytest.mark.parametrize("units", ["decades", "tiny", "huge"])
@LAYOUTS
@EVERY
def test_units_of_columns(loss: str, penalty: str, layout: str, units: str) -> None:
    scale = {
        "decades": np.array([1e-6, -3.0, 1e3, 1e6]),
        "tiny": np.full(D, 1e-12),
        "huge": np.full(D, 1e12),
    }[units]
    agree(loss, penalty, layout, linear(table_of(loss), scale, np.zeros(D)))


@pytest.mark.parametrize("largest", [1e4, 1e8])
@LAYOUTS
@EVERY
def test_shifted_columns(loss: str, penalty: str, layout: str, largest: float) -> None:
    agree(
        loss,
        penalty,
        layout,
        linear(table_of(loss), np.ones(D), np.array([0.0, 100.0, -5.0, largest])),
    )


@LAYOUTS
@UNPENALISED
def test_units_and_shifts_without_standardisation(loss: str, penalty: str, layout: str) -> None:
    spelling = linear(
        table_of(loss), np.array([1e-6, -3.0, 1e3, 1e6]), np.array([0.0, 100.0, -5.0, 1e4])
    )
    agree(loss, penalty, layout, spelling, standardize=False)


@LAYOUTS
@EVERY
def test_standardisation_changes_the_penalty_alone(loss: str, penalty: str, layout: str) -> None:
    """On columns of deviation one it changes nothing, and without penalty never."""
    table = table_of(loss)
    deviation = np.ones(D) if penalty == "none" else np.std(table.X, axis=0)
    spelling = linear(table, 1.0 / deviation, np.zeros(D))
    agree(loss, penalty, layout, replace(spelling, options=dict(standardize=False)))


@pytest.mark.parametrize("unit", [1e-12, 3.7, 1e12])
@LAYOUTS
@EVERY
def test_unit_of_the_weights(loss: str, penalty: str, layout: str, unit: float) -> None:
    agree(loss, penalty, layout, Spelling(replace(table_of(loss), c=np.full(N, unit))))


# Rows.


@LAYOUTS
@EVERY
def test_doubled_rows(loss: str, penalty: str, layout: str) -> None:
    agree(loss, penalty, layout, Spelling(table_of(loss).take(np.tile(np.arange(N), 2))))


@LAYOUTS
@EVERY
def test_rows_and_their_weights(loss: str, penalty: str, layout: str) -> None:
    """Every row split into one to three, whose weights add up to one."""
    pieces = np.arange(N) % 3 + 1
    rows = np.repeat(np.arange(N), pieces)
    agree(loss, penalty, layout, Spelling(replace(table_of(loss).take(rows), c=1.0 / pieces[rows])))


@LAYOUTS
@EVERY
def test_order_of_rows(loss: str, penalty: str, layout: str) -> None:
    agree(
        loss,
        penalty,
        layout,
        Spelling(table_of(loss).take(np.random.default_rng(0).permutation(N))),
    )


@LAYOUTS
@EVERY
def test_rows_of_no_weight(loss: str, penalty: str, layout: str) -> None:
    table = table_of(loss)
    y = np.append(table.y, table.y[:7] if LOSSES[loss].classifies else 50.0 * table.y[:7])
    added = Table(np.vstack([table.X, -20.0 * table.X[:7]]), y, np.append(np.ones(N), np.zeros(7)))
    agree(loss, penalty, layout, Spelling(added))


# Columns.


@LAYOUTS
@EVERY
def test_order_of_columns(loss: str, penalty: str, layout: str) -> None:
    table, order = table_of(loss), np.array([2, 0, 3, 1])

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        return coef[:, np.argsort(order)], intercept

    agree(loss, penalty, layout, Spelling(replace(table, X=table.X[:, order]), back))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
@LAYOUTS
@EVERY
def test_a_constant_column(loss: str, penalty: str, layout: str, value: float) -> None:
    table = table_of(loss)

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        return coef[:, 1:], intercept + value * coef[:, 0]

    agree(
        loss,
        penalty,
        layout,
        Spelling(replace(table, X=np.column_stack([np.full(N, value), table.X])), back),
    )


@LAYOUTS
@UNPENALISED
def test_a_column_of_ones_is_an_intercept(loss: str, penalty: str, layout: str) -> None:
    table = table_of(loss)

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        return coef[:, 1:], coef[:, 0]

    spelling = Spelling(
        replace(table, X=np.column_stack([np.ones(N), table.X])), back, dict(intercept=False)
    )
    agree(loss, penalty, layout, spelling)


@LAYOUTS
@pytest.mark.parametrize(("loss", "penalty"), [case for case in CASES if case[1] != "ridge"])
def test_a_duplicate_column(loss: str, penalty: str, layout: str) -> None:
    """Without a ridge only the sum of both coefficients counts, for l1 too, as long as they have
    one sign."""
    table = table_of(loss)

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        if penalty == "lasso":
            assert np.all(coef[:, 0] * coef[:, D] >= 0.0)
        return coef[:, :D] + np.column_stack(
            [coef[:, D:], np.zeros((coef.shape[0], D - 1))]
        ), intercept

    agree(
        loss,
        penalty,
        layout,
        Spelling(replace(table, X=np.column_stack([table.X, table.X[:, 0]])), back),
    )


@LAYOUTS
@UNPENALISED
def test_a_dependent_column(loss: str, penalty: str, layout: str) -> None:
    """As with all levels of a factor and an intercept: one column is a combination of others and of
    a constant."""
    table = table_of(loss)

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        extra = coef[:, :1]
        return coef[:, 1:] - extra * np.array([1.0, 1.0, -0.5, 0.0]), intercept + extra[:, 0]

    dependent = 1.0 - table.X[:, 0] - table.X[:, 1] + 0.5 * table.X[:, 2]
    agree(
        loss,
        penalty,
        layout,
        Spelling(replace(table, X=np.column_stack([dependent, table.X])), back),
    )


@LAYOUTS
@pytest.mark.parametrize("loss", LOSSES)
def test_a_duplicate_column_with_a_ridge(loss: str, layout: str) -> None:
    """Both take half: as if the penalty of that column were halved, or the column multiplied by the
    root of two."""
    table, options = table_of(loss), options_of(loss, "ridge") | dict(standardize=False)
    coef, intercept = trained(
        replace(table, X=np.column_stack([table.X, table.X[:, 0]])), layout, options
    )
    root = np.array([np.sqrt(2.0), 1.0, 1.0, 1.0])
    other, other_intercept = trained(replace(table, X=table.X * root), layout, options)
    joint = coef[:, :D].copy()
    joint[:, 0] += coef[:, D]
    extra = 0.5 * options["l2"] * (coef[:, 0] ** 2 + coef[:, D] ** 2 - joint[:, 0] ** 2).sum()
    values = [
        value_of(table, loss, "ridge", joint, intercept, False) + extra,
        value_of(replace(table, X=table.X * root), loss, "ridge", other, other_intercept, False),
    ]
    gain = null_value(loss, "ridge") - min(values)
    tolerance = TIGHT if LOSSES[loss].smooth else ROUGH
    assert abs(values[1] - values[0]) <= tolerance * gain + ROUNDING * values[0]
    if LOSSES[loss].smooth:
        np.testing.assert_allclose(coef[:, 0], coef[:, D], rtol=1e-4)
        assert (
            distance(table, loss, (joint, intercept), (other * root, other_intercept))
            <= 8.0 * tolerance * gain
        )


# Names, and what is added to the margins.


@pytest.mark.parametrize("order", ["kept", "reversed"])
@LAYOUTS
@pytest.mark.parametrize(("loss", "penalty"), [case for case in CASES if case[0] in CLASSES])
def test_names_of_classes(loss: str, penalty: str, layout: str, order: str) -> None:
    table = table_of(loss)
    y = 4.0 * table.y - 1.0 if order == "kept" else 9.0 - table.y

    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        if order == "kept":
            return coef, intercept
        return (coef[::-1], intercept[::-1]) if loss == "softmax" else (-coef, -intercept)

    agree(loss, penalty, layout, Spelling(replace(table, y=y), back))


@LAYOUTS
@EVERY
def test_a_constant_offset(loss: str, penalty: str, layout: str) -> None:
    def back(coef: Array, intercept: Array) -> tuple[Array, Array]:
        return coef, intercept + 3.0

    agree(loss, penalty, layout, Spelling(replace(table_of(loss), offset=np.full(N, 3.0)), back))
