"""The exact reducer: a sum is a function of the set of rows.

mpigd_kernels/sums.py has the arithmetic.

Each product r_i x_ij is rounded to a grid with unit u_j, on which all ranks agree. The grid needs
upper bounds: of each column's |x|, known from loading, and of the residuals and losses, which are
carried from sweep to sweep as state (term_bounds.py). If a row exceeds its bound, all ranks see the
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
from mpigd.reduction.base import Found, NotFinite, Reducer, Share, Threads, grid, power_above
from mpigd.reduction.term_bounds import Limits
from mpigd_kernels import sums
from mpigd_kernels.host import aligned
from mpigd_kernels.simd import multi_output

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bounds:
    """The numbers from which the grids of the columns are made.

    Accumulators of the first `head` columns are flushed every `panel` rows. The other columns have
    so few entries in all the data that their accumulators never fill up, whichever rows are added:
    their exact sum is one float64 word, read at the end.

    Parameters
    ----------
    largest : (d,) float64
        The largest |x| of each column.
    terms : (d,) float32
        How many terms a column's accumulator takes; powers of two.
    panel
        The number of rows between two flushes.
    head
        The number of columns that are flushed.
    per_row
        Entries per row, on average, at least 1.
    """

    largest: Array
    terms: Array
    panel: int
    head: int
    per_row: float

    @staticmethod
    def of(largest: Array, count: Array, entries: int, rows: int) -> Bounds:
        """Return the bounds for columns with these statistics.

        A flush costs a pass over the first `head` columns. If there are many, more rows are taken
        between two flushes.

        Parameters
        ----------
        largest : (d,) float64
            The largest |x| of each column.
        count : (d,) int64
            Stored values of each column.
        entries, rows
            Numbers of stored values and of rows of all the data.
        """
        per_row = max(1.0, entries / max(1, rows))
        panel, head = sums.PANEL, count.size
        while per_row < count.size:
            full = np.flatnonzero(count > panel)
            head = int(full[-1]) + 1 if full.size else 0
            if not _grows(panel, head, per_row):
                break
            panel *= 2
        # Powers of two are exact in float32.
        terms = np.minimum(power_above(count.astype(np.float64)), float(panel)).astype(np.float32)
        return Bounds(largest, terms, panel, head, per_row)

    def with_replacement(self) -> Bounds:
        """Return the bounds for rows that may be drawn several times.

        Any column may then fill a whole panel.
        """
        panel, d = self.panel, self.terms.size
        while self.per_row < d and _grows(panel, d, self.per_row, 8):
            panel *= 2
        return Bounds(self.largest, np.full_like(self.terms, panel), panel, d, self.per_row)


def _grows(panel: int, head: int, per_row: float, share: int = 64) -> bool:
    """Whether flushing `head` columns a panel costs more than 1 / `share` of the entries."""
    return panel < share * head / per_row and panel < 1 << 20


@dataclass(frozen=True)
class Grids:
    """The biases C of a sweep.

    Parameters
    ----------
    coarse : (d,) float64
        The biases of the columns.
    fine : (d,) float64 or None
        The biases of what rounding to the coarse grid cuts off; None if that is not kept.
    scalars : (2,) float64
        The biases of loss and residual.
    """

    coarse: Array
    fine: Array | None
    scalars: Array


class ExactAccumulator:
    """One thread's share of an exact sweep, in one array that can be reduced over ranks as it is.

    T (2 or 4, k, h) and S (1 + k, 2) are two-word totals, T those of the first h columns on each
    grid. `rest` (1 or 2, k, d - h) holds the totals of the other columns, one word each. counts
    (5,) counts values over a bound, then |r| and |l| over 1/16 of their bounds, then those over
    1/4096. tops (3,) holds the largest |r| and |l| that are over their bounds, and the number of
    values that are not finite. If `paired`, accumulators lie beside the coefficients
    (simd/sparse.py; for several outputs, simd/multi_output.py).
    """

    def __init__(self, k: int, d: int, head: int, fine: bool, paired: bool, extra: int = 0) -> None:
        kinds = 2 if fine else 1
        sizes = 2 * kinds * k * head, kinds * k * (d - head), 2 * (1 + k), 5
        # The tops take a cache line before the words, so that one call clears both.
        room = np.zeros(8 + sum(sizes) + extra)
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
        self._at: Grids | None = None  # the grids whose biases fill A, if any

    def start(self, grids: Grids, limits: Array, panel: int) -> None:
        """Begin a sweep.

        `finish` leaves biases in A, so they are set only if the grids have changed.

        Parameters
        ----------
        grids
            The biases of the sweep.
        limits : (2,) float64
            Bounds on |residual| and |loss|, for which the grids were made.
        panel
            The number of rows between two flushes.
        """
        if self._at is not grids:
            self.grids, self.panel = grids, panel
            self.arrays = (
                limits,
                grids.scalars,
                self.S,
                self.counts,
                self.tops,
                self.A,
                grids.coarse,
                grids.fine,
                self.T,
            )
            for number, (A, C) in enumerate(self._kinds()):
                if self.lines is None:
                    A[:] = C
                else:
                    multi_output.begin(self.lines, 1 + number, C)
        self._at = None  # until `finish`: after an error in between, A holds unknown numbers
        self.filled = 0
        self._cleared.fill(0.0)

    def _kinds(self) -> Iterator[tuple[Array, Array]]:
        """Yield the accumulators and biases of each grid."""
        yield self.A[0], self.grids.coarse
        if self.grids.fine is not None:
            yield self.A[1], self.grids.fine

    @contextmanager
    def in_units(self, unit: Array, inverse: Array) -> Iterator[None]:
        """Express the sums in other units of the columns, powers of two, within the context.

        Powers of two change no bit of a significand, so the sums round in the same way.
        """
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
        # Without `lines`, columns beyond the head are not set back to their biases.
        self._at = self.grids if head == size or self.lines is not None else None

    def take(
        self,
        share: Share,
        visit: Callable[[Share, Into], None],
        grids: Grids,
        limits: Array,
        panel: int,
    ) -> None:
        """Sweep over this thread's share."""
        self.start(grids, limits, panel)
        visit(share, self)
        self.finish()

    def total(self, read: Callable[[Array, Array], Found]) -> Found:
        """Return what `read` makes of the totals T and S."""
        if self.head == self.grids.coarse.size:
            return read(self.T, self.S)
        gradient = np.empty((1, *self.A.shape[1:]))
        sums.join(self.T, self.S, gradient[0], np.empty(self.S.shape[0]))
        # One or two words: their sum has only one order, so numpy may add them.
        np.add.reduce(self.rest, axis=0, out=gradient[0, :, self.head :])
        return read(gradient, self.S)


