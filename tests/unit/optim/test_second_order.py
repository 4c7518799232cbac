"""L-BFGS and Newton's method.

Second derivatives are compared with differences and optima with scipy; others test reads, bits and
interruptions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

import mpigd
from mpigd.config.schema import from_mapping
from mpigd.errors import UsageError
from mpigd.matrix import base
from mpigd.model.objective import Oracle
from mpigd.optim.predicted_costs import Shape, cheapest
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.training import problem as build
from mpigd_kernels import vector
from tests.scenarios import continued_after_any_step, fit, kill, same, shard
from tests.threadcomm import run
from tests.truths import SMOOTH, Table, generate, optimum

Array = np.ndarray[Any, Any]
NAMES = ("newton", "newton-cholesky", "lbfgs")


def oracle_of(
    table: Table,
    comm: Comm | None = None,
    place: str = "range",
    as_csr: bool = False,
    **options: Any,
) -> Oracle:
    """The oracle of all rows, ready for second derivatives."""
    comm, config = comm or SelfComm(), from_mapping(options)
    problem = build.problem(shard(table, comm, place, as_csr), config, comm)
    problem.objective.keeps_margins = True
    batch = next(build.schedule(problem, config).batches(0))
    return problem.objective.on(batch, problem.reducer)


def with_offset(table: Table) -> Table:
    return Table(
        table.X, table.y, table.c, np.random.default_rng(1).normal(size=len(table.y)) * 0.3
    )


# Second derivatives.


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("loss", SMOOTH)
def test_hessians_are_differences_of_gradients(loss: str, as_csr: bool, intercept: bool) -> None:
    table = with_offset(generate(loss, n=150, weights=True))
    oracle = oracle_of(table, as_csr=as_csr, loss=loss, intercept=intercept)
    rng = np.random.default_rng(0)
    w = rng.normal(size=oracle.objective.size) * 0.3
    v, step = rng.normal(size=w.size), 1e-6
    ahead, behind = (oracle.value_and_gradient(w + side * step * v)[1] for side in (1, -1))
    oracle.look_at(w)
    product = oracle.hessian_vector(v)
    loose = loss in ("huber", "squared_hinge")  # a row that crosses a kink between the two points
    np.testing.assert_allclose(
        product, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-2 if loose else 1e-6
    )
    H = oracle.hessian()
    assert H.shape == (1, w.size, w.size)
    np.testing.assert_allclose(H[0] @ v, product, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(H[0], H[0].T)
    reads = oracle.objective.reads
    np.testing.assert_allclose(oracle.hessian_diagonal(), np.diag(H[0]), rtol=1e-9, atol=1e-11)
    assert oracle.objective.reads - reads == 1.0


def test_many_classes_have_diagonal_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = oracle_of(generate("softmax", n=80), loss="softmax")
    oracle.look_at(np.linspace(-1, 1, oracle.objective.size))
    whole = oracle.hessian()[0]
    monkeypatch.setattr("mpigd.model.hessian.WHOLE", 3)
    blocks = oracle.hessian()
    assert blocks.shape == (3, 5, 5)
    for q in range(3):
        np.testing.assert_array_equal(blocks[q], whole[5 * q : 5 * q + 5, 5 * q : 5 * q + 5])


@pytest.mark.parametrize("loss", ["logistic", "softmax", "poisson"])
def test_second_derivatives_have_the_same_bits_on_all_ranks(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = generate(loss, n=500, d=6, weights=True)

    def numbers(comm: Comm, threads: int) -> list[Array]:
        oracle = oracle_of(table, comm, "hash", loss=loss, threads=threads)
        oracle.look_at(np.linspace(-0.5, 0.5, oracle.objective.size))
        found = [oracle.hessian_vector(np.linspace(1, 3, oracle.objective.size)), oracle.hessian()]
        part = oracle.sample(77)
        value, g = part.value_and_gradient(np.zeros(oracle.objective.size))
        part.look_at(np.zeros(oracle.objective.size))
        return [*found, np.array([value, oracle.objective.reads]), g, part.hessian()]

    truth = numbers(SelfComm(), 1)
    for size, threads, block in ((1, 3, 16), (2, 1, 5), (3, 2, 64), (5, 1, 1)):
        monkeypatch.setattr(base, "SMALLEST_BLOCK", block)
        monkeypatch.setattr(base, "SMALLEST_SWEEP", block)
        monkeypatch.setattr(base, "SWEEP_BYTES", 1)
        monkeypatch.setattr(base, "BLOCK_BYTES", 1)
        for found in run(size, numbers, threads):
            for mine, other in zip(found, truth, strict=True):
                np.testing.assert_array_equal(mine, other)


def test_a_sample_is_the_objective_of_its_rows() -> None:
    table = generate("logistic", n=300, weights=True, holes=0.0)
    oracle = oracle_of(table, loss="logistic", seed=5)
    part = oracle.sample(40)
    assert part.objective.rows.X.n == 40
    w = np.linspace(-1, 1, 5)
    rows = [
        int(np.flatnonzero((x == table.X).all(axis=1))[0]) for x in part.objective.rows.X.values
    ]  # type: ignore[attr-defined]
    assert len(set(rows)) == 40 and rows == sorted(rows)
    coef, b = oracle.objective.scaling.to_raw(w, 1)
    assert table.c is not None
    losses = np.logaddexp(0, table.X @ coef[0] + b) - table.y * (table.X @ coef[0] + b)
    assert part.value_and_gradient(w)[0] == pytest.approx(
        (table.c * losses)[rows].sum() / table.c.sum() * 300 / 40, rel=1e-12
    )
    other = oracle_of(table, loss="logistic", seed=6).sample(40)
    assert not np.array_equal(other.objective.rows.y, part.objective.rows.y) or not np.array_equal(
        other.objective.rows.c, part.objective.rows.c
    )


def test_points_that_are_remembered_cost_no_read() -> None:
    oracle = oracle_of(generate("poisson", n=100), loss="poisson")
    points = [np.full(5, x) for x in (0.0, 0.1, 0.2)]
    for w in points:
        oracle.value_and_gradient(w)
    fresh = oracle_of(generate("poisson", n=100), loss="poisson")
    for w in points:
        oracle.look_at(w)
        fresh.look_at(w)
        np.testing.assert_array_equal(
            oracle.hessian_vector(np.ones(5)), fresh.hessian_vector(np.ones(5))
        )
    assert (oracle.objective.reads, fresh.objective.reads) == (6.0, 3.0)


# Where they lead, and what it costs.


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", SMOOTH)
def test_the_optimum_is_that_of_scipy(loss: str, name: str, l2: float, as_csr: bool) -> None:
    table = with_offset(generate(loss, n=400, weights=True))
    options = dict(loss=loss, optimizer=name, l2=l2, tol=1e-11)
    model = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
    best, _, _ = optimum(table, from_mapping(options))
    assert model.summary["stop_reason"] == "tolerance"
    assert model.summary["objective"] == pytest.approx(best, rel=1e-10)
    assert model.summary["steps"] < 60


def correlated(n: int, d: int, spread: float) -> Table:
    rng = np.random.default_rng(3)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    X = rng.normal(size=(n, d)) * np.geomspace(1, 1 / spread, d) @ Q
    z = X @ rng.normal(size=d)
    return Table(X, (rng.random(n) < 1 / (1 + np.exp(-2 * z / z.std()))).astype(float))


@pytest.mark.parametrize("name", ["auto", "newton"])
@pytest.mark.parametrize(("spread", "l2"), [(10.0, 1e-4), (1000.0, 1e-6)])
def test_reads_of_the_data(spread: float, l2: float, name: str) -> None:
    """At most 12 reads lead to 1e-6 of the optimum, and at most 18 to 1e-9.

    The reference is scikit-learn's Newton method on scaled columns.
    """
    table = correlated(20_000, 40, spread)
    scaled = (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)
    truth = LogisticRegression(
        C=1 / (l2 * 20_000), solver="newton-cholesky", tol=1e-13, max_iter=100
    ).fit(scaled, table.y)
    z = scaled @ truth.coef_[0] + truth.intercept_[0]
    best = np.mean(np.logaddexp(0, z) - table.y * z) + 0.5 * l2 * np.sum(truth.coef_**2)
    errors = {}
    for steps in range(1, 8):
        model = fit(table, loss="logistic", l2=l2, epochs=steps, tol=0, optimizer=name)
        errors[model.summary["reads"]] = model.summary["objective"] / best - 1.0
    assert min(reads for reads, error in errors.items() if error <= 1e-6) <= 12
    assert min(reads for reads, error in errors.items() if error <= 1e-9) <= 18
    assert min(errors.values()) > -1e-12


def test_newton_on_a_quadratic_is_one_step() -> None:
    table = generate("squared", n=400)
    model = fit(table, optimizer="newton-cholesky", epochs=2, l2=1e-3, tol=0)
    best = optimum(table, from_mapping(dict(l2=1e-3)))[0]
    assert model.summary["objective"] == pytest.approx(best, rel=1e-12)


def test_dependent_columns_without_a_penalty() -> None:
    """One-hot columns add up to the intercept's: the Hessian is singular, the objective not."""
    rng = np.random.default_rng(0)
    levels = np.eye(6)[rng.integers(0, 6, 4000)]
    y = (rng.random(4000) < 0.2 + levels[:, 2] / 2).astype(float)
    table = Table(np.column_stack([levels, rng.normal(size=(4000, 3))]), y)
    best = optimum(table, from_mapping(dict(loss="logistic")))[0]
    for name in NAMES:
        model = fit(table, loss="logistic", optimizer=name, tol=1e-10)
        assert model.summary["objective"] == pytest.approx(best, rel=1e-9)
        assert model.summary["stop_reason"] == "tolerance"
        assert np.abs(model.coef).max() < 50


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_cannot_go_on_says_so(name: str) -> None:
    model = fit(generate("logistic"), loss="logistic", l2=1e-2, optimizer=name, tol=0, epochs=300)
    assert model.summary["stop_reason"] == "flat"
    assert model.summary["gap"] < 1e-11


