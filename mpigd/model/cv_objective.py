"""Cross-validation as one problem: k models in one pass over the data, model q without fold q.

Parameters are W (k, p) and margins (k, n), like those of k classes; the sweep applies the loss of
one output to each column. Folds are equal parts of a keyed permutation, a function of seed and
global row number, so no row is copied or moved.
"""

from __future__ import annotations

import numpy as np

from mpigd.data.batches import WINDOW
from mpigd.data.shard import RowNumbers
from mpigd.matrix.base import Task
from mpigd.model.objective import Array, Objective
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import total
from mpigd_kernels import residuals, sampling

FOLD_EPOCH = (1 << 32) - 3  # an epoch whose permutation no training step uses


def fold_numbers(rows: Array | RowNumbers, n: int, k: int, seed: int) -> Array:
    """Return the fold (m,) float64 of each row.

    The k folds differ in size by at most one row.

    Parameters
    ----------
    rows
        Global numbers of this rank's rows (m,).
    n
        The number of rows over all ranks.
    k
        The number of folds.
    seed
        The seed of the permutation.
    """
    folds = np.empty(len(rows))
    for start in range(0, folds.size, WINDOW):
        numbers = np.asarray(rows[start : start + WINDOW])
        places = np.empty(numbers.size, dtype=np.int64)
        sampling.positions(numbers, n, seed, FOLD_EPOCH, places)
        folds[start : start + WINDOW] = places * k // n
    return folds


class FoldObjective(Objective):
    """The objectives of the training rows of k folds, in the coordinates of all rows."""

    def __init__(self, of: Objective, folds: Array, k: int, kind: str, comm: Comm) -> None:
        """Make it from the objective of all rows. Collective.

        Parameters
        ----------
        of
            The objective of all rows.
        folds : (m,) float64
            Fold of each of this rank's rows.
        k
            The number of folds.
        kind
            The kind of reducer (Objective.reducer).
        comm
            The communicator of these ranks.
        """
        super().__init__(
            of.rows, of.loss, of.parameter, k, of.scaling, of.statistics, of.n, of.threads
        )
        self.fine, self.counter, self.comm = of.fine, of.counter, comm
        self._folds, self._targets = folds, np.stack([of.rows.y, folds])
        self._sums = self.reducer(kind, comm)
        self._keep = np.empty((k, folds.size))
        # (k,) the weight of the rows from which each model is trained.
        self.weights = of.statistics.weight - self.by_fold(of.rows.c)

    def by_fold(self, values: Array) -> Array:
        """Return the sums (k,) of `values` (m,) over all rows of each fold. Collective."""
        return total(
            np.where(self._folds[:, np.newaxis] == np.arange(self.k), values[:, np.newaxis], 0.0),
            self.comm,
        )

    def gradients(self, W: Array) -> tuple[float, Array]:
        """Return the mean loss and the gradients (k, p) of the models at W (k, p). Collective.

        The loss is about the mean of the models' mean losses. This costs one read.
        """
        coef, intercept = self.scaling.to_raw(W, self.k)
        rows = self.rows
        task = Task(
            residuals.FOLDS,
            self.kind,
            self._targets,
            rows.weights,
            coef,
            intercept,
            rows.offset,
            self._keep,
        )
        self.counter.reads += 1.0
        loss, G = self._sums.sweep_for(
            lambda T, S: self.scaling.gradient(T, S, 1.0),
            self._shares(slice(None)),
            lambda share, into: rows.X.sweep(share, task, into),
            self.n,
        )
        whole = (self.k - 1) * self.statistics.weight
        return loss / whole, G.reshape(self.k, -1) / self.weights[:, np.newaxis]

    def held_out(self, c: Array) -> Array:
        """Return the mean losses (k,) of each fold's rows in the model that did not train on them.

        They are weighted by c (m,) and taken at the parameters of the last `gradients`. Collective.
        """
        m = self._folds.size
        z = np.ascontiguousarray(self._keep[self._folds.astype(np.int64), np.arange(m)])[np.newaxis]
        r, l = np.empty_like(z), np.empty(m)
        self.loss.kernel(z, self.rows.y, np.ascontiguousarray(c), self.parameter, r, l)
        return self.by_fold(l) / self.by_fold(c)
