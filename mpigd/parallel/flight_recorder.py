"""The flight recorder: a small file with the last collectives of a rank and its place in the code.

The file outlives the process and shows after a failure which rank did not enter which collective
(`mpigd postmortem`). It consists of a header and a ring of the last `RING` collectives. Writing an
entry takes about a microsecond and no system call: the file is mapped into memory, and the kernel
keeps its contents even if the process is killed.
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
# magic, rank, size, pid, epoch, step, time of the last beat, host, place in the code
HEADER = struct.Struct("<8sqqqqqd64s160s")
# number, step, bytes, time of entering, time of leaving (0: still inside), kind
RECORD = struct.Struct("<qqqdd16s")
SIZE = HEADER.size + RING * RECORD.size
EPOCH, EPOCH_AT = struct.Struct("<q"), struct.calcsize("<8sqqq")
STEP, STEP_AT = struct.Struct("<q"), struct.calcsize("<8sqqqq")
BEAT, BEAT_AT = struct.Struct("<d64s160s"), struct.calcsize("<8sqqqqq")
LEFT, LEFT_AT = struct.Struct("<d"), struct.calcsize("<qqqd")  # offset within a record
NAME = re.compile(r"flight-(\d{6})\.bin")


@dataclass(frozen=True)
class Entry:
    """The record of one collective.

    Attributes
    ----------
    number : int
        Its number in the order of all collectives, from 1.
    step : int
        The optimiser step.
    size : int
        The size of the buffer in bytes.
    entered, left : float
        When it was entered and left, in seconds since the epoch of Unix; `left` is 0 if the rank
        is still inside.
    kind : str
        Its name, like "allreduce".
    """

    number: int
    step: int
    size: int
    entered: float
    left: float
    kind: str


@dataclass(frozen=True)
class Flight:
    """The contents of the file of one rank.

    Attributes
    ----------
    rank, size, pid : int
        The rank, the number of ranks, and the process id.
    epoch : int
        The number of rank failures after which the remaining ranks continued.
    step : int
        The optimiser step.
    beat : float
        When `place` was written, in seconds since the epoch of Unix.
    host : str
        The name of the host.
    place : str
        Where the program was: file, line and function.
    entries : tuple of Entry
        The last collectives, in ascending order.
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
    """Writes the record of this rank: into memory alone until `keep` gives it a file.

    Attributes
    ----------
    count : int
        The number of collectives so far.
    step : int
        The current optimiser step.
    closed : bool
        Whether there will be no further collective.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.host = socket.gethostname()
        self.step, self.closed = 0, False
        self.kind = b""
        self.count, self._at, self._entered = 0, HEADER.size, 0.0
        self._map = mmap.mmap(-1, SIZE)
        self.of(rank, size)

    def of(self, rank: int, size: int) -> None:
        """Set rank and size, which some launchers do not provide before MPI is initialised."""
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
        """Move the record into a file of `folder`. Raises OSError if it cannot be written."""
        folder = located(folder)
        path = Path(folder) / f"flight-{self.rank:06d}.bin"
        # Remove the file of an earlier run, since another process may still have it mapped.
        path.unlink(missing_ok=True)
        if self.rank == 0:
            _forget(folder, self.size)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # The bytes are really written: on a full disk, a mapped page without a disk block would
            # kill the process.
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
        """Set the step of the next collectives."""
        self.step = step
        STEP.pack_into(self._map, STEP_AT, step)

    def go_on(self, epoch: int, count: int) -> None:
        """Continue the record after a rank failure.

        Parameters
        ----------
        epoch : int
            The number of rank failures after which the remaining ranks continued.
        count : int
            The number of collectives so far, on which the remaining ranks have agreed.
        """
        self.count = count
        EPOCH.pack_into(self._map, EPOCH_AT, epoch)

    def enter(self, kind: bytes, size: int) -> None:
        """Record that a collective begins.

        Parameters
        ----------
        kind : bytes
            Its name, at most 16 bytes.
        size : int
            The size of its buffer in bytes.
        """
        self._at = HEADER.size + self.count % RING * RECORD.size
        self.count, self.kind = self.count + 1, kind
        self._entered = time.time()
        RECORD.pack_into(self._map, self._at, self.count, self.step, size, self._entered, 0.0, kind)

    def leave(self) -> None:
        """Record that the collective has ended."""
        self._entered = 0.0
        LEFT.pack_into(self._map, self._at + LEFT_AT, time.time())

    def wait(self) -> None:
        """Note that this rank waits for a single other rank; this is not counted."""
        self._entered = time.time()

    def go(self) -> None:
        """Note that the wait for a single other rank has ended."""
        self._entered = 0.0

    def inside(self) -> float:
        """Return the seconds that this rank has waited in a collective or for a rank, else 0."""
        entered = self._entered
        return time.time() - entered if entered else 0.0

    def beat(self, place: str) -> None:
        """Record the current time and where the program is."""
        BEAT.pack_into(
            self._map, BEAT_AT, time.time(), self.host.encode()[:64], place.encode()[:160]
        )


def _forget(folder: str, size: int) -> None:
    """Remove the files of ranks from `size` upwards, which an earlier run has left."""
    for name in os.listdir(folder):
        found = NAME.fullmatch(name)
        if found and int(found[1]) >= size:
            (Path(folder) / name).unlink(missing_ok=True)


def read(path: Path) -> Flight:
    """Read the file of a rank. Raises DataError if it is missing, damaged or another file."""
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
    # The text is shown on a terminal, so control characters are replaced.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def flights(folder: str | Path) -> list[Flight]:
    """Read the files of all ranks in a folder, by rank. Raises DataError if there are none."""
    try:
        names = sorted(name for name in os.listdir(folder) if NAME.fullmatch(name))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    if not names:
        raise DataError(
            f"{folder}: no flight recorder's files in this folder "
            "(a run under MPI with --checkpoint leaves them)"
        )
    return [read(Path(folder) / name) for name in names]


def _latest(known: list[Flight]) -> int:
    """Return the highest epoch, which is that of the remaining ranks."""
    return max((flight.epoch for flight in known), default=0)


def behind(known: list[Flight]) -> list[str]:
    """Return a line for each rank that did not enter the latest collective of the others.

    The list is empty if all ranks have entered the same collective. Failed ranks after which the
    others continued are left out.
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
                f"rank {flight.rank} on {flight.host} did not enter {what}: "
                f"it left number {number:,}{ago}, and was in {flight.place or 'its start'}"
            )
    return lines


def report(folder: str) -> str:
    """Return the text of `mpigd postmortem` for the files in `folder`.

    It shows where each rank was, and which ranks did not enter the latest collective. Raises
    DataError if the folder has no files of a flight recorder.
    """
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
            f"rank {flight.rank} on {flight.host}: {gone}step {flight.step:,}, {told}; "
            f"in {flight.place or 'its start'} at {when}"
        )
    return "\n".join([*lines, *(behind(known) or ["every rank had entered the same collectives"])])
