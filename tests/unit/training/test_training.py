"""Training as a whole.

Tests check bits on virtual ranks, the optima of every mode, and when runs stop.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.config.schema import FIELDS, from_mapping
from mpigd.errors import DataError, NumericalError, UsageError
from mpigd.matrix.base import block_rows
from mpigd.parallel.comm import SelfComm
from mpigd.scoring.fitted_model import load
from tests.scenarios import OPTIMIZERS, PLACES, SCENARIOS, STEPS, fit, same, shard, write
from tests.threadcomm import run
from tests.truths import ALL_LOSSES, Table, generate, objective, optimum


@pytest.mark.full(
    why="real ranks run these scenarios: 3 with MPICH and 2 with Open MPI (tests/mpi)",
    when=lambda size: size < 5,
)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, size: int, tmp_path: Path) -> None:
    run(size, SCENARIOS[name], tmp_path)


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("mode", STEPS)
def test_threads_and_blocks_leave_the_bits_alone(mode: str, as_csr: bool) -> None:
    data = shard(generate("softmax", n=6000, d=40, weights=True), SelfComm(), as_csr=as_csr)
    assert data.X.n > 3 * block_rows(data.X), "several blocks"
    options = dict(
        loss="softmax",
        mode=mode,
        **(STEPS[mode] | ({} if mode == "full" else dict(batch_size=4000))),
    )
    truth = fit(data, threads=1, **options)
    for threads in (2, 3, 8):
        same(fit(data, threads=threads, **options), truth)


@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize("mode", STEPS)
def test_dense_is_sparse(loss: str, mode: str) -> None:
    table, options = generate(loss, weights=True), dict(loss=loss, mode=mode, **STEPS[mode])
    dense, csr = (
        fit(shard(table, SelfComm(), as_csr=as_csr), **options) for as_csr in (False, True)
    )
    # Without a penalty softmax determines only the differences between classes. The part that all
    # classes share is rounding.
    apart = [
        model.coef - (model.coef.mean(axis=0) if loss == "softmax" else 0.0)
        for model in (dense, csr)
    ]
    np.testing.assert_allclose(apart[1], apart[0], rtol=1e-9, atol=1e-12)
    assert csr.summary["objective"] == pytest.approx(dense.summary["objective"], rel=1e-11)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", STEPS)
@pytest.mark.parametrize("loss", ["softmax", "hinge", "gamma"])
def test_every_optimizer_descends(loss: str, mode: str, optimizer: str) -> None:
    table, options = generate(loss, n=400), dict(loss=loss, l2=1e-3)
    rate = (
        dict(lr=0.3) if optimizer == "adagrad" else {}
    )  # its steps shrink from the automatic 0.01 on
    steps = {
        "full": dict(epochs=60),
        "minibatch": dict(epochs=3, batch_size=8),
        "stochastic": dict(epochs=1, batch_size=2),
    }
    model = fit(table, mode=mode, optimizer=optimizer, **rate, **options, **steps[mode])
    classes = 3 if loss == "softmax" else 1
    intercept = np.full(classes, np.log(table.y.mean()) if loss == "gamma" else 0.0)
    before = objective(table, from_mapping(options), np.zeros((classes, 4)), intercept)[0]
    after = objective(table, from_mapping(options), model.coef, model.intercept)[0]
    assert after <= before - 0.3 * (before - best_of(loss))


@functools.cache
def best_of(loss: str) -> float:
    """The objective that the optimisers above come near to."""
    return float(fit(generate(loss, n=400), loss=loss, l2=1e-3).summary["objective"])


# Where mini-batch and stochastic steps lead.


def six_decades(loss: str, n: int = 2000) -> Table:
    """Weights from 1e-3 to 1e3; the heavy rows follow one model, the light ones the opposite."""
    rng = np.random.default_rng(0)
    X, c = rng.normal(size=(n, 3)), 10.0 ** rng.uniform(-3, 3, n)
    z = np.where(c > 1, X @ [1.0, -1.0, 0.5] + 0.5, X @ [-1.0, 1.0, 2.0] - 1)
    y = {
        "logistic": (z + rng.logistic(size=n) > 0).astype(float),
        "squared": z + rng.normal(size=n),
        "poisson": rng.poisson(np.exp(0.5 * z)).astype(float),
    }[loss]
    return Table(X, y, c)


@pytest.mark.parametrize(
    ("mode", "options", "gap"),
    [
        ("minibatch", dict(batch_size=32, epochs=30), 1e-4),
        ("minibatch", dict(batch_size=32, epochs=30, optimizer="sgd"), 1e-4),
        ("stochastic", dict(batch_size=16, epochs=40), 1e-2),
        ("stochastic", dict(epochs=15, batch_size=2, optimizer="sgd"), 2e-2),
    ],
)
@pytest.mark.parametrize("loss", ["logistic", "squared", "poisson"])
def test_weights_over_six_decades(
    loss: str, mode: str, options: dict[str, Any], gap: float
) -> None:
    """A batch divided by its own weight would lead to the unweighted optimum."""
    table = six_decades(loss)
    weighted, unweighted = fit(table, loss=loss), fit(Table(table.X, table.y), loss=loss)
    model = fit(table, loss=loss, mode=mode, **options)
    assert model.summary["objective"] <= weighted.summary["objective"] * (1 + gap)
    apart = np.linalg.norm(weighted.coef - unweighted.coef)
    assert np.linalg.norm(model.coef - weighted.coef) < 0.15 * apart


@pytest.mark.parametrize("loss", ["logistic", "softmax", "squared", "poisson", "gamma"])
def test_five_minibatch_epochs_come_close(loss: str) -> None:
    table = generate(loss, n=40_000, d=10)
    full = fit(table, loss=loss, l2=1e-4)
    assert full.summary["stop_reason"] == "tolerance"
    for options in (dict(batch_size=128), dict(optimizer="sgd"), dict(optimizer="momentum")):
        model = fit(table, loss=loss, l2=1e-4, mode="minibatch", **options)
        assert model.summary["objective"] <= full.summary["objective"] * 1.001, options
        assert model.summary["epochs"] == 5


# When a run stops, and what it says.


def test_the_last_batch_may_be_short() -> None:
    model = fit(generate("squared", n=103), mode="minibatch", batch_size=10, epochs=3)
    assert (model.summary["steps"], model.summary["epochs"], model.summary["stop_reason"]) == (
        33,
        3.0,
        "epochs",
    )
    assert [record["step"] for record in model.history] == [11, 22, 33]
    assert model.summary["reads"] == pytest.approx(3.0)


def test_tolerance() -> None:
    table = generate("logistic")
    loose, tight, never = (
        fit(table, loss="logistic", optimizer="nesterov", tol=tol, epochs=300)
        for tol in (1e-3, 1e-8, 0)
    )
    assert loose.summary["steps"] < tight.summary["steps"] < never.summary["steps"] == 300
    assert [model.summary["stop_reason"] for model in (loose, tight, never)] == [
        "tolerance",
        "tolerance",
        "epochs",
    ]
    best = optimum(table, from_mapping(dict(loss="logistic")))[0]
    gains = [
        (model.summary["objective"] - best) / (model.summary["null_objective"] - best)
        for model in (loose, tight)
    ]
    assert 1e-6 < gains[0] <= 1e-3
    assert gains[1] <= 1e-8


def test_the_history_ends_at_the_objective() -> None:
    model = fit(generate("logistic"), loss="logistic", optimizer="nesterov", epochs=50, tol=0)
    values = [record["objective"] for record in model.history]
    assert len(values) == 50
    share = generate("logistic").y.mean()  # training starts from the best intercept
    assert values[0] == pytest.approx(
        -share * np.log(share) - (1 - share) * np.log(1 - share), rel=1e-12
    )
    assert values[-1] == pytest.approx(model.summary["objective"], rel=1e-3)


def test_the_seed_decides() -> None:
    table, options = generate("squared"), dict(mode="minibatch", batch_size=16, epochs=1)
    first, again, other = (fit(table, seed=seed, **options) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest


def test_the_configuration_that_was_used_is_complete(tmp_path: Path) -> None:
    fit(generate("logistic"), loss="logistic", mode="minibatch").save(str(tmp_path / "m.h5"))
    model = load(str(tmp_path / "m.h5"))
    stored = dict(model.config.items())
    assert set(stored) == set(FIELDS)
    chosen = {
        key: stored[key]
        for key in ("epochs", "batch_size", "optimizer", "lr_schedule", "l2", "seed")
    }
    assert chosen == dict(
        epochs=5, batch_size=200, optimizer="adam", lr_schedule="cosine", l2=0.0, seed=0
    )
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["coef"].shape == (4,)
        assert all(file[name].fletcher32 for name in file)


@pytest.mark.parametrize("mode", STEPS)
def test_divergence_ends_the_run(mode: str) -> None:
    table = generate("squared")
    with pytest.raises(NumericalError, match=r"not finite|overflow"):
        fit(table, mode=mode, optimizer="sgd", lr=1e9, lr_schedule="constant", tol=0, epochs=200)


# Validation and starting points.


@pytest.fixture
def held_out(tmp_path: Path) -> tuple[str, ...]:
    return tuple(write(generate("logistic", n=60, seed=7), tmp_path))


def noisy(patience: int | None, held_out: tuple[str, ...]) -> dict[str, Any]:
    """Steps too long to settle, so that the best score comes before the last."""
    return dict(
        loss="logistic", mode="minibatch", batch_size=8, lr=2.0, lr_schedule="constant", epochs=12,
        optimizer="sgd", validation=held_out, patience=patience,
    )  # fmt: skip


def test_early_stopping_keeps_the_best(held_out: tuple[str, ...]) -> None:
    table, test = generate("logistic"), generate("logistic", n=60, seed=7)
    all_of_it = fit(table, **noisy(None, held_out))
    scores = [
        record["validation"]["log_loss"] for record in all_of_it.history if "validation" in record
    ]
    assert len(scores) == 12
    patience = 3
    best = next(
        i
        for i in range(12)
        if min(scores[i + 1 : i + 1 + patience], default=0) >= min(scores[: i + 1])
    )
    model = fit(table, **noisy(patience, held_out))
    assert model.summary["stop_reason"] == "patience"
    assert model.summary["epochs"] == best + patience + 1 < 12
    config = from_mapping(dict(loss="logistic"))
    assert objective(test, config, model.coef, model.intercept)[0] == pytest.approx(
        scores[best], rel=1e-10
    )
    assert model.digest == fit(table, **(noisy(None, held_out) | dict(epochs=best + 1))).digest


def test_validation_scores_are_those_of_the_parameters(held_out: tuple[str, ...]) -> None:
    table, test = generate("logistic"), generate("logistic", n=60, seed=7)
    model = fit(table, **noisy(None, held_out), validate_every=10)
    steps = [record["step"] for record in model.history if "validation" in record]
    assert steps == list(range(10, 301, 10))
    last = model.history[-1].get("validation") or model.history[-2]["validation"]
    value = objective(test, from_mapping(dict(loss="logistic")), model.coef, model.intercept)[0]
    assert last["log_loss"] == pytest.approx(value, rel=1e-10)
    plain = fit(table, **(noisy(None, ()) | {}))
    assert plain.digest == model.digest, "looking on does not change the run"


@pytest.mark.parametrize("size", [1, 2])
def test_validation_data_must_fit(size: int, tmp_path: Path) -> None:
    """Kernels would read past the end of their arrays."""
    wide = tuple(write(generate("logistic", n=30, d=9), tmp_path))
    table = generate("logistic")

    def attempt(comm: Any) -> str:
        with pytest.raises(DataError) as caught:
            fit(shard(table, comm), comm, loss="logistic", validation=wide)
        assert caught.value.agreed
        return str(caught.value)

    assert set(run(size, attempt)) == {f"{wide[0]}: 9 columns, but the model was trained on 4"}


def test_a_validation_label_must_be_known(tmp_path: Path) -> None:
    test = generate("logistic", n=30)
    test.y[11] = 5
    with pytest.raises(
        DataError, match=r"part0.h5 row 11: label 5 is none of the model's classes \(0, 1\)"
    ):
        fit(generate("logistic"), loss="logistic", validation=tuple(write(test, tmp_path)))


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax", "poisson"])
def test_start_from_a_model(loss: str, tmp_path: Path) -> None:
    table, path = generate(loss, weights=True), str(tmp_path / "start.h5")
    options = dict(loss=loss, optimizer="lbfgs", l2=1e-2, tol=1e-13)
    optimum = fit(table, **options)
    optimum.save(path)
    again = fit(table, start=path, **(options | dict(tol=1e-11)))
    assert again.summary["steps"] <= 3 < optimum.summary["steps"]
    np.testing.assert_allclose(again.coef, optimum.coef, rtol=1e-6)
    assert again.history[0]["objective"] == pytest.approx(optimum.summary["objective"], rel=1e-10)


@pytest.mark.parametrize("size", [1, 2])
def test_a_start_that_does_not_fit(size: int, tmp_path: Path) -> None:
    path = str(tmp_path / "start.h5")
    fit(generate("logistic", d=3), loss="logistic").save(path)
    table = generate("logistic")
    wrong = [
        (path, UsageError, "start.h5: .* do not fit"),
        (str(tmp_path / "none.h5"), DataError, "none.h5: no such file"),
    ]
    for start, kind, message in wrong:

        def attempt(
            comm: Any, start: str = start, kind: Any = kind, message: str = message
        ) -> bool:
            with pytest.raises(kind, match=message) as caught:
                fit(shard(table, comm), comm, loss="logistic", start=start)
            return bool(caught.value.agreed)

        assert all(run(size, attempt)), "known to all ranks, so that one message is enough"


@pytest.mark.parametrize("place", PLACES)
def test_the_fingerprint_is_that_of_the_data(place: str) -> None:
    table = generate("squared", weights=True)
    truth = fit(table, epochs=1).summary["fingerprint"]
    models = run(3, lambda comm: fit(shard(table, comm, place), comm, epochs=1))
    assert {model.summary["fingerprint"] for model in models} == {truth}
    y = table.y.copy()
    y[17] = np.nextafter(y[17], 9)
    reversed_rows, fewer = table.take(np.arange(200)[::-1]), table.take(slice(0, 199))
    for other in (Table(table.X, y, table.c), Table(table.X, table.y), reversed_rows, fewer):
        assert fit(other, epochs=1).summary["fingerprint"] != truth


def test_the_time_has_four_parts_that_add_up(held_out: tuple[str, ...], tmp_path: Path) -> None:
    """Validation, checkpoints and the log are no computing."""
    options: dict[str, Any] = dict(loss="logistic", mode="minibatch", epochs=20, batch_size=100)
    plain = fit(generate("logistic"), **options).summary
    busy = fit(
        generate("logistic"), validation=held_out, checkpoint=str(tmp_path / "saved"), **options
    ).summary
    for summary in (plain, busy):
        assert list(summary["time"]) == ["load", "compute", "wait", "other"]
        assert sum(summary["time"].values()) - summary["time"]["load"] == pytest.approx(
            summary["seconds"]
        )
        assert all(seconds >= 0.0 for seconds in summary["time"].values())
    assert busy["time"]["other"] > plain["time"]["other"]
