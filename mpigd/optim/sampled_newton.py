"""Newton's method on samples of the rows.

It gives a starting point near the optimum of all rows, and a preconditioner, for one or two passes
over the data. What a sample does not determine is pulled towards the starting point. The result of
the samples is taken only if it is downhill for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpigd.errors import NumericalError
from mpigd.model.penalties import Penalty
from mpigd.optim.base import SAMPLE_RTOL, Array, Dot
from mpigd.optim.change_of_basis import Basis
from mpigd.optim.cholesky import factorise
from mpigd.optim.conjugate_gradients import conjugate_gradients
from mpigd.optim.line_search import best_length
from mpigd.optim.newton_steps import Point, SecondOrderOracle, move, stand
from mpigd.optim.preconditioner import Preconditioner, factors, roots, with_penalty
from mpigd_kernels import vector

# The share of a column's mean square over all rows that a sample must have to say enough about
# the column.
LEAST_SQUARE = 0.5
PULL = 1e-4  # the curvature of the pull, in units of that of a row
MAX_STEPS = 40  # the most Newton steps on a sample
STEP_RTOL = 0.2  # of conjugate gradients on a sample


@dataclass(frozen=True)
class Pulled:
    """A penalty plus sum(strength / 2 * (w - center)**2), which pulls parameters towards a point.

    Parameters
    ----------
    penalty : Penalty
        The penalty itself.
    center : array (p,) of float64
        Point of the pull.
    strength : array (p,) of float64
        Curvature of the pull.
    columns : array (p,) of float64
        Part of the strength for columns whose numbers are small in the sample.
    smooth : bool
        Always true.
    """

    penalty: Penalty
    center: Array
    strength: Array
    columns: Array
    smooth: bool = True

    def for_columns(self) -> Pulled:
        """Return the penalty with the part `columns` alone.

        It hides no small eigenvalue of dependent columns.
        """
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
        """Do nothing: there is no rough part."""

    def subgradient(self, w: Array, g: Array) -> Array:
        return g


def pull(penalty: Penalty, w: Array, part: SecondOrderOracle, m: int) -> Pulled:
    """Return the penalty for a sample, pulled towards w. Two passes over the sample.

    The pull on every coordinate is that of a small part of a row. It decides only what no row of
    the sample does, like the coefficient of a level whose rows there have no event, and does not
    affect the small eigenvalues of correlated columns (the pull of a whole row hid them: 23 passes
    over the data instead of 14). If a column's numbers are far smaller in the sample than in all
    rows (a rare level), half of the missing curvature is added. The typical curvature is the mean
    of the Hessian's diagonal at w.

    Parameters
    ----------
    penalty : Penalty
        Smooth penalty.
    w : array (p,) of float64
        Parameters.
    part : SecondOrderOracle
        Oracle of the sample.
    m : int
        Rows of the sample.
    """
    part.look_at(w)
    diagonal, squares = part.hessian_diagonal(), part.column_squares()
    typical = vector.dot(diagonal, np.ones(w.size)) / max(1, np.count_nonzero(diagonal))
    columns = typical * np.maximum(0.0, LEAST_SQUARE - squares) * (diagonal > 0.0)
    return Pulled(penalty, w, typical * PULL / m + columns, columns)


@dataclass(frozen=True)
class SampleDescent:
    """Newton steps on one sample after another, each starting at the result of the one before.

    Parameters
    ----------
    sizes : sequence of int
        Sizes of the samples, ascending.
    dense, whole : bool
        As in Newton.
    """

    sizes: Sequence[int]
    dense: bool
    whole: bool

    def lead(
        self, w: Array, value: float, oracle: SecondOrderOracle, penalty: Penalty, dot: Dot
    ) -> tuple[Point, Preconditioner | None, bool]:
        """Return the point to which the samples lead from w. Collective.

        Parameters
        ----------
        w : array (p,) of float64
            Starting point.
        value : float
            Objective of all rows there.
        oracle : SecondOrderOracle
            Objective of all rows without its penalty.
        penalty : Penalty
            Smooth penalty.
        dot : Dot
            Inner product.

        Returns
        -------
        tuple (Point, Preconditioner or None, bool)
            The point; the factorised Hessian of the last sample, if `dense`; and whether the
            samples' result is downhill for all rows. If it is not, the point is the best one on the
            way there.
        """
        there, M = w, None
        for m in self.sizes:
            there, M = self._descend(w, there, oracle.sample(m), M, m, penalty, dot)
        try:
            point = stand(there, oracle, penalty, False)
            if point.value < value:
                return point, M, True
        except NumericalError:  # all ranks raise it together: the point is too far away
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
        """Take Newton steps on a sample until they gain less than its optimum's own error.

        What the sample does not determine is pulled towards w0. Without a preconditioner M from a
        smaller sample, steps are computed from the Hessian. With one, they use conjugate gradients,
        since a Hessian of many columns costs as much as many products.
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
        # The last one is a Newton step whose result needs no evaluation.
        return point.w - M.solve(point.g), M

    def _preconditioner(self, point: Point, part: SecondOrderOracle, own: Pulled) -> Preconditioner:
        if point.H is not None:
            return Preconditioner(factors(point.H))
        part.look_at(point.w)
        if not self.dense:
            return Preconditioner(roots(part, own))
        return Preconditioner(factors(with_penalty(part.hessian(), own, point.w.size)))
