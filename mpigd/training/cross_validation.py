"""Compare ridge penalties by cross-validation (`mpigd cv`), all folds in one pass over the data.

The penalties are visited from the largest to the smallest. Columns are standardised once, over all
rows, and the penalties act on the standardised columns; centring makes no difference, since every
fold has an intercept of its own. The model of the chosen penalty is then trained on all rows, as
`mpigd train` with that penalty would train it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.batches import Batch
from mpigd.data.shard import Shard
from mpigd.errors import DataError, NumericalError, UsageError
from mpigd.model.cv_objective import FoldObjective, fold_numbers
from mpigd.model.losses import LOSSES
from mpigd.model.objective import Objective
from mpigd.optim.batched_lbfgs import minimise
from mpigd.optim.lbfgs_memory import Pairs
from mpigd.optim.preconditioner import Preconditioner
from mpigd.parallel.comm import Comm
from mpigd.parallel.session import adopt
from mpigd.scoring.fitted_model import Model
from mpigd.training import problem as build
from mpigd.training import trainer
from mpigd.training.callbacks.progress import Progress
from mpigd_kernels import linalg, vector

Array = np.ndarray[Any, Any]
# The most columns for which a sample's Hessian is factorised for every penalty.
MOST_COLUMNS = 1000
ROWS_PER_PARAMETER = 25  # rows of that sample per parameter
# Factor on tol: the decrease that the quadratic model of an objective predicts is no bound.
SHARPER = 0.1
# The least tolerance of the minimisations: rounding hides smaller decreases.
TINIEST = 1e-13
# For each loss the score, among those of `mpigd evaluate`, that is a function of the mean loss.
SCORES: dict[str, tuple[str, Callable[[float], float]]] = {
    "squared": ("rmse", lambda loss: math.sqrt(2.0 * loss)),
    "logistic": ("log_loss", lambda loss: loss),
    "poisson": ("deviance", lambda loss: 2.0 * loss),
    "gamma": ("deviance", lambda loss: 2.0 * loss),
}
OTHERS: tuple[str, Callable[[float], float]] = ("mean_loss", lambda loss: loss)


@dataclass(frozen=True)
class CrossValidation:
    """Scores of penalties on held-out folds; a smaller score is better.

    Parameters
    ----------
    l2 : list of float
        Penalties (m,), descending.
    metric : str
        Name of the score.
    scores : list of list of float
        Scores (m, k) for each penalty and fold.
    mean : list of float
        Means of the scores (m,).
    error : list of float
        Standard errors of the means (m,).
    best : int
        Index of the least mean.
    one_se : int
        Index of the largest penalty whose mean is within a standard error of the least mean.
    chosen : int
        Index of the penalty with which the model is trained.
    reads : float
        Passes over the data for the comparison.
    model : Model
        Model with the chosen penalty, trained on all rows.
    """

    l2: list[float]
    metric: str
    scores: list[list[float]]
    mean: list[float]
    error: list[float]
    best: int
    one_se: int
    chosen: int
    reads: float
    model: Model

    def plain(self) -> dict[str, Any]:
        """Return the values for JSON."""
        names = ("l2", "metric", "scores", "mean", "error", "reads")
        places = {name: self.l2[getattr(self, name)] for name in ("best", "one_se", "chosen")}
        return {
            **{name: getattr(self, name) for name in names},
            **places,
            "digest": self.model.digest,
        }


def penalties_of(text: str) -> list[float]:
    """Parse penalties and return them in descending order.

    The text is LOW:HIGH:COUNT on a logarithmic scale, or NUMBER,NUMBER,...; anything else raises
    UsageError.
    """
    try:
        if ":" in text:
            low, high, count = text.split(":")
            if not 0.0 < float(low) < float(high) < math.inf or int(count) < 2:
                raise ValueError
            step = (math.log10(float(high)) - math.log10(float(low))) / (int(count) - 1)
            values = [
                float(f"{10.0 ** (math.log10(float(low)) + i * step):.12g}")
                for i in range(int(count))
            ]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--l2 {text}: expected LOW:HIGH:COUNT (above 0, at least 2) or NUMBER,NUMBER,..."
        ) from None
    if not all(0.0 <= value < math.inf for value in values):
        raise UsageError(f"--l2 {text}: penalties are finite and at least 0")
    return sorted(set(values), reverse=True)


def check(config: Config, folds: int, choose: str) -> None:
    """Raise UsageError, before any work, unless cross-validation is possible with these options.

    Parameters
    ----------
    config : Config
        Options of the run.
    folds : int
        Number of folds.
    choose : str
        "best" or "one-se".
    """
    loss = LOSSES[config.loss]
    if not loss.smooth or loss.kind == "multiclass":
        able = ", ".join(
            name for name, other in LOSSES.items() if other.smooth and other.kind != "multiclass"
        )
        raise UsageError(f"cv goes with smooth losses of one output, not {config.loss}: {able}")
    if config.mode != "full":
        raise UsageError(f"cv goes with --mode full, not {config.mode}: it compares optima")
    if config.l1:
        raise UsageError("cv compares ridge penalties: --l1 does not go with it")
    if config.checkpoint or config.validation:
        raise UsageError(
            "cv takes neither --checkpoint nor --validation: its folds are its validation"
        )
    if folds < 2:
        raise UsageError(f"--folds {folds}: at least 2")
    if choose not in ("best", "one-se"):
        raise UsageError(f"--choose {choose}: best, or one-se")


def cross_validate(
    data: str | Sequence[str] | Shard,
    config: Config,
    l2: Sequence[float],
    folds: int,
    choose: str,
    comm: Comm,
    progress: Progress,
) -> CrossValidation:
    """Compare penalties, and train with the chosen one on all rows. Collective.

    Parameters
    ----------
    data : str or sequence of str or Shard
        Path or paths of the HDF5 files, or this rank's rows as a `Shard`.
    config : Config
        Options of the run; its l2 is not used.
    l2 : sequence of float
        Penalties, descending.
    folds : int
        Number of folds.
    choose : str
        "best" takes the penalty of the least mean score; "one-se" takes the largest penalty within
        a standard error of it.
    comm : Comm
        Communicator of all ranks of the run.
    progress : Progress
        Shows messages.

    Raises
    ------
    MpigdError
        On all ranks, if the data, the options or the numbers cannot be used.
    """
    check(config, folds, choose)
    comm = adopt(comm)
    config = config.replace(l2=float(l2[len(l2) // 2]))
    shard = (
        data
        if isinstance(data, Shard)
        else trainer.load_rows([data] if isinstance(data, str) else data, config, comm)
    )
    if folds > shard.n:
        raise DataError(f"{shard.name}: {shard.n} rows cannot be cut into {folds} folds")
    problem = build.problem(shard, config, comm)
    metric, score = SCORES.get(config.loss, OTHERS)
    scores = []
    for place, losses in enumerate(path(problem, config, l2, folds, comm)):
        scores.append([score(float(loss)) for loss in losses])
        progress.note(f"l2 {l2[place]:.6g}: {metric} {math.fsum(scores[-1]) / folds:.6g}")
    mean = [math.fsum(row) / folds for row in scores]
    error = [_deviation(row) / math.sqrt(folds) for row in scores]
    best = min(range(len(mean)), key=lambda i: mean[i])
    one_se = next(i for i in range(len(mean)) if mean[i] <= mean[best] + error[best])
    chosen = one_se if choose == "one-se" else best
    reads = problem.objective.reads
    model = trainer.train(shard, config.replace(l2=l2[chosen]), comm, progress)
    return CrossValidation(
        list(l2), metric, scores, mean, error, best, one_se, chosen, reads, model
    )


def _deviation(values: Sequence[float]) -> float:
    middle = math.fsum(values) / len(values)
    return math.sqrt(
        math.fsum((value - middle) * (value - middle) for value in values) / (len(values) - 1)
    )


def path(
    problem: build.Problem, config: Config, l2: Sequence[float], k: int, comm: Comm
) -> list[Array]:
    """Return the mean losses (k,) of the held-out rows for each penalty. Collective.

    Each penalty after the first two starts from an extrapolation of the optima of the two before
    it.

    Parameters
    ----------
    problem : Problem
        The problem on all rows.
    config : Config
        Options of the run.
    l2 : sequence of float
        Penalties, descending.
    k : int
        Number of folds.
    comm : Comm
        Communicator of all ranks of the run.

    Raises
    ------
    DataError
        If all weight lies in one fold.
    NumericalError
        If no optimum is found for a penalty.
    """
    objective, shard = problem.objective, problem.shard
    goal = FoldObjective(
        objective, fold_numbers(shard.rows, shard.n, k, config.seed), k, config.reduce, comm
    )
    if not goal.weights.min() > 0.0:
        raise DataError(
            f"{shard.name}: all weight lies in one fold: use another --seed, or fewer folds"
        )
    c = np.ones(shard.X.n) if shard.c is None else shard.c
    W, pairs = np.tile(build.start(problem), (k, 1)), [Pairs() for _ in range(k)]
    weights = problem.penalty.weights
    found, before = [], l2[0]
    ahead = W
    for place, strength in enumerate(l2):
        diagonal = strength * weights
        for column in pairs:
            column.raise_penalty((strength - before) * weights)

        def evaluate(
            W: Array, strength: float = strength, diagonal: Array = diagonal
        ) -> tuple[float, Array]:
            value, G = goal.gradients(W)
            penalty = sum(vector.dot(diagonal * w, w) for w in W) / (2.0 * k)
            return value + penalty, G + diagonal * W

        solve = _preconditioner(objective, W, diagonal, problem)
        tol = max(TINIEST, SHARPER * config.tol)
        try:
            there, reached = minimise(evaluate, ahead.copy(), pairs, solve, tol, vector.dot)
        # All ranks raise it together. The path of the optima bends here: start from the last
        # optimum.
        except NumericalError:
            there, reached = minimise(evaluate, W.copy(), pairs, solve, tol, vector.dot)
        if not reached:
            raise NumericalError(
                f"cv: no optimum was found for l2 {strength:g}: try larger penalties, or a "
                "larger --tol"
            )
        found.append(goal.held_out(c))
        ahead = there + _step(l2, place) * (there - W)
        W, before = there, strength
    return found


def _step(l2: Sequence[float], place: int) -> float:
    """Return the step to the next penalty over the step to this one, on a logarithmic scale.

    Optima move about evenly along that scale. Starting at the extrapolated point instead of the
    last optimum takes a third of the passes over the data.
    """
    if not 0 < place < len(l2) - 1 or not l2[place + 1] > 0.0:
        return 0.0
    return min(1.0, math.log(l2[place] / l2[place + 1]) / math.log(l2[place - 1] / l2[place]))


def _preconditioner(
    objective: Objective, W: Array, diagonal: Array, problem: build.Problem
) -> Callable[[Array], Array] | None:
    """Return the inverse Hessian of a sample of rows at the mean of the columns. Collective.

    Returns None if it is too large.
    """
    p = objective.scaling.p
    if p > MOST_COLUMNS:
        return None
    middle = np.zeros(p)
    for w in W:  # not numpy's mean: the order of the sum is fixed
        middle += w / W.shape[0]
    m = min(objective.n, ROWS_PER_PARAMETER * p)
    oracle = objective.on(Batch.whole(objective.n), problem.reducer)
    part = oracle.sample(m) if 2 * m <= objective.n else oracle
    part.look_at(middle)
    H = part.hessian()
    for i in range(p):
        H[0, i, i] += diagonal[i]
    linalg.cholesky(H[0])
    return Preconditioner(H).solve


def table(found: CrossValidation) -> str:
    """Return a table for people: a line per penalty, with the chosen ones marked."""
    lines = [f"{'l2':>12}  {found.metric:>12}  {'std. error':>12}"]
    for i, values in enumerate(zip(found.l2, found.mean, found.error, strict=True)):
        names = [
            name
            for name, at in (("best", found.best), ("one standard error", found.one_se))
            if at == i
        ]
        lines.append(
            "  ".join(f"{value:>12.6g}" for value in values)
            + ("  <- " + ", ".join(names) if names else "")
        )
    return "\n".join([*lines, f"chosen: l2 {found.l2[found.chosen]:g}, trained on all rows"])


def chart(found: CrossValidation, path: str) -> None:
    """Draw the scores over the penalties with matplotlib, and save the picture to `path`."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6, 4), layout="tight").subplots()
    axes.errorbar(
        found.l2,
        found.mean,
        found.error,
        fmt=".-",
        capsize=2,
        label=f"mean of {len(found.scores[0])} folds, std. error",
    )
    for name, at, style in (("best", found.best, "--"), ("one standard error", found.one_se, ":")):
        axes.axvline(
            found.l2[at], linestyle=style, color="grey", label=f"{name}: {found.l2[at]:.3g}"
        )
    axes.set(xscale="log" if min(found.l2) > 0.0 else "symlog", xlabel="l2", ylabel=found.metric)
    axes.legend()
    axes.figure.savefig(path, dpi=150)
