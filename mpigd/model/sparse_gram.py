"""Sums of gram.py over compressed rows, by pairs of entries.

The cost of a row falls from p^2 to half the square of its number of entries.

Columns that most rows store are treated as dense and centred first, so that a mean far above the
deviation costs no digits. Other columns are summed as they are stored, and centred at the end: with
zeros in half of the rows a mean is not above the deviation, and weights that bring it there make
dense columns equally inexact.

The split follows glum's tabmat, whose sandwich products treat dense, sparse and one-hot columns
separately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.matrix.base import CSR
from mpigd.model.gram import Pair, added, column_reach, weights_of
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import power_above
from mpigd_kernels import curvature, sparse_outer
from mpigd_kernels.host import aligned

if TYPE_CHECKING:
    from mpigd.model.objective import Objective

Array = np.ndarray[Any, Any]
ROWS = 1 << 14  # rows of one visit: each visit costs some calls from Python
COMMON = 0.5  # a column that more than this share of all rows store is treated as dense
# Nanoseconds for a product of two dense columns, of a dense column with an entry, and of two
# entries. Only their ratios matter.
DENSE, MIXED, SPARSE = 0.011, 0.17, 1.0


@dataclass(frozen=True)
class Split:
    """The split of the columns into dense and sparse ones.

    order (d,) sorts the columns by falling number of entries; the first `dense` of them are treated
    as dense.
    """

    order: Array
    dense: int

    @staticmethod
    def of(objective: Objective) -> Split | None:
        """Return the cheapest split, a function of the columns over all rows.

        Returns None if the rows are dense, or if all columns would be.
        """
        statistics = objective.statistics
        if not isinstance(objective.rows.X, CSR):
            return None
        order = np.argsort(-statistics.count, kind="stable")
        share = statistics.count[order] / max(1, objective.n)
        least = int(np.count_nonzero(share > COMMON)) if objective.scaling.intercept else 0
        dense = np.arange(least, share.size + 1)
        wide = padded(dense + objective.scaling.intercept)
        entries = np.append(np.cumsum(share[::-1])[::-1], 0.0)[least:]
        costs = (
            DENSE * wide * wide + MIXED * entries * wide + SPARSE * 0.5 * entries * (entries + 1.0)
        )
        best = least + int(np.argmin(costs))
        return None if best == share.size else Split(order, best)

    def numbers(self, intercept: int) -> int:
        """Return the number of accumulators for a pair of outputs."""
        rest, wide = self.order.size - self.dense, padded(self.dense + intercept)
        return int(wide * (wide + rest) + rest * (rest + 1) // 2)


def padded(columns: Any) -> Any:
    """Return `columns` rounded up to whole vectors."""
    return -(-columns // curvature.LANES) * curvature.LANES


class SparseOuter:
    """`Outer` for compressed rows, whose columns `split` divides into dense and sparse ones."""

    def __init__(
        self, objective: Objective, pairs: Sequence[Pair], largest: float, split: Split
    ) -> None:
        self._objective, self.pairs, self._largest, self._split = objective, pairs, largest, split
        scaling, statistics, d = (
            objective.scaling,
            objective.statistics,
            objective.scaling.center.size,
        )
        first, rest = split.order[: split.dense], split.order[split.dense :]
        self._place = np.empty(d, np.int64)
        self._place[split.order] = np.arange(d)
        self._units = power_above(
            np.append(column_reach(objective)[first], [1.0] * scaling.intercept)
        )
        self._scale = np.append(scaling.inverse[first], [1.0] * scaling.intercept) / self._units
        self._center, self._rest = scaling.center[first], rest
        self._unit = power_above(statistics.largest[rest])
        bits = sparse_outer.ROOM - np.frexp(statistics.count[rest] + 1.0)[1]
        self._power = np.ldexp(1.0, np.minimum(bits, sparse_outer.FINEST))
        self._wide = padded(max(1, self._scale.size))
        self._size = rest.size * self._wide + rest.size * (rest.size + 1) // 2

    def over(
        self,
        share: slice,
        curvatures: Callable[[slice], Array],
        before: Callable[[slice], None] | None = None,
    ) -> list[Array]:
        """Return this rank's sums over the rows of a share, with the parameters of `Outer.over`.

        These are the two-word totals of the dense columns (pairs, 2, h, h), and integers for the
        rest.
        """
        objective, X, count = self._objective, self._objective.rows.X, len(self.pairs)
        assert isinstance(X, CSR)
        head, wide = self._scale.size, self._wide
        A, T = aligned((count, wide, wide)), np.zeros((count, 2, head, head))
        A.fill(curvature.BIAS)
        whole = np.zeros(count * self._size, np.int64)
        B, C = self._parts(whole)
        for start in range(share.start, share.stop, ROWS):
            rows = slice(start, min(share.stop, start + ROWS))
            if before:
                before(rows)
            H = np.array(weights_of(objective, self.pairs, curvatures(rows), rows, self._largest))
            sparse_outer.add_outer_csr(
                X.indptr[rows.start : rows.stop + 1],
                X.indices,
                X.values,
                H,
                self._place,
                1.0 / self._unit,
                self._center,
                self._scale,
                self._center.size,
                self._power,
                A,
                T,
                B,
                C,
            )
        return [T, whole]

    def _parts(self, whole: Array) -> tuple[Array, Array]:
        """Return views of the integers: products with dense columns, and of the other columns.

        The shapes are (pairs, d - dense, wide), and (pairs, a packed triangle).
        """
        count, rest = len(self.pairs), self._rest.size
        B, C = np.split(whole, [count * rest * self._wide])
        return B.reshape(count, rest, self._wide), C.reshape(count, -1)

    def matrices(self, parts: Sequence[list[Array]], factor: float, comm: Comm) -> list[Array]:
        """Return the sums of all ranks' rows, as `Outer.matrices`. Collective."""
        T, whole = added(parts, comm)
        scaling, rest = self._objective.scaling, self._rest
        found = []
        for totals, *products in zip(T, *self._parts(whole), strict=True):
            H = np.empty((scaling.p, scaling.p))
            sparse_outer.join_outer(
                totals,
                *products,
                self._center.size,
                self._power,
                self._units,
                self._unit,
                scaling.center[rest],
                scaling.inverse[rest],
                self._largest * factor,
                H,
            )
            found.append(H)
        order = np.append(self._place, [scaling.p - 1] * scaling.intercept)
        return found if (order[1:] > order[:-1]).all() else [H[np.ix_(order, order)] for H in found]
