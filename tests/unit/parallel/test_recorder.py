"""The flight recorder: its record of the last collectives, and what its files show afterwards."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mpigd.__main__ import main
from mpigd.errors import DataError
from mpigd.parallel.flight_recorder import (
    HEADER,
    RING,
    SIZE,
    Recorder,
    behind,
    flights,
    read,
    report,
)


def fly(
    folder: Path,
    rank: int,
    size: int,
    collectives: int,
    inside: bool = False,
    place: str = "base.py:1 sweep",
) -> Recorder:
    """A rank that leaves so many collectives, two a step; `inside`: and enters another."""
    recorder = Recorder(rank, size)
    recorder.keep(str(folder))
    for number in range(collectives + inside):
        recorder.mark(number // 2)
        recorder.enter(b"allreduce", 8 * number)
        if number < collectives:
            recorder.leave()
    recorder.beat(place)
    return recorder


@pytest.mark.parametrize("collectives", [0, 1, RING - 1, RING, RING + 1, 3 * RING + 7])
def test_the_last_collectives_are_kept(collectives: int, tmp_path: Path) -> None:
    fly(tmp_path, 2, 5, collectives)
    flight = read(tmp_path / "flight-000002.bin")
    assert (flight.rank, flight.size, flight.pid) == (2, 5, os.getpid())
    assert [entry.number for entry in flight.entries] == list(range(1, collectives + 1))[-RING:]
    assert all(entry.step == (entry.number - 1) // 2 for entry in flight.entries)
    assert all(entry.size == 8 * (entry.number - 1) for entry in flight.entries)
    assert all(0 < entry.entered <= entry.left <= time.time() for entry in flight.entries)
    assert {entry.kind for entry in flight.entries} <= {"allreduce"}
    assert flight.step == max(0, (collectives - 1) // 2)
    assert flight.place == "base.py:1 sweep"


def test_what_happened_before_there_was_a_file_is_in_it(tmp_path: Path) -> None:
    recorder = Recorder(0, 2)
    recorder.enter(b"bcast", 8)
    recorder.keep(str(tmp_path))
    recorder.leave()
    last = flights(tmp_path)[0].last
    assert last is not None
    assert (last.number, last.kind) == (1, "bcast")
    assert last.left >= last.entered


def test_seconds_inside() -> None:
    recorder = Recorder(0, 2)
    assert recorder.inside() == 0
    recorder.enter(b"bcast", 8)
    time.sleep(0.02)
    assert 0.01 < recorder.inside() < 10
    recorder.leave()
    assert recorder.inside() == 0


def test_who_did_not_enter_which(tmp_path: Path) -> None:
    fly(tmp_path, 0, 3, 20, inside=True)
    fly(tmp_path, 1, 3, 20, place="matrix.py:7 run")
    fly(tmp_path, 2, 3, 20, inside=True)
    (line,) = behind(flights(tmp_path))
    assert re.match(
        r"rank 1 on \S+ did not enter allreduce number 21 \(step 10\): it left number 20, "
        r"\d+\.\d s before",
        line,
    )
    assert line.endswith("and was in matrix.py:7 run")
    said = report(str(tmp_path))
    assert said.splitlines()[0] == "3 of 3 ranks left a record"
    assert line in said


def test_all_in_the_same(tmp_path: Path) -> None:
    for rank in range(2):
        fly(tmp_path, rank, 2, 3)
    assert behind(flights(tmp_path)) == []
    assert report(str(tmp_path)).endswith("every rank had entered the same collectives")


def test_a_rank_that_is_gone_is_not_late(tmp_path: Path) -> None:
    """The others have gone on without it, from the same number: who is late is one of them."""
    fly(tmp_path, 0, 3, 20)
    for rank, late in ((1, False), (2, True)):
        recorder = fly(tmp_path, rank, 3, 21 + rank)
        recorder.go_on(1, 24)
        recorder.enter(b"allreduce", 8)
        recorder.leave()
        if not late:
            recorder.enter(b"bcast", 8)
    (line,) = behind(flights(tmp_path))
    assert re.match(r"rank 2 on \S+ did not enter bcast number 26", line)
    first, gone, *_ = report(str(tmp_path)).splitlines()
    assert first == "3 of 3 ranks left a record"
    assert re.match(r"rank 0 on \S+: gone, step 9, after allreduce number 20", gone)


def test_the_ranks_of_an_earlier_run_are_forgotten(tmp_path: Path) -> None:
    for rank in range(4):
        fly(tmp_path, rank, 4, 30)
    for rank in range(2):
        fly(tmp_path, rank, 2, 3)
    assert [flight.rank for flight in flights(tmp_path)] == [0, 1]
    assert behind(flights(tmp_path)) == []


def test_a_new_run_leaves_the_maps_of_an_old_one_alone(tmp_path: Path) -> None:
    old = fly(tmp_path, 0, 1, 5)
    fly(tmp_path, 0, 1, 2)
    old.enter(b"bcast", 1)
    assert len(flights(tmp_path)[0].entries) == 2


def test_the_file_is_private_and_links_are_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "flight-000000.bin").symlink_to(target)
    fly(tmp_path, 0, 1, 1)
    assert target.read_text() == "mine"
    assert (tmp_path / "flight-000000.bin").stat().st_mode & 0o777 == 0o600


def spoiled(length: int = SIZE, first: bytes = b"mpigd-f2") -> bytes:
    return (first + bytes(range(256)) * (SIZE // 256 + 1))[:length]


def test_a_link_that_appears_in_place_of_an_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between removing and making it: it is not followed."""
    monkeypatch.setattr(
        Path, "unlink", lambda path, missing_ok=False: path.symlink_to(tmp_path / "elsewhere")
    )
    with pytest.raises(FileExistsError):
        Recorder(0, 1).keep(str(tmp_path))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "data", [b"", b"mpigd-f2", spoiled(SIZE - 1), spoiled(SIZE + 1), spoiled(first=b"mpigd-f1")]
)
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flight-000000.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a flight recorder's file"):
        read(path)


def test_a_file_full_of_anything_is_told_or_refused(tmp_path: Path) -> None:
    fly(tmp_path, 0, 2, RING, inside=True)
    path, random = tmp_path / "flight-000000.bin", np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for at in (
            random.integers(8, SIZE, 20).tolist() + random.integers(8, HEADER.size, 2).tolist()
        ):
            data[at] = int(random.integers(256))
        path.write_bytes(data)
        with suppress(DataError):
            assert report(str(tmp_path)).replace("\n", "").isprintable()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fly(tmp_path, 0, 1, 3)
    assert main(["postmortem", str(tmp_path)]) == 0
    assert "1 of 1 ranks left a record" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        assert main(["postmortem", str(tmp_path / folder)]) == 65
    said = capsys.readouterr().err.splitlines()
    assert "no flight recorder's files in this folder" in said[0]
    assert "No such file or directory" in said[1]
