"""Directions of recession, along which an objective without penalty decreases forever.

training/separation.py uses them. On separated data Newton's method does not converge: each step
multiplies the gradient by about 1/e, and its direction approaches one that moves every separated
row by at least 1 and no other row, a vertex of a linear programme. Such a direction becomes a proof
by projection: the component that moves the other rows is removed with the factorised sum of their x
x', and all rows are checked again. If no separation exists, Newton's method converges, and its
small moves refute separation.

The "move" of a row along a direction is the signed change of its margin; positive moves raise the
row's likelihood.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mpigd.data.batches import Batch
from mpigd.errors import NumericalError
from mpigd.model.gram import Outer
from mpigd.model.hessian import WHOLE, assemble, groups, over_ranks
from mpigd.model.objective import Objective, Oracle
from mpigd.model.scaling import make_scaling, measure
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import Reducer, power_above
from mpigd_kernels import linalg, vector

Array = np.ndarray[Any, Any]
MOST_PARAMETERS = 4000  # the most of one output for which the Hessian is factorised
# Share of the largest curvature or weight below which rounding may hide curvatures: a Hessian keeps
# 12 digits and pivots above 1e-9.
DEEP = 1e-6
START = 8.0  # the largest margin of the first point: curvatures there are far above rounding
STEPS = 40  # the most steps of Newton's method
HALVINGS = 12  # the most halvings of one step
PROMISING = 0.2  # a projection is tried only if no move in the wrong direction is larger
SEPARATED = 0.5  # rows that move more count as separated: their moves approach 1 or more
STILL = 0.1  # the least move of a separated row after a projection
# Share of the least move of a separated row: a larger move of another row disproves separation.
ROUNDING = 1e-7
PROJECTION = 100  # the most conjugate-gradient steps of a projection
# Relative to the direction: the residual at which a projection ends. A smaller one is rounding of
# the singular matrix; to follow it would add any amount of the directions that move no fixed pair.
RESIDUAL = 1e-10


class Direction(NamedTuple):
    """A direction of recession v (k * p,) in the coordinates of `objective`.

    moved (k, n) bool marks the pairs of class and row that it moves.
    """

    v: Array
    moved: Array
    objective: Objective


def margins(coef: Array, intercept: Array, objective: Objective) -> Array:
    """Return X coef' + intercept of this rank's rows, without offsets. One read.

    Parameters
    ----------
    coef : (k, d) float64
    intercept : (k,) float64
    objective
        The objective of all rows.

    Returns
    -------
    z : (k, n) float64
    """
    t = np.empty((objective.k, objective.rows.X.n))
    for q in range(objective.k):
        objective.rows.X.margins(coef[q], float(intercept[q]), t[q])
    return t


def signed(t: Array, objective: Objective) -> Array:
    """Return the moves of this rank's rows for changes of their margins.

    Positive moves raise a row's likelihood. Moves are zero for rows of weight zero, and for a row's
    own class.

    Parameters
    ----------
    t : (k, n) float64
        Changes of the margins.
    objective
        The objective of all rows.

    Returns
    -------
    moves : (k, n) float64
    """
    y = objective.rows.y
    if objective.loss.name == "poisson":
        m = np.where(y > 0.0, -np.abs(t), -t)
    elif objective.k == 1:
        m = (2.0 * y - 1.0) * t
    else:
        m = t[y.astype(np.int64), np.arange(y.size)] - t
    return np.where(objective.rows.c > 0.0, m, 0.0)


def moves(v: Array, objective: Objective) -> Array:
    """Return the `signed` moves (k, n) of this rank's rows along v (k * p,). One read."""
    return signed(margins(*objective.scaling.to_raw(v, objective.k), objective), objective)


def is_factorised(objective: Objective) -> bool:
    """Whether the Hessian is whole and small enough for a factorisation."""
    return objective.size <= (MOST_PARAMETERS if objective.k == 1 else WHOLE)


def newton_direction(H: Array, g: Array) -> tuple[Array, int]:
    """Return the Newton direction -H^-1 g.

    Parameters
    ----------
    H : (1, k * p, k * p) float64
        The Hessian.
    g : (k * p,) float64
        The gradient.

    Returns
    -------
    v : (k * p,) float64
    replaced : int
        The number of pivots that rounding had made useless, and that were replaced.
    """
    U, step = H[0].copy(), np.empty_like(g)
    replaced = linalg.cholesky(U)
    linalg.solve(U, -g, step)
    return step, int(replaced)


