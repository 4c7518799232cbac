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

from mpigd.matrix.base import Into
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import Found, NotFinite, Share, Sums, Threads, grid, joined, power_above
from mpigd.reduction.term_bounds import Limits
from mpigd_kernels import sums
from mpigd_kernels.host import aligned
from mpigd_kernels.simd import multi_output

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bounds:
    """What the grid of a column is made of: its largest |x| (d,), and how many of its terms an accumulator takes (d,).

    Accumulators of the first `head` columns are flushed every `panel` rows. The others have so few entries in all the data
    that theirs never fill up, whoever adds what: one word each, at the end, is their exact sum.
    """

    largest: Array
    terms: Array
    panel: int
    head: int
    per_row: float

    @staticmethod
    def of(largest: Array, count: Array, entries: int, rows: int) -> Bounds:
        """From each column's largest |x| and number of stored values (d,), and the entries and rows of all the data.

        A flush costs a pass over the head, so where that is long, more rows are taken between two of them.
        """
        per_row = max(1.0, entries / max(1, rows))
        panel, head = sums.PANEL, count.size
        while per_row < count.size:
            full = np.flatnonzero(count > panel)
            head = int(full[-1]) + 1 if full.size else 0
            if not _grows(panel, head, per_row):
                break
            panel *= 2
        terms = np.minimum(power_above(count.astype(np.float64)), float(panel)).astype(
            np.float32
        )  # powers of two: exact
        return Bounds(largest, terms, panel, head, per_row)

    def with_replacement(self) -> Bounds:
        """The same for rows that may be drawn several times: any column may fill a whole panel."""
        panel, d = self.panel, self.terms.size
        while self.per_row < d and _grows(panel, d, self.per_row, 8):
            panel *= 2
        return Bounds(self.largest, np.full_like(self.terms, panel), panel, d, self.per_row)


def _grows(panel: int, head: int, per_row: float, share: int = 64) -> bool:
    """Whether flushing `head` columns every `panel` rows would cost more than one in `share` entries."""
    return panel < share * head / per_row and panel < 1 << 20


@dataclass(frozen=True)
class Grids:
    """Biases C of a sweep: of the columns (d,), the same for what those cut off (None: not kept), of loss and residual."""

    coarse: Array
    fine: Array | None
    scalars: Array


class ExactAccumulator:
    """One thread's share of an exact sweep, on words that can travel as they are.

    T (2 or 4, k, h) and S (1 + k, 2): two-word totals, T of the first h columns on each grid; rest (1 or 2, k, d - h): those of
    the others, in one word. counts (5,): values over a limit; |r| and |l| over 1/16 of theirs; over 1/4096. tops (3,): largest
    |r| and |l| where over, and values that are not finite. `paired`: accumulators lie beside the coefficients (simd/sparse.py;
    of several outputs: simd/multi_output.py).
    """

    def __init__(self, k: int, d: int, head: int, fine: bool, paired: bool, extra: int = 0) -> None:
        kinds = 2 if fine else 1
        sizes = 2 * kinds * k * head, kinds * k * (d - head), 2 * (1 + k), 5
        room = np.zeros(
            8 + sum(sizes) + extra
        )  # a cache line for the tops, so that one call clears both
        self.tops, self.words, self._cleared = room[:3], room[8:], room[: 8 + sum(sizes)]
        T, rest, S, self.counts, self.extra = np.split(self.words, np.cumsum(sizes))
        self.head = head
        self.T, self.S, self.rest = (
            T.reshape(2 * kinds, k, head),
            S.reshape(1 + k, 2),
            rest.reshape(kinds, k, d - head),
        )
        self.coef = self.pairs = self.lines = None
        if not paired:
            self.A = aligned((kinds, k, d))
        elif k == 1:
            self.pairs = np.zeros((kinds, 1, d, 2))
            self.coef, self.A = self.pairs[0, ..., 0], self.pairs[..., 1]
        else:
            self.lines = aligned((d, 1 + kinds, multi_output.width(k)))
            self.lines.fill(0.0)
            parts = self.lines[..., :k].transpose(1, 2, 0)
            self.coef, self.A = parts[0], parts[1:]
        self.room = np.empty(0)
        self._at: Grids | None = None  # of whose biases A is full

    def start(self, grids: Grids, limits: Array, panel: int) -> None:
        """Begin a sweep with these grids, made for these limits. What `finish` has left in A is their biases already."""
        if self._at is not grids:
            self.grids, self.panel = grids, panel
            self.arrays = (
                limits, grids.scalars, self.S, self.counts, self.tops, self.A, grids.coarse, grids.fine, self.T,
            )  # fmt: skip
            for number, (A, C) in enumerate(self._kinds()):
                if self.lines is None:
                    A[:] = C
                else:
                    multi_output.begin(self.lines, 1 + number, C)
        self._at = None  # until `finish`: what fails in between leaves A as it is
        self.filled = 0
        self._cleared.fill(0.0)

    def _kinds(self) -> Iterator[tuple[Array, Array]]:
        """Accumulators and biases of each grid."""
        yield self.A[0], self.grids.coarse
        if self.grids.fine is not None:
            yield self.A[1], self.grids.fine

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
        head, size = self.head, self.grids.coarse.size
        for number, (A, C) in enumerate(self._kinds() if self.filled or head < size else ()):
            if head < size and self.lines is None:
                np.subtract(A[:, head:], C[head:], out=self.rest[number])
            elif head < size:
                multi_output.take_rest(self.lines, 1 + number, C, head, self.rest[number])
            for q in range(A.shape[0] if self.filled else 0):
                sums.flush(A[q], C, self.T[2 * number : 2 * number + 2, q])
        self._at = (
            self.grids if head == size or self.lines is not None else None
        )  # the other columns are not set back

    def take(
        self,
        share: Share,
        visit: Callable[[Share, Into], None],
        grids: Grids,
        limits: Array,
        panel: int,
    ) -> None:
        """A sweep over this thread's share."""
        self.start(grids, limits, panel)
        visit(share, self)
        self.finish()

    def total(self, read: Callable[[Array, Array], Found]) -> Found:
        """What `read` makes of the words."""
        if self.head == self.grids.coarse.size:
            return read(self.T, self.S)
        gradient = np.empty((1, *self.A.shape[1:]))
        sums.join(self.T, self.S, gradient[0], np.empty(self.S.shape[0]))
        np.add.reduce(
            self.rest, axis=0, out=gradient[0, :, self.head :]
        )  # one word or two: no order among them
        return read(gradient, self.S)


