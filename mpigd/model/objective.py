"""The objective over distributed rows, and the oracle through which an optimiser sees it.

F(w) = sum_i c_i loss(y_i, z_i) / sum_i c_i, z = X coef + intercept + offset. A batch of m rows estimates all of it: its
sums are multiplied by n / (m * sum of all c), never divided by the batch's own weight.
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
    """Loss, rows and coordinates. Parameters are w (k * p,), p columns and maybe an intercept for each of k outputs."""

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
        self.fine = False  # sums on two grids
        self.reads = 0.0  # visited rows over n
        self.counter = self  # whose reads count: a sample's are those of the whole
        self.numbers: Array | RowNumbers = np.zeros(
            0, dtype=np.int64
        )  # global row numbers, for samples
        self.seed = 0
        self.keeps_margins = False  # for optimisers that ask for second derivatives
        self._points: list[tuple[Array, Array]] = []
        self._samples: dict[int, Objective] = {}
        self._columns: tuple[Array, Objective] | None = None
        self.share = 1.0  # of the rows: a sample's reads are that much of the whole's
        self.width = (
            1.0  # of the columns, how many are read: a part's reads are that much of the whole's
        )
        self._block = block_rows(rows.X)

    def reducer(self, kind: str, comm: Comm, replacement: bool = False) -> Reducer:
        """A reducer for this objective's sums; `replacement`: batches may hold a row several times."""
        if kind == "native":
            return NativeReducer(comm, self.k, self.rows.X.d)
        known = self.loss.residual
        bound = None if known is None else known(self.parameter) * self.statistics.heaviest
        columns = self.statistics.bounds
        columns = columns.with_replacement() if replacement else columns
        return ExactReducer(
            comm, columns, self.k, self.n, bound, self.fine, isinstance(self.rows.X, CSR)
        )

    def on(self, batch: Batch, reducer: Reducer) -> Oracle:
        """The objective as this batch estimates it."""
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
        """Loss and gradient (k * p,) as the sums at w times `factor`; or `what` else of a sweep (and no offset then). Collective.

        A sweep sees `curvature` (k, n) in place of y where that is given; `keep` (k, n) takes the margins.
        `along` sums a Hessian in the same visit of the rows.
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
        """What `read` makes of a sweep's totals (Reducer.sweep_for); the rest as for `gradient`. Collective."""
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
        self._points[:] = [(w.copy(), z), *self._points[:1]]  # in place: smoothed copies share it

    def margins(self, w: Array) -> Array:
        """Margins (k, n) of this rank's rows at w; those of the last two points are remembered."""
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
        """The same over m rows without replacement: a function of seed and global row numbers. Keeps a copy of them."""
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
        """The same over the columns `chosen` (s,), a copy of them; None where the rows are not in memory."""
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
        """The batch cut into equal consecutive shares for the threads, of at least a block of rows."""
        if self.threads == 1:
            return [slice(0, self.rows.X.n) if isinstance(rows, slice) else rows]
        m = self.rows.X.n if isinstance(rows, slice) else rows.size
        threads = min(self.threads, max(1, m // self._block))
        edges = [t * m // threads for t in range(threads + 1)]
        pieces = [slice(*pair) for pair in pairwise(edges)]
        return pieces if isinstance(rows, slice) else [rows[piece] for piece in pieces]


@dataclass
class Oracle:
    """The objective on one batch: collective, and free of MPI to its caller. Without the penalty."""

    objective: Objective
    batch: Batch
    reducer: Reducer
    outputs = property(lambda self: self.objective.k)

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        """F(w) and its gradient (k * p,). Raises NumericalError on all ranks if a residual or loss is not finite."""
        objective = self.objective
        keep = np.empty((objective.k, objective.rows.X.n)) if objective.keeps_margins else None
        found = objective.gradient(w, self.batch, self.reducer, self.factor, keep=keep)
        if keep is not None:
            objective.remember(w, keep)
        return found

    def derivatives(self, w: Array) -> tuple[float, Array, Array]:
        """`value_and_gradient`, and the `hessian` there; for oracles of all their objective's rows. Collective.

        One read where the loss's curvature has a bound and p is not large, else two.
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
        """Whether second derivatives are the same everywhere."""
        return self.objective.loss.name == "squared"

    def squared_curvature(self, v: Array) -> Array:
        """(X' C X / sum c) v in these coordinates: the Hessian of half the squared margins."""
        return self.objective.gradient(v, self.batch, self.reducer, self.factor, residuals.SQUARES)[
            1
        ]

    def sample(self, m: int) -> Oracle:
        """The same oracle over m rows, drawn as a function of seed and global row number."""
        part = self.objective.sample(m)
        return Oracle(part, Batch(slice(None), m, 0, 0, True), self.own_reducer(part))

    def columns(self, chosen: Array) -> Oracle | None:
        """The same oracle over some of the columns alone, the others' coefficients zero."""
        part = self.objective.columns(chosen)
        return None if part is None else Oracle(part, self.batch, self.own_reducer(part))

    def whole(self) -> Oracle:
        """The oracle of all rows, with limits of its own for its sums."""
        batch = Batch(slice(None), self.objective.n, 0, 0, True)
        return Oracle(self.objective, batch, self.own_reducer(self.objective))

    def epoch(self, size: int) -> Iterator[Oracle]:
        """The oracles of an epoch of mini-batches of `size` rows; those of streamed rows take blocks of them."""
        objective = self.objective
        expect = getattr(objective.rows.X, "expect", None)
        schedule = MiniBatch(
            objective.numbers, objective.n, size, objective.seed, expect is not None, expect
        )
        reducer = self.own_reducer(objective)
        for batch in islice(schedule.batches(0), schedule.steps_per_epoch):
            yield Oracle(objective, batch, reducer)

    def own_reducer(self, objective: Objective) -> Reducer:
        """A reducer like this oracle's for other sums, of which it keeps nothing."""
        return objective.reducer(
            "native" if isinstance(self.reducer, NativeReducer) else "exact", self.reducer.comm
        )

    def look_at(self, w: Array) -> None:
        """Second derivatives are those at w from now on; for oracles of all their objective's rows. Collective.

        Costs no read where w is one of the last two points that `value_and_gradient` has seen."""
        self.curvature = Curvature(
            self.objective, self.objective.margins(w), self.batch, self.reducer
        )

    def hessian_vector(self, v: Array) -> Array:
        """The Hessian at the point of `look_at` times v (k * p,): one read."""
        return self.curvature.times(v, self.factor)

    def hessian(self) -> Array:
        """The Hessian (1, k * p, k * p) at the point of `look_at`, or its diagonal blocks (k, p, p): a read or more."""
        return self.curvature.matrices(self.factor)

    def hessian_diagonal(self) -> Array:
        """The diagonal of the Hessian at the point of `look_at` (k * p,): one read. Collective."""
        return self.curvature.diagonal(self.factor)

    def curvatures_along(self, D: Array) -> tuple[Array, Array]:
        """d'Hd (m,) at the point of `look_at` for directions D (m, k * p), and how much of it rounding may be. One read."""
        return cancelling_directions.curvatures_along(self.curvature, D, self.factor)

    def product_along(self, d: Array) -> Array:
        """`hessian_vector` for a direction d (k * p,) in which columns nearly cancel. One read. Collective."""
        return cancelling_directions.product_along(self.curvature, d, self.factor)

    def column_squares(self) -> Array:
        """The weighted mean square of every parameter's column (k * p,), 1 over all rows if standardised. One read."""
        return column_squares(self.objective, self.reducer.comm)

    def line(self, w: Array, there: Array) -> LossLine:
        """The mean loss along the way from w to there (k * p,). A read for each end that is not remembered. Collective."""
        of = self.objective
        return LossLine(of, of.margins(w), of.margins(there), self.factor, self.reducer.comm)

    @property
    def factor(self) -> float:
        """What sums over the batch's rows are multiplied by."""
        weight = self.objective.statistics.weight
        return self.objective.n / (self.batch.size * weight) if weight > 0 else 0.0
