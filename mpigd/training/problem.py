"""Build the objects of a run from the names and numbers in its configuration.

This is the one place where option values become objects: the objective, the penalty, the batch
schedule and the optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.config.units import size_of
from mpigd.data.batches import BLOCK, Batch, FullBatch, MiniBatch, Schedule, Stochastic
from mpigd.data.column_names import check_same
from mpigd.data.loading import Layout, fingerprint
from mpigd.data.shard import Shard
from mpigd.data.streamed import Streamed
from mpigd.errors import UsageError
from mpigd.model.column_digits import centred, warning
from mpigd.model.grid_accuracy import needs_fine
from mpigd.model.hessian import is_whole
from mpigd.model.losses import LOSSES, Loss
from mpigd.model.null_model import NullModel, fit_null
from mpigd.model.objective import Objective, Rows
from mpigd.model.overflow import explained
from mpigd.model.penalties import L2, ElasticNet, bounds
from mpigd.model.sample_sizes import sizes as _samples
from mpigd.model.scaling import Scaling, make_scaling
from mpigd.model.sparse_gram import Split
from mpigd.model.targets import (
    Classes,
    check_domain,
    check_numeric,
    check_size,
    find_classes,
    row_weights,
)
from mpigd.optim import step_size
from mpigd.optim.accelerated import Accelerated
from mpigd.optim.base import Optimizer
from mpigd.optim.first_order import FIRST_ORDER, Momentum, Nesterov
from mpigd.optim.lbfgs import LBFGS
from mpigd.optim.lbfgs_then_newton import Then
from mpigd.optim.newton import Newton
from mpigd.optim.predicted_costs import Shape
from mpigd.optim.proximal_newton import ProximalNewton
from mpigd.optim.schedules import Rate
from mpigd.optim.smoothed_newton import SmoothedNewton
from mpigd.optim.variance_reduced import SVRG, Hybrid
from mpigd.parallel.affinity import fair_threads
from mpigd.parallel.comm import Comm, together
from mpigd.reduction.base import Reducer, total
from mpigd.scoring import fitted_model
from mpigd.training.requirements import BATCH_SIZE, LARGEST_FACTOR, check, is_rough, limits

# Other modules import `choice` and `complete` from here too.
from mpigd.training.requirements import (
    choice as choice,
)
from mpigd.training.requirements import complete as complete

Array = np.ndarray[Any, Any]
# The usual learning rates of optimisers that scale their steps by past gradients.
ADAPTIVE = {"adagrad": 0.3, "rmsprop": 0.01, "adam": 0.01, "adamw": 0.01}
# The largest adaptive learning rate, for runs of few steps.
FASTEST = 0.1
# The distance over which adaptive steps of that size must be able to carry a coordinate.
FAR = 10.0
# Optimisers that `_second_order` builds.
SECOND_ORDER = (
    "newton",
    "newton-cholesky",
    "lbfgs",
    "lbfgs-newton",
    "hybrid",
    "smoothed-newton",
    "proximal-newton",
)
# Rows from which the curvature of mini-batches is estimated.
SAMPLE = 4096
# The epoch number whose random draws no training step uses.
SAMPLE_EPOCH = (1 << 32) - 1


@dataclass(frozen=True)
class Problem:
    """The minimisation problem of a run, ready on this rank.

    Parameters
    ----------
    objective : Objective
        Mean loss over all rows, without the penalty.
    penalty : L2
        Ridge or elastic net, with bounds if there are any.
    reducer : Reducer
        Sums over rows and ranks.
    loss : Loss
        Record of the loss function.
    classes : Classes or None
        Labels and their codes, None for regression.
    shard : Shard
        This rank's rows.
    fingerprint : str
        Identifies the training data.
    mean_response : float
        Weighted mean of y (of the class codes, if there are classes).
    spread : float
        Weighted standard deviation of y.
    null : NullModel
        Model without columns, at which training starts.
    samples : tuple of int
        Sizes of the row samples on which Newton's method may begin, ascending.
    warning : str or None
        A warning about the data, or None.
    """

    objective: Objective
    penalty: L2
    reducer: Reducer
    loss: Loss
    classes: Classes | None
    shard: Shard
    fingerprint: str
    mean_response: float
    spread: float
    null: NullModel
    samples: tuple[int, ...]
    warning: str | None = None  # about the data

    @property
    def shape(self) -> Shape:
        """The shape of the data, from which `auto` chooses the optimiser."""
        objective = self.objective
        sparse = objective.statistics.number is not None
        entries = objective.statistics.entries / max(1, objective.n) if sparse else None
        split = Split.of(objective) if objective.scaling.p**2 <= LARGEST_FACTOR else None
        wide = 0 if split is None else split.dense
        return Shape(objective.n, objective.scaling.p, self.k, entries, wide, self.samples)

    @property
    def unit(self) -> float:
        """The unit of the distances between linear predictors and kinks, in the null model."""
        if self.classes or not self.null.value > 0.0:
            return 1.0
        quantile = self.objective.parameter
        return self.null.value / (2.0 * quantile * (1.0 - quantile))

    @property
    def k(self) -> int:
        return self.objective.k


def layout(config: Config, need_y: bool = True) -> Layout:
    blocks = config.mode == "minibatch" and config.shuffle == "blocks"
    why = "stochastic mode draws from all rows" if config.mode == "stochastic" else ""
    if config.mode == "minibatch" and not blocks:
        why = (
            "mini-batches of rows from everywhere would read all of them at every step (try "
            "--shuffle blocks)"
        )
    if config.partition == "hash":
        why = "a hash partition moves rows between ranks"
    limit = None if config.max_memory is None else size_of(config.max_memory)
    block = BLOCK if blocks else None
    return Layout(
        config.x, config.y, config.dtype, config.partition, need_y, limit, block, why,
        config.allow_links, config.allow_unwritten, config.allow_duplicates,
    )  # fmt: skip


@explained
def problem(shard: Shard, config: Config, comm: Comm) -> Problem:
    """Check the target, agree on classes and weights, and measure the columns. Collective.

    Parameters
    ----------
    shard : Shard
        This rank's rows; y must be present.
    config : Config
        Options of the run.
    comm : Comm
        Communicator of all ranks of the run.

    Raises
    ------
    DataError
        On all ranks together, if the target does not suit the loss.
    """
    loss = LOSSES[config.loss]
    assert shard.y is not None
    check_numeric(shard.name, shard.encoding, loss)
    check_domain(shard, loss, comm)
    if not loss.classifies:
        check_size(shard, comm)
    classes = find_classes(shard, loss, comm) if loss.classifies else None
    y = classes.codes(shard.y) if classes else shard.y
    c = row_weights(config.class_weight, y, shard, classes, comm)
    mark = fingerprint(shard, comm)
    X, statistics, shift, stored = centred(shard.X, c, shard.n, config.intercept, comm)
    few = warning(stored, shard.X.dtype, shard.feature_names) if config.intercept else None
    shard = replace(shard, X=X)
    bend = loss.curvature(loss.parameter(config)) if loss.curvature else 1.0
    ridge = config.l2 / bend
    scaling = make_scaling(statistics, config.intercept, config.standardize, ridge, shift)
    k = classes.values.size if classes and loss.kind == "multiclass" else 1
    rows = Rows(shard.X, y, c, shard.offset)
    threads = config.threads or fair_threads(comm)
    objective = Objective(
        rows, loss, loss.parameter(config), k, scaling, statistics, shard.n, threads
    )
    mean = float(total(c * y, comm)[0]) / (statistics.weight or 1.0)
    squares = y - mean
    squares *= squares
    squares *= c
    spread = float(np.sqrt(total(squares, comm)[0] / (statistics.weight or 1.0)))
    del squares
    objective.numbers, objective.seed = shard.rows, config.seed
    objective.fine = needs_fine(objective, y, mean, spread, config.tol, comm)
    reducer = objective.reducer(config.reduce, comm, replacement=config.mode == "stochastic")
    null = fit_null(objective, mean, comm)
    return Problem(
        objective, penalty(config, scaling, k), reducer, loss, classes,
        shard, mark, mean, spread, null, _samples(objective, null, comm), few,
    )  # fmt: skip


def penalty(config: Config, scaling: Scaling, k: int) -> L2:
    """Return the penalty on the parameters of k outputs.

    The weight of l1 in a coordinate is the square root of the weight of l2.

    Parameters
    ----------
    config : Config
        l1, l2 and bounds.
    scaling : Scaling
        Penalty weights (p,) and scales of the columns.
    k : int
        Number of outputs.
    """
    weights = np.tile(scaling.penalty, k) if k > 1 else scaling.penalty
    if not is_rough(config):
        return L2(config.l2, weights)
    free = np.full((2, int(scaling.intercept)), [[-np.inf], [np.inf]])
    low, high = (
        np.tile(np.append(side, rest), k)
        for side, rest in zip(bounds(*limits(config), scaling.inverse), free, strict=True)
    )
    return ElasticNet(config.l2, weights, config.l1 * np.sqrt(weights), low, high)


def start(problem: Problem) -> Array:
    """Return the initial parameters (k * p,): those of the null model."""
    return problem.null.start(problem.objective.scaling.p)


def first(problem: Problem, config: Config, comm: Comm) -> Array:
    """Return the parameters (k * p,) at which the run begins. Collective.

    They are those of the model given by --start, or else those of `start`.

    Raises
    ------
    UsageError
        On all ranks, if the model of --start does not fit this problem.
    """
    if config.start is None:
        return start(problem)
    with together(comm):
        model = fitted_model.load(config.start)
        if model.coef.shape != (problem.k, problem.objective.rows.X.d):
            raise UsageError(
                f"--start {config.start}: {model.coef.shape} coefficients do not fit this problem"
            )
        shard, known = problem.shard, model.encoding.get("feature_names")
        check_same(shard.name, shard.feature_names, f"--start {config.start} was trained on", known)
    return problem.objective.scaling.from_raw(model.coef, model.intercept)


def schedule(problem: Problem, config: Config) -> Schedule:
    n, rows = problem.objective.n, problem.shard.rows
    if config.mode == "full":
        return FullBatch(n)
    if config.mode == "stochastic":
        return Stochastic(rows, n, config.batch_size or 1, config.seed)
    X = problem.shard.X
    expect = X.expect if isinstance(X, Streamed) else None
    return MiniBatch(
        rows, n, config.batch_size or 1, config.seed, config.shuffle == "blocks", expect
    )


def optimizer(problem: Problem, config: Config, steps_per_epoch: int) -> Optimizer:
    """Return the optimiser of a complete configuration. Collective.

    It is collective because an automatic learning rate needs a bound on the curvature.

    Parameters
    ----------
    problem : Problem
        The problem to minimise.
    config : Config
        Complete configuration (`requirements.complete`).
    steps_per_epoch : int
        Optimiser steps in one epoch.

    Raises
    ------
    UsageError
        If the options do not go together, or the Hessian has too many parameters to factorise.
    """
    check(config)
    full, smooth = config.mode == "full", problem.loss.smooth
    plain = full and smooth and config.clip is None and config.lr_schedule == "constant"
    if config.optimizer == "fista" or (config.optimizer == "nesterov" and plain):
        if config.learning_rate is not None:
            return Accelerated(1.0 / config.learning_rate, name=config.optimizer)
        return Accelerated(
            _curvature(problem, config), problem.loss.curvature is None, config.optimizer
        )
    if config.optimizer in SECOND_ORDER:
        return _second_order(problem, config)
    steps = (config.epochs or 1) * steps_per_epoch
    base = config.learning_rate or _automatic_rate(problem, config, steps)
    rate = Rate(base, config.lr_schedule, config.warmup, steps, steps_per_epoch)
    kind = SVRG if config.optimizer == "svrg" else FIRST_ORDER[config.optimizer]
    if issubclass(kind, Momentum | Nesterov):
        return kind(rate, config.clip, config.momentum)
    return kind(rate, config.clip)


def _second_order(problem: Problem, config: Config) -> Optimizer:
    objective, k = problem.objective, problem.k
    lbfgs = LBFGS(first=1.0 / problem.null.curvature)
    if config.optimizer == "lbfgs":
        return lbfgs
    if config.optimizer == "hybrid":
        return _hybrid(problem, config)
    objective.keeps_margins = True
    samples = problem.samples if config.start is None else ()
    if config.optimizer == "smoothed-newton":
        return SmoothedNewton(problem.unit, samples, dense=objective.scaling.p**2 <= LARGEST_FACTOR)
    if config.optimizer == "proximal-newton":
        return ProximalNewton(k, objective.scaling.intercept, samples, LARGEST_FACTOR)
    p = objective.scaling.p
    whole = is_whole(k, p)
    dense = k * p * p <= LARGEST_FACTOR
    if config.optimizer in ("newton-cholesky", "lbfgs-newton") and not (whole and dense):
        raise UsageError(
            f"--optimizer {config.optimizer}: {k * p:,} parameters are too many to factorise: "
            "try newton, or lbfgs"
        )
    if config.optimizer == "newton":
        began = problem.null.value if config.start is None else None
        return Newton(samples, began, whole, dense and whole and not samples, dense)
    direct = Newton((), None, whole, direct=True, name="newton-cholesky")
    if config.optimizer == "newton-cholesky":
        return direct
    shape = problem.shape
    last = (
        direct
        if shape.direct() <= shape.sampled()
        else Newton(problem.samples, None, whole, name="newton")
    )
    return Then(lbfgs, last, shape.lbfgs_budget())


def _hybrid(problem: Problem, config: Config) -> Hybrid:
    """Return one epoch of Adam on mini-batches, its rate falling to zero, followed by L-BFGS."""
    size = min(problem.objective.n, BATCH_SIZE["minibatch"])
    steps = -(-problem.objective.n // size)
    base = _adaptive_rate(problem, config.replace(optimizer="adam"), steps)
    then = LBFGS(first=1.0 / problem.null.curvature)
    return Hybrid(FIRST_ORDER["adam"](Rate(base, "cosine", 0, steps, steps)), size, then)


def _automatic_rate(problem: Problem, config: Config, steps: int) -> float:
    if config.optimizer in ADAPTIVE:
        return _adaptive_rate(problem, config, steps)
    slowed = 1.0 - config.momentum if config.optimizer in ("momentum", "nesterov") else 1.0
    if not problem.loss.smooth:
        return slowed * _kinked_rate(problem)
    return slowed / _curvature(problem, config) * (1.0 if config.mode == "full" else 0.5)


def _adaptive_rate(problem: Problem, config: Config, steps: int) -> float:
    """Return the usual rate, raised if the steps are too few to reach the optimum with it.

    With an identity link the rate is in the unit of y.
    """
    rate = max(ADAPTIVE[config.optimizer], min(FASTEST, FAR / steps))
    identity_link = problem.loss.kind == "regression" and problem.loss.mean is None
    return rate * (problem.spread or 1.0) if identity_link else rate


def _kinked_rate(problem: Problem) -> float:
    """Return the learning rate for a loss with kinks: a distance over a bound on the subgradient.

    The distance to the optimum is taken to be the spread of y (1 for classes); the bound is on the
    root mean square of the subgradient.
    """
    bound = problem.loss.residual(problem.objective.parameter) if problem.loss.residual else 1.0
    far = 1.0 if problem.classes else problem.spread or 1.0
    return far / (bound * float(np.sqrt(problem.objective.scaling.p)))


def _curvature(problem: Problem, config: Config) -> float:
    objective = problem.objective
    bend = step_size.loss_curvature(objective, problem.mean_response)
    ridge = config.l2 * float(problem.penalty.weights.max(initial=0.0))
    reducer = objective.reducer(
        config.reduce, problem.reducer.comm, replacement=config.mode != "full"
    )
    if config.mode == "full":
        value = step_size.full_curvature(objective, reducer, bend, ridge)
    else:
        sample = _sample(problem, config)
        value = step_size.batch_curvature(
            objective, reducer, sample, config.batch_size or 1, bend, ridge
        )
    objective.reads = 0.0
    return value


def _sample(problem: Problem, config: Config) -> Batch:
    """Return the same batch of rows for every number of ranks; no training step draws it."""
    n = problem.objective.n
    size = min(n, SAMPLE)
    if size == n:
        return Batch.whole(n)
    drawn = Stochastic(problem.shard.rows, n, size, config.seed).draw(SAMPLE_EPOCH, 0, 1)[0]
    return Batch(drawn, size, 0, 0, True)
