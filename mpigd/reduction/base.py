"""Reducers add up over blocks, threads and ranks; `total` adds up numbers of rows exactly.

A reducer owns its accumulators, the buffer of its one Allreduce, and the decision to repeat a
sweep. `NativeReducer` adds plain float64 numbers; `ExactReducer` (exact.py) is what training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mpigd.errors import NumericalError
from mpigd.matrix.base import Into
from mpigd.parallel.comm import Comm
from mpigd_kernels import sums

Array = np.ndarray[Any, Any]
Share = TypeVar("Share")
Found = TypeVar("Found")
SLAB = 1 << 16  # numbers that `total` handles at once
SMALLEST = 2.0**-900  # the least bound: a finer grid would leave the normal numbers of float64


class Sums(NamedTuple):
    """Unnormalised sums of a sweep over all rows.

    Parameters
    ----------
    gradient : (k, d) float64
        X' r for the per-sample gradients r of each of k outputs.
    residual : (k,) float64
        Sums of r.
    loss : float
        The sum of the losses.
    """

    gradient: Array
    residual: Array
    loss: float


class Reducer(Protocol):
    """The interface and base class of reducers: sums over blocks, threads and ranks."""

    comm: Comm

    def reserve(self, count: int) -> tuple[Array, Array]:
        """Reserve `count` numbers of the buffer that each sweep reduces over the ranks.

        Returns
        -------
        words : (count,) float64
            For the callers to fill before a sweep.
        summed : (count,) float64
            Their sums over ranks, filled after each sweep.
        """

    def sweep(
        self, shares: Sequence[Share], visit: Callable[[Share, Into], None], rows: float
    ) -> Sums:
        """Call visit(share, accumulators) for every share, and add up over all ranks. Collective.

        Each share is visited on its own thread.

        Parameters
        ----------
        shares
            What each thread visits.
        visit
            Adds a share's rows to a thread's accumulators.
        rows
            The number of rows that the sweep visits over all ranks.

        Raises
        ------
        NotFinite
            On all ranks together, if a sum is not finite.
        """
        return self.sweep_for(joined, shares, visit, rows)

    def sweep_for(
        self,
        read: Callable[[Array, Array], Found],
        shares: Sequence[Share],
        visit: Callable[[Share, Into], None],
        rows: float,
    ) -> Found:
        """Do a `sweep`, and return what `read` makes of its totals. Collective.

        Parameters
        ----------
        read
            Called with the totals T (1, 2 or 4, k, d) and S (1 + k, 2) of sums.join. It may not
            keep them: the reducer uses them again.
        shares, visit, rows
            As for `sweep`.
        """

    def state(self) -> dict[str, Array]:
        """Return the arrays that a resumed run needs to compute the same bits."""

    def restore(self, state: dict[str, Array]) -> None:
        """Restore a state that `state` returned."""


def joined(T: Array, S: Array) -> Sums:
    """Return the sums that the totals T and S hold."""
    gradient, scalars = np.empty(T.shape[1:]), np.empty(S.shape[0])
    sums.join(T, S, gradient, scalars)
    return Sums(gradient, scalars[1:], scalars.item(0))


class NotFinite(NumericalError):
    """A loss or residual is not finite. Every rank raises this at the same place."""

    def __init__(self, text: str = "a loss or gradient is not finite") -> None:
        super().__init__(text)
        self.agreed = True


class Threads:
    """Run shares of work on Python threads; the kernels release the GIL.

    The first share runs on the caller's own thread.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[int], None], count: int) -> None:
        if count == 1:
            work(0)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(count - 1, "mpigd")
        others = [self._pool.submit(work, thread) for thread in range(1, count)]
        work(0)
        for other in others:
            other.result()


def power_above(x: Array | float) -> Array:
    """Return the smallest power of two that is greater than x >= 0.

    It is exact, unlike log2, and infinite from x = 2**1023 on.
    """
    with np.errstate(over="ignore"):
        return np.asarray(np.ldexp(1.0, np.frexp(x)[1]))


def grid(largest: Array, terms: Array | float) -> Array:
    """Return the biases C whose addition rounds terms to a grid.

    C = 1.5 * 2**52 * u for the smallest power of two u with terms * (largest + u) <= 2**51 u.

    Parameters
    ----------
    largest : float64 array
        Of any shape, upper bounds on the terms' sizes.
    terms
        How many terms an accumulator takes; powers of two, of a shape that broadcasts.

    Returns
    -------
    C : float64 array
        Of the shape of `largest`.

    Raises
    ------
    NotFinite
        If a sum of such terms may overflow.
    """
    top = np.array(np.maximum(largest, SMALLEST))
    parts = top.reshape(-1), np.broadcast_to(terms, top.shape).reshape(-1)
    for start in range(0, top.size, SLAB):  # to keep the temporary arrays small
        part, some = (array[start : start + SLAB] for array in parts)
        part[:] = _grid(part, some)
    return np.asarray(top)