def is_deep(w: Array, replaced: int, objective: Objective, comm: Comm) -> bool:
    """Return whether rounding may hide curvatures at w. Collective.

    Parameters
    ----------
    w : (k * p,) float64
        Parameters.
    replaced
        How many pivots of the Hessian were replaced. If there are none, rounding must hide the
        curvatures of all rows; else it suffices that it hides some.
    objective
        The objective of all rows.
    comm
        The communicator of these ranks.
    """
    rows, kernel = objective.rows, objective.loss.second
    assert kernel is not None
    z = objective.margins(w)
    h, c = np.empty_like(z), np.ascontiguousarray(rows.c)
    kernel(z, rows.y, c, objective.parameter, h)
    if objective.k > 1:
        h *= c
    ends = np.array([np.max(h, initial=0.0), np.max(-h[:, c > 0.0], initial=-np.inf)])
    comm.allreduce(ends, "max")
    heaviest = objective.statistics.heaviest
    if ends[0] < DEEP * heaviest:
        return True
    return replaced > 0 and bool(-ends[1] < DEEP * max(ends[0], heaviest))


def search(w: Array, objective: Objective, reducer: Reducer, least: float) -> Direction | None:
    """Return a proven direction of recession, or None. Collective.

    None means that there is no such direction or that it was not found.

    Parameters
    ----------
    w : (k * p,) float64
        Any point.
    objective
        The objective of all rows, without penalty.
    reducer
        Tells which kind of sums to use, and the communicator.
    least
        If all moves along a Newton direction are smaller, separation is refuted.
    """
    comm = reducer.comm
    part, w = unweighted(objective, w, comm)
    m = moves(w, part)
    if (found := proof(w, part, comm, m)) is not None:
        return found
    farthest = max(extremes(m, comm))
    w = w * min(1.0, START / farthest) if farthest > 0.0 else w
    oracle = part.on(Batch.whole(part.n), part.reducer_like(reducer))
    value, g, H = oracle.derivatives(w)
    for _ in range(STEPS):
        v, _ = newton_direction(H, g)
        m = moves(v, part)
        if max(extremes(m, comm)) < least:
            return None
        if (found := proof(v, part, comm, m)) is not None:
            return found
        after = _step(w, v, value, oracle)
        if after is None:
            return None
        w, value, g, H = after
    return None


def _step(
    w: Array,
    v: Array,
    value: float,
    oracle: Oracle,
) -> tuple[Array, float, Array, Array] | None:
    """Return the first point w + v / 2**i that is not worse, with its derivatives."""
    for i in range(HALVINGS):
        there = w + 0.5**i * v
        try:
            new, g, H = oracle.derivatives(there)
        except NumericalError:  # all ranks raise it together: the step was too long
            continue
        if new <= value:
            return there, new, g, H
    return None


def unweighted(objective: Objective, w: Array, comm: Comm) -> tuple[Objective, Array]:
    """Return the objective with all positive weights 1, and w in its coordinates. Collective.

    Separation does not depend on weights. Sums are more accurate without them, in coordinates that
    ignore them.

    Parameters
    ----------
    objective
        The objective of all rows.
    w : (k * p,) float64
        In its coordinates.
    comm
        The communicator of these ranks.
    """
    part, c, old = copy.copy(objective), objective.rows.c, objective.scaling
    part.keeps_margins, part.counter = True, part
    if c.strides[0]:
        c = (c > 0.0).astype(np.float64)
        part.rows, part._points = replace(objective.rows, c=c), []
        part.statistics = measure(objective.rows.X, c, objective.n, comm)
        part.scaling = make_scaling(part.statistics, old.intercept, True)
        w = part.scaling.from_raw(*old.coefficients(w, objective.k))
    return part, w


def extremes(m: Array, comm: Comm) -> tuple[float, float]:
    """Return the largest move against and in the right direction over all ranks. Collective."""
    ends = np.array([np.max(-m, initial=0.0), np.max(m, initial=0.0)])
    comm.allreduce(ends, "max")
    return float(ends[0]), float(ends[1])


