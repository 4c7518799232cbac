"""Mini-batch methods for data that are too large for many passes.

SVRG reduces the variance of mini-batch gradients. Hybrid takes one epoch of mini-batches before
L-BFGS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State, advance, clip, evaluate, norm
from mpigd.optim.first_order import FirstOrder
from mpigd.optim.lbfgs import LBFGS
from mpigd_kernels import vector


class BatchOracle(OracleLike, Protocol):
    """The oracle of a mini-batch that also gives access to all rows."""

    def whole(self) -> OracleLike:
        """Return the oracle of all rows."""

    def epoch(self, size: int) -> Iterator[OracleLike]:
        """Yield the oracles of mini-batches of `size` rows, with every row once."""


class SVRG(FirstOrder):
    """Stochastic variance-reduced gradients with a proximal step.

    w = prox(w - lr (g_batch(w) - g_batch(anchor) + g(anchor))), with the anchor at the beginning of
    the epoch. The noise of the batches vanishes as both points approach the optimum, so a constant
    rate converges; the convergence is linear if the objective is strongly convex.

    References
    ----------
    Johnson and Zhang (NIPS 2013); with a proximal step Xiao and Zhang (SIAM J. Optim. 2014).
    """

    name = "svrg"
    memory = ("anchor", "anchor_gradient")

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        t, part = int(state["step"][0]), cast(BatchOracle, oracle)
        anchor, whole = state["anchor"], state["anchor_gradient"]
        if t % self.rate.epoch == 0:
            anchor, whole = w.copy(), part.whole().value_and_gradient(w)[1]
        value, g = evaluate(w, oracle, penalty)
        g += whole - oracle.value_and_gradient(anchor)[1]
        after, moved = advance(state, value, norm(penalty.subgradient(w, g), dot)), w.copy()
        after["anchor"], after["anchor_gradient"] = anchor.copy(), whole.copy()
        clip(g, norm(g, dot), self.longest)
        lr = self.rate(t)
        vector.descend(moved, g, lr)
        penalty.prox(moved, lr)
        return moved, after


@dataclass(frozen=True)
class Hybrid:
    """L-BFGS, started at the result of one epoch of mini-batches.

    That epoch costs one pass over the data and saves several.

    Parameters
    ----------
    first : FirstOrder
        Optimiser on mini-batches.
    size : int
        Rows of a mini-batch.
    then : LBFGS
        Optimiser on all rows.
    """

    first: FirstOrder
    size: int
    then: LBFGS
    name = "hybrid"

    def start(self, w: Array) -> State:
        return self.then.start(w)

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        if state["step"][0] == 0:
            own = self.first.start(w)
            for part in cast(BatchOracle, oracle).epoch(self.size):
                w, own = self.first.step(w, own, part, penalty, dot)
        return self.then.step(w, state, oracle, penalty, dot)
