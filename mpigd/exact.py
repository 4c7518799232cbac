"""The exact reducer: a sum is a function of the set of rows (mpigd_kernels/sums.py has the arithmetic).

Each product r_i x_ij is rounded to a grid u_j that all ranks agree on. The grid needs bounds: of each column, known from
loading, and of the residuals and losses, which are carried as state. When a row exceeds its bound, all ranks see the
count in the same Allreduce, agree on a larger power of two, and repeat the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.comm import Comm
from mpigd.data.matrix import Into
from mpigd.limits import Limits
from mpigd.reduce import NotFinite, Share, Sums, Threads, grid, power_above
from mpigd_kernels import sums

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bounds:
    """What the grid of a column is made of: its largest |x| (d,), and how many of its terms an accumulator takes (d,)."""

    largest: Array
    terms: Array
    panel: int

    @staticmethod
    def of(largest: Array, count: Array, entries: int, rows: int) -> Bounds:
        """From each column's largest |x| and number of stored values (d,), and the entries and rows of all the data.

        A flush costs a pass over the columns, so a sparse matrix takes more rows between two of them; a column with
        few entries meets fewer terms than that, which keeps its grid fine.
        """
        per_row = max(1.0, entries / max(1, rows))
        panel = sums.PANEL
        while panel < 8 * count.size / per_row and panel < 1 << 20 and per_row < count.size:
            panel *= 2
        terms = np.minimum(power_above(count.astype(np.float64)), float(panel))
        return Bounds(largest, terms, panel)

    def with_replacement(self) -> Bounds:
        """The same for rows that may be drawn several times: any column may fill a whole panel."""
        return Bounds(self.largest, np.full_like(self.terms, float(self.panel)), self.panel)


@dataclass(frozen=True)
class Grids:
    """Biases C of a sweep: of the columns (d,), the same for what those cut off (None: not kept), of loss and residual."""

    coarse: Array
    fine: Array | None
    scalars: Array


class ExactAccumulator:
    """One thread's share of an exact sweep, on words that can travel as they are.

    T (2 or 4, k, d) and S (1 + k, 2): two-word totals, T of each grid. counts (5,): values over a limit; |r| and |l| over
    1/16 of theirs; over 1/4096. tops (3,): largest |r| and |l| where over, and values that are not finite.
    """

    def __init__(self, k: int, d: int, fine: bool, extra: int = 0) -> None:
        words = 4 if fine else 2
        self.words = np.zeros(words * k * d + 2 * (1 + k) + 5 + extra)
        T, S, self.counts, self.extra = np.split(self.words, np.cumsum([words * k * d, 2 * (1 + k), 5]))
        self.T, self.S = T.reshape(words, k, d), S.reshape(1 + k, 2)
        self.A = np.empty((words // 2, k, d))
        self.tops = np.zeros(3)

    def start(self, grids: Grids, limits: Array, panel: int) -> None:
        self.grids, self.panel = grids, panel
        self.arrays = (
            limits, grids.scalars, self.S, self.counts, self.tops, self.A, grids.coarse, grids.fine, self.T,
        )  # fmt: skip
        self.A[0] = grids.coarse
        if grids.fine is not None:
            self.A[1] = grids.fine
        self.filled = 0
        self.words.fill(0.0)
        self.tops.fill(0.0)

    @contextmanager
    def in_units(self, unit: Array, inverse: Array) -> Iterator[None]:
        """Powers of two change no bit of a significand, so sums of columns in other units round alike."""
        before, C, D = self.arrays, self.grids.coarse * inverse, self.grids.fine
        self.arrays = (*before[:6], C, None if D is None else D * inverse, before[8])
        for array in (self.A, self.T):
            array *= inverse
        yield
        for array in (self.A, self.T):
            array *= unit
        self.arrays = before

    def finish(self) -> None:
        if self.filled:
            for A, C, T in zip(self.A, (self.grids.coarse, self.grids.fine), (self.T[:2], self.T[2:]), strict=False):
                for q in range(A.shape[0]):
                    sums.flush(A[q], C, T[:, q])

    def total(self) -> Sums:
        """The sums that the words hold."""
        T, S = self.T, self.S
        gradient = T[0] + T[1] if self.grids.fine is None else (T[0] + T[1]) + (T[2] + T[3])
        scalars = S[:, 0] + S[:, 1]
        return Sums(gradient, scalars[1:], float(scalars[0]))


def rounding(C: Array, n: int) -> Array:
    """Bound on what rounding n terms to the grid of C costs a sum (d,)."""
    return np.asarray(C / (1.5 * 2.0**53) * n)


class ExactReducer:
    """The sum as a set function of the rows: the same bits over any ranks, threads, blocks and order.

    `residual_bound` is the largest |c_i dloss/dz| where that is known beforehand, else None. `fine`: keep what rounding
    to the grid cuts off on a second one; twice the words, for data whose outliers or weights make the first too coarse.
    """

    def __init__(self, comm: Comm, bounds: Bounds, k: int, n: int, residual_bound: float | None, fine: bool = False) -> None:
        self.comm, self.columns, self.n = comm, bounds, n
        self._limits = Limits(residual_bound, n)
        self._shape, self._fine = (k, bounds.largest.size), fine
        self._accumulators: list[ExactAccumulator] = []
        self._threads = Threads()
        self._limits_of_grids: Array | None = None
        self.repeats = 0
        self.extra = self.summed = np.zeros(0)

    def state(self) -> dict[str, Array]:
        return self._limits.state()

    def restore(self, state: dict[str, Array]) -> None:
        self._limits.restore(state)

    def error_bound(self) -> Array:
        """Bound on the rounding of a full sweep's gradient sums (d,): each term loses at most half a grid unit."""
        grids = self._grid()
        return rounding(grids.coarse if grids.fine is None else grids.fine, self.n)

    def residual_error(self) -> float:
        """The same for the sum of the residuals, on a grid that is as coarse as that of the losses at most."""
        return float(rounding(self._grid().scalars, self.n).max())

    def sweep(self, shares: Sequence[Share], visit: Callable[[Share, Into], None], rows: float) -> Sums:
        used, before = self._for_threads(len(shares)), self._limits.values
        try:
            while True:
                self._visit(shares, visit, used)
                result = self._over_ranks(used, rows)
                if result is not None:
                    return result
                self.repeats += 1
        except NotFinite:
            self._limits.values = before  # a line search may step back and go on
            raise

    def _for_threads(self, count: int) -> list[ExactAccumulator]:
        """One accumulator each; the first has room for the extra words, and its words are the step's one buffer."""
        if not self._accumulators or self._accumulators[0].extra.size != self.extra.size:
            self._accumulators = [ExactAccumulator(*self._shape, self._fine, self.extra.size)]
        while len(self._accumulators) < count:
            self._accumulators.append(ExactAccumulator(*self._shape, self._fine))
        return self._accumulators[:count]

    def _visit(self, shares: Sequence[Share], visit: Callable[[Share, Into], None], used: Sequence[ExactAccumulator]) -> None:
        grids = self._grid()

        def work(thread: int) -> None:
            accumulator = used[thread]
            accumulator.start(grids, self._limits.values, self.columns.panel)
            visit(shares[thread], accumulator)
            accumulator.finish()

        self._threads.run(work, len(shares))

    def _grid(self) -> Grids:
        limits = self._limits.values
        if limits is not self._limits_of_grids:
            with np.errstate(over="ignore", invalid="ignore"):  # grid() refuses what overflows
                largest = self.columns.largest * limits[0]
            coarse = grid(largest, self.columns.terms)
            fine = grid(coarse / (1.5 * 2.0**52), self.columns.terms) if self._fine else None
            self._grids = Grids(coarse, fine, grid(limits[::-1], float(sums.PANEL)))
            self._limits_of_grids = limits
        return self._grids

    def _over_ranks(self, used: Sequence[ExactAccumulator], rows: float) -> Sums | None:
        """One Allreduce of all words; None if the sweep must be repeated with other limits."""
        first = used[0]
        for other in used[1:]:
            first.words[: other.words.size] += other.words
        first.extra[:] = self.extra
        self.comm.allreduce(first.words)
        over, *large, visible_r, visible_l = first.counts.tolist()
        if over:
            tops = np.max([accumulator.tops for accumulator in used], axis=0)
            self.comm.allreduce(tops, "max")
            self._limits.rise(tops)
            return None
        if rows >= self.n and self._limits.measure_again((visible_r, visible_l)):
            return None
        self._limits.fall(large, rows)
        self.summed = first.extra
        return first.total()
