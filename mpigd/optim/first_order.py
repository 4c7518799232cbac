"""Optimisers that take one gradient per step.

Each of them is a learning rate, a few constants, and one in-place kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpigd.model.penalties import L2, Penalty
from mpigd.optim.base import Array, Dot, OracleLike, State, advance, clip, evaluate, fresh, norm
from mpigd.optim.schedules import Rate
from mpigd_kernels import vector

# Added to the root of squared gradients, against division by zero.
EPSILON = 1e-8


@dataclass(frozen=True)
class FirstOrder:
    """Base class: evaluate the gradient, clip it, and let `update` change the parameters in place.

    Parameters
    ----------
    rate : Rate
        Learning rate as a function of the step.
    longest : float or None
        Largest norm of the gradient; a longer one is clipped to it. None: no clipping.
    """

    rate: Rate
    longest: float | None = None
    name = ""
    memory: ClassVar[tuple[str, ...]] = ()

    def start(self, w: Array) -> State:
        return fresh(*self.memory, like=w)

    def step(
        self, w: Array, state: State, oracle: OracleLike, penalty: Penalty, dot: Dot
    ) -> tuple[Array, State]:
        value, g = evaluate(w, oracle, self.part_of_objective(penalty))
        length = norm(g, dot)
        after, moved = (
            advance(
                state, value, length if penalty.smooth else norm(penalty.subgradient(w, g), dot)
            ),
            w.copy(),
        )
        clip(g, length, self.longest)
        self.update(moved, g, after, self.rate(int(state["step"][0])), penalty)
        return moved, after

    def part_of_objective(self, penalty: Penalty) -> Penalty:
        return penalty

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        raise NotImplementedError


class SGD(FirstOrder):
    """Gradient descent: w -= lr g, then the penalty's proximal operator.

    With an l1 penalty the operator gives exact zeros.
    """

    name = "sgd"

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        vector.descend(w, g, lr)
        penalty.prox(w, lr)


@dataclass(frozen=True)
class Momentum(FirstOrder):
    """Gradient descent with momentum: v = mu v + g; w -= lr v."""

    mu: float = 0.9
    name = "momentum"
    memory = ("v",)

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        vector.momentum(w, g, state["v"], lr, self.mu)


@dataclass(frozen=True)
class Nesterov(FirstOrder):
    """Nesterov momentum: v = mu v + g; w -= lr (g + mu v) (Sutskever et al., ICML 2013)."""

    mu: float = 0.9
    name = "nesterov"
    memory = ("v",)

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        vector.momentum(w, g, state["v"], lr * self.mu, self.mu)
        vector.descend(w, g, lr)


class Adagrad(FirstOrder):
    """Adagrad: steps are divided by the root of the sum of squared gradients."""

    name = "adagrad"
    memory = ("s",)

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        vector.adagrad(w, g, state["s"], lr, EPSILON)


@dataclass(frozen=True)
class RMSprop(FirstOrder):
    """RMSprop: steps are divided by the root of a moving average of squared gradients."""

    decay: float = 0.9
    name = "rmsprop"
    memory = ("s",)

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        vector.rmsprop(w, g, state["s"], lr, self.decay, EPSILON)


@dataclass(frozen=True)
class Adam(FirstOrder):
    """Adam: moving averages of gradient and squared gradient, corrected for their start at zero."""

    beta1: float = 0.9
    beta2: float = 0.999
    name = "adam"
    memory = ("m", "s")

    def start(self, w: Array) -> State:
        # Powers of the betas are kept as products, since pow() differs between versions of libm.
        powers = fresh("power1", "power2", like=w[:1] * 0.0 + 1.0)
        powers["power1"][:] = powers["power2"][:] = 1.0
        return powers | fresh(*self.memory, like=w)

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        state["power1"] *= self.beta1
        state["power2"] *= self.beta2
        rise1, rise2 = 1.0 - float(state["power1"][0]), 1.0 - float(state["power2"][0])
        vector.adam(w, g, state["m"], state["s"], lr, self.beta1, self.beta2, rise1, rise2, EPSILON)


class AdamW(Adam):
    """Adam with a decoupled ridge penalty: w shrinks by lr l2 w each step, outside the gradient."""

    name = "adamw"

    def part_of_objective(self, penalty: Penalty) -> Penalty:
        assert isinstance(penalty, L2)
        return L2(0.0, penalty.weights)

    def update(self, w: Array, g: Array, state: State, lr: float, penalty: Penalty) -> None:
        assert isinstance(penalty, L2)
        vector.shrink(w, lr * penalty.strength, penalty.weights)
        super().update(w, g, state, lr, penalty)


FIRST_ORDER: dict[str, type[FirstOrder]] = {
    kind.name: kind for kind in (SGD, Momentum, Nesterov, Adagrad, RMSprop, Adam, AdamW)
}
