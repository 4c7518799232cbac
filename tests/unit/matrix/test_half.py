"""Half precision: stored values are IEEE's nearest halves.

Training on them has the same bits as training on those values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse

from mpigd.config.schema import from_mapping
from mpigd.data.batches import Batch
from mpigd.data.in_memory import shard_of
from mpigd.data.loading import Layout, read, survey
from mpigd.data.shard import Shard
from mpigd.errors import MpigdError
from mpigd.matrix.base import Dense, Task
from mpigd.matrix.half import Half, units
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.reduction.base import NativeAccumulator
from mpigd.training import problem as build
from mpigd_kernels import half, residuals
from tests.scenarios import fit, same
from tests.threadcomm import run
from tests.truths import ALL_LOSSES, generate

Array = np.ndarray[Any, Any]
SIZES = 10.0 ** np.array(
    [-30.0, -9.0, 0.0, 20.0]
)  # of columns: none but the third would fit a float16 as it is


def write(path: Path, X: Array, y: Array, **more: Any) -> str:
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=X, chunks=(min(7, len(y)), X.shape[1]))
        file["y"] = y
        for name, values in more.items():
            file[name] = values
    return str(path)


def loaded(
    paths: list[str], comm: Comm, dtype: str | None = "float16", partition: str = "range"
) -> Shard:
    layout = Layout(dtype=dtype, partition=partition)
    return read(survey(paths, layout, comm), layout, comm)


def widened(shard: Shard) -> Shard:
    """The same rows, kept in float64."""
    assert isinstance(shard.X, Half)
    values = shard.X.bits.view(np.float16).astype(np.float64) * shard.X.unit
    return Shard(shard.n, shard.rows, Dense(values), shard.y, shard.c, shard.offset)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_the_nearest_half(kind: Any) -> None:
    """numpy's conversion is the truth: ties, halves with fewer bits, and what becomes zero."""
    rng = np.random.default_rng(0)
    bits = np.arange(0x7BFF, dtype=np.uint16)
    exact = bits.view(np.float16).astype(np.float64)
    ties = exact + np.append(np.diff(exact), 0) / 2
    wide = rng.normal(size=40_000) * 10.0 ** rng.uniform(-10, 4, 40_000)
    values = np.concatenate(
        [exact, ties, np.nextafter(ties, 0), np.nextafter(ties, 1e9), wide, [65504.0]]
    )
    values = np.concatenate([values, -values])[np.newaxis].astype(kind)
    out, d = np.empty(values.shape, np.uint16), values.shape[1]
    lost, kept, gone = np.zeros(d), np.zeros(d, np.int64), np.zeros(d, np.int64)
    half.narrow(values, np.ones(d), out, lost, kept, gone)
    truth = values.astype(np.float16)
    np.testing.assert_array_equal(out.view(np.float16), truth)
    np.testing.assert_array_equal(lost, np.abs(values.astype(float) - truth)[0])
    np.testing.assert_array_equal(kept, truth[0] != 0)
    np.testing.assert_array_equal(gone, (truth[0] == 0) & (values[0] != 0))


def test_units_bring_every_size_into_the_range_of_halves() -> None:
    largest = np.array([65504.0, 65503.9, 65505.0, 1.0, 1e300, 1e-250, 3e5])
    unit = units(largest)
    assert np.all(np.frexp(unit)[0] == 0.5)
    assert np.all(largest / unit < 65504.1) and np.all(largest / unit > 32000)
    np.testing.assert_array_equal(units(np.array([0.0, np.inf])), 1.0)


def added_up(X: Half | Dense, w: Array, r: Array) -> Array:
    """Plain sums of a sweep at w over every second row, then all of them."""
    into = NativeAccumulator(1, X.d)
    task = Task(
        residuals.LOSS,
        residuals.Squared(0.0),
        r[np.newaxis, : X.n],
        np.ones(1),
        w[np.newaxis],
        np.zeros(1),
    )
    for rows in (np.arange(0, X.n, 2), slice(None)):
        X.sweep(rows, task, into)
    return into.words


