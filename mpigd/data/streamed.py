"""Rows that do not fit into memory and are read again at every pass.

A thread reads the next piece while one is used.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

from mpigd.data.contiguous import Map
from mpigd.data.metadata import Info
from mpigd.data.partition import Segment
from mpigd.data.reader import Slabs, reading, usable, wide
from mpigd.matrix.base import Columns, Dense, Into, Selection, Task
from mpigd.matrix.half import Half, Narrowing
from mpigd.storage import resource_limits
from mpigd.storage.open_files import Recent

Array = np.ndarray[Any, Any]
FILES = 8  # files that HDF5 has open at once
MAPPED = 64  # files that are mapped at once; each of them is also open
# Pieces that are kept at least: the one in use, the next, and two for a batch in two blocks.
FEWEST = 4


class Streamed:
    """A rank's dense rows (n, d) in their files.

    `rows` returns them as Dense or Half, with the same bits as in memory.

    Pieces are slabs aligned to chunks or, if `block` is given, blocks of `block` consecutive global
    rows. The latest pieces stay in memory, up to `max_memory` bytes, but at least FEWEST of them. A
    thread reads the piece that follows the one last asked for. Rows that the file stores as memory
    would are mapped and used in place: copying them would take as long as everything that is done
    with them.

    Parameters
    ----------
    infos : sequence of Info
        The metadata of all files.
    segments : sequence of Segment
        This rank's rows.
    x : str
        The name of the matrix.
    dtype : dtype
        The type of the rows in memory.
    narrowing : Narrowing or None
        How wider numbers become float16; None if no conversion is needed.
    max_memory : int
        Bytes of pieces that are kept in memory.
    block : int or None
        Rows of a block; None for slabs.
    """

    def __init__(
        self,
        infos: Sequence[Info],
        segments: Sequence[Segment],
        x: str,
        dtype: np.dtype[Any],
        narrowing: Narrowing | None,
        max_memory: int,
        block: int | None,
    ) -> None:
        self._infos, self._segments, self._x, self._narrowing = infos, segments, x, narrowing
        self.dtype = self._kept = dtype
        self._read_as = dtype if narrowing is None else wide(infos)
        self.n, self.d = sum(len(segment) for segment in segments), infos[0].d
        self.row_bytes, self.entries = self.d * dtype.itemsize, self.n * self.d
        self._unit = np.ones(self.d) if narrowing is None else narrowing.unit
        self._maps: dict[int, Map] = {}
        mapped = max(FEWEST, resource_limits.afford(FILES + MAPPED) - FILES)
        self._mapped: Recent[Map] = Recent(mapped, self._unmap)
        self._pieces = list(self._cut(block))
        self._starts = np.concatenate(
            [[0], np.cumsum([cut.stop - cut.start for _, cut in self._pieces])]
        ).astype(np.int64)
        self._next = np.arange(1, len(self._pieces) + 1)  # the piece that is read after each piece
        largest = int(np.diff(self._starts).max(initial=1)) * self.row_bytes
        self._capacity = max(FEWEST, max_memory // max(1, largest))
        self._held: OrderedDict[int, Future[Array]] = OrderedDict()
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, "mpigd-read")
        self._open: Recent[tuple[ExitStack, Slabs]] = Recent(
            FILES, lambda _, opened: opened[0].close()
        )
        self._shift: Array | None = None

    def _cut(self, block: int | None) -> Iterator[tuple[int, slice]]:
        """Yield the segment and the rows of its file of each piece."""
        for number, segment in enumerate(self._segments):
            with reading(self._infos[segment.file], segment) as file:
                source = Slabs(file, self._x, self._read_as, self._infos[segment.file].y)
                if self._narrowing is None and (mapped := source.map()) is not None:
                    self._maps[number] = mapped
                cuts = list(source.cuts(segment))
            if block is None:
                yield from ((number, cut) for cut in cuts)
            else:
                shift = segment.first - segment.start  # from rows of the file to global rows
                for start in range(
                    segment.first // block * block, segment.first + len(segment), block
                ):
                    first, last = (
                        max(start, segment.first),
                        min(start + block, segment.first + len(segment)),
                    )
                    yield number, slice(first - shift, last - shift)

    def expect(self, steps: Array) -> None:
        """Read ahead, from now on, in the order of the steps in which pieces are first used.

        Parameters
        ----------
        steps : ndarray (m,)
            The step of this epoch that takes each local row.
        """
        if not self._pieces:
            return
        order = np.argsort(np.minimum.reduceat(steps, self._starts[:-1]), kind="stable")
        following = np.empty_like(self._next)
        following[order] = np.append(order[1:], len(self._pieces))
        self._next = following

    def check(self) -> None:
        """Read everything once. DataError if a number is unusable.

        Files with subnormal numbers, which become zero, cannot stay mapped: they are read instead.
        """
        for piece, (segment, _) in enumerate(self._pieces):
            values = self._piece(piece)
            if segment in self._maps and not usable(values.view(self._read_as)):
                with self._lock:
                    del self._maps[segment]
                    self._held.clear()
                self._piece(piece)

    def _piece(self, number: int) -> Array:
        """Return the values of a piece, and start reading the piece that follows it."""
        with self._lock:
            future = self._ask(number)
            if (following := int(self._next[number])) < len(self._pieces):
                self._ask(following)
                self._held.move_to_end(number)
            while len(self._held) > self._capacity:
                self._release(self._held.popitem(last=False)[0])
        return future.result()

    def _ask(self, number: int) -> Future[Array]:
        if number not in self._held:
            self._held[number] = self._reader.submit(self._read, number)
        self._held.move_to_end(number)
        return self._held[number]

    def _read(self, number: int) -> Array:
        segment, cut = self._pieces[number]
        if (known := self._maps.get(segment)) is not None:
            mapped = self._mapped.get(segment, known.open)
            return mapped.fetch(cut).view(np.uint16 if self._kept == np.float16 else self._kept)
        values = np.empty((cut.stop - cut.start, self.d), self._read_as)
        if self._read_as == np.float16:
            values = values.view(np.uint16)
        self._source(segment).read(cut, values)
        if self._narrowing is None:
            return values
        bits = np.empty(values.shape, np.uint16)
        self._narrowing.narrow(values, bits)
        return bits

    def _release(self, number: int) -> None:
        segment, cut = self._pieces[number]
        if (mapped := self._maps.get(segment)) is not None:
            mapped.release(cut)

    def _unmap(self, segment: Hashable, mapped: Map) -> None:
        """Close a mapped file and drop its finished pieces, which are views of it."""
        with self._lock:
            for number in [number for number in self._held if self._pieces[number][0] == segment]:
                if self._held[number].done():
                    del self._held[number]
        mapped.close()

    def _source(self, segment: int) -> Slabs:
        """Return the open dataset of a segment."""
        place = self._segments[segment]

        def opened() -> tuple[ExitStack, Slabs]:
            stack = ExitStack()
            file = stack.enter_context(reading(self._infos[place.file], place))
            return stack, Slabs(file, self._x, self._read_as, self._infos[place.file].y)

        return self._open.get(segment, opened)[1]

    def _matrix(self, values: Array) -> Dense | Half:
        if self._kept == np.float16:
            return Half(values, self._unit)
        return Dense(values if self._shift is None else values - self._shift)

    def rows(self, selection: Selection) -> Dense | Half:
        if isinstance(selection, slice):
            start, stop, _ = selection.indices(self.n)
            first, last = np.searchsorted(self._starts, [start, max(start, stop - 1)], "right") - 1
            if first == last and start < stop:
                base = self._starts[first]
                return self._matrix(self._piece(int(first))[start - base : stop - base])
            selection = np.arange(start, max(start, stop))
        kind = np.uint16 if self._kept == np.float16 else self._kept
        out, pieces = (
            np.empty((selection.size, self.d), kind),
            np.searchsorted(self._starts, selection, "right") - 1,
        )
        for piece in np.unique(pieces):
            mine = np.flatnonzero(pieces == piece)
            out[mine] = self._piece(int(piece))[selection[mine] - self._starts[piece]]
        return self._matrix(out)

    def _each(
        self, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[slice, Dense | Half]]:
        """Yield rows start to stop, piece by piece."""
        stop = self.n if stop is None else stop
        for piece in range(len(self._pieces)):
            first, last = (int(edge) for edge in self._starts[piece : piece + 2])
            rows = slice(max(first, start), min(last, stop))
            if rows.start < rows.stop:
                yield rows, self._matrix(self._piece(piece)[rows.start - first : rows.stop - first])

    def margins(self, w: Array, b: float, z: Array) -> None:
        for rows, block in self._each():
            block.margins(w, b, z[rows])

    def sweep(self, selection: Selection, task: Task, into: Into) -> None:
        if not isinstance(selection, slice):
            return self.rows(selection).sweep(slice(None), task.at(selection), into)
        start, stop, _ = selection.indices(self.n)
        for rows, block in self._each(start, stop):
            block.sweep(slice(None), task.at(rows), into)

    def accumulate(self, r: Array, l: Array, into: Into) -> None:
        for rows, block in self._each():
            block.accumulate(r[:, rows].copy(), l[rows], into)

    def columns(self) -> Columns:
        low, high = np.full(self.d, np.inf), np.full(self.d, -np.inf)
        for _, block in self._each():
            part = block.columns()
            np.minimum(low, part.low, out=low)
            np.maximum(high, part.high, out=high)
        return Columns(low, high, np.full(self.d, self.n, dtype=np.int64))

    def arrange(self, count: Array) -> None:
        return None

    def squared_deviation(self, center: Array) -> Dense:
        return self.rows(slice(None)).squared_deviation(center)

    def ones(self) -> Dense:
        return self.rows(slice(None)).ones()

    def shifted(self, shift: Array) -> Streamed:
        """Return the same rows minus `shift` (d,), for float32 and float64.

        The shift is subtracted whenever rows are read.
        """
        other = copy.copy(self)
        other._shift = shift.astype(self._kept)
        return other

    def absorb(self, hashes: Array) -> None:
        for rows, block in self._each():
            block.absorb(hashes[rows])
