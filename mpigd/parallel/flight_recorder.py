"""The flight recorder: a rank's last collectives and where it is in the code, in a small file that outlives the process.

A file is a header and a ring of the last RING collectives. Writing one costs about a microsecond and no system call: the file is
mapped into memory, and the kernel keeps what is there even if the process is killed.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpigd.errors import DataError
from mpigd.parallel.working_directory import located

RING = 256
MAGIC = b"mpigd-f2"
HEADER = struct.Struct(
    "<8sqqqqqd64s160s"
)  # magic, rank, size, pid, epoch, step, time of the beat, host, place
RECORD = struct.Struct("<qqqdd16s")  # number, step, bytes, entered, left (0: inside), kind
SIZE = HEADER.size + RING * RECORD.size
EPOCH, EPOCH_AT = struct.Struct("<q"), struct.calcsize("<8sqqq")
STEP, STEP_AT = struct.Struct("<q"), struct.calcsize("<8sqqqq")
BEAT, BEAT_AT = struct.Struct("<d64s160s"), struct.calcsize("<8sqqqqq")
LEFT, LEFT_AT = struct.Struct("<d"), struct.calcsize("<qqqd")  # within a record
NAME = re.compile(r"flight-(\d{6})\.bin")


@dataclass(frozen=True)
class Entry:
    """One collective: its number in order, the step, bytes, when it was entered and left (0: not yet), and which it was."""

    number: int
    step: int
    size: int
    entered: float
    left: float
    kind: str


@dataclass(frozen=True)
class Flight:
    """What the file of a rank says. `beat`: when `place`, where its program was, was written; entries ascend.

    epoch: how often others have gone on without ranks that were gone.
    """

    rank: int
    size: int
    pid: int
    epoch: int
    step: int
    beat: float
    host: str
    place: str
    entries: tuple[Entry, ...]

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None


class Recorder:
    """Writes the flight of this rank, at first into memory alone."""

    def __init__(self, rank: int, size: int) -> None:
        self.host = socket.gethostname()
        self.step, self.closed = 0, False  # closed: there will be no collective any more
        self.kind = b""
        self.count, self._at, self._entered = 0, HEADER.size, 0.0  # count: collectives so far
        self._map = mmap.mmap(-1, SIZE)
        self.of(rank, size)

    def of(self, rank: int, size: int) -> None:
        """Which rank this is, of how many: a launcher may not tell all of that before MPI has begun."""
        self.rank, self.size = rank, size
        HEADER.pack_into(
            self._map,
            0,
            MAGIC,
            rank,
            size,
            os.getpid(),
            0,
            0,
            time.time(),
            self.host.encode()[:64],
            b"",
        )

    def keep(self, folder: str) -> None:
        """Go on in a file of `folder`. OSError if that cannot be."""
        folder = located(folder)
        path = Path(folder) / f"flight-{self.rank:06d}.bin"
        path.unlink(
            missing_ok=True
        )  # that of an earlier run: another process may still have it mapped
        if self.rank == 0:
            _forget(folder, self.size)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Written, not only made so long: where the disk is full, a mapped page without a place would kill the process.
            if os.pwrite(handle, bytes(SIZE), 0) < SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
            moved = mmap.mmap(handle, SIZE)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        moved[:] = self._map[:]
        self._map = moved

    def mark(self, step: int) -> None:
        """What follows belongs to this step."""
        self.step = step
        STEP.pack_into(self._map, STEP_AT, step)

    def go_on(self, epoch: int, count: int) -> None:
        """Others are gone; those that are left have agreed on the number of collectives so far."""
        self.count = count
        EPOCH.pack_into(self._map, EPOCH_AT, epoch)

    def enter(self, kind: bytes, size: int) -> None:
        """A collective begins."""
        self._at = HEADER.size + self.count % RING * RECORD.size
        self.count, self.kind = self.count + 1, kind
        self._entered = time.time()
        RECORD.pack_into(self._map, self._at, self.count, self.step, size, self._entered, 0.0, kind)

    def leave(self) -> None:
        """It is over."""
        self._entered = 0.0
        LEFT.pack_into(self._map, self._at + LEFT_AT, time.time())

    def wait(self) -> None:
        """This rank waits for one other: nothing that all of them count."""
        self._entered = time.time()

    def go(self) -> None:
        """It does not wait any more."""
        self._entered = 0.0

    def inside(self) -> float:
        """Seconds since the collective was entered in which this rank is, or since it waits; 0 if in none."""
        entered = self._entered
        return time.time() - entered if entered else 0.0

    def beat(self, place: str) -> None:
        """Write down where the program is."""
        BEAT.pack_into(
            self._map, BEAT_AT, time.time(), self.host.encode()[:64], place.encode()[:160]
        )


def _forget(folder: str, size: int) -> None:
    """Remove the flights of an earlier run's ranks `size` and more: this one has no such ranks."""
    for name in os.listdir(folder):
        found = NAME.fullmatch(name)
        if found and int(found[1]) >= size:
            (Path(folder) / name).unlink(missing_ok=True)


