"""Checkpoint files that do not fit, or are damaged.

They are refused or skipped, the same on all ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpigd.errors import DataError, MpigdError, UsageError
from mpigd.parallel.comm import Comm, SelfComm
from mpigd.storage import hdf5
from mpigd.training import checkpoint
from tests.scenarios import fit, kill, same, shard, write
from tests.threadcomm import run
from tests.truths import Table, generate

TABLE = generate("softmax", n=40, weights=True)
OPTIONS: dict[str, Any] = dict(loss="softmax", mode="minibatch", batch_size=9, epochs=2, l2=1e-2)


def files(folder: str | Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {"claim"})  # the lock of the job that saves there


CHANGES: list[dict[str, Any]] = [
    dict(seed=1), dict(batch_size=8), dict(l2=0.5), dict(optimizer="sgd"), dict(intercept=False),
    dict(standardize=False), dict(class_weight="balanced"), dict(reduce="native"), dict(clip=1.0),
    dict(warmup=2), dict(momentum=0.5),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_configuration_is_refused(
    change: dict[str, Any], size: int, tmp_path: Path
) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    name = next(iter(change)).replace("_", "-")
    errors = refused(
        size, lambda comm: fit(shard(TABLE, comm), comm, **(options | change)), UsageError
    )
    assert f"step-000000000004.h5 was made with --{name} " in errors
    assert "may not change on the way" in errors


@pytest.mark.parametrize(
    "change", [dict(loss="logistic"), dict(loss="squared"), dict(mode="stochastic")]
)
def test_another_loss_or_mode_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    table, name = generate("logistic", n=40), next(iter(change))
    options = OPTIONS | dict(loss="hinge", checkpoint=str(tmp_path))
    fit(table, **options)
    with pytest.raises(UsageError, match=f"was made with --{name} "):
        fit(table, **(options | change))


@pytest.mark.parametrize("size", [1, 2])
def test_validation_data_may_move_but_not_change(size: int, tmp_path: Path) -> None:
    """They decide when to stop and which parameters to keep."""
    held_out = generate("softmax", n=30, seed=7)
    for name in ("here", "there", "other"):
        (tmp_path / name).mkdir()
    (here,), (there,) = (write(held_out, tmp_path / name) for name in ("here", "there"))
    (other,) = write(replace(held_out, X=held_out.X * 1.01), tmp_path / "other")
    options = OPTIONS | dict(epochs=6, patience=2, validate_every=2)
    truth = fit(TABLE, validation=(here,), **options)
    options |= dict(checkpoint=str(tmp_path / "saved"), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), validation=(here,), **options)

    def go_on(*held_out: str) -> Callable[[Comm], Any]:
        return lambda comm: fit(shard(TABLE, comm), comm, **options, validation=held_out)

    for changed in ((other,), (here, there)):
        errors = refused(size, go_on(*changed), UsageError)
        assert "was made with other --validation data" in errors
    for model in run(size, go_on(there)):
        same(model, truth)


@pytest.mark.parametrize("reason", ["patience", "tolerance"])
def test_more_epochs_do_not_wake_a_run_that_had_stopped(reason: str, tmp_path: Path) -> None:
    """It would have stopped there with them from the beginning."""
    held_out = write(generate("softmax", n=30, seed=7), tmp_path)
    early = OPTIONS | dict(
        lr=0.5, lr_schedule="constant", validation=held_out, patience=1, validate_every=1
    )
    options = early if reason == "patience" else dict(loss="softmax", l2=1e-2, tol=1e-3)
    truth = fit(TABLE, **(options | dict(epochs=40)))
    assert truth.summary["stop_reason"] == reason
    options |= dict(checkpoint=str(tmp_path / "saved"))
    assert fit(TABLE, **(options | dict(epochs=30))).summary["stop_reason"] == reason
    same(fit(TABLE, **(options | dict(epochs=40))), truth)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("what", ["a value", "a label", "a weight", "a row", "the order"])
def test_other_data_are_refused(what: str, size: int, tmp_path: Path) -> None:
    table = TABLE.take(np.arange(40))
    assert table.c is not None
    if what == "a value":
        table.X[3, 1] += 1e-9
    elif what == "a label":
        table.y[5] = (table.y[5] + 1) % 3
    elif what == "a weight":
        table.c[7] = np.nextafter(table.c[7], 0)
    elif what == "a row":
        table = table.take(slice(0, 39))
    else:
        table = table.take(np.r_[1, 0, 2:40])
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    text = refused(size, lambda comm: fit(shard(table, comm), comm, **options), UsageError)
    assert "was made from other data" in text


def refused(size: int, attempt: Callable[[Comm], Any], kind: type[MpigdError]) -> str:
    """The message that every rank raises."""

    def one(comm: Comm) -> MpigdError:
        with pytest.raises(kind) as caught:
            attempt(comm)
        return caught.value

    errors = run(size, one)
    assert len({str(error) for error in errors}) == 1
    assert all(error.agreed for error in errors)
    return str(errors[0])


def test_what_may_change_on_the_way(tmp_path: Path) -> None:
    """Partition, threads, and how often to save decide nothing about the bits."""
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    same(
        fit(TABLE, **(options | dict(threads=2, partition="hash", checkpoint_every=2))),
        fit(TABLE, **OPTIONS),
    )


# Damage.


def damage_nothing_left(path: Path) -> None:
    path.write_bytes(b"")


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_text(path: Path) -> None:
    path.write_text("step 5")


def damage_a_bit_of_w(path: Path) -> None:
    with h5py.File(path) as file:
        content = file["w"][...].tobytes()
    raw = bytearray(path.read_bytes())
    at = raw.find(content)
    assert at > 0
    raw[at + 3] ^= 1
    path.write_bytes(bytes(raw))


def damage_resealed_number(path: Path) -> None:
    """The checksum of HDF5 is right then, ours is not."""
    with h5py.File(path, "r+") as file:
        file["w"][0] += 1.0


def damage_other_kind(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["X"] = np.ones((3, 2))


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__[7:])
@pytest.mark.parametrize("size", [1, 2])
def test_a_damaged_newest_checkpoint_is_passed_over(
    damage: Callable[[Path], None], size: int, tmp_path: Path
) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(4, shard(TABLE, SelfComm()), SelfComm(), **options)
    older, newest = files(tmp_path)
    damage(tmp_path / newest)
    with pytest.raises(DataError, match=newest):
        checkpoint.read(tmp_path / newest)
    notes: list[str] = []
    saved = checkpoint.resume(
        checkpoint.read(tmp_path / older).config, fingerprint(), SelfComm(), notes.append
    )
    assert saved is not None
    assert saved.step == 4
    assert len(notes) == 1
    assert newest in notes[0]
    for model in run(size, lambda comm: fit(shard(TABLE, comm), comm, **options)):
        same(model, fit(TABLE, **OPTIONS))


def fingerprint() -> str:
    return str(fit(TABLE, **(OPTIONS | dict(epochs=1))).summary["fingerprint"])


def test_all_checkpoints_damaged(tmp_path: Path) -> None:
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(4, shard(TABLE, SelfComm()), SelfComm(), **options)
    for name in files(tmp_path):
        damage_half(tmp_path / name)
    same(fit(TABLE, **options), fit(TABLE, **OPTIONS))


@pytest.mark.parametrize("size", [1, 2])
def test_a_damaged_one_by_name_is_an_error(size: int, tmp_path: Path) -> None:
    fit(TABLE, **OPTIONS, checkpoint=str(tmp_path))
    path = tmp_path / files(tmp_path)[0]
    damage_resealed_number(path)
    text = refused(
        size, lambda comm: fit(shard(TABLE, comm), comm, **OPTIONS, resume=str(path)), DataError
    )
    assert text.startswith(f"{path}: damaged, or not written by mpigd: ")


def test_no_room_for_checkpoints_is_a_warning(tmp_path: Path) -> None:
    """The run is worth more than its checkpoint."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    same(
        fit(TABLE, **OPTIONS, checkpoint=str(blocked / "below"), resume="never"),
        fit(TABLE, **OPTIONS),
    )


