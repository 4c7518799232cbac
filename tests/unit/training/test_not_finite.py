"""A loss or gradient that is not finite stops all ranks at the same step.

The message names rows, and the parameters are saved.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.config.schema import from_mapping
from mpigd.data import batches, reader
from mpigd.errors import DataError, MpigdError, NumericalError
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.storage import hdf5
from mpigd.training import checkpoint
from mpigd.training.callbacks.progress import Progress
from mpigd.training.trainer import train
from tests.scenarios import PLACES, STEPS, fit, kill, shard, write
from tests.threadcomm import run
from tests.truths import Table, generate

FIRST: dict[str, Any] = dict(loss="poisson", optimizer="sgd", lr=0.1)


def failure(
    size: int,
    data: Any,
    place: str = "range",
    kind: type[MpigdError] = NumericalError,
    **options: Any,
) -> str:
    """The message that all ranks raise."""

    def one(comm: Comm) -> MpigdError:
        with pytest.raises(kind) as caught:
            fit(shard(data, comm, place) if isinstance(data, Table) else data, comm, **options)
        return caught.value

    errors = run(size, one)
    assert len({str(error) for error in errors}) == 1
    assert all(error.agreed and error.code == kind.code for error in errors)
    return str(errors[0])


def table(*rows: int, offset: float = 900.0) -> Table:
    """Two hundred rows of which some have offsets whose exponential is not finite."""
    made, offsets = generate("poisson", n=200), np.zeros(200)
    made.y[:], offsets[list(rows)] = 1.0, offset
    return replace(made, offset=offsets)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [1, 3])
def test_the_rows_are_named_whoever_holds_them(size: int, place: str) -> None:
    told = ", dataset offset: margin 900, y 1, loss inf"
    text = failure(size, table(123, 7), place, **FIRST)
    assert text == (
        f"after step 0: a loss or gradient is not finite: "
        f"2 rows are not finite: row 7{told}; row 123{told}"
    )
    assert f"1 row is not finite: row 199{told}" in failure(size, table(199), place, **FIRST)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kept", [{}, dict(max_memory="1kB")], ids=["in memory", "streamed"])
def test_files_and_datasets_are_named(kept: dict[str, Any], size: int, tmp_path: Path) -> None:
    """The first three of five, by file and row, also where the dataset has another name."""
    paths = write(table(3, 90, 150, 160, 199), tmp_path, files=2)
    for path in paths:
        with h5py.File(path, "r+") as file:
            file.move("y", "delays")
    text = failure(size, paths, y="delays", **kept, **FIRST)
    told, first = "dataset offset: margin 900, delays 1, loss inf", int(0.5**1.5 * 200)
    rows = (
        f"{paths[0]} row 3 (row 3 of all), {told}; "
        f"{paths[1]} row {90 - first} (row 90 of all), {told}; "
    )
    assert (
        f"5 rows are not finite: {rows}{paths[1]} row {150 - first} (row 150 of all), {told}, ..."
        in text
    )


@pytest.mark.parametrize("mode", STEPS)
def test_divergence_names_rows_of_its_step(mode: str) -> None:
    """Margins that grow beyond all bounds are made by X and the parameters."""
    options = dict(
        loss="squared",
        mode=mode,
        optimizer="sgd",
        lr=1e9,
        lr_schedule="constant",
        tol=0,
        epochs=200,
    )
    text = failure(1, generate("squared"), **options)
    assert int(text.split()[2][:-1]) > 0
    assert ", dataset X: margin " in text
    assert failure(3, generate("squared"), "hash", **options) == text


def test_where_every_row_alone_is_finite() -> None:
    """The largest losses are named: exp(709) is the last that is a number."""
    text = failure(2, table(5, 60, 61, offset=709.7), **FIRST)
    assert (
        "every row alone is finite, the largest losses have: "
        "row 5, dataset offset: margin 709.7, y 1, loss 1.6" in text
    )


def test_of_a_batch_its_rows_alone() -> None:
    text = failure(2, table(*range(200)), mode="minibatch", batch_size=20, intercept=False, **FIRST)
    assert "20 rows are not finite" in text


@pytest.mark.parametrize("size", [1, 2])
def test_of_a_batch_of_streamed_rows(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divergence in a late step names the same rows if they are streamed.

    Most pieces with rows of the batch are not in memory any more.
    """
    monkeypatch.setattr(reader, "SLAB_BYTES", 1 << 9)
    monkeypatch.setattr(batches, "BLOCK", 16)
    monkeypatch.setattr("mpigd.training.problem.BLOCK", 16)
    options: dict[str, Any] = dict(
        loss="squared", mode="minibatch", batch_size=20, optimizer="sgd", lr=1e30, tol=0, epochs=20
    )
    paths = write(generate("squared", n=200), tmp_path, files=2)
    text = failure(size, paths, **options, shuffle="blocks", max_memory="1kB")
    assert int(text.split()[2][:-1]) > 0
    assert ", dataset X: margin " in text
    assert text == failure(1, paths, **options, shuffle="blocks")


@pytest.mark.parametrize("size", [1, 2])
def test_targets_whose_squares_overflow_are_refused(size: int) -> None:
    """Their spread, with which a run begins, would not be finite."""
    data = generate("squared", n=50)
    data.y[31] = -1e170
    text = failure(size, data, kind=DataError, loss="squared")
    assert text == "row 31: y is -1e+170: its square overflows a sum: " + (
        "correct it if it stands for a missing value, or divide all targets by 1e+170"
    )


@pytest.mark.parametrize("size", [1, 3])
def test_the_parameters_before_it_are_saved(size: int, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(
        loss="squared",
        mode="minibatch",
        batch_size=50,
        optimizer="sgd",
        lr=1e30,
        lr_schedule="constant",
        epochs=20,
    )
    data = generate("squared", n=200)
    text = failure(size, data, **options, checkpoint=str(tmp_path / "saved"))
    step = int(text.split()[2][:-1])
    assert text.endswith(f"; the parameters before it are saved in {tmp_path / 'saved'}")
    saved = checkpoint.read(checkpoint.found(str(tmp_path / "saved"))[0])
    assert saved.step == step > 0
    kill(
        step - 1,
        shard(data, SelfComm()),
        SelfComm(),
        **options,
        checkpoint=str(tmp_path / "k"),
        checkpoint_every=1,
    )
    before = checkpoint.read(checkpoint.found(str(tmp_path / "k"))[0])
    np.testing.assert_array_equal(saved.w, before.w)
    again = failure(size, data, **options, checkpoint=str(tmp_path / "saved"))
    assert again == text, "continued, it ends at the same place"


@pytest.mark.parametrize("strict", ["continue", "stop"])
def test_what_cannot_be_saved_is_told_beside(
    strict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is that of the number."""

    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hdf5, "fsync", full)
    config, said = (
        from_mapping(FIRST | dict(checkpoint=str(tmp_path), on_save_error=strict)),
        io.StringIO(),
    )
    with pytest.raises(NumericalError, match="row 9") as caught:
        train(shard(table(9), SelfComm()), config, SelfComm(), Progress(said))
    if strict == "stop":
        assert str(caught.value).endswith(
            "step-000000000000.h5: cannot be written: No space left on device"
        )
    else:
        assert str(caught.value).endswith(f"; the parameters before it are not saved in {tmp_path}")
        assert "warning: " in said.getvalue()
