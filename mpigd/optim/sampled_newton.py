"""Descent on samples of the rows: a start near the optimum of all rows, and a preconditioner, for a read or two.

What a sample does not determine is pulled towards the starting point, and where the samples lead is taken only
if it is downhill for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot
from mpigd.optim.change_of_basis import Basis
from mpigd.optim.cholesky import factorise
from mpigd.optim.conjugate_gradients import conjugate_gradients
from mpigd.optim.line_search import best_length
from mpigd.optim.newton_steps import Point, SecondOrderOracle, move, stand
from mpigd.optim.preconditioner import Preconditioner, factors, roots, with_penalty
from mpigd_kernels import vector

LEAST_SQUARE = (
    0.5  # of a column's mean square over all rows: a sample with less says too little of it
)


PULL = 1e-4  # of a row
MAX_STEPS = 40  # on a sample
STEP_RTOL = 0.2  # of conjugate gradients there
SAMPLE_RTOL = 0.02  # a sample's optimum is about p / 2m from that of all rows: closer to it, by this factor, will do


@dataclass(frozen=True)
class Pulled:
    """A penalty plus strength / 2 * (w - center)**2, summed over the parameters; strength and center (p,); columns (p,):
    the part of the strength that columns need whose numbers are small in the sample."""

    penalty: Penalty
    center: Array
    strength: Array
    columns: Array
    smooth: bool = True

    def for_columns(self) -> Pulled:
        """With that part alone: no small eigenvalue of dependent columns is hidden by it."""
        return replace(self, strength=self.columns)

    def value(self, w: Array) -> float:
        far = w - self.center
        return self.penalty.value(w) + 0.5 * float(vector.dot(self.strength * far, far))

    def rough_value(self, w: Array) -> float:
        return 0.0

    def add_gradient(self, w: Array, g: Array) -> None:
        self.penalty.add_gradient(w, g)
        g += self.strength * (w - self.center)

    def add_curvature(self, v: Array, Hv: Array) -> None:
        self.penalty.add_curvature(v, Hv)
        Hv += self.strength * v

    def prox(self, w: Array, step: float) -> None:
        """There is no rough part."""

    def subgradient(self, w: Array, g: Array) -> Array:
        return g


def pull(penalty: Penalty, w: Array, part: SecondOrderOracle, m: int) -> Pulled:
    """The penalty for a sample of m rows, pulled towards w (p,). Two reads of the sample.

    The pull on every coordinate is that of a small part of a row: it decides only what no row of the sample does, like
    the coefficient of a level whose rows there have no event, and leaves the small eigenvalues of correlated columns alone
    (with a whole row they were drowned: 23 reads in place of 14). Where a column's numbers are far smaller in the sample
    than in all rows (a rare level), half of the missing curvature is added. The typical curvature is the mean of the
    Hessian's diagonal at w.
    """
    part.look_at(w)
    diagonal, squares = part.hessian_diagonal(), part.column_squares()
    typical = vector.dot(diagonal, np.ones(w.size)) / max(1, np.count_nonzero(diagonal))
    columns = typical * np.maximum(0.0, LEAST_SQUARE - squares) * (diagonal > 0.0)
    return Pulled(penalty, w, typical * PULL / m + columns, columns)


@dataclass(frozen=True)
class SampleDescent:
    """Newton steps on one sample after the other, each from where the last one led.

    sizes: of the samples, ascending. dense, whole: as Newton has them.
    """

    sizes: Sequence[int]
    dense: bool
    whole: bool

    def lead(
        self, w: Array, value: float, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot
    ) -> tuple[Point, Preconditioner | None, bool]:
        """The point to which the samples lead from w (p,), whose objective is `value`; the last one's Hessian, factorised, if
        `dense`; and whether the point is downhill for all rows. If it is not, it is the best one on the way there.
        Collective."""
        there, M = w, None
        for m in self.sizes:
            there, M = self._descend(w, there, oracle.sample(m), M, m, penalty, dot)
        try:
            point = stand(there, oracle, penalty, False)
            if point.value < value:
                return point, M, True
        except NumericalError:  # raised on all ranks together: too far
            pass
        start = stand(w, oracle, penalty, False)
        t = best_length(start.w, there - start.w, start.g, oracle, penalty, dot)
        return (stand(w + t * (there - w), oracle, penalty, False) if t > 0.0 else start), M, False

    def _descend(
        self,
        w0: Array,
        w: Array,
        part: SecondOrderOracle,
        M: Preconditioner | None,
        m: int,
        penalty: Penalty,
        dot: Dot,
    ) -> tuple[Array, Preconditioner | None]:
        """Newton steps on a sample until they gain less than its optimum's own error asks for.

        What the sample does not determine is pulled towards w0. Without an M from a smaller sample steps are made of
        the Hessian; with one they are conjugate gradients: a Hessian of many columns costs as much as many products.
        """
        direct = self.dense and self.whole and M is None
        own = pull(penalty, w0, part, m)
        point = stand(w, part, own, direct)
        for _ in range(MAX_STEPS):
            if direct or M is None or not self.dense:
                M = self._preconditioner(point, part, own)
            gain = 0.5 * dot(point.g, M.solve(point.g))
            if not gain > SAMPLE_RTOL * w.size / m * abs(point.value):
                break
            if not direct:
                part.look_at(point.w)
            s = (
                -M.solve(point.g)
                if direct
                else conjugate_gradients(point.g, M, part, own, dot, STEP_RTOL)[0]
            )
            new, _ = move(point, s, part, own, dot, direct)
            if new is point:
                break
            point = new
        if not self.dense:
            return point.w, None
        part.look_at(point.w)
        H = with_penalty(part.hessian(), own.for_columns(), w.size)
        M = factorise(H, point.w, part, own.for_columns(), Basis.none(w.size))
        # The last step is that of Newton: what it finds needs no evaluation.
        return point.w - M.solve(point.g), M

    def _preconditioner(self, point: Point, part: SecondOrderOracle, own: Pulled) -> Preconditioner:
        if point.H is not None:
            return Preconditioner(factors(point.H))
        part.look_at(point.w)
        if not self.dense:
            return Preconditioner(roots(part, own))
        return Preconditioner(factors(with_penalty(part.hessian(), own, point.w.size)))
