"""Find the rows that made a sum non-finite, for error messages only.

The rows of the failed step are evaluated once more, at the parameters at which the sum was not
finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.batches import Schedule
from mpigd.errors import NumericalError
from mpigd.parallel.comm import Comm
from mpigd.training.callbacks.checkpoint_saver import Saver
from mpigd.training.problem import Problem

Array = np.ndarray[Any, Any]
NAMED = 3  # rows in a message
# Rows that are evaluated at a time.
BLOCK = 1024
# Columns of the table of rows, and their number.
NUMBER, MARGIN, OFFSET, TARGET, LOSS, COLUMNS = range(6)


def explained(
    error: NumericalError,
    step: int,
    w: Array,
    schedule: Schedule,
    problem: Problem,
    config: Config,
    comm: Comm,
    saver: Saver | None,
) -> NumericalError:
    """Return the error to raise after all ranks met `error`; save the parameters. Collective.

    Parameters
    ----------
    error : NumericalError
        The error that all ranks met.
    step : int
        Number of steps completed before it.
    w : array (k * p,) of float64
        Parameters at which it was met.
    schedule : Schedule
        Yields the batch of the failed step.
    problem, config, comm : Problem, Config, Comm
        Those of the run.
    saver : Saver or None
        Saves the parameters; None if the run has no checkpoints.

    Returns
    -------
    NumericalError
        An error with the text of `error`, the rows that caused it, and where the parameters are
        saved.
    """
    named = culprits(problem, w, next(iter(schedule.batches(step))).rows, config, comm)
    saved = f"; {saver.rescue(step)}" if saver else ""
    told = NumericalError(f"after step {step:,}: {error}" + (f": {named}" if named else "") + saved)
    told.agreed = True
    return told


def culprits(problem: Problem, w: Array, rows: slice | Array, config: Config, comm: Comm) -> str:
    """Name the first rows of a step whose linear predictor, residual or loss at w is not finite.

    If every row alone is finite and only their sum is not, name the rows of the largest losses.
    Collective.

    Parameters
    ----------
    problem : Problem
        The problem of the run.
    w : array (k * p,) of float64
        Parameters.
    rows : slice or array
        This rank's rows of the step, as in a Batch.
    config, comm : Config, Comm
        Those of the run.

    Returns
    -------
    str
        The same text on all ranks, "" if there is nothing to name.
    """
    mine = np.arange(problem.shard.X.n)[rows]
    # `bad` and `large` have at most NAMED rows: those that are not finite, and those of the
    # largest losses.
    count, bad, large = 0, np.zeros((0, COLUMNS)), np.zeros((0, COLUMNS))
    for start in range(0, mine.size, BLOCK):
        seen, finite = _visit(problem, w, mine[start : start + BLOCK])
        count += int(np.sum(~finite))
        bad = _first(np.concatenate([bad, seen[~finite]]), NUMBER)
        large = _first(np.concatenate([large, seen[finite]]), LOSS)
    told = np.full((2, NAMED, COLUMNS), np.nan)
    told[0, : len(bad)], told[1, : len(large)] = bad, large
    every = comm.allgather(told)
    counts = np.array([count], dtype=np.int64)
    comm.allreduce(counts)
    found, key = (every[:, 0], NUMBER) if counts[0] else (every[:, 1], LOSS)
    rows_found = found.reshape(-1, COLUMNS)
    chosen = _first(rows_found[~np.isnan(rows_found[:, NUMBER])], key)
    named = "; ".join(_name(row, problem, config) for row in np.unique(chosen, axis=0))
    if not counts[0]:
        return f"every row alone is finite, the largest losses have: {named}" if named else ""
    return (
        f"{counts[0]:,} {'row is' if counts[0] == 1 else 'rows are'} not finite: "
        f"{named}{', ...' if counts[0] > NAMED else ''}"
    )


def _visit(problem: Problem, w: Array, some: Array) -> tuple[Array, Array]:
    """Return the numbers (m, COLUMNS) of some local rows, and which of the rows are finite (m,).

    Of several outputs, the linear predictor is the largest in absolute value.
    """
    objective, data = problem.objective, problem.objective.rows
    coef, intercept = objective.scaling.to_raw(w, objective.k)
    X, y = data.X.rows(some), np.ascontiguousarray(data.y[some])
    z, r, l = (
        np.empty((objective.k, some.size)),
        np.empty((objective.k, some.size)),
        np.empty(some.size),
    )
    with np.errstate(all="ignore"):
        for q in range(objective.k):
            X.margins(coef[q], intercept[q], z[q])
        offset = np.zeros(some.size) if data.offset is None else data.offset[some]
        z += offset
        margin = z[
            np.argmax(np.abs(z), axis=0), np.arange(some.size)
        ]  # argmax prefers NaN to infinity
        objective.loss.kernel(
            z.copy(), y, np.ascontiguousarray(data.c[some]), objective.parameter, r, l
        )
    numbers = np.asarray(problem.shard.rows[some])
    seen = np.stack([numbers.astype(np.float64), margin, offset, y.astype(np.float64), l], axis=1)
    return seen, np.isfinite(margin) & np.all(np.isfinite(r), axis=0) & np.isfinite(l)


def _first(rows: Array, key: int) -> Array:
    """Return the NAMED rows of the lowest numbers; for LOSS, of the largest losses first."""
    order = (
        np.lexsort((rows[:, NUMBER], -rows[:, LOSS]))
        if key == LOSS
        else np.argsort(rows[:, NUMBER], kind="stable")
    )
    return rows[order[:NAMED]]


def _name(row: Array, problem: Problem, config: Config) -> str:
    """Return the file, the row, the dataset and the values of one row."""
    number, (margin, offset, target, loss) = int(row[NUMBER]), row[MARGIN:]
    here = problem.shard.where(number)
    place = f"{here} (row {number} of all)" if len(problem.shard.files) > 1 else here
    regression = problem.loss.kind == "regression"
    told = f", {config.y} {target:.6g}" if regression else ""
    # The largest of three numbers makes the loss: the target, the offset, or what X and the
    # parameters give.
    largest = np.argmax(
        np.nan_to_num(np.abs([margin - offset, offset, target * regression]), nan=np.inf)
    )
    return (
        f"{place}, dataset {(config.x, 'offset', config.y)[largest]}: margin "
        f"{margin:.6g}{told}, loss {loss:.6g}"
    )
