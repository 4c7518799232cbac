"""One rank of a host compiles everything that the run will call for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mpigd.config.schema import from_mapping
from mpigd.model.objective import Oracle
from mpigd.training import warmup
from mpigd.training.trainer import train
from mpigd_kernels import curvature, descent, linalg, sampling


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