def test_what_does_not_go_together() -> None:
    table = generate("logistic")
    for name in NAMES:
        with pytest.raises(UsageError, match="--mode full and a smooth loss"):
            fit(table, loss="logistic", mode="minibatch", optimizer=name)
        with pytest.raises(UsageError, match="--mode full and a smooth loss"):
            fit(table, loss="hinge", optimizer=name)


def test_what_auto_chooses() -> None:
    chosen = {
        (loss, d, *more.items()): build.complete(
            from_mapping(dict(loss=loss, **more)), 1000, d
        ).optimizer
        for loss, d, more in (
            ("logistic", 10, {}), ("logistic", 5000, {}), ("hinge", 10, {}),
            ("poisson", 10, dict(lr=0.1)), ("poisson", 10, dict(mode="minibatch")),
        )
    }  # fmt: skip
    assert list(chosen.values()) == [
        "newton-cholesky",
        "lbfgs",
        "smoothed-newton",
        "nesterov",
        "adam",
    ]
    small = Shape(1000, 11)
    said = "optimizer auto: newton-cholesky (smooth loss, 10 columns)"
    assert build.choice(from_mapping(dict(loss="logistic")), small) == said
    assert build.choice(from_mapping(dict(loss="logistic", optimizer="lbfgs")), small) is None