def read(path: Path) -> Flight:
    """The flight in a file. DataError if it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if len(data) != SIZE or not data.startswith(MAGIC):
        raise DataError(f"{path}: not a flight recorder's file")
    _, rank, size, pid, epoch, step, beat, host, place = HEADER.unpack_from(data)
    if not (0 <= rank < size and 0.0 <= beat < 1e11):
        raise DataError(f"{path}: damaged")
    entries = sorted(_entries(data), key=lambda entry: entry.number)
    return Flight(rank, size, pid, epoch, step, beat, _text(host), _text(place), tuple(entries))


def _entries(data: bytes) -> Iterator[Entry]:
    for i in range(RING):
        number, step, size, entered, left, kind = RECORD.unpack_from(
            data, HEADER.size + i * RECORD.size
        )
        if number > 0:
            yield Entry(number, step, size, entered, left, _text(kind))


def _text(field: bytes) -> str:
    text = field.rstrip(b"\0").decode(errors="replace")
    return "".join(
        letter if letter.isprintable() else "?" for letter in text
    )  # it goes to a terminal


def flights(folder: str | Path) -> list[Flight]:
    """All flights in a folder, by rank. DataError if it has none."""
    try:
        names = sorted(name for name in os.listdir(folder) if NAME.fullmatch(name))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    if not names:
        raise DataError(
            f"{folder}: no flight recorder's files in this folder (a run under MPI with --checkpoint leaves them)"
        )
    return [read(Path(folder) / name) for name in names]


def _latest(known: list[Flight]) -> int:
    """The epoch of those that are still there."""
    return max((flight.epoch for flight in known), default=0)


def behind(known: list[Flight]) -> list[str]:
    """A line for each rank that did not enter the collective in which others are; empty if all are in the same.

    Ranks without which the others have gone on are not among them.
    """
    known = [flight for flight in known if flight.epoch == _latest(known)]
    reached = max((flight.last.number for flight in known if flight.last), default=0)
    ahead = next(
        (flight for flight in known if flight.last and flight.last.number == reached), None
    )
    if ahead is None or ahead.last is None:
        return []
    what = f"{ahead.last.kind} number {reached:,} (step {ahead.last.step:,})"
    lines = []
    for flight in known:
        number = flight.last.number if flight.last else 0
        if number < reached:
            ago = (
                f", {max(0.0, ahead.last.entered - flight.last.left):.1f} s before"
                if flight.last and flight.last.left
                else ""
            )
            lines.append(
                f"rank {flight.rank} on {flight.host} did not enter {what}: it left number {number:,}{ago}, "
                f"and was in {flight.place or 'its start'}"
            )
    return lines


def report(folder: str) -> str:
    """What the flights in a folder say, for people: where each rank was, and who did not enter what. DataError if it has none."""
    known = flights(folder)
    latest = _latest(known)
    lines = [f"{len(known)} of {known[0].size} ranks left a record"]
    for flight in known:
        last = flight.last
        told = (
            "no collective yet"
            if last is None
            else f"{'in' if not last.left else 'after'} {last.kind} number {last.number:,}"
        )
        when = time.strftime("%F %T", time.localtime(flight.beat))
        gone = "gone, " if flight.epoch < latest else ""
        lines.append(
            f"rank {flight.rank} on {flight.host}: {gone}step {flight.step:,}, {told}; in {flight.place or 'its start'} at {when}"
        )
    return "\n".join([*lines, *(behind(known) or ["every rank had entered the same collectives"])])
