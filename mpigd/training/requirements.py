"""Check which options go together, and fill in defaults that depend on the data.

Incompatible options are rejected with one message before any data are read, so the requirements
of an optimiser depend on options alone. `complete` fills in what the configuration leaves to the
mode and the data.
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

# Default epochs and rows per step of each mode.
EPOCHS = {"full": 1000, "minibatch": 5, "stochastic": 1}
BATCH_SIZE = {"minibatch": 1024, "stochastic": 1}
# The most numbers in the Cholesky factors that precondition Newton's method: 4,000 columns.
LARGEST_FACTOR = 16_000_000
MODES = tuple(EPOCHS)


@dataclass(frozen=True)
class Needs:
    """The requirements of an optimiser.

    Parameters
    ----------
    modes : tuple of str
        Modes in which it works.
    smooth : bool
        Whether it needs a loss without kinks.
    prox : bool
        Whether it has a proximal operator, which l1 and bounds need.
    kinked : bool
        Whether it needs a loss with kinks.
    """

    modes: tuple[str, ...] = MODES
    smooth: bool = False
    prox: bool = False
    kinked: bool = False

    def suits(self, loss: str) -> bool:
        """Return whether the optimiser can minimise the loss of that name."""
        return not (self.kinked if LOSSES[loss].smooth else self.smooth)


# The requirements of every optimiser, by its name.
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


# These optimisers choose their own step size.
SELF_PACED = (
    "newton",
    "newton-cholesky",
    "lbfgs",
    "lbfgs-newton",
    "hybrid",
    "smoothed-newton",
    "proximal-newton",
    "fista",
)


def check(config: Config) -> None:
    """Raise UsageError, one sentence, if optimiser, mode, loss and penalty are incompatible."""
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
            f"--optimizer {name} goes with --mode {' or '.join(needs.modes)}{loss}: try "
            f"{', '.join(fitting(config))}"
        )
    if is_rough(config) and not needs.prox:
        penalty = (
            "bounds need" if not config.l1 else "elastic net needs" if config.l2 else "l1 needs"
        )
        raise UsageError(
            f"{penalty} an optimiser with prox: {', '.join(fitting(config))}; --optimizer {name} "
            "has none"
        )
    if (fixed_steps := _tells_steps(config)) and name in SELF_PACED and fixed_steps != "--lr":
        raise UsageError(
            f"{fixed_steps} does not go with --optimizer {name}, which finds its steps by itself"
        )


def fitting(config: Config) -> list[str]:
    """Return the names of the optimisers that go with the mode, the loss and the penalty."""
    rough = is_rough(config)
    return [
        name
        for name, needs in NEEDS.items()
        if config.mode in needs.modes and needs.suits(config.loss) and (needs.prox or not rough)
    ]


def limits(config: Config) -> tuple[float, float]:
    """Return the lower and the upper bound of the coefficients; infinite if there is none."""
    if config.nonnegative:
        return 0.0, math.inf
    return limits_of(config.bounds) if config.bounds is not None else (-math.inf, math.inf)


def is_rough(config: Config) -> bool:
    """Return whether the penalty has kinks (l1) or bounds."""
    return config.l1 > 0.0 or limits(config) != (-math.inf, math.inf)


def complete(config: Config, n: int, d: int = 0, shape: Shape | None = None) -> Config:
    """Return the configuration with everything filled in that the mode and the data decide.

    Parameters
    ----------
    config : Config
        Options as given.
    n : int
        Rows of the data.
    d : int
        Columns of the data.
    shape : Shape or None
        Shape of the data; by default n dense rows of d columns and, if there is one, an intercept.
    """
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
    """Return the optimiser that `auto` stands for, and the reason for the choice.

    Parameters
    ----------
    config : Config
        Options as given.
    shape : Shape
        Shape of the data, from which costs are predicted.
    """
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
    """Return the option, if there is one, that shapes steps beyond their length; else ""."""
    if config.clip is not None:
        return "--clip"
    if config.warmup:
        return "--warmup"
    return "--lr-schedule" if config.lr_schedule not in ("auto", "constant") else ""


def choice(config: Config, shape: Shape) -> str | None:
    """Return a sentence on what `auto` chose, or None if the user chose the optimiser.

    Parameters
    ----------
    config : Config
        Options as given.
    shape : Shape
        Shape of the data, from which costs are predicted.
    """
    if config.optimizer != "auto":
        return None
    name, reason = automatic_optimizer(config, shape)
    return f"optimizer auto: {name} ({reason})"