def test_auto_takes_what_the_shape_makes_cheapest() -> None:
    """`auto` chooses the cheapest method for the shape of the data.

    Tall data: samples. Wide and dense data: no sample is small enough. Many columns with few
    entries: cheap sweeps.
    """
    assert cheapest(Shape(600_000, 26, samples=(6_000, 60_000))) == "newton"
    assert cheapest(Shape(1_000_000, 129, samples=(10_000, 100_000))) == "newton"
    assert cheapest(Shape(1_500, 13)) == "newton-cholesky"
    assert (
        cheapest(Shape(300_000, 1_298, entries=20.0, wide=15, samples=(32_450,))) == "lbfgs-newton"
    )
    assert cheapest(Shape(300_000, 3_900, entries=80.0)) == "lbfgs-newton"
    assert cheapest(Shape(1_797, 65, k=10)) == "lbfgs-newton"


# The same bits.


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["logistic", "softmax", "gamma"])
def test_bits(loss: str, name: str, size: int) -> None:
    """300 rows of 2 columns: Newton's method takes samples of 75 rows."""
    table, options = (
        generate(loss, n=300, d=2, weights=True),
        dict(loss=loss, optimizer=name, l2=1e-3, epochs=4, tol=0),
    )
    for as_csr in (False, True):
        truth = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
        for place, threads in (("range", 1), ("hash", 2), ("file", 3)):
            for model in run(
                size,
                lambda c, p=place, s=as_csr, t=threads: fit(
                    shard(table, c, p, s), c, threads=t, **options
                ),
            ):
                same(model, truth)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_continued_after_any_step(loss: str, name: str, tmp_path: Path) -> None:
    """On other ranks, at any step: the same bits, and the same number of reads."""
    table, options = (
        generate(loss, n=300, d=2, weights=True),
        dict(loss=loss, optimizer=name, l2=1e-3, epochs=6, tol=1e-13),
    )
    continued_after_any_step(table, tmp_path, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_can_be_repeated(name: str) -> None:
    config = from_mapping(dict(loss="logistic", optimizer=name, l2=1e-2))
    table, comm = generate("logistic", n=300, d=2), SelfComm()
    problem = build.problem(shard(table, comm), config, comm)
    optimizer = build.optimizer(problem, config, 1)
    oracle = problem.objective.on(next(build.schedule(problem, config).batches(0)), problem.reducer)
    w = np.zeros(3)
    state = optimizer.start(w)
    for _ in range(4):
        before = {key: array.copy() for key, array in state.items()}, w.copy()
        once, after = optimizer.step(w, state, oracle, problem.penalty, vector.dot)
        again, same_after = optimizer.step(w, state, oracle, problem.penalty, vector.dot)
        np.testing.assert_array_equal(once, again)
        np.testing.assert_array_equal(w, before[1])
        assert all(np.array_equal(state[key], array) for key, array in before[0].items())
        assert all(np.array_equal(after[key], same_after[key]) for key in after)
        w, state = once, after


@pytest.mark.parametrize("loss", ["logistic", "softmax", "gamma"])
def test_newton_without_a_factorisation_has_the_same_bits(
    loss: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bits are the same on any number of ranks, and when the run is continued on others.

    The diagonal and the products that Newton's method has learned are part of its state.
    """
    monkeypatch.setattr("mpigd.training.problem.LARGEST_FACTOR", 1)
    table, options = (
        generate(loss, n=300, d=9, weights=True),
        dict(loss=loss, optimizer="newton", l2=1e-3, epochs=6, tol=1e-13),
    )
    for as_csr in (False, True):
        truth = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
        for model in run(
            3, lambda c, s=as_csr: fit(shard(table, c, "hash", s), c, threads=2, **options)
        ):
            same(model, truth)
    for step in range(truth.summary["steps"] - 1):
        now = options | dict(checkpoint_every=1, checkpoint=str(tmp_path / str(step)))
        run(
            2,
            lambda comm, at=step, now=now: kill(at, shard(table, comm, "hash", True), comm, **now),
        )
        for model in run(
            3, lambda comm, now=now: fit(shard(table, comm, "file", True), comm, **now)
        ):
            same(model, truth)


def test_newton_without_a_factorisation() -> None:
    """6,001 columns are too many for that: conjugate gradients, preconditioned by the diagonal."""
    rng = np.random.default_rng(0)
    n, d = 8_000, 6_001
    columns = np.minimum((d * rng.random((n, 8)) ** 3).astype(np.int32), d - 1)
    columns.sort(axis=1)
    X = sparse.csr_matrix(
        (np.ones(8 * n), columns.ravel(), np.arange(0, 8 * n + 1, 8)), shape=(n, d)
    )
    X.sum_duplicates()
    y = (rng.random(n) < 1 / (1 + np.exp(-(X @ rng.normal(size=d))))).astype(float)
    options = dict(loss="logistic", l2=1e-3, tol=1e-8)
    newton, lbfgs = (mpigd.train((X, y), optimizer=name, **options) for name in ("newton", "lbfgs"))
    assert newton.summary["stop_reason"] == lbfgs.summary["stop_reason"] == "tolerance"
    assert newton.summary["objective"] == pytest.approx(lbfgs.summary["objective"], rel=1e-8)
    assert (
        max(lbfgs.summary["reads"], newton.summary["reads"]) < 100
    )  # why auto chooses L-BFGS here
    assert build.choice(from_mapping(dict(loss="logistic")), Shape(n, d + 1, entries=8.0)) == (
        "optimizer auto: lbfgs (smooth loss, 6,001 columns are too many to factorise)"
    )


@pytest.mark.parametrize("loss", SMOOTH)
def test_a_hessian_made_along_with_the_gradient(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradient, bit for bit, and one read where the loss's curvature has a bound."""
    table = with_offset(generate(loss, n=700, weights=True))
    for size, threads in ((1, 1), (1, 3), (3, 2)):

        def both(comm: Comm, threads: int = threads) -> None:
            oracle = oracle_of(table, comm, "hash", loss=loss, threads=threads)
            w = np.linspace(-0.3, 0.3, oracle.objective.size)
            value, g, H = oracle.derivatives(w)
            assert oracle.objective.reads == (2.0 if loss in ("poisson", "gamma") else 1.0)
            expected = oracle.value_and_gradient(w)
            oracle.look_at(w)
            assert value == expected[0]
            np.testing.assert_array_equal(g, expected[1])
            np.testing.assert_allclose(
                H, oracle.hessian(), rtol=1e-10, atol=1e-10
            )  # 42 bits of the largest term

        run(size, both)


def test_many_outputs_take_several_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = oracle_of(generate("softmax", n=80), loss="softmax")
    oracle.look_at(np.linspace(-1, 1, oracle.objective.size))
    whole, before = oracle.hessian(), oracle.objective.reads
    monkeypatch.setattr("mpigd.model.hessian.MOST", 4 * 25)
    np.testing.assert_array_equal(oracle.hessian(), whole)
    assert oracle.objective.reads - before == 2.0  # six pairs of outputs, four at once
