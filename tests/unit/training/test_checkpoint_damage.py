"""A damaged checkpoint is skipped, with a message that names the file and the reason.

The damage can be anywhere; the checkpoint before it is used.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpigd.errors import DataError, UsageError
from mpigd.parallel.comm import SelfComm
from mpigd.storage import checksum
from mpigd.training import checkpoint
from tests.scenarios import fit, kill, same, shard
from tests.truths import generate

FULL = bool(os.environ.get("TEST_FULL"))
TABLE = generate("softmax", n=40, weights=True)
OPTIONS: dict[str, Any] = dict(loss="softmax", mode="minibatch", batch_size=9, epochs=2, l2=1e-2)
FLIPS = 300
OLDER, NEWEST = "step-000000000004.h5", "step-000000000005.h5"
NO_END, BAD = "it does not end with its checksum", "its contents do not match their checksum"


class Saved:
    """A folder with two checkpoints, and how a run finds it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.newest = folder, folder / NEWEST
        kill(
            4,
            shard(TABLE, SelfComm()),
            SelfComm(),
            **OPTIONS,
            checkpoint=str(folder),
            checkpoint_every=1,
        )
        self.whole = self.newest.read_bytes()
        saved = checkpoint.read(folder / OLDER)
        self.config, self.fingerprint = saved.config, str(saved.notes["fingerprint"])

    def resume(self) -> tuple[int, list[str]]:
        """The step from which a run would go on, and what is said of files that are not used."""
        notes: list[str] = []
        found = checkpoint.resume(self.config, self.fingerprint, SelfComm(), notes.append)
        return (-1 if found is None else found.step), notes

    def passed_over(self, *why: str) -> None:
        step, notes = self.resume()
        assert step == 4
        assert len(notes) == 1
        assert notes[0].startswith(str(self.newest))
        assert notes[0].endswith("; trying the one before")
        assert any(reason in notes[0] for reason in why), notes


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path)


def test_cut_off_at_every_block(saved: Saved) -> None:
    """A sector is what disks write at once. Also one byte more and less."""
    lengths = {length + more for length in range(0, len(saved.whole), 512) for more in (-1, 0, 1)}
    lengths |= {
        len(saved.whole) - short
        for short in (1, 2, 66, checksum.TRAILER_BYTES, checksum.TRAILER_BYTES + 1)
    }
    for length in sorted(lengths & set(range(len(saved.whole)))):
        saved.newest.write_bytes(saved.whole[:length])
        saved.passed_over("it is empty" if length == 0 else NO_END)
    assert len(lengths) > 30


def test_a_flipped_bit(saved: Saved) -> None:
    chance = random.Random(5)
    places = (
        range(len(saved.whole)) if FULL else sorted(chance.sample(range(len(saved.whole)), FLIPS))
    )
    for place in [*places, *range(len(saved.whole) - checksum.TRAILER_BYTES, len(saved.whole))]:
        raw = bytearray(saved.whole)
        raw[place] ^= 1 << chance.randrange(8)
        saved.newest.write_bytes(raw)
        saved.passed_over(BAD, NO_END)


def test_blocks_of_zeros_and_of_an_older_file(saved: Saved) -> None:
    """The rest of a file whose blocks never reached the disk."""
    older = (saved.folder / OLDER).read_bytes()
    assert older[-checksum.TRAILER_BYTES :] != saved.whole[-checksum.TRAILER_BYTES :]
    for start in range(0, len(saved.whole), 512):
        block = slice(start, min(start + 512, len(saved.whole)))
        for other in (bytes(block.stop - start), older[block]):
            raw = bytearray(saved.whole)
            raw[block] = other
            if raw != saved.whole:
                saved.newest.write_bytes(raw)
                saved.passed_over(BAD, NO_END)
    saved.newest.write_bytes(saved.whole + b"\0")
    saved.passed_over(NO_END)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def replace_by_a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (replace_by_a_folder, "is a folder"),
    "loop": (replace_by_a_link_to_itself, "no such file"),
    "nothing": (replace_by_a_link_to_nothing, "no such file"),
    "text": (lambda path: path.write_text("step 5"), NO_END),
}


@pytest.mark.parametrize("what", OTHERS)
def test_something_else_by_that_name(what: str, saved: Saved) -> None:
    OTHERS[what][0](saved.newest)
    saved.passed_over(OTHERS[what][1])


def test_a_missing_file_is_not_missed(saved: Saved) -> None:
    saved.newest.unlink()
    assert saved.resume() == (4, [])


def test_a_disk_that_cannot_read(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = checksum._digest

    def digest(file: Any, size: int) -> bytes:
        if file.name == str(saved.newest) or file.name == saved.newest:
            raise OSError(5, "Input/output error")
        return usual(file, size)

    monkeypatch.setattr(checksum, "_digest", digest)
    saved.passed_over("Input/output error")


def write(path: Path, found: checkpoint.Checkpoint) -> None:
    """A whole file, under this name."""
    Path(replace(found, step=99).save(str(path.parent))).rename(path)


RUNS: dict[str, tuple[Callable[[checkpoint.Checkpoint], checkpoint.Checkpoint], str]] = {
    "data": (
        lambda saved: replace(saved, notes=saved.notes | {"fingerprint": "40x4-0"}),
        "was made from other data",
    ),
    "validation": (
        lambda saved: replace(saved, notes=saved.notes | {"validation": "x"}),
        "with other --validation data",
    ),
    "options": (
        lambda saved: replace(saved, config=replace(saved.config, l2=0.5)),
        "was made with --l2 0.5, not 0.01",
    ),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_file_from_another_run(what: str, saved: Saved) -> None:
    change, why = RUNS[what]
    write(saved.newest, change(checkpoint.read(saved.newest)))
    assert checkpoint.read(saved.newest).step == 99
    saved.passed_over(why)
    write(saved.folder / OLDER, change(checkpoint.read(saved.folder / OLDER)))
    with pytest.raises(
        UsageError, match=f"{NEWEST} was made"
    ):  # nothing else is there, and it would be replaced
        saved.resume()


def test_files_of_another_version(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as then:
        then.setattr(checkpoint, "FORMAT", "mpigd checkpoint 1")
        write(
            saved.newest, checkpoint.Checkpoint(5, np.zeros(3), {}, saved.config, {"history": []})
        )
    saved.passed_over("not a checkpoint of mpigd, or one of another version")


def test_nothing_whole_is_left(saved: Saved) -> None:
    """The run starts again, and gives a reason for every file.

    It ends with the same bits, and its new files replace the damaged ones.
    """
    for name in (OLDER, NEWEST):
        (saved.folder / name).write_bytes(saved.whole[:-1])
    step, notes = saved.resume()
    assert step == -1
    assert [Path(note.split(": ")[0]).name for note in notes] == [NEWEST, OLDER]
    options = OPTIONS | dict(checkpoint=str(saved.folder), checkpoint_every=1)
    same(fit(TABLE, **options), fit(TABLE, **OPTIONS))
    assert [checkpoint.read(path).step for path in checkpoint.found(str(saved.folder))] == [10, 9]


def test_by_its_name_it_is_an_error(saved: Saved) -> None:
    saved.newest.write_bytes(saved.whole[:1024])
    with pytest.raises(
        DataError, match=f"{NEWEST}: damaged, or not written by mpigd: it does not end with"
    ):
        fit(TABLE, **OPTIONS, resume=str(saved.newest))
