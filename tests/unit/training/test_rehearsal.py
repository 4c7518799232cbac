"""One rank of a host compiles everything that the run will call for the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from mpigd.model.objective import Oracle
from mpigd.training import trainer, warmup
from mpigd.training.trainer import load_rows, train
from mpigd_kernels import curvature, descent, linalg, sampling
from tests.threadcomm import run


def spied(kernel: Callable[..., Any], name: str, called: set[str]) -> Callable[..., Any]:
    def spy(*arguments: Any) -> Any:
        called.add(name)
        return kernel(*arguments)

    return spy


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"positions", "cholesky", "solve", "add_outer"}),
        ({"optimizer": "newton-cholesky"}, {"cholesky", "solve", "add_outer"}),
        ({"l1": 1e-3}, {"positions", "add_outer", "sweep_coordinates"}),
    ],
)
def test_a_rehearsal_reaches_second_derivatives(
    layout: str, options: dict[str, Any], wanted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = set[str]()
    kernels = (
        (sampling, "positions"),
        (linalg, "cholesky"),
        (linalg, "solve"),
        (curvature, "add_outer"),
    )
    for module, name in (*kernels, (descent, "sweep_coordinates"), (Oracle, "hessian_vector")):
        monkeypatch.setattr(module, name, spied(getattr(module, name), name, called))
    warmup._alone(
        train, from_mapping(dict(loss="logistic", l2=1e-3, **options)), layout, "float32", False
    )
    assert called >= wanted
    if not options:
        assert "hessian_vector" in called


def test_the_rehearsal_takes_the_type_that_the_run_will_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of float64 makes float64 of all; float32 kernels would help nobody."""
    rehearsed: list[str] = []
    monkeypatch.setattr(
        trainer, "rehearse", lambda train, config, layout, dtype, *rest: rehearsed.append(dtype)
    )
    paths = [str(tmp_path / f"{dtype}.h5") for dtype in ("float32", "float64")]
    for path in paths:
        with h5py.File(path, "w") as file:
            file["X"], file["y"] = np.eye(4, dtype=Path(path).stem), np.arange(4.0)
    shards = run(2, lambda comm: load_rows(paths, from_mapping({}), comm))
    assert rehearsed == [shard.X.dtype.name for shard in shards] == ["float64"] * 2