def rounding(C: Array, n: int) -> Array:
    """Return a bound (d,) on the error of sums of n terms each, rounded to the grid of C (d,)."""
    return np.asarray(C / (1.5 * 2.0**53) * n)


class ExactReducer(Reducer):
    """Sums as functions of the set of rows: the same bits for any ranks, threads, blocks and order.

    Parameters
    ----------
    comm
        The communicator of these ranks.
    bounds
        The bounds of the columns, from which their grids are made.
    k
        The number of outputs.
    n
        The number of rows over all ranks.
    residual_bound
        The largest |c_i dloss/dz| if it is known beforehand, else None.
    fine
        Whether to keep on a second grid what rounding to the first cuts off. This takes twice the
        words; it is for data whose outliers or weights make the first grid too coarse.
    paired
        Whether coefficients and accumulators lie side by side, as sweeps over compressed rows need.
    """

    def __init__(
        self,
        comm: Comm,
        bounds: Bounds,
        k: int,
        n: int,
        residual_bound: float | None,
        fine: bool = False,
        paired: bool = False,
    ) -> None:
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
        """Return a bound (d,) on the rounding error of a full sweep's gradient sums.

        Each term loses at most half a grid unit.
        """
        grids = self._grid()
        return rounding(grids.coarse if grids.fine is None else grids.fine, self.n)

    def residual_error(self) -> float:
        """Return a bound on the rounding error of the sum of the residuals.

        It is computed from the coarser of the grids of residuals and losses.
        """
        return float(rounding(self._grid().scalars, self.n).max())

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
        """Return `count` accumulators, one a thread.

        The first has room for the reserved words; its words are the buffer of the step's one
        Allreduce.
        """
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
        if len(shares) == 1:  # no thread pool, whose cost would show in a step of one row
            used[0].take(shares[0], visit, grids, limits, panel)
        else:
            self._threads.run(
                lambda t: used[t].take(shares[t], visit, grids, limits, panel), len(shares)
            )

    def _grid(self) -> Grids:
        limits = self._limits.values
        if limits is not self._limits_of_grids:
            with np.errstate(over="ignore", invalid="ignore"):  # grid() rejects an overflow
                largest = self.columns.largest * limits[0]
            coarse = grid(largest, self.columns.terms)
            fine = grid(coarse / (1.5 * 2.0**52), self.columns.terms) if self._fine else None
            self._grids = Grids(coarse, fine, grid(limits[::-1], float(sums.PANEL)))
            self._limits_of_grids = limits
        return self._grids

    def _over_ranks(self, used: Sequence[ExactAccumulator], rows: float) -> bool:
        """Reduce all words over ranks in one Allreduce, and return whether the sweep counts.

        It must be repeated (False) if a bound was exceeded, or was so large that all terms were
        rounded to zero.
        """
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
