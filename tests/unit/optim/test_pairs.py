"""All combinations of optimiser, loss, penalty, layout and number of ranks.

Valid ones decrease the objective and give the same bits; a message rejects the invalid ones.
"""

from __future__ import annotations

from typing import Any

import pytest

from mpigd.config.schema import FIELDS, from_mapping
from mpigd.errors import UsageError
from mpigd.model.losses import LOSSES
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.scoring.fitted_model import Model
from mpigd.training import requirements
from tests.faults.jobs import FULL
from tests.scenarios import fit, same, shard
from tests.threadcomm import run
from tests.truths import ALL_LOSSES, Table, generate

PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "ridge": dict(l2=0.1),
    "lasso": dict(l1=0.02),
    "elastic net": dict(l1=0.02, l2=0.1),
    "bounds": dict(nonnegative=True, l2=0.1),
}
STEPS: dict[str, dict[str, Any]] = {
    "full": dict(epochs=6),
    "minibatch": dict(epochs=3, batch_size=16),
}
RANKS = (2, 3) if FULL else (3,)  # other numbers of ranks: test_training.py, tests/mpi


def mode_of(name: str) -> str:
    """Full-mode optimisers in full mode, the others on mini-batches."""
    return (
        requirements.NEEDS[name].modes[0]
        if len(requirements.NEEDS[name].modes) == 1
        else "minibatch"
    )


def goes(name: str, loss: str, penalty: str) -> bool:
    """Told from the declarations alone, not by the check under test."""
    needs, rough = requirements.NEEDS[name], penalty in ("lasso", "elastic net", "bounds")
    smooth = LOSSES[loss].smooth
    return not (needs.kinked if smooth else needs.smooth) and (needs.prox or not rough)


def test_the_table_has_every_optimizer() -> None:
    assert {"auto", *requirements.NEEDS} == set(FIELDS["optimizer"].metadata["choices"])
    assert {name for name, needs in requirements.NEEDS.items() if needs.prox} == {
        "proximal-newton",
        "fista",
        "svrg",
        "sgd",
    }


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize("name", requirements.NEEDS)
def test_pairs(name: str, loss: str, penalty: str) -> None:
    mode = mode_of(name)
    options: dict[str, Any] = dict(
        loss=loss, optimizer=name, mode=mode, tol=0, threads=1, **PENALTIES[penalty], **STEPS[mode]
    )
    if not goes(name, loss, penalty):
        with pytest.raises(UsageError) as caught:
            fit(["no such file.h5"], **options)
        assert f"--optimizer {name}" in str(caught.value)
        assert "\n" not in str(caught.value)
        others = requirements.fitting(from_mapping(options | dict(optimizer="auto")))
        assert others and all(goes(other, loss, penalty) for other in others)
        return
    table = generate(loss, n=60, d=3, weights=True)
    for as_csr in (False, True):
        truth = fit(shard(table, SelfComm(), as_csr=as_csr), **options)
        # Batches of 16 rows leave some noise around an optimum within bounds.
        assert truth.summary["objective"] <= first_objective(table, options) * (
            1 + (1e-12 if mode == "full" else 0.03)
        )
        for size in RANKS:
            for model in run(size, on_ranks, table, as_csr, options):
                same(model, truth)


def on_ranks(comm: Comm, table: Table, as_csr: bool, options: dict[str, Any]) -> Model:
    return fit(shard(table, comm, "hash", as_csr), comm, **options)


def first_objective(table: Table, options: dict[str, Any]) -> float:
    """That of parameters that have hardly moved."""
    still = dict(loss=options["loss"], optimizer="sgd", mode=options["mode"], lr=1e-12, epochs=1)
    return float(fit(table, **still).summary["objective"])