def _grid(largest: Array, terms: Array) -> Array:
    with np.errstate(over="ignore"):
        top = largest * terms
        u = np.ldexp(1.0, np.frexp(top)[1] - 51)
        u = np.where(top + terms * u <= 2.0**51 * u, u, 2.0 * u)
        C = 1.5 * 2.0**52 * u
        if not np.all(np.isfinite(top) & np.isfinite(C * sums.SPLIT)):
            raise NotFinite("numbers of this size overflow a sum: scale the data down")
    return np.asarray(C)


class NativeAccumulator:
    """One thread's share of a plain float64 sweep.

    gradient has shape (k, d). The first column of S (1 + k, 2) holds loss and residuals.
    """

    def __init__(self, k: int, d: int) -> None:
        self.words = np.zeros(k * d + 2 * (1 + k))
        self.gradient, self.S = (
            self.words[: k * d].reshape(k, d),
            self.words[k * d :].reshape(1 + k, 2),
        )
        unused = np.zeros(2)
        self.arrays = (
            unused,
            unused,
            self.S,
            unused,
            unused,
            self.gradient[np.newaxis],
            None,
            None,
            None,
        )
        self.filled = self.panel = 0
        self.room = np.empty(0)
        self.coef: Array | None = None
        self.pairs: Array | None = None
        self.lines: Array | None = None

    @contextmanager
    def in_units(self, unit: Array, inverse: Array) -> Iterator[None]:
        self.gradient *= inverse
        yield
        self.gradient *= unit


class NativeReducer(Reducer):
    """Plain float64 sums, for comparison: last bits depend on ranks, threads and blocks."""

    def __init__(self, comm: Comm, k: int, d: int) -> None:
        self.comm, self._shape = comm, (k, d)
        self._threads = Threads()
        self._extra, self._summed = np.zeros((2, 0))
        self.repeats = 0

    def reserve(self, count: int) -> tuple[Array, Array]:
        self._extra, self._summed = np.zeros((2, count))
        return self._extra, self._summed

    def state(self) -> dict[str, Array]:
        return {}

    def restore(self, state: dict[str, Array]) -> None:
        pass

    def sweep_for(
        self,
        read: Callable[[Array, Array], Found],
        shares: Sequence[Share],
        visit: Callable[[Share, Into], None],
        rows: float,
    ) -> Found:
        accumulators = [NativeAccumulator(*self._shape) for _ in shares]
        self._threads.run(lambda thread: visit(shares[thread], accumulators[thread]), len(shares))
        words = accumulators[0].words
        for other in accumulators[1:]:
            words += other.words
        buffer = np.concatenate([words, self._extra])
        self.comm.allreduce(buffer)
        words, self._summed[:] = buffer[: words.size], buffer[words.size :]
        if not np.all(np.isfinite(words)):
            raise NotFinite()
        k, d = self._shape
        return read(words[: k * d].reshape(1, k, d), words[k * d :].reshape(1 + k, 2))


def total(values: Array, comm: Comm) -> Array:
    """Return exact sums over all ranks' rows, a function of the set of rows. Collective.

    Parameters
    ----------
    values : (m, q) or (m,) float64
        This rank's rows.
    comm
        The communicator of these ranks.

    Returns
    -------
    sums : (q,) float64
        The sums of the columns.

    Raises
    ------
    NumericalError
        On all ranks, if a value is not finite.

    Notes
    -----
    There are two grids. Each value is cut into a multiple of the first grid's unit and a rest on
    the second, so that a sum keeps 80 bits below its largest term.
    """
    columns = np.atleast_2d(np.asarray(values, dtype=np.float64).T)
    slabs = [slice(a, a + SLAB) for a in range(0, max(1, columns.shape[1]), SLAB)]
    parts = [
        [sums.largest(np.ascontiguousarray(column[slab])) for slab in slabs] for column in columns
    ]
    tops = np.array(
        [(max(top for top, _ in part), sum(bad for _, bad in part)) for part in parts],
        dtype=np.float64,
    )
    comm.allreduce(tops, "max")
    if tops[:, 1].any():
        raise NotFinite("a number to be added up is not finite")
    coarse = grid(tops[:, 0], float(sums.PANEL))
    unit = coarse / (1.5 * 2.0**52)
    fine = grid(unit, float(sums.PANEL))
    words = np.zeros((columns.shape[0], 2, 2))
    for q, slab in product(range(columns.shape[0]), slabs):
        column = columns[q, slab]
        high = (column + coarse[q]) - coarse[q]
        low = column - high
        sums.make_odd(low)
        sums.add_vector(high, coarse[q], words[q, 0])
        sums.add_vector(low, fine[q], words[q, 1])
    comm.allreduce(words)
    return np.asarray((words[:, 0, 0] + words[:, 0, 1]) + (words[:, 1, 0] + words[:, 1, 1]))
