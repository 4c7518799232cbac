"""Minimise a quadratic model with l1 and bounds: coordinate descent, finished by Newton steps.

Coordinate descent finds which coordinates are zero or at a bound, but with correlated columns it
is slow to determine the others. On the face on which signs and bounds stay as they are the model
is a plain quadratic. Its minimum, or the edge of the face on the way there, takes one triangular
solve. Both kinds of steps only go down.

References
----------
After Bertsekas, "Projected Newton methods" (SICON 1982).
"""

from __future__ import annotations

import math

import numpy as np

from mpigd.model.penalties import ElasticNet
from mpigd.optim.base import Array, Dot, norm
from mpigd_kernels import descent, linalg, vector

# The most rounds, and the sweeps over the nonzero coordinates that follow a whole sweep in each.
ROUNDS, SWEEPS = 2000, 5
# Rounds that are always allowed, and operations that cost as much as a pass over the data.
FEWEST, WORK = 100, 2e10
SOLVED = 1e-11  # relative to the model's shortest subgradient at its start
ROUNDING = 2.0**-50  # relative to the slope: a shorter subgradient counts as zero
FAST = 0.2  # a round that leaves less than this of the subgradient needs no solve
# Stop after this many rounds without progress, once the subgradient has become this small.
PATIENCE, ROUGHLY = 10, 1e-6
# The most directions of a face along which the model is linear, and the relative curvature up to
# which it counts as linear.
FLATTEST, NO_CURVATURE = 8, 1e-8
DENSEST = 2000  # the most free coordinates whose matrix is factorised


def minimize(
    H: Array, g: Array, w: Array, penalty: ElasticNet, dot: Dot, tolerance: float = SOLVED
) -> Array:
    """Return argmin_u g . (u - w) + (u - w)' H (u - w) / 2 + rough part(u).

    Parameters
    ----------
    H : array (p, p) of float64
        Symmetric matrix.
    g, w : array (p,) of float64
        Vectors.
    penalty : ElasticNet
        Its rough part is l1 and bounds.
    dot : Dot
        Inner product.
    tolerance : float
        Length of the shortest subgradient to reach, relative to that at w.
    """
    u, s, face = w.copy(), g.copy(), Face(H)
    first = left = norm(penalty.subgradient(u, s), dot)
    goal = max(tolerance * first, ROUNDING * norm(s, dot))
    best, stalled = math.inf, 0
    rounds = min(ROUNDS, max(FEWEST, int(WORK / max(1, w.size) ** 3)))
    for _ in range(rounds):
        best, stalled = (left, 0) if left < best else (best, stalled + 1)
        if not left > goal or (stalled > PATIENCE and best < ROUGHLY * first):
            break  # by the second condition rounding allows no further progress
        start = u.copy()
        moved = descent.sweep_coordinates(H, penalty.l1, penalty.low, penalty.high, u, s, True)
        for _ in range(SWEEPS):
            moved = max(
                moved,
                descent.sweep_coordinates(H, penalty.l1, penalty.low, penalty.high, u, s, False),
            )
        before, left = left, norm(penalty.subgradient(u, s), dot)
        if left > max(goal, FAST * before):
            moved = max(
                moved, _farther(H, start, u, s, penalty, dot), _along_face(face, u, s, penalty, dot)
            )
            left = norm(penalty.subgradient(u, s), dot)
        if not moved > 0.0:
            break
    return u


class Face:
    """The Cholesky factor of a matrix H (p, p) over the free coordinates, and their dependencies.

    The factor is kept until other coordinates are free. `null` holds directions (p,) without
    curvature, one for each replaced pivot of the factor, at most FLATTEST.
    """

    def __init__(self, H: Array) -> None:
        self.H, self.null = H, list[Array]()
        self._free, self._factor = np.empty(0, np.int64), np.empty((0, 0))

    def factor(self, free: Array) -> Array:
        if not np.array_equal(free, self._free):
            self._free, self._factor, self.null = (
                free,
                np.ascontiguousarray(self.H[np.ix_(free, free)]),
                [],
            )
            diagonal = np.diag(self._factor).copy()
            if linalg.cholesky(self._factor):
                replaced = np.flatnonzero(np.diag(self._factor) == np.sqrt(diagonal))
                self._find_null(replaced[replaced > 0][:FLATTEST], diagonal)
        return self._factor

    def _find_null(self, pivots: Array, diagonal: Array) -> None:
        v = np.empty(self._free.size)
        for i in pivots:
            linalg.dependence(self._factor, int(i), v)
            d, product = np.zeros(self.H.shape[0]), np.zeros(self.H.shape[0])
            # The other elements are rounding.
            d[self._free] = np.where(np.abs(v) > NO_CURVATURE * np.abs(v).max(), v, 0.0)
            descent.add_product(self.H, d, product)
            # Otherwise the direction is orthogonal to all before.
            if vector.dot(d, product) <= NO_CURVATURE * vector.dot(diagonal, v * v):
                self.null.append(d)


