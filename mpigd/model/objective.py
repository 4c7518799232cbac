"""The objective over distributed rows, and the oracle through which an optimiser evaluates it.

The objective is the weighted mean loss at linear predictors ("margins") z:

    F(w) = sum_i c_i loss(y_i, z_i) / sum_i c_i,    z = X coef + intercept + offset.

A batch of m rows estimates this whole mean: its sums are multiplied by n / (m * sum of all c). They
are never divided by the batch's own weight.

`Objective` holds this rank's rows, the loss and the coordinates; it sums over rows. `Oracle` is an
objective on one batch with one reducer; its methods are what optimisers call. Methods marked
"Collective" must be called by all ranks together. The penalty is not part of either (see
penalties.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np

from mpigd.data import column_selection
from mpigd.data.batches import Batch, MiniBatch
from mpigd.data.shard import RowNumbers
from mpigd.matrix.base import CSR, Into, Task, block_rows
from mpigd.model import cancelling_directions
from mpigd.model.hessian import Alongside, Curvature, column_squares
from mpigd.model.losses import Loss
from mpigd.model.objective_line import LossLine
from mpigd.model.objective_rows import Rows as Rows
from mpigd.model.scaling import Scaling, Statistics
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import Found, NativeReducer, Reducer
from mpigd.reduction.exact import ExactReducer
from mpigd_kernels import residuals, sampling

Array = np.ndarray[Any, Any]
SAMPLE_EPOCH = (1 << 32) - 2


class Objective:
    """Hold the loss, this rank's rows and the coordinates, and sum over the rows.

    Parameters are w (k * p,) float64: for each of k outputs, p numbers, one a column and the
    intercept last if there is one.
    """

    def __init__(
        self,
        rows: Rows,
        loss: Loss,
        parameter: float,
        k: int,
        scaling: Scaling,
        statistics: Statistics,
        n: int,
        threads: int = 1,
    ) -> None:
        self.rows, self.loss, self.parameter, self.k, self.n = rows, loss, parameter, k, n
        self.scaling, self.statistics = scaling, statistics
        self.kind = loss.with_parameter(parameter)
        self.size = k * scaling.p
        self.threads = threads
        self.fine = False  # whether sums use two grids
        self.reads = 0.0  # passes over the data: visited rows divided by n
        self.counter = self  # the objective whose `reads` grow: a sample counts for the whole
        # Global row numbers of this rank's rows, from which samples are drawn.
        self.numbers: Array | RowNumbers = np.zeros(0, dtype=np.int64)
        self.seed = 0
        # Whether a gradient keeps its margins, for optimisers that use second derivatives.
        self.keeps_margins = False
        self._points: list[tuple[Array, Array]] = []
        self._samples: dict[int, Objective] = {}
        self._columns: tuple[Array, Objective] | None = None
        self.share = 1.0  # share of all rows: a sample's read is this fraction of a whole read
        self.width = 1.0  # share of all columns: a read of some columns is this fraction of one
        self._block = block_rows(rows.X)

    def reducer(self, kind: str, comm: Comm, replacement: bool = False) -> Reducer:
        """Return a reducer for this objective's sums.

        Parameters
        ----------
        kind
            "native" for plain float64 sums, anything else for exact ones.
        comm
            The communicator over which the sums go.
        replacement
            Whether batches may hold a row several times.
        """
        if kind == "native":
            return NativeReducer(comm, self.k, self.rows.X.d)
        known = self.loss.residual
        bound = None if known is None else known(self.parameter) * self.statistics.heaviest
        columns = self.statistics.bounds
        columns = columns.with_replacement() if replacement else columns
        return ExactReducer(
            comm, columns, self.k, self.n, bound, self.fine, isinstance(self.rows.X, CSR)
        )

    def reducer_like(self, other: Reducer) -> Reducer:
        """Return a reducer for this objective's sums, of the kind of another, but without state."""
        return self.reducer("native" if isinstance(other, NativeReducer) else "exact", other.comm)

    def on(self, batch: Batch, reducer: Reducer) -> Oracle:
        """Return the oracle that estimates this objective from `batch`."""
        return Oracle(self, batch, reducer)

    def gradient(
        self,
        w: Array,
        batch: Batch,
        reducer: Reducer,
        factor: float,
        what: int = residuals.LOSS,
        curvature: Array | None = None,
        keep: Array | None = None,
        along: Alongside | None = None,
    ) -> tuple[float, Array]:
        """Return the loss and its gradient as the sums at w times `factor`. Collective.

        Parameters
        ----------
        w : (k * p,) float64
            Parameters in the optimiser's coordinates.
        batch
            The rows that are summed over.
        reducer
            Adds up over blocks, threads and ranks.
        factor
            Multiplies the sums; for a batch that estimates the mean, `Oracle.factor`.
        what
            The kind of sweep; for other kinds than residuals.LOSS the offset is left out.
        curvature : (k, n) float64
            Or None; if given, the sweep uses it in place of y.
        keep : (k, n) float64
            Or None; if given, it is filled with the margins.
        along
            Sums a Hessian in the same pass over the rows, or None.

        Returns
        -------
        loss : float
        gradient : (k * p,) float64
        """
        scaling = self.scaling
        return self.sums(
            lambda T, S: scaling.gradient(T, S, factor),
            w,
            batch,
            reducer,
            what,
            curvature,
            keep,
            along,
        )

    def sums(
        self,
        read: Callable[[Array, Array], Found],
        w: Array,
        batch: Batch,
        reducer: Reducer,
        what: int = residuals.LOSS,
        curvature: Array | None = None,
        keep: Array | None = None,
        along: Alongside | None = None,
    ) -> Found:
        """Return what `read` makes of a sweep's totals. Collective.

        Parameters
        ----------
        read
            Maps the totals T, S (see Reducer.sweep_for) to the result.
        w, batch, reducer, what, curvature, keep, along
            As for `gradient`.
        """
        coef, intercept = self.scaling.to_raw(w, self.k)
        rows = self.rows
        y = rows.targets if curvature is None else curvature
        offset = rows.offset if what == residuals.LOSS else None
        task = Task(what, self.kind, y, rows.weights, coef, intercept, offset, keep)
        self.counter.reads += self.width * batch.size / self.n

        def visit(share: Any, into: Into) -> None:
            if along is None:
                rows.X.sweep(share, task, into)
            else:
                along.visit(share, lambda panel: rows.X.sweep(panel, task, into))

        return reducer.sweep_for(read, self._shares(batch.rows), visit, batch.size)

    def remember(self, w: Array, z: Array) -> None:
        # In place, because smoothed copies of this objective share the list.
        self._points[:] = [(w.copy(), z), *self._points[:1]]

    def margins(self, w: Array) -> Array:
        """Return the margins (k, n) of this rank's rows at w (k * p,).

        The margins at the last two points are remembered; at others they cost a pass over X.
        """
        for known, z in self._points:
            if np.array_equal(known, w):
                return z
        coef, intercept = self.scaling.to_raw(w, self.k)
        z = np.empty((self.k, self.rows.X.n))
        for q in range(self.k):
            self.rows.X.margins(coef[q], intercept[q], z[q])
        if self.rows.offset is not None:
            z += self.rows.offset
        self.remember(w, z)
        return z

    def sample(self, m: int) -> Objective:
        """Return the same objective over m rows drawn without replacement.

        The sample is a function of the seed and the global row numbers. It holds a copy of its
        rows, and is kept for the next call with the same m.
        """
        if m not in self._samples:
            places, rows = np.empty(self.rows.X.n, dtype=np.int64), self.rows
            sampling.positions(np.asarray(self.numbers), self.n, self.seed, SAMPLE_EPOCH, places)
            drawn = np.flatnonzero(places < m)
            part = copy.copy(self)
            part.rows = Rows(
                rows.X.rows(drawn),
                rows.y[drawn],
                rows.c[drawn],
                None if rows.offset is None else rows.offset[drawn],
            )
            part.keeps_margins, part._points, part._samples, part._columns = True, [], {}, None
            part.share = m / self.n
            self._samples[m] = part
        return self._samples[m]

    def columns(self, chosen: Array) -> Objective | None:
        """Return the same objective over the columns `chosen` (s,) int64, with a copy of them.

        Returns None if the rows are not in memory.
        """
        if self._columns is not None and np.array_equal(self._columns[0], chosen):
            return self._columns[1]
        X = column_selection.columns(self.rows.X, chosen)
        if X is None:
            return None
        part = copy.copy(self)
        part.rows = replace(self.rows, X=X)
        part.scaling, part.statistics = self.scaling.take(chosen), self.statistics.take(chosen)
        part.size = self.k * part.scaling.p
        part.width = self.width * chosen.size / max(1, self.rows.X.d)
        part.keeps_margins, part._points, part._samples, part._columns = True, [], {}, None
        part._block = block_rows(X)
        self._columns = chosen, part
        return part

    def _shares(self, rows: slice | Array) -> list[Any]:
        """Cut the batch into equal consecutive shares, one a thread, each at least a block."""
        if self.threads == 1:
            return [slice(0, self.rows.X.n) if isinstance(rows, slice) else rows]
        m = self.rows.X.n if isinstance(rows, slice) else rows.size
        threads = min(self.threads, max(1, m // self._block))
        edges = [t * m // threads for t in range(threads + 1)]
        pieces = [slice(*pair) for pair in pairwise(edges)]
        return pieces if isinstance(rows, slice) else [rows[piece] for piece in pieces]


@dataclass
class Oracle:
    """The objective on one batch, without the penalty.

    Its methods are collective; the optimiser that calls them needs no MPI.
    """

    objective: Objective
    batch: Batch
    reducer: Reducer
    outputs = property(lambda self: self.objective.k)

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        """Return F(w) and its gradient (k * p,) at w (k * p,).

        Raises
        ------
        NumericalError
            On all ranks, if a residual or loss is not finite.
        """
        objective = self.objective
        keep = np.empty((objective.k, objective.rows.X.n)) if objective.keeps_margins else None
        found = objective.gradient(w, self.batch, self.reducer, self.factor, keep=keep)
        if keep is not None:
            objective.remember(w, keep)
        return found

    def derivatives(self, w: Array) -> tuple[float, Array, Array]:
        """Return F(w), its gradient (k * p,) and its `hessian` at w (k * p,). Collective.

        The batch must be all rows of the objective. This costs one read if the loss's curvature has
        a bound and p is not large, else two.
        """
        objective, factor = self.objective, self.factor
        if not Alongside.fits(objective):
            value, g = self.value_and_gradient(w)
            self.look_at(w)
            return value, g, self.hessian()
        keep = np.empty((objective.k, objective.rows.X.n))
        along = Alongside(objective, keep)
        value, g = objective.gradient(w, self.batch, self.reducer, factor, keep=keep, along=along)
        objective.remember(w, keep)
        return value, g, along.matrices(factor, self.reducer.comm)

    @property
    def quadratic(self) -> bool:
        """Whether second derivatives are the same at all points."""
        return self.objective.loss.name == "squared"

    def squared_curvature(self, v: Array) -> Array:
        """Return (X' C X / sum c) v in these coordinates, for v (k * p,).

        This is the product of v with the Hessian of half the mean squared margin.
        """
        return self.objective.gradient(v, self.batch, self.reducer, self.factor, residuals.SQUARES)[
            1
        ]

    def sample(self, m: int) -> Oracle:
        """Return the same oracle over m rows, drawn as a function of seed and global row number."""
        part = self.objective.sample(m)
        return Oracle(part, Batch.whole(m), part.reducer_like(self.reducer))

    def columns(self, chosen: Array) -> Oracle | None:
        """Return the same oracle over the columns `chosen` alone, or None if they cannot be copied.

        The coefficients of all other columns are taken as zero.
        """
        part = self.objective.columns(chosen)
        return None if part is None else Oracle(part, self.batch, part.reducer_like(self.reducer))

    def whole(self) -> Oracle:
        """Return the oracle of all rows, whose sums have their own bounds on terms."""
        batch = Batch.whole(self.objective.n)
        return Oracle(self.objective, batch, self.objective.reducer_like(self.reducer))

    def epoch(self, size: int) -> Iterator[Oracle]:
        """Yield the oracles of one epoch of mini-batches of `size` rows.

        If rows are streamed, a mini-batch consists of blocks of consecutive rows.
        """
        objective = self.objective
        expect = getattr(objective.rows.X, "expect", None)
        schedule = MiniBatch(
            objective.numbers, objective.n, size, objective.seed, expect is not None, expect
        )
        reducer = objective.reducer_like(self.reducer)
        for batch in islice(schedule.batches(0), schedule.steps_per_epoch):
            yield Oracle(objective, batch, reducer)

    def look_at(self, w: Array) -> None:
        """Fix the point w (k * p,) at which second derivatives are taken. Collective.

        The batch must be all rows of the objective. This costs no read if w is one of the last two
        points of `value_and_gradient`.
        """
        self.curvature = Curvature(
            self.objective, self.objective.margins(w), self.batch, self.reducer
        )

    def hessian_vector(self, v: Array) -> Array:
        """Return the Hessian at the point of `look_at` times v (k * p,). It costs one read."""
        return self.curvature.times(v, self.factor)

    def hessian(self) -> Array:
        """Return the Hessian (1, k * p, k * p) at the point of `look_at`.

        For many parameters of several outputs, return its diagonal blocks (k, p, p). It costs one
        read or more (see `Curvature.matrices`).
        """
        return self.curvature.matrices(self.factor)

    def hessian_diagonal(self) -> Array:
        """Return the Hessian's diagonal (k * p,) at the point of `look_at`. Collective.

        It costs one read.
        """
        return self.curvature.diagonal(self.factor)

    def curvatures_along(self, D: Array) -> tuple[Array, Array]:
        """Return d'Hd (m,) for directions D (m, k * p), and how much of it may be rounding (m,).

        H is the Hessian at the point of `look_at`. The second array bounds how much of each number
        may be rounding error. It costs one read.
        """
        return cancelling_directions.curvatures_along(self.curvature, D, self.factor)

    def product_along(self, d: Array) -> Array:
        """Return `hessian_vector` for a direction d (k * p,) in which columns nearly cancel.

        It costs one read. Collective. See cancelling_directions.py.
        """
        return cancelling_directions.product_along(self.curvature, d, self.factor)

    def column_squares(self) -> Array:
        """Return the weighted mean square (k * p,) of every parameter's column. One read.

        It is 1 over all rows if columns are standardised.
        """
        return column_squares(self.objective, self.reducer.comm)

    def line(self, w: Array, there: Array) -> LossLine:
        """Return the mean loss along the line from w to there, both (k * p,). Collective.

        Each end whose margins are not remembered costs a read.
        """
        of = self.objective
        return LossLine(of, of.margins(w), of.margins(there), self.factor, self.reducer.comm)

    @property
    def factor(self) -> float:
        """The number by which sums over the batch's rows are multiplied: n / (m * sum of all c)."""
        weight = self.objective.statistics.weight
        return self.objective.n / (self.batch.size * weight) if weight > 0 else 0.0