def rounding(C: Array, n: int) -> Array:
    """Bound on what rounding n terms to the grid of C costs a sum (d,)."""
    return np.asarray(C / (1.5 * 2.0**53) * n)


class ExactReducer:
    """The sum as a set function of the rows: the same bits over any ranks, threads, blocks and order.

    `residual_bound` is the largest |c_i dloss/dz| where that is known beforehand, else None. `fine`: keep what rounding
    to the grid cuts off on a second one; twice the words, for data whose outliers or weights make the first too coarse.
    `paired`: for sweeps over compressed rows, whose coefficients and accumulators then lie together.
    """

    def __init__(
        self, comm: Comm, bounds: Bounds, k: int, n: int, residual_bound: float | None, fine: bool = False,
        paired: bool = False,
    ) -> None:  # fmt: skip
        self.comm, self.columns, self.n = comm, bounds, n
        self._limits = Limits(residual_bound, n)
        self._shape = k, bounds.largest.size, bounds.head, fine, paired
        self._fine = fine
        self._accumulators: list[ExactAccumulator] = []
        self._threads = Threads()
        self._limits_of_grids: Array | None = None
        self.repeats = 0
        self._extra, self._summed = np.zeros((2, 0))

    def reserve(self, count: int) -> tuple[Array, Array]:
        self._accumulators = []
        self._extra, self._summed = np.zeros((2, count))
        return self._extra, self._summed

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

    def sweep(
        self, shares: Sequence[Share], visit: Callable[[Share, Into], None], rows: float
    ) -> Sums:
        return self.sweep_for(joined, shares, visit, rows)

    def sweep_for(
        self,
        read: Callable[[Array, Array], Found],
        shares: Sequence[Share],
        visit: Callable[[Share, Into], None],
        rows: float,
    ) -> Found:
        used, before = self._for_threads(len(shares)), self._limits.values
        try:
            while True:
                self._visit(shares, visit, used)
                if self._over_ranks(used, rows):
                    return used[0].total(read)
                self.repeats += 1
        except NotFinite:
            self._limits.values = before  # a line search may step back and go on
            raise

    def _for_threads(self, count: int) -> list[ExactAccumulator]:
        """One accumulator each; the first has room for the extra words, and its words are the step's one buffer."""
        while len(self._accumulators) < count:
            extra = 0 if self._accumulators else self._extra.size
            self._accumulators.append(ExactAccumulator(*self._shape, extra))
        return self._accumulators[:count]

    def _visit(
        self,
        shares: Sequence[Share],
        visit: Callable[[Share, Into], None],
        used: Sequence[ExactAccumulator],
    ) -> None:
        grids, limits, panel = self._grid(), self._limits.values, self.columns.panel
        if len(shares) == 1:  # without what only threads need, which a step of one row would notice
            used[0].take(shares[0], visit, grids, limits, panel)
        else:
            self._threads.run(
                lambda t: used[t].take(shares[t], visit, grids, limits, panel), len(shares)
            )

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

    def _over_ranks(self, used: Sequence[ExactAccumulator], rows: float) -> bool:
        """One Allreduce of all words; False if the sweep must be repeated with other limits."""
        first = used[0]
        for other in used[1:]:
            first.words[: other.words.size] += other.words
        first.extra[:] = self._extra
        self.comm.allreduce(first.words)
        over, *large, visible_r, visible_l = first.counts.tolist()
        if over:
            tops = np.max([accumulator.tops for accumulator in used], axis=0)
            self.comm.allreduce(tops, "max")
            self._limits.rise(tops)
            return False
        if rows >= self.n and self._limits.measure_again((visible_r, visible_l)):
            return False
        self._limits.fall(large, rows)
        self._summed[:] = first.extra
        return True