def test_every_dataset_carries_a_checksum(tmp_path: Path) -> None:
    fit(TABLE, **OPTIONS, checkpoint=str(tmp_path))
    with hdf5.open_read(tmp_path / files(tmp_path)[0]) as file:
        datasets: list[h5py.Dataset] = []
        file.visititems(
            lambda name, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None
        )
        assert len(datasets) >= 6
        assert all(item.fletcher32 for item in datasets)
    assert os.stat(tmp_path / files(tmp_path)[0]).st_mode & 0o777 == 0o644 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off while it writes, a save leaves the older file and no half one."""
    options = OPTIONS | dict(checkpoint=str(tmp_path), checkpoint_every=1)
    kill(3, shard(TABLE, SelfComm()), SelfComm(), **options)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    saved = checkpoint.read(tmp_path / files(tmp_path)[-1])

    def full_disk(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_read_back", full_disk)
    with pytest.raises(MpigdError, match="No space left") as caught:
        checkpoint.Checkpoint(9, saved.w, saved.parts, saved.config, saved.notes).save(
            str(tmp_path)
        )
    assert caught.value.code == 74
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_the_state_digest_covers_the_reducer() -> None:
    """Two data sets with equal models but other histories of limits differ."""
    calm = Table(np.ones((4, 1)), np.zeros(4))
    wild = Table(np.ones((4, 1)), np.array([1e9, -1e9, 1e9, -1e9]))
    one, other = (
        fit(calm, epochs=2, tol=0, intercept=False),
        fit(wild, epochs=2, tol=0, intercept=False),
    )
    assert one.digest == other.digest
    assert one.summary["state_digest"] != other.summary["state_digest"]