def proof(v: Array, objective: Objective, comm: Comm, m: Array | None = None) -> Direction | None:
    """Return a direction of recession near v, verified on all rows, or None. Collective.

    It is verified up to rounding: other rows move by less than ROUNDING times the least move of the
    separated rows.

    Parameters
    ----------
    v : (k * p,) float64
        A direction.
    objective
        The objective of all rows.
    comm
        The communicator of these ranks.
    m : (k, n) float64 or None
        The moves of v if they are known.
    """
    m = moves(v, objective) if m is None else m
    wrong, right = extremes(m, comm)
    if not right > _noise(v, objective):
        return None
    if not wrong > 0.0:
        return Direction(v, m > ROUNDING * right, objective)
    if wrong > PROMISING or not right > SEPARATED:
        return None
    separated = m > SEPARATED
    for project in (False, True):
        if project:
            v = projected(v, _pairs(objective) & ~separated, objective, comm)
            m = moves(v, objective)
        rest = max(extremes(np.where(separated, 0.0, m), comm))
        ends = np.array([np.min(m[separated], initial=np.inf)])
        comm.allreduce(ends, "min")
        least = float(ends[0])
        if least > STILL and rest <= ROUNDING * least + _noise(v, objective) < STILL:
            return Direction(v, separated, objective)
    return None


def _noise(v: Array, objective: Objective) -> float:
    """Return an upper bound on moves (of any row) that are nothing but rounding."""
    coef, intercept = objective.scaling.to_raw(v, objective.k)
    sizes = [float(vector.dot(np.abs(row), objective.statistics.largest)) for row in coef]
    return 1e-12 * max(size + abs(float(b)) for size, b in zip(sizes, intercept, strict=True))


def _pairs(objective: Objective) -> Array:
    """Return which pairs (k, n) have a move: not rows of weight zero, nor a row's own class."""
    rows, k = objective.rows, objective.k
    there = np.broadcast_to(rows.c > 0.0, (k, rows.y.size))
    return there if k == 1 else there & (np.arange(k)[:, np.newaxis] != rows.y)


def projected(v: Array, fixed: Array, objective: Objective, comm: Comm) -> Array:
    """Return v without its component that moves certain pairs of class and row. Collective.

    Parameters
    ----------
    v : (k * p,) float64
        A direction.
    fixed : (k, n) bool
        The pairs that v should not move.
    objective
        The objective of all rows.
    comm
        The communicator of these ranks.
    """
    largest = float(power_above(float(objective.k)))
    found = []
    for some in groups(objective):
        outer = _Fixed(objective, some, largest)
        found += over_ranks(outer, objective, lambda rows: fixed[:, rows], 1.0, comm)
    (G,) = assemble(objective, found)
    scale = np.sqrt(np.where(np.diag(G) > 0.0, np.diag(G), 1.0))

    def times(u: Array) -> Array:
        return np.array([vector.dot(row, u / scale) for row in G]) / scale

    # Conjugate gradients on G x = G v. G is singular, so a factor of it would be useless.
    u = v * scale
    r, least = times(u), RESIDUAL * RESIDUAL * vector.dot(u, u)
    x, d, square = np.zeros_like(v), r, vector.dot(r, r)
    for _ in range(PROJECTION):
        Gd = times(d)
        bend = vector.dot(d, Gd)
        if not square > least or not bend > 0.0:
            break
        x = x + (square / bend) * d
        r = r - (square / bend) * Gd
        before, square = square, vector.dot(r, r)
        d = r + (square / before) * d
    return v - x / scale


class _Fixed(Outer):
    """Sums of x x' over pairs of row and class.

    For softmax they are sums of (e_y - e_q)(e_y - e_q)' times x x'.
    """

    def _weights(self, h: Array, rows: slice) -> list[Array]:
        y, found = self._objective.rows.y[rows], []
        for q, s in self.pairs:
            if self._objective.k == 1:
                count = h[0]
            elif q == s:
                count = np.where(y == q, np.count_nonzero(h, axis=0), h[q])
            else:
                count = np.where(y == q, h[s], np.where(y == s, h[q], False))
            found.append(count / self._largest)
        return found