def _along_face(matrix: Face, u: Array, s: Array, penalty: ElasticNet, dot: Dot) -> float:
    """Move u, and the slope s with it, towards the minimum on the face; return the distance."""
    H = matrix.H
    face = (
        ((u != 0.0) | (penalty.l1 == 0.0))
        & (u > penalty.low)
        & (u < penalty.high)
        & (np.diag(H) > 0.0)
    )
    free = np.flatnonzero(face)
    if not 0 < free.size <= DENSEST:
        return 0.0
    slope = s[free] + penalty.l1[free] * np.sign(u[free])
    U, part = matrix.factor(free), np.empty(free.size)
    for direction in matrix.null:
        moved = _along_null(H, direction, u, s, penalty, dot)
        if moved > 0.0:  # the face has changed
            return moved
    linalg.solve(U, -slope, part)
    d, product = np.zeros_like(u), np.zeros_like(u)
    d[free] = part
    descent.add_product(H, d, product)
    downhill, bend = -dot(slope, part), dot(d, product)
    if not downhill > 0.0 or not bend > 0.0:
        return 0.0
    t = downhill / bend
    safe = _onto_face(u, u + min(t, _room(u, d, penalty)) * d, penalty)
    # Stopping at the first coordinate that reaches zero is safe. Stopping all of them at zero, or
    # none of them if l1 is small, is far faster if the model decreases there.
    crossing = u + t * d
    penalty.prox(crossing, 0.0)
    best, moved = 0.0, 0.0
    goal, slopes = u, s
    for there in (safe, _onto_face(u, u + t * d, penalty), crossing):
        step, product = there - u, np.zeros_like(u)
        descent.add_product(H, step, product)
        change = (
            dot(s, step) + 0.5 * dot(step, product) + dot(penalty.l1, np.abs(there) - np.abs(u))
        )
        if change < best:
            best, goal, slopes, moved = change, there, s + product, norm(step, dot)
    u[:], s[:] = goal, slopes
    return moved


def _farther(H: Array, start: Array, u: Array, s: Array, penalty: ElasticNet, dot: Dot) -> float:
    """Extrapolate u, and the slope s with it, from `start` through u; return the distance.

    The move ends at the minimum on the way, or at the edge of the face. If columns depend on each
    other, as all levels of a factor do, a direction has no curvature: coordinate descent creeps
    along it, and no solve can tell the distance to the edge.
    """
    d = np.where((u * start > 0.0) & (u > penalty.low) & (u < penalty.high), u - start, 0.0)
    downhill, product = -dot(s + penalty.l1 * np.sign(u), d), np.zeros_like(u)
    if not downhill > 0.0:
        return 0.0
    descent.add_product(H, d, product)
    bend = dot(d, product)
    t = min(downhill / bend if bend > 0.0 else math.inf, _room(u, d, penalty))
    if not math.isfinite(t):
        return 0.0
    there = _onto_face(u, u + t * d, penalty)
    return _move(H, there, u, s, penalty, dot)


def _along_null(H: Array, v: Array, u: Array, s: Array, penalty: ElasticNet, dot: Dot) -> float:
    """Move u, and the slope s with it, to the minimum along v (p,); return the distance.

    v has no curvature, so the minimum is where a coordinate reaches zero: the model is linear
    between two such points, and each that is passed makes it steeper by twice the coordinate's l1.
    """
    slope = s + penalty.l1 * np.sign(u)
    downhill = dot(slope, v)
    d = -v if downhill > 0.0 else v
    if not abs(downhill) > NO_CURVATURE * dot(np.abs(s) + penalty.l1, np.abs(v)):  # rounding
        return 0.0
    meets = np.flatnonzero((u * d < 0.0) & (penalty.l1 > 0.0))
    far = -u[meets] / d[meets]
    order = np.argsort(far, kind="stable")
    steeper = np.cumsum(2.0 * penalty.l1[meets[order]] * np.abs(d[meets[order]]))
    last = int(np.searchsorted(steeper, abs(downhill)))
    # A bound is reached first, or nothing is: other steps handle that.
    if last == order.size:
        return 0.0
    there = u + far[order[last]] * d
    there[meets[order[last]]] = 0.0
    penalty.prox(there, 0.0)
    return _move(H, there, u, s, penalty, dot)


def _move(H: Array, there: Array, u: Array, s: Array, penalty: ElasticNet, dot: Dot) -> float:
    """Move u to `there`, and the slope s with it, if the model falls; return the distance."""
    step, product = there - u, np.zeros_like(u)
    descent.add_product(H, step, product)
    change = dot(s, step) + 0.5 * dot(step, product) + dot(penalty.l1, np.abs(there) - np.abs(u))
    if not change < 0.0:
        return 0.0
    u[:], s[:] = there, s + product
    return norm(step, dot)


def _onto_face(u: Array, there: Array, penalty: ElasticNet) -> Array:
    """Return `there` with zeros where its sign differs from that of u, within the bounds."""
    far = np.where((np.sign(there) * np.sign(u) < 0.0) & (penalty.l1 > 0.0), 0.0, there)
    penalty.prox(far, 0.0)
    return far


def _room(u: Array, d: Array, penalty: ElasticNet) -> float:
    """Return the largest t for which u + t d stays on its face."""
    with np.errstate(divide="ignore", invalid="ignore"):
        to_zero = np.where((u * d < 0.0) & (penalty.l1 > 0.0), -u / d, np.inf)
        to_bound = np.where(
            d > 0.0, (penalty.high - u) / d, np.where(d < 0.0, (penalty.low - u) / d, np.inf)
        )
    return float(min(to_zero.min(), to_bound.min()))
