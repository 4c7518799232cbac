"""The one place where names become objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.batches import BLOCK, Batch, FullBatch, MiniBatch, Schedule, Stochastic
from mpigd.comm import Comm
from mpigd.config import Config
from mpigd.data.loading import Layout, fingerprint
from mpigd.data.shard import Shard
from mpigd.data.streamed import Streamed
from mpigd.errors import UsageError
from mpigd.model.hessian import is_whole
from mpigd.model.losses import LOSSES, Loss
from mpigd.model.objective import Objective, Rows
from mpigd.model.penalties import L2
from mpigd.model.rounding import needs_fine
from mpigd.model.scaling import make_scaling, measure
from mpigd.model.targets import Classes, check_domain, class_weights, find_classes
from mpigd.optim import curvature
from mpigd.optim.accelerated import Accelerated
from mpigd.optim.base import Optimizer
from mpigd.optim.first_order import FIRST_ORDER, Momentum, Nesterov
from mpigd.optim.lbfgs import LBFGS
from mpigd.optim.newton import Newton
from mpigd.optim.rates import Rate
from mpigd.placement import fair_threads
from mpigd.reduce import Reducer, total
from mpigd.units import size_of
from mpigd_kernels import vector

Array = np.ndarray[Any, Any]
EPOCHS = {"full": 1000, "minibatch": 5, "stochastic": 1}
BATCH_SIZE = {"minibatch": 1024, "stochastic": 1}
ADAPTIVE = {"adagrad": 0.3, "rmsprop": 0.01, "adam": 0.01, "adamw": 0.01}
FASTEST = 0.1  # an adaptive rate for runs of few steps
FAR = 10.0  # how far adaptive steps of that size must be able to carry a coordinate
SECOND_ORDER = ("newton", "newton-cholesky", "lbfgs")
LARGEST_FACTOR = 16_000_000  # numbers in the Cholesky factors that precondition Newton's method: 4,000 columns
ROWS_PER_PARAMETER = 25  # of a sample: one much smaller is worse than none as a start
SAMPLE = 4096  # rows that tell the curvature of batches
SAMPLE_EPOCH = (1 << 32) - 1  # whose draws no training step uses


@dataclass(frozen=True)
class Problem:
    """What is to be minimised, ready on this rank."""

    objective: Objective
    penalty: L2
    reducer: Reducer
    loss: Loss
    classes: Classes | None
    shard: Shard
    fingerprint: str
    mean_response: float
    spread: float

    @property
    def k(self) -> int:
        return self.objective.k


def layout(config: Config, need_y: bool = True) -> Layout:
    blocks = config.mode == "minibatch" and config.shuffle == "blocks"
    why = "stochastic mode draws from all rows" if config.mode == "stochastic" else ""
    if config.mode == "minibatch" and not blocks:
        why = "mini-batches of rows from everywhere would read all of them at every step (try --shuffle blocks)"
    if config.partition == "hash":
        why = "a hash partition moves rows between ranks"
    limit = None if config.max_memory is None else size_of(config.max_memory)
    return Layout(config.x, config.y, config.dtype, config.partition, need_y, limit, BLOCK if blocks else None, why)


def complete(config: Config, n: int, d: int = 0) -> Config:
    """The configuration with everything that mode and data (n rows of d columns) decide filled in."""
    mode = config.mode
    size = n if mode == "full" else min(n, config.batch_size or BATCH_SIZE[mode])
    smooth = LOSSES[config.loss].smooth
    schedule = ("constant" if smooth else "root") if mode == "full" else "cosine"
    return config.replace(
        epochs=config.epochs or EPOCHS[mode],
        batch_size=None if mode == "full" else size,
        optimizer=_automatic_optimizer(config, d)[0] if config.optimizer == "auto" else config.optimizer,
        lr_schedule=schedule if config.lr_schedule == "auto" else config.lr_schedule,
    )


def _automatic_optimizer(config: Config, d: int) -> tuple[str, str]:
    """What `auto` stands for, and why."""
    asked = config.learning_rate is not None or config.clip is not None or config.lr_schedule != "auto"
    if config.mode != "full":
        return "adam", f"{config.mode} mode"
    if not LOSSES[config.loss].smooth:
        return "nesterov", f"the {config.loss} loss is not smooth"
    if asked or config.warmup:
        return "nesterov", "a learning rate or its schedule was asked for"
    if (d + 1) * (d + 1) > LARGEST_FACTOR:
        return "lbfgs", f"smooth loss, {d:,} columns are too many to factorise"
    return "newton", f"smooth loss, {d:,} columns"


def choice(config: Config, d: int) -> str | None:
    """A sentence on what `auto` chose, or None where the user did."""
    if config.optimizer != "auto":
        return None
    name, reason = _automatic_optimizer(config, d)
    return f"optimizer auto: {name} ({reason})"


def problem(shard: Shard, config: Config, comm: Comm) -> Problem:
    """Check the target, agree on classes and weights, measure the columns. Collective; DataError on all ranks together."""
    loss = LOSSES[config.loss]
    assert shard.y is not None
    check_domain(shard, loss, comm)
    classes = find_classes(shard, loss, comm) if loss.classifies else None
    y = classes.codes(shard.y) if classes else shard.y
    c = np.broadcast_to(1.0, y.shape) if shard.c is None else shard.c  # one number: weights of one take no memory
    weights = class_weights(config.class_weight, y, c, classes, comm)
    if weights is not None:
        c = c * weights[y.astype(np.int64)]
    statistics = measure(shard.X, c, shard.n, comm)
    bend = loss.curvature(loss.parameter(config)) if loss.curvature else 1.0
    scaling = make_scaling(statistics, config.intercept, config.standardize, config.l2 / bend)
    k = classes.values.size if classes and loss.kind == "multiclass" else 1
    rows = Rows(shard.X, y, c, shard.offset)
    threads = config.threads or fair_threads(comm)
    objective = Objective(rows, loss, loss.parameter(config), k, scaling, statistics, shard.n, threads)
    mean = float(total(c * y, comm)[0]) / (statistics.weight or 1.0)
    squares = y - mean
    squares *= squares
    squares *= c
    spread = float(np.sqrt(total(squares, comm)[0] / (statistics.weight or 1.0)))
    del squares
    objective.numbers, objective.seed = shard.rows, config.seed
    objective.fine = needs_fine(objective, y, mean, spread, config.tol, comm)
    reducer = objective.reducer(config.reduce, comm, replacement=config.mode == "stochastic")
    return Problem(
        objective, L2(config.l2, np.tile(scaling.penalty, k)), reducer, loss, classes,
        shard, fingerprint(shard, comm), mean, spread,
    )  # fmt: skip


def start(problem: Problem) -> Array:
    """The first parameters (k * p,): zero, but for regression the intercept that gives the mean response."""
    w, mean = np.zeros(problem.objective.size), problem.mean_response
    if problem.loss.kind == "regression" and problem.objective.scaling.intercept:
        log_link = problem.loss.mean is not None
        w[-1] = vector.logarithm(mean) if log_link and mean > 0 else (0.0 if log_link else mean)
    return w


def schedule(problem: Problem, config: Config) -> Schedule:
    n, rows = problem.objective.n, problem.shard.rows
    if config.mode == "full":
        return FullBatch(n)
    if config.mode == "stochastic":
        return Stochastic(rows, n, config.batch_size or 1, config.seed)
    X = problem.shard.X
    expect = X.expect if isinstance(X, Streamed) else None
    return MiniBatch(rows, n, config.batch_size or 1, config.seed, config.shuffle == "blocks", expect)


def optimizer(problem: Problem, config: Config, steps_per_epoch: int) -> Optimizer:
    """The optimiser of a complete configuration. Collective, for the curvature that an automatic rate needs."""
    full, smooth = config.mode == "full", problem.loss.smooth
    if config.optimizer == "nesterov" and full and smooth and config.clip is None and config.lr_schedule == "constant":
        if config.learning_rate is not None:
            return Accelerated(1.0 / config.learning_rate)
        return Accelerated(_curvature(problem, config), backtrack=problem.loss.curvature is None)
    if config.optimizer in SECOND_ORDER:
        return _second_order(problem, config)
    if config.optimizer not in FIRST_ORDER:
        raise UsageError(f"no optimizer {config.optimizer!r}")
    steps = (config.epochs or 1) * steps_per_epoch
    base = config.learning_rate or _automatic_rate(problem, config, steps)
    rate = Rate(base, config.lr_schedule, config.warmup, steps, steps_per_epoch)
    kind = FIRST_ORDER[config.optimizer]
    if issubclass(kind, Momentum | Nesterov):
        return kind(rate, config.clip, config.momentum)
    return kind(rate, config.clip)


def _second_order(problem: Problem, config: Config) -> Optimizer:
    objective, k = problem.objective, problem.k
    if config.mode != "full" or not problem.loss.smooth:
        raise UsageError(f"--optimizer {config.optimizer} goes with --mode full and a smooth loss: try adam, or sgd")
    if config.optimizer == "lbfgs":
        return LBFGS()
    objective.keeps_margins = True
    n, p = objective.n, objective.scaling.p
    least = ROWS_PER_PARAMETER * p
    samples = tuple(m for m in sorted({max(n // 100, least), max(n // 10, least)}) if 2 * m <= n)
    whole = is_whole(k, p)
    dense = k * p * p <= LARGEST_FACTOR
    if config.optimizer == "newton-cholesky" and not (whole and dense):
        raise UsageError(f"--optimizer newton-cholesky: {k * p:,} parameters are too many to factorise: try newton, or lbfgs")
    direct = dense and whole and (not samples or config.optimizer == "newton-cholesky")
    return Newton(samples, config.start is None, whole, direct, dense)


def _automatic_rate(problem: Problem, config: Config, steps: int) -> float:
    if config.optimizer in ADAPTIVE:
        return _adaptive_rate(problem, config, steps)
    slowed = 1.0 - config.momentum if config.optimizer in ("momentum", "nesterov") else 1.0
    if not problem.loss.smooth:
        return slowed * _kinked_rate(problem)
    return slowed / _curvature(problem, config) * (1.0 if config.mode == "full" else 0.5)


def _adaptive_rate(problem: Problem, config: Config, steps: int) -> float:
    """The usual rate, raised where so few steps of it could not reach the optimum, in the unit of y where there is one."""
    rate = max(ADAPTIVE[config.optimizer], min(FASTEST, FAR / steps))
    identity_link = problem.loss.kind == "regression" and problem.loss.mean is None
    return rate * (problem.spread or 1.0) if identity_link else rate


def _kinked_rate(problem: Problem) -> float:
    """How far the optimum may be (the spread of y; 1 for classes) over a bound on the subgradient's root mean square."""
    bound = problem.loss.residual(problem.objective.parameter) if problem.loss.residual else 1.0
    far = 1.0 if problem.classes else problem.spread or 1.0
    return far / (bound * float(np.sqrt(problem.objective.scaling.p)))


def _curvature(problem: Problem, config: Config) -> float:
    objective = problem.objective
    bend = curvature.loss_curvature(objective, problem.mean_response)
    ridge = config.l2 * float(problem.penalty.weights.max(initial=0.0))
    reducer = objective.reducer(config.reduce, problem.reducer.comm, replacement=config.mode != "full")
    if config.mode == "full":
        value = curvature.full_curvature(objective, reducer, bend, ridge)
    else:
        sample = _sample(problem, config)
        value = curvature.batch_curvature(objective, reducer, sample, config.batch_size or 1, bend, ridge)
    objective.reads = 0.0
    return value


def _sample(problem: Problem, config: Config) -> Batch:
    """Rows that every number of ranks draws alike, and no training step does."""
    n = problem.objective.n
    size = min(n, SAMPLE)
    if size == n:
        return Batch(slice(None), n, 0, 0, True)
    drawn = Stochastic(problem.shard.rows, n, size, config.seed).draw(SAMPLE_EPOCH, 0, 1)[0]
    return Batch(drawn, size, 0, 0, True)
