"""What goes with what: the needs of each optimiser, and what the configuration leaves to mode and data.

A wrong pair is one sentence, before a row is read: needs are told by options alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpigd.config.schema import Config
from mpigd.config.units import limits_of
from mpigd.errors import UsageError
from mpigd.model.hessian import is_whole
from mpigd.model.losses import LOSSES
from mpigd.model.targets import NO_CLASSES
from mpigd.optim.predicted_costs import Shape, cheapest

EPOCHS = {"full": 1000, "minibatch": 5, "stochastic": 1}
BATCH_SIZE = {"minibatch": 1024, "stochastic": 1}
LARGEST_FACTOR = (
    16_000_000  # numbers in the Cholesky factors that precondition Newton's method: 4,000 columns
)
MODES = tuple(EPOCHS)


@dataclass(frozen=True)
class Needs:
    """Of an optimiser: modes it works in; smooth: a loss without kinks; prox: it has one, for l1 and bounds; kinked: a loss
    with kinks."""

    modes: tuple[str, ...] = MODES
    smooth: bool = False
    prox: bool = False
    kinked: bool = False

    def suits(self, loss: str) -> bool:
        """Whether the loss is one for it."""
        return not (self.kinked if LOSSES[loss].smooth else self.smooth)


NEEDS = {
    "newton": Needs(("full",), smooth=True),
    "newton-cholesky": Needs(("full",), smooth=True),
    "lbfgs": Needs(("full",), smooth=True),
    "lbfgs-newton": Needs(("full",), smooth=True),
    "hybrid": Needs(("full",), smooth=True),
    "smoothed-newton": Needs(("full",), kinked=True),
    "proximal-newton": Needs(("full",), smooth=True, prox=True),
    "fista": Needs(("full",), smooth=True, prox=True),
    "svrg": Needs(("minibatch",), smooth=True, prox=True),
    "sgd": Needs(prox=True),
    **dict.fromkeys(("momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"), Needs()),
}


SELF_PACED = (
    "newton", "newton-cholesky", "lbfgs", "lbfgs-newton", "hybrid", "smoothed-newton", "proximal-newton", "fista",
)  # fmt: skip


def check(config: Config) -> None:
    """Raise UsageError, one sentence, if optimiser, mode, loss and penalty do not go together."""
    if config.class_weight is not None and not LOSSES[config.loss].classifies:
        raise UsageError(NO_CLASSES)
    name = (
        config.optimizer
        if config.optimizer != "auto"
        else automatic_optimizer(config, Shape(1, 1))[0]
    )
    if name not in NEEDS:
        raise UsageError(f"no optimizer {name!r}")
    needs = NEEDS[name]
    if config.mode not in needs.modes or not needs.suits(config.loss):
        loss = (
            " and a smooth loss"
            if needs.smooth
            else " and a loss with kinks"
            if needs.kinked
            else ""
        )
        raise UsageError(
            f"--optimizer {name} goes with --mode {' or '.join(needs.modes)}{loss}: try {', '.join(fitting(config))}"
        )
    if is_rough(config) and not needs.prox:
        penalty = (
            "bounds need" if not config.l1 else "elastic net needs" if config.l2 else "l1 needs"
        )
        raise UsageError(
            f"{penalty} an optimiser with prox: {', '.join(fitting(config))}; --optimizer {name} has none"
        )
    if (fixed_steps := _tells_steps(config)) and name in SELF_PACED and fixed_steps != "--lr":
        raise UsageError(
            f"{fixed_steps} does not go with --optimizer {name}, which finds its steps by itself"
        )


def fitting(config: Config) -> list[str]:
    """The optimisers that go with mode, loss and penalty."""
    rough = is_rough(config)
    return [
        name
        for name, needs in NEEDS.items()
        if config.mode in needs.modes and needs.suits(config.loss) and (needs.prox or not rough)
    ]


def limits(config: Config) -> tuple[float, float]:
    """The bounds of the coefficients."""
    if config.nonnegative:
        return 0.0, math.inf
    return limits_of(config.bounds) if config.bounds is not None else (-math.inf, math.inf)


def is_rough(config: Config) -> bool:
    """Whether the penalty has kinks or bounds."""
    return config.l1 > 0.0 or limits(config) != (-math.inf, math.inf)


def complete(config: Config, n: int, d: int = 0, shape: Shape | None = None) -> Config:
    """The configuration with everything that mode and data (n rows of d columns, or `shape`) decide filled in."""
    shape = shape or Shape(n, d + config.intercept)
    mode = config.mode
    size = n if mode == "full" else min(n, config.batch_size or BATCH_SIZE[mode])
    smooth = LOSSES[config.loss].smooth
    optimizer = (
        automatic_optimizer(config, shape)[0] if config.optimizer == "auto" else config.optimizer
    )
    paced = smooth or optimizer in SELF_PACED
    schedule = (
        ("constant" if paced else "root")
        if mode == "full"
        else "constant"
        if optimizer == "svrg"
        else "cosine"
    )
    return config.replace(
        epochs=config.epochs or EPOCHS[mode],
        batch_size=None if mode == "full" else size,
        optimizer=optimizer,
        lr_schedule=schedule if config.lr_schedule == "auto" else config.lr_schedule,
    )


def automatic_optimizer(config: Config, shape: Shape) -> tuple[str, str]:
    """What `auto` stands for, and why."""
    smooth = LOSSES[config.loss].smooth
    asked = config.learning_rate is not None or config.lr_schedule != "auto" or _tells_steps(config)
    if is_rough(config):
        penalty = f"l1 {config.l1:g}" if config.l1 else "bounds"
        if config.mode == "minibatch" and smooth:
            return "svrg", f"{penalty}, minibatch mode"
        if config.mode != "full" or not smooth or _tells_steps(config):
            return "sgd", f"{penalty}, {config.mode} mode" + (
                "" if smooth else f", the {config.loss} loss is not smooth"
            )
        return (
            ("fista", f"{penalty}, a learning rate was asked for")
            if asked
            else ("proximal-newton", f"{penalty}, smooth loss")
        )
    if config.mode != "full":
        return "adam", f"{config.mode} mode"
    if asked:
        return "nesterov", "a learning rate or its schedule was asked for"
    if not smooth:
        return "smoothed-newton", f"the {config.loss} loss is not smooth"
    d = shape.p - config.intercept
    if shape.p * shape.p > LARGEST_FACTOR:
        return "lbfgs", f"smooth loss, {d:,} columns are too many to factorise"
    if shape.k > 1 and not is_whole(shape.k, shape.p):
        name = "newton" if shape.k * shape.p * shape.p <= LARGEST_FACTOR else "lbfgs"
        return (
            name,
            f"smooth loss, {shape.k:,} x {d:,} coefficients are too many to factorise at once",
        )
    return cheapest(shape), f"smooth loss, {d:,} columns"


def _tells_steps(config: Config) -> str:
    """The option, if any, that shapes steps beyond their length."""
    if config.clip is not None:
        return "--clip"
    if config.warmup:
        return "--warmup"
    return "--lr-schedule" if config.lr_schedule not in ("auto", "constant") else ""


def choice(config: Config, shape: Shape) -> str | None:
    """A sentence on what `auto` chose, or None where the user did."""
    if config.optimizer != "auto":
        return None
    name, reason = automatic_optimizer(config, shape)
    return f"optimizer auto: {name} ({reason})"
