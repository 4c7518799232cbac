"""Find columns that depend on columns before them ("aliased" columns), in the information matrix.

This follows R, which finds them in its QR decomposition. The columns are visited in the order of
the data, the intercept first. A column is kept if its remainder after projection on the kept
columns before it is longer than TOLERANCE of its own length. Lengths are weighted as the
information weights rows, and centred if there is an intercept, so that columns may be scaled, and
with an intercept shifted, at will. A column may also be a combination of others up to the rounding
of the stored numbers; it is dropped if its remainder is not larger than that rounding explains. (R
reads the numbers before they are rounded to float32.)

The information matrix holds squared lengths, and its sums keep about 1e-13 of a column's reach
squared, so it cannot resolve a remainder of 1e-7. Two computations can. First, the remainder itself
is computed, row by row, as a margin: if it is short, the column depends on others. Otherwise all
columns are made orthogonal by the first factor U, row by row, and the information of these new
columns is summed and factorised. This is Cholesky's QR with reorthogonalisation (Yamamoto et al.,
ETNA 44, 2015); remainders are then columns like others, with equally accurate sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.model.gram import dense_rows
from mpigd.model.objective import Objective
from mpigd.model.scaling import blocks
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import power_above, total
from mpigd_kernels import curvature, linalg, vector
from mpigd_kernels.host import aligned

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-7  # share of a column's length, as in R's lm
# Shares of a column's squared length: a pivot below DOUBTFUL may be nothing but rounding of the
# information, a pivot above NEAR has seven digits.
DOUBTFUL = 1e-9
NEAR = 1e-6
AT_ONCE = 16  # candidates whose remainders are held for all rows at the same time


@dataclass(frozen=True)
class Independent:
    """Factors of the information over the independent columns.

    Parameters
    ----------
    order : (p,) int64
        Parameters in the order of elimination.
    kept : (p,) bool
        Which of them are kept, in that order.
    R : (r, p) float64
        An upper triangle over the rows of the kept columns. R'R is the information of all columns,
        except for the remainders of dropped ones.
    U : (r, r) float64
        The kept columns of R. U'U is the information of the kept columns (with the ridge).
    """

    order: Array
    kept: Array
    R: Array
    U: Array

    @property
    def parameters(self) -> Array:
        """The kept parameters (r,), as the optimiser numbers them."""
        return np.asarray(self.order[self.kept])

    def project(self, w: Array) -> Array:
        """Return parameters like w (p',) that are zero for all dropped columns.

        Their margins are the nearest to those of w, and equal if dropped columns depend on the
        others entirely.
        """
        v = w[self.order]
        t = np.array([vector.dot(row, v) for row in self.R])
        b = np.array([vector.dot(row, t) for row in np.ascontiguousarray(self.U.T)])
        x = np.empty_like(b)
        linalg.solve(self.U, b, x)
        out = np.zeros_like(w)
        out[self.parameters] = x
        return out


def elimination_order(objective: Objective) -> Array:
    """Return the parameters that have a column, in the order of elimination.

    The intercept comes first, then the columns in the data's order.
    """
    scaling = objective.scaling
    d = scaling.center.size
    arranged = np.arange(d) if scaling.number is None else np.argsort(scaling.number, kind="stable")
    used = arranged[scaling.inverse[arranged] > 0.0]
    return np.append([d] * scaling.intercept, used).astype(np.int64)


def independent(
    information: Array,
    ridge: Array,
    h: Array,
    objective: Objective,
    comm: Comm,
) -> Independent | None:
    """Return factors of information + diag(ridge) over the independent columns. Collective.

    This costs no read, or one read for AT_ONCE dependent columns, or two more if doubt remains.

    Parameters
    ----------
    information : (p', p') float64
        As the optimiser numbers parameters.
    ridge : (p',) float64
        Likewise.
    h : (n,) float64
        Weights of this rank's rows.
    objective
        The objective whose columns these are.
    comm
        The communicator of these ranks.

    Returns
    -------
    factors
        The factors; None if there is a ridge, but it is too small to tell columns apart.
    """
    order = elimination_order(objective)
    H, ridge = np.ascontiguousarray(information[np.ix_(order, order)]), ridge[order]
    rows = _Rows(objective, h, order, comm)
    floor = TOLERANCE * TOLERANCE * _squares(H, objective.scaling.intercept)
    H[np.diag_indices_from(H)] += ridge
    squares, kept, U = H.diagonal().copy(), np.ones(order.size, dtype=bool), H.copy()
    # For thousands of columns this is several times as fast as `eliminate`.
    if not linalg.cholesky(U) and (U.diagonal() ** 2 >= NEAR * squares).all():
        return _independent(order, kept, U)
    U = H.copy()
    linalg.eliminate(U, DOUBTFUL * squares, kept)
    pivots = U.diagonal() ** 2
    if (pivots >= NEAR * squares)[kept].all():
        dropped = np.flatnonzero(~kept)
        if not dropped.size or not (ridge.any() or rows.remainders_exceed(U, kept, dropped, floor)):
            return _independent(order, kept, U)
    R = _orthogonalised(H, ridge, floor, rows, kept)
    return None if ridge.any() and not kept.all() else _independent(order, kept, R)


def _independent(order: Array, kept: Array, R: Array) -> Independent:
    rows = np.ascontiguousarray(R[kept])
    return Independent(order, kept.copy(), rows, np.ascontiguousarray(rows[:, kept]))


def _squares(H: Array, intercept: bool) -> Array:
    """Return the squared lengths of the columns; beside an intercept, those of their remainders."""
    squares = H.diagonal().copy()
    if intercept and H[0, 0] > 0.0:
        squares[1:] = np.maximum(squares[1:] - H[0, 1:] * H[0, 1:] / H[0, 0], 0.0)
    return squares


def _orthogonalised(H: Array, ridge: Array, floor: Array, rows: _Rows, kept: Array) -> Array:
    """Return R of the information of nearly orthogonal columns, and fill `kept`."""
    U, V, R = H.copy(), np.zeros_like(H), np.zeros_like(H)
    linalg.cholesky(U)  # a pivot without digits is replaced by that of the column alone
    linalg.invert(U, V)
    again = rows.information(U)
    columns = np.ascontiguousarray(V.T)
    if ridge.any():
        floor = np.zeros_like(floor)
        for j, v in enumerate(columns):
            again[: j + 1, j] += [vector.dot(v * ridge, u) for u in columns[: j + 1]]
    else:
        floor = floor / U.diagonal() ** 2 + rows.rounding(columns)
    linalg.eliminate(again, floor, kept)
    linalg.multiply(again, U, R)
    return R


class _Rows:
    """This rank's rows in the optimiser's coordinates, with weights h (n,).

    Their columns are in the order of elimination.
    """

    def __init__(self, objective: Objective, h: Array, order: Array, comm: Comm) -> None:
        self._objective, self._h, self._order, self._comm = objective, h, order, comm
        self._scale = np.append(objective.scaling.inverse, [1.0] * objective.scaling.intercept)
        top = np.array([np.max(h, initial=0.0)])
        comm.allreduce(top, "max")
        self._largest = float(power_above(top[0]))
        self._weight = float(total(h, comm)[0])

    def rounding(self, combinations: Array) -> Array:
        """Return squared lengths (m,) that combinations (m, p) of the columns may owe to rounding.

        Each stored number may have been rounded by half a unit in its last place.
        """
        scaling, of = self._objective.scaling, self._objective.statistics
        mean = of.mean if scaling.shift is None else of.mean + scaling.shift
        each = (of.deviation**2 + mean**2) * scaling.inverse**2
        each = np.append(each, [0.0] * scaling.intercept)[self._order] * self._weight
        half_unit = 0.5 * float(np.finfo(self._objective.rows.X.dtype).eps)
        return np.array([half_unit * half_unit * vector.dot(v * v, each) for v in combinations])

    def remainders_exceed(self, U: Array, kept: Array, dropped: Array, floor: Array) -> bool:
        """Whether the remainder of a dropped column exceeds floor and rounding. Collective."""
        own = np.ascontiguousarray(U[np.ix_(kept, kept)])
        combinations = np.zeros((dropped.size, kept.size))
        for v, j in zip(combinations, dropped, strict=True):
            b = np.array([vector.dot(row, U[kept, j]) for row in np.ascontiguousarray(own.T)])
            linalg.solve(own, b, b)
            v[kept], v[j] = -b, 1.0
        most = floor[dropped] + self.rounding(combinations)
        for start in range(0, dropped.size, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            if np.any(self._lengths(combinations[some]) > most[some]):
                return True
        return False

    def _lengths(self, combinations: Array) -> Array:
        """Return weighted squared lengths (m,) of the combinations over all rows. Collective.

        It costs one read.
        """
        X, scaling = self._objective.rows.X, self._objective.scaling
        W = np.zeros((len(combinations), scaling.p))
        W[:, self._order] = combinations
        coef, b = scaling.to_raw(W, len(W))
        squares = np.empty((X.n, len(W)))
        for block in blocks(X):
            part = X.rows(block)
            z = np.empty(part.n)
            for q in range(len(W)):
                part.margins(coef[q], b[q], z)
                squares[block, q] = self._h[block] * (z * z)
        return np.asarray(total(squares, self._comm))

    def information(self, U: Array) -> Array:
        """Return the upper triangle of sum_i h_i q_i q_i' (p, p) over rows x' = q'U. Collective.

        It costs two reads.
        """
        p = self._order.size
        reach = np.zeros(p)
        for _, Q in self._transformed(U):
            np.maximum(reach, np.abs(Q).max(axis=1), out=reach)
        self._comm.allreduce(reach, "max")
        unit = power_above(reach)
        wide = -(-p // curvature.LANES) * curvature.LANES
        A, T, Z = aligned((wide, wide)), np.zeros((2, p, p)), aligned((curvature.PANEL, wide))
        A.fill(curvature.BIAS)
        Z.fill(0.0)
        for rows, Q in self._transformed(U):
            m = rows.stop - rows.start
            Z[:m, :p] = (Q / unit[:, np.newaxis]).T
            curvature.add_outer(Z[:m], self._h[rows] / self._largest, A)
            curvature.flush_outer(A, T)
        self._comm.allreduce(T)
        return np.asarray(np.triu(T[0] + T[1]) * unit[:, np.newaxis] * unit * self._largest)

    def _transformed(self, U: Array) -> Iterator[tuple[slice, Array]]:
        """Yield blocks of rows and their q (p, m)."""
        objective = self._objective
        X, scaling = objective.rows.X, objective.scaling
        Z = np.empty((curvature.PANEL, scaling.p))
        for start in range(0, X.n, curvature.PANEL):
            rows = slice(start, min(X.n, start + curvature.PANEL))
            part = Z[: rows.stop - start]
            dense_rows(X.rows(rows), scaling.center, self._scale, part)
            Q = np.ascontiguousarray(part[:, self._order].T)
            linalg.transform(U, Q)
            yield rows, Q