@pytest.mark.parametrize("d", [1, 4, 16, 37])
def test_every_answer_is_that_of_the_widened_values(d: int) -> None:
    rng = np.random.default_rng(d)
    unit = np.ldexp(1.0, rng.integers(-80, 80, d))
    X = Half(rng.normal(size=(300, d)).astype(np.float16).view(np.uint16), unit)
    truth = X.widened()
    np.testing.assert_array_equal(truth.values, X.bits.view(np.float16).astype(float) * unit)
    w, r = rng.normal(size=d) / unit, rng.normal(size=300)
    for some, other in (
        (X, truth),
        (X.rows(slice(3, 200)), truth.rows(slice(3, 200))),
        (X.rows(np.arange(9)), truth.rows(np.arange(9))),
    ):
        z, same_z = np.empty(some.n), np.empty(some.n)
        some.margins(w, 0.3, z)
        other.margins(w, 0.3, same_z)
        np.testing.assert_array_equal(z, same_z)
        np.testing.assert_array_equal(added_up(some, w, r), added_up(other, w, r))
    for name in ("low", "high", "count"):
        np.testing.assert_array_equal(getattr(X.columns(), name), getattr(truth.columns(), name))


@pytest.mark.full(
    why=(
        "the code of a loss sees margins, not halves: bounded and unbounded gradients, "
        "one output and several"
    ),
    when=lambda loss: loss not in ("logistic", "softmax", "poisson"),
)
@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize(
    "mode", [dict(mode="full", epochs=4), dict(mode="minibatch", epochs=2, batch_size=17)]
)
def test_the_model_of_the_widened_values(loss: str, mode: dict[str, Any]) -> None:
    """To the last bit, on one process and on three, whatever the units."""
    table, options = generate(loss, n=90, weights=True), dict(loss=loss, l2=1e-3, **mode)
    data = (table.X * SIZES, table.y, table.c)
    halves = shard_of(data, "float16", SelfComm())
    model, truth = fit(halves, **options), fit(widened(halves), **options)
    np.testing.assert_array_equal(model.coef, truth.coef)
    assert model.summary["objective"] == truth.summary["objective"]

    def on_ranks(comm: Comm) -> None:
        cuts = (0, 40, 41, 90)
        mine = slice(cuts[comm.rank], cuts[comm.rank + 1])
        same(
            fit(shard_of(tuple(part[mine] for part in data), "float16", comm), comm, **options),
            model,
        )

    run(3, on_ranks)


def test_the_gradient_is_close_to_that_of_float32() -> None:
    rng = np.random.default_rng(3)
    X = (rng.normal(size=(4000, 24)) * 10.0 ** rng.integers(-9, 9, 24)).astype(np.float32)
    y, config = (rng.random(4000) < 0.4).astype(float), from_mapping(dict(loss="logistic"))
    gradients = []
    for dtype in ("float32", "float16"):
        problem = build.problem(shard_of((X, y), dtype, SelfComm()), config, SelfComm())
        w = np.linspace(-0.3, 0.3, problem.objective.size)
        everything = Batch.whole(4000)
        gradients.append(problem.objective.on(everything, problem.reducer).value_and_gradient(w)[1])
        assert problem.shard.X.row_bytes == {"float32": 4, "float16": 2}[dtype] * 24
    off = np.linalg.norm(gradients[1] - gradients[0]) / np.linalg.norm(gradients[0])
    assert 0 < off < 1e-4


