"""Batches: which rows form a step, as a function of (seed, epoch, step, global row) alone.

The rank that holds a row has no influence, so that the same batches arise on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpigd.data.shard import RowNumbers, locate
from mpigd_kernels import sampling

Array = np.ndarray[Any, Any]
BLOCK = 4096  # consecutive global rows that stay together with --shuffle blocks
WINDOW = 1 << 16  # rows whose draws or positions are computed at once


class Batch(NamedTuple):
    """This rank's rows of one step.

    Attributes
    ----------
    rows : slice or ndarray
        Local rows.
    size : int
        The number of rows on all ranks.
    epoch : int
        The epoch, from 0.
    step : int
        The step, counted from 0 over all epochs.
    ends_epoch : bool
        Whether this is the last step of its epoch.
    """

    rows: slice | Array
    size: int
    epoch: int
    step: int
    ends_epoch: bool

    @staticmethod
    def whole(n: int, step: int = 0) -> Batch:
        """Return all rows of this rank, n on all ranks, as the batch of a step."""
        return Batch(slice(None), n, step, step, True)


class Schedule(Protocol):
    """Iterates over batches from any step on. Its whole state is the number of the next step."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield the batches of step `first` and after, without end."""


@dataclass(frozen=True)
class FullBatch:
    """Every step takes all rows."""

    n: int
    steps_per_epoch: int = 1

    def batches(self, first: int) -> Iterator[Batch]:
        step = first
        while True:
            yield Batch.whole(self.n, step)
            step += 1


class MiniBatch:
    """Each epoch takes every row once: a fresh permutation of 0..n-1, cut into batches.

    Parameters
    ----------
    rows : ndarray (m,) or RowNumbers
        This rank's global row numbers, ascending.
    n : int
        The number of rows on all ranks.
    size : int
        Rows of a batch on all ranks. The last batch of an epoch may be shorter.
    seed : int
        The seed of the permutations.
    blocks : bool
        Permute blocks of consecutive rows, and the rows inside each block, see `block_positions`.
    expect : callable, optional
        Called at the beginning of an epoch with the step of that epoch (m,) that takes each local
        row.
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
        """Return the local rows by step (m,), and where each step's rows begin (steps + 1,)."""
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
    """Write the positions of rows in an epoch's permutation.

    The permutation is one of blocks of BLOCK consecutive rows, and of the rows in each block.

    Parameters
    ----------
    rows : ndarray (m,)
        Global row numbers, ascending, int64.
    n : int
        The number of rows on all ranks.
    seed, epoch : int
        They select the permutation.
    places : ndarray (m,)
        int64; receives the position of each row, from 0 to n - 1.

    Notes
    -----
    The last block may be shorter than the others. Blocks that come after it in the permutation move
    up by the rows that it lacks.
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
        # Each block has its own key: the epoch takes the lower 32 bits, the block the upper 32.
        key = epoch | (int(block) + 1) << 32
        sampling.positions(rows[start:stop] - block * BLOCK, size, seed, key, places[start:stop])
        places[start:stop] += base


class Stochastic:
    """Every step draws rows uniformly, with replacement."""

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
        """Draw the rows of some steps.

        Parameters
        ----------
        epoch : int
        first : int
            The first step, counted in the epoch.
        steps : int
            The number of steps.

        Returns
        -------
        ndarray
            This rank's local rows among the draws, in the order drawn.
        ndarray (steps + 1,)
            Where each step's rows begin.
        """
        drawn = np.empty((steps, self._size), dtype=np.int64)
        sampling.draws(self._n, self._seed, epoch, first, drawn)
        at, held = locate(self._rows, drawn)
        return at[held], np.concatenate([[0], np.cumsum(held.sum(axis=1))])
