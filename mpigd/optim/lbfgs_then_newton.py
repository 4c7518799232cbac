"""L-BFGS first, and Newton's method if that takes too long.

Cheap steps are taken if they suffice; otherwise Newton's method ends reliably.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State
from mpigd.optim.lbfgs import LBFGS
from mpigd.optim.newton import Newton


@dataclass(frozen=True)
class Then:
    """Use `first` for at most `budget` steps or until it finds no way down, then `last` from there.

    Parameters
    ----------
    first : LBFGS
        The method to begin with.
    last : Newton
        The method that takes over.
    budget : int
        The most steps of `first`.
    """

    first: LBFGS
    last: Newton
    budget: int
    name = "lbfgs-newton"

    def start(self, w: Array) -> State:
        return self.first.start(w)

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        begun = "kind" in state  # the state is one of Newton's method
        step = state["step"][0]
        if not begun and step < self.budget and not state["flat"][0]:
            return self.first.step(w, state, oracle, penalty, dot)
        if begun:
            return self.last.step(w, state, oracle, penalty, dot)
        w, after = self.last.step(w, self.last.start(w), oracle, penalty, dot)
        after["step"][0] = step + 1.0
        return w, after
