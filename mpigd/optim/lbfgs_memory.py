"""The L-BFGS memory: steps, and the changes of the gradient over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mpigd.optim.base import Array, Dot, State
from mpigd_kernels import vector


@dataclass
class Pairs:
    """The last `memory` steps and changes of the gradient, the newest last.

    No array is ever changed in place, since states share the arrays.
    """

    memory: int = 10
    moves: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)

    def remember(self, s: Array, y: Array, dot: Dot) -> None:
        sy = dot(s, y)
        # Otherwise rounding cannot tell the curvature from none.
        if sy > 0.0 and sy * sy > 1e-28 * dot(s, s) * dot(y, y):
            self.moves, self.changes = (
                [*self.moves, s][-self.memory :],
                [*self.changes, y][-self.memory :],
            )

    def raise_penalty(self, diagonal: Array) -> None:
        """Update the pairs for an objective that gains diagonal / 2 . w**2."""
        self.changes = [y + diagonal * s for s, y in zip(self.moves, self.changes, strict=True)]

    def direction(self, g: Array, solve: Callable[[Array], Array] | None, dot: Dot) -> Array:
        """Return -H g by the two-loop recursion.

        Parameters
        ----------
        g : array (p,) of float64
            Gradient.
        solve : callable or None
            Applies the initial inverse Hessian; by default a multiple of the identity, from the
            last pair.
        dot : Dot
            Inner product.

        References
        ----------
        Nocedal and Wright, "Numerical Optimization", algorithm 7.4.
        """
        d, shares = -g, []
        for s, y in zip(reversed(self.moves), reversed(self.changes), strict=True):
            rho = 1.0 / dot(s, y)
            share = rho * dot(s, d)
            shares.append((rho, share, s, y))
            vector.add_scaled(d, -share, y)
        if solve is not None:
            d = solve(d)
        elif self.moves:
            y = self.changes[-1]
            d = d * (dot(self.moves[-1], y) / dot(y, y))
        for rho, share, s, y in reversed(shares):
            vector.add_scaled(d, share - rho * dot(y, d), s)
        return d

    def named(self) -> State:
        """Return the pairs as arrays of a state; move0 and change0 are the oldest."""
        both = {"move": self.moves, "change": self.changes}
        return {
            f"{name}{i}": array for name, arrays in both.items() for i, array in enumerate(arrays)
        }


def stored(state: State, memory: int = 10) -> Pairs:
    """Return the pairs that `named` has put into a state.

    Parameters
    ----------
    state : State
        State of an optimiser.
    memory : int
        Number of pairs to keep.
    """
    count = sum(name.startswith("move") for name in state)
    moves, changes = ([state[f"{name}{i}"] for i in range(count)] for name in ("move", "change"))
    return Pairs(memory, moves, changes)