@pytest.mark.parametrize("partition", ["range", "hash", "file"])
def test_files(partition: str, tmp_path: Path) -> None:
    """Two files, one float64 and one float32, are read on one, two and five ranks.

    The units of the columns are those of all rows.
    """
    table = generate("logistic", n=90)
    X = table.X * SIZES
    paths = [
        write(tmp_path / "a.h5", X[:50, [2, 2, 0]].astype(np.float32), table.y[:50]),
        write(tmp_path / "b.h5", X[50:, [2, 2, 0]], table.y[50:]),
    ]
    whole = loaded(paths, SelfComm())
    assert isinstance(whole.X, Half)
    truth = np.concatenate([X[:50, [2, 2, 0]].astype(np.float32), X[50:, [2, 2, 0]]])
    np.testing.assert_array_equal(
        whole.X.bits.view(np.float16), (truth / whole.X.unit).astype(np.float16)
    )
    model = fit(whole, loss="logistic", epochs=3)
    for size in (1, 2, 5):
        run(
            size,
            lambda comm: same(
                fit(paths, comm, loss="logistic", epochs=3, dtype="float16", partition=partition),
                model,
            ),
        )


def test_halves_in_the_file_stay_as_they_are(tmp_path: Path) -> None:
    X = np.array([[65504, 6e-8], [1, 6e-5], [2, 0]], np.float16)
    shard = loaded([write(tmp_path / "h.h5", X, np.arange(3.0))], SelfComm())
    assert isinstance(shard.X, Half)
    np.testing.assert_array_equal(shard.X.bits.view(np.float16), X)
    np.testing.assert_array_equal(shard.X.unit, 1.0)


LONG = np.linspace(1.7e9, 1.7e9 + 1e5, 64)  # seconds since 1970
SPREAD = 10.0 ** np.linspace(-20, 0, 64)
MISFITS = {
    "times": (LONG, "values up to 1.7001e+09 would be off by up to 3.6e+05, its range is 1e+05"),
    "decades": (SPREAD, "beside 1, 26 of its 64 values other than zero would become zero"),
}


@pytest.mark.parametrize("kind", MISFITS)
@pytest.mark.parametrize("size", [1, 3])
def test_a_column_that_does_not_fit_is_named(kind: str, size: int, tmp_path: Path) -> None:
    values, why = MISFITS[kind]
    encoding = np.frombuffer(b'{"feature_names": ["fine", "misfit"]}', np.uint8)
    path = write(
        tmp_path / "t.h5",
        np.column_stack([np.arange(64.0), values]),
        np.arange(64.0),
        encoding=encoding,
    )
    X = np.column_stack([np.arange(64.0), values])

    def refused(comm: Comm) -> None:
        with pytest.raises(MpigdError) as caught:
            loaded([path], comm)
        assert (
            str(caught.value)
            == f"{path}: column 'misfit' does not fit float16: {why} (use --dtype float32)"
        )
        assert caught.value.agreed
        with pytest.raises(MpigdError, match="X: column 1 does not fit float16"):
            shard_of((X[comm.rank :: size], X[comm.rank :: size, 0]), "float16", comm)

    run(size, refused)


@pytest.mark.parametrize(
    "column",
    [
        np.arange(1990.0, 2020.0),
        np.full(30, 0.1),
        np.zeros(30),
        np.append(np.full(29, 1e-9), 1.0),
        np.append(np.zeros(29), 1e300),
    ],
    ids=["years", "constant", "zeros", "outlier", "alone"],
)
def test_columns_that_fit(column: Array) -> None:
    shard = shard_of((column[:, np.newaxis], np.arange(30.0)), "float16", SelfComm())
    assert isinstance(shard.X, Half)
    np.testing.assert_allclose(shard.X.widened().values[:, 0], column, rtol=2.0**-11)


def test_bad_numbers_and_sparse_data_are_refused(tmp_path: Path) -> None:
    X = np.ones((20, 2), np.float16)
    X[13, 1] = np.inf
    for kind in (np.float16, np.float32):
        path = write(tmp_path / f"{kind.__name__}.h5", X.astype(kind), np.arange(20.0))
        with pytest.raises(
            MpigdError, match=f"{path}: 'X' row 13 column 1 is inf: not a finite number"
        ):
            loaded([path], SelfComm())
    with pytest.raises(
        MpigdError, match="--dtype float16 is for dense data, and these are sparse: use float32"
    ):
        shard_of((sparse.eye(5, format="csr"), np.arange(5.0)), "float16", SelfComm())
