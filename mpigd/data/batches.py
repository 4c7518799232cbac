"""Which rows form a step: a function of (seed, epoch, step, global row), never of the rank that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpigd.data.shard import RowNumbers, locate
from mpigd_kernels import sampling

Array = np.ndarray[Any, Any]
BLOCK = 4096  # consecutive global rows that --shuffle blocks keeps together
WINDOW = 1 << 16  # rows drawn or placed at once


class Batch(NamedTuple):
    """This rank's rows of one step: `rows` a slice or local indices; `size` counts those of all ranks.

    `step` counts from 0 over all epochs; `ends_epoch`: it is the last of its epoch.
    """

    rows: slice | Array
    size: int
    epoch: int
    step: int
    ends_epoch: bool


class Schedule(Protocol):
    """Iterates batches from any step on; its whole state is the number of the next step."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches of step `first` and after, without end."""


@dataclass(frozen=True)
class FullBatch:
    """All rows at every step."""

    n: int
    steps_per_epoch: int = 1

    def batches(self, first: int) -> Iterator[Batch]:
        step = first
        while True:
            yield Batch(slice(None), self.n, step, step, True)
            step += 1


class MiniBatch:
    """Each epoch a fresh permutation of 0..n-1, cut into batches; every row once, the last batch maybe short.

    blocks: permute blocks of consecutive rows, and the rows in each (block_positions). expect: told at the beginning of an
    epoch in which of its steps each local row is (m,).
    """

    def __init__(
        self,
        rows: Array | RowNumbers,
        n: int,
        size: int,
        seed: int,
        blocks: bool = False,
        expect: Callable[[Array], None] | None = None,
    ) -> None:
        self._rows, self._n, self._size, self._seed = rows, n, size, seed
        self._positions = block_positions if blocks else sampling.positions
        self._expect = expect
        self.steps_per_epoch = -(-n // size)

    def batches(self, first: int) -> Iterator[Batch]:
        epoch, start = divmod(first, self.steps_per_epoch)
        while True:
            order, starts = self._epoch(epoch)
            for step in range(start, self.steps_per_epoch):
                last = step + 1 == self.steps_per_epoch
                size = self._n - step * self._size if last else self._size
                mine = order[starts[step] : starts[step + 1]]
                yield Batch(mine, size, epoch, epoch * self.steps_per_epoch + step, last)
            epoch, start = epoch + 1, 0

    def _epoch(self, epoch: int) -> tuple[Array, Array]:
        """Local rows in the order of the steps that take them (m,), and where each step's begin (steps + 1,)."""
        m = self._rows.size
        kind = np.int32 if max(m, self.steps_per_epoch) < 2**31 else np.int64
        steps, order = np.empty(m, kind), np.empty(m, kind)
        for start in range(0, m, WINDOW):
            numbers = self._rows[start : start + WINDOW]
            places = np.empty(numbers.size, dtype=np.int64)
            self._positions(numbers, self._n, self._seed, epoch, places)
            steps[start : start + WINDOW] = places // self._size
        if self._expect is not None:
            self._expect(steps)
        starts = np.empty(self.steps_per_epoch + 1, dtype=np.int64)
        sampling.bucket(steps, starts, order)
        return order, starts


def block_positions(rows: Array, n: int, seed: int, epoch: int, places: Array) -> None:
    """places_i = place of global row rows_i (ascending) in an epoch's permutation of blocks, and of the rows in each.

    The last block may be short: those that come after it are moved up by what it lacks.
    """
    count, blocks = -(-n // BLOCK), rows // BLOCK
    last = n - (count - 1) * BLOCK
    firsts = np.flatnonzero(np.diff(blocks, prepend=-1))
    ids = np.append(blocks[firsts], count - 1)
    order = np.empty(ids.size, dtype=np.int64)
    sampling.positions(ids, count, seed, epoch, order)
    bases = order * BLOCK - (order > order[-1]) * (BLOCK - last)
    for start, stop, block, base in zip(
        firsts, np.append(firsts[1:], rows.size), ids, bases, strict=False
    ):
        size = last if block == count - 1 else BLOCK
        # a key of its own for each block: epochs have 32 bits, the upper 32 are free
        key = epoch | (int(block) + 1) << 32
        sampling.positions(rows[start:stop] - block * BLOCK, size, seed, key, places[start:stop])
        places[start:stop] += base


class Stochastic:
    """Rows drawn uniformly with replacement."""

    def __init__(self, rows: Array | RowNumbers, n: int, size: int, seed: int) -> None:
        self._rows, self._n, self._size, self._seed = rows, n, size, seed
        self.steps_per_epoch = -(-n // size)
        self._window = max(1, WINDOW // size)

    def batches(self, first: int) -> Iterator[Batch]:
        epoch, start = divmod(first, self.steps_per_epoch)
        while True:
            for base in range(start, self.steps_per_epoch, self._window):
                steps = min(self._window, self.steps_per_epoch - base)
                mine, starts = self.draw(epoch, base, steps)
                for step, (begin, end) in enumerate(pairwise(starts.tolist()), base):
                    last = step + 1 == self.steps_per_epoch
                    yield Batch(
                        mine[begin:end],
                        self._size,
                        epoch,
                        epoch * self.steps_per_epoch + step,
                        last,
                    )
            epoch, start = epoch + 1, 0

    def draw(self, epoch: int, first: int, steps: int) -> tuple[Array, Array]:
        """Local rows among the draws of `steps` steps, in the order drawn, and where each step's begin (steps + 1,)."""
        drawn = np.empty((steps, self._size), dtype=np.int64)
        sampling.draws(self._n, self._seed, epoch, first, drawn)
        at, held = locate(self._rows, drawn)
        return at[held], np.concatenate([[0], np.cumsum(held.sum(axis=1))])
