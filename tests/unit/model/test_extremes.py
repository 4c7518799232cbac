"""Numbers near the largest float64 are refused with their place.

Whoever follows the advice of a message, word for word, gets a model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse

import mpigd
from mpigd.__main__ import main
from mpigd.data.shard import Shard
from mpigd.errors import DataError
from mpigd.parallel.comm import Comm
from tests.scenarios import fit, matrix, places
from tests.threadcomm import run
from tests.truths import generate

Array = np.ndarray[Any, Any]
LARGEST = float(np.finfo(np.float64).max)
HUGE = pytest.mark.parametrize("value", [LARGEST, -LARGEST, 1e300, -3e200, 1e155])


def stored(
    folder: Path, X: Array, y: Array, as_csr: bool = False, files: int = 2, **vectors: Array
) -> list[str]:
    """The rows in so many files."""
    paths = []
    for number, rows in enumerate(np.array_split(np.arange(len(y)), files)):
        paths.append(str(folder / f"part{number}.h5"))
        with h5py.File(paths[-1], "w") as file:
            if as_csr:
                S = sparse.csr_matrix(X[rows])
                group = file.create_group("X")
                group.attrs.update({"encoding-type": "csr_matrix", "shape": np.array(S.shape)})
                for name in ("data", "indices", "indptr"):
                    group[name] = getattr(S, name)
            else:
                file["X"] = X[rows]
            for name, vector in ({"y": y} | vectors).items():
                file[name] = vector[rows]
    return paths


def table(loss: str, holes: float = 0.0) -> tuple[Array, Array]:
    made = generate(loss, n=100, d=4, holes=holes)
    return made.X.astype(np.float64), made.y


def refused(data: Any, size: int = 1, **options: Any) -> str:
    def attempt(comm: Comm) -> str:
        with pytest.raises(DataError) as caught:
            fit(data, comm, **options)
        assert caught.value.agreed
        return str(caught.value)

    (message,) = set(run(size, attempt))
    return message


def divisor(message: str, what: str) -> float:
    """The advice."""
    found = re.search(
        rf"correct it if it stands for a missing value, or divide {what} by (\S+)$", message
    )
    assert found, message
    return float(found[1])


@HUGE
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson"])
def test_columns(loss: str, as_csr: bool, size: int, value: float, tmp_path: Path) -> None:
    X, y = table(loss, 0.3 if as_csr else 0.0)
    X[57, 2] = value
    message = refused(stored(tmp_path, X, y, as_csr), size, loss=loss)
    assert message.startswith(
        f"{tmp_path}/part1.h5 row 7: column 2 is {value:g}: sums of such numbers overflow: "
    )
    X[:, 2] /= divisor(message, "the column")
    model = fit(stored(tmp_path, X, y, as_csr), loss=loss)
    assert np.all(np.isfinite(model.coef))


@HUGE
def test_asking_for_float64_is_not_advised_where_it_does_not_help(
    value: float, tmp_path: Path
) -> None:
    X, y = table("squared")
    X[57, 2] = value
    paths = stored(tmp_path, X, y)
    message = refused(paths, dtype="float32")
    assert message.startswith(
        f"{paths[1]}: 'X' row 7 column 2 is {value:g}: sums of such numbers overflow, "
        "in float64 too: "
    )
    X[:, 2] /= divisor(message, "the column")
    assert np.all(np.isfinite(fit(stored(tmp_path, X, y), dtype="float32").coef))
    X[:, 2] *= 1e100  # there it does
    paths = stored(tmp_path, X, y)
    assert refused(paths, dtype="float32").endswith("does not fit float32 (use --dtype float64)")
    assert np.all(np.isfinite(fit(paths, dtype="float64").coef))


def test_the_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "a,b,y\n" + "".join(f"{i},{i * i % 7},{i % 5}\n" for i in range(30)) + "1,1e300,2\n"
    )
    mpigd.import_data(tmp_path / "t.csv", tmp_path / "t.h5", target="y", dtype="float64")
    assert f"{tmp_path}/t.h5 row 30: column 1 (b) is 1e+300: " in refused([str(tmp_path / "t.h5")])


@HUGE
@pytest.mark.parametrize("size", [1, 3])
def test_targets(size: int, value: float, tmp_path: Path) -> None:
    X, y = table("squared")
    y[57] = value
    message = refused(stored(tmp_path, X, y), size)
    assert message.startswith(
        f"{tmp_path}/part1.h5 row 7: y is {value:g}: its square overflows a sum: "
    )
    model = fit(stored(tmp_path, X, y / divisor(message, "all targets")))
    assert np.all(np.isfinite(model.coef))


@pytest.mark.parametrize("value", [LARGEST, 1e300])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_weights(loss: str, size: int, value: float, tmp_path: Path) -> None:
    X, y = table(loss)
    c = np.random.default_rng(0).uniform(0.1, 1.0, 100)
    c[57] = 1.0
    message = refused(stored(tmp_path, X, y, sample_weight=c * value), size, loss=loss)
    assert message.startswith(
        f"{tmp_path}/part1.h5 row 7: 'sample_weight' is {value:g}: sums of such numbers overflow: "
    )
    scaled = c * value / divisor(message, "all weights")
    found, truth = (
        fit(stored(tmp_path, X, y, sample_weight=weights), loss=loss) for weights in (scaled, c)
    )
    np.testing.assert_allclose(found.coef, truth.coef, rtol=1e-6)


@pytest.mark.parametrize("value", [LARGEST, -1e300])
def test_offsets(value: float, tmp_path: Path) -> None:
    X, y = table("squared")
    offset = np.zeros(100)
    offset[57] = value
    message = refused(stored(tmp_path, X, y, offset=offset), 2)
    assert message == (
        f"{tmp_path}/part1.h5 row 7: 'offset' is {value:g}: sums of such numbers overflow: "
        "correct it"
    )


def test_arrays_of_ranks() -> None:
    """The first of equals, whoever has it."""
    X, y = table("squared")
    X[[31, 90], [1, 3]] = LARGEST

    def attempt(comm: Comm) -> str:
        rows = places(100, "hash", comm.rank, comm.size)
        with pytest.raises(DataError) as caught:
            fit(Shard(100, rows.astype(np.int64), matrix(X[rows], False), y[rows]), comm)
        return str(caught.value)

    for size in (1, 3):
        assert set(run(size, attempt)) == {
            f"row 31: column 1 is {LARGEST:g}: sums of such numbers overflow: "
            "correct it if it stands for a missing value, "
            "or divide the column by 1e+308"
        }


@pytest.mark.parametrize("value", [1e140, 1e100, 1e-100, 1e-140])
def test_the_unit_of_a_column_makes_no_difference(value: float) -> None:
    X, y = table("squared")
    one, other = mpigd.train((X, y), tol=1e-10), mpigd.train((X * [1, 1, value, 1], y), tol=1e-10)
    np.testing.assert_allclose(other.coef[0] * [1, 1, value, 1], one.coef[0], rtol=1e-5)


@pytest.mark.parametrize("value", [1e-150, 1e-200, 1e-300])
@pytest.mark.parametrize("as_csr", [False, True])
def test_a_column_of_tiny_numbers_is_warned_of(
    as_csr: bool, value: float, tmp_path: Path, capsys: Any
) -> None:
    """Squares of tiny values underflow to a variance of 0, which would silently mean a constant.

    Following the advice of the warning is enough.
    """
    X, y = table("squared", 0.3 if as_csr else 0.0)
    truth = fit(stored(tmp_path, X, y, as_csr), tol=1e-10)
    X[:, 2] *= value
    out = str(tmp_path / "m.h5")
    assert main(["train", *stored(tmp_path, X, y, as_csr), "-o", out]) == 0
    said = capsys.readouterr().err
    assert (
        "the squares of all values of column 2 are too small for sums in float64: "
        "their coefficients may stay 0; " in said
    )
    X[:, 2] /= float(said.partition("divide the columns by ")[2].split()[0])
    assert main(["train", *stored(tmp_path, X, y, as_csr), "-o", out, "--tol", "1e-10"]) == 0
    assert "squares" not in capsys.readouterr().err
    np.testing.assert_allclose(
        np.delete(mpigd.load(out).coef[0], 2), np.delete(truth.coef[0], 2), rtol=1e-5
    )
