"""Detect separation: data whose likelihood has no optimum without a penalty.

The signed moves m_i of a direction v are x_i.v for y = 1 and -x_i.v for y = 0 (logistic);
x_i.(v_y - v_q) for every other class q (softmax); -x_i.v for y = 0 and -|x_i.v| for y > 0
(Poisson). An optimum does not exist if and only if some v has m >= 0 for all rows and m > 0 for
one of them: the objective falls along v for ever (Albert and Anderson, Biometrika 1984; Haberman,
"The Analysis of Frequency Data", 1974). Rows of weight zero do not count, and offsets change
nothing.

The search has three stages. `is_possible` refutes separation with a Newton direction: the equation
H v = -g, multiplied by a direction of recession, shows that some move of v is at least 1 (softmax:
1/2 in size) on separated data, at any point; near an optimum all moves are tiny. `single_columns`
compares the extremes of each column between the classes, which finds every column that separates
alone. `recession.search` follows Newton's method and proves or refutes a combination of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.batches import Batch
from mpigd.model import recession
from mpigd.model.objective import Objective
from mpigd.model.recession import Direction, moves
from mpigd.model.scaling import blocks
from mpigd.parallel.comm import Comm
from mpigd.reduction.base import NotFinite, Reducer, total

if TYPE_CHECKING:
    from mpigd.training.problem import Problem

Array = np.ndarray[Any, Any]
# Losses whose likelihood may have no optimum.
LOSSES = ("logistic", "softmax", "poisson")
FEW_PRODUCTS = 5e7  # products in a Hessian: some 20 milliseconds
# Products in a Hessian above which only single columns are tested.
MOST_PRODUCTS = 4e9
# A loss per row. The losses of rows that a combination of columns separates fall below it before
# the run ends.
CONFIDENT = 0.01
MOST_EXTREMES = 4_000_000  # classes times columns
SHOWN = 5  # columns or classes named in a message
# The largest move of a Newton direction on separated data is at least this: 1/2, less rounding.
LEAST_MOVE = 0.45
# A larger move is more than rounding, if each column's range is 1.
COUNTED = 1e-9


@dataclass(frozen=True)
class Separation:
    """A description of what separates the data.

    Parameters
    ----------
    columns : tuple of int
        Numbers of the columns in the data. If not `alone`, the most important come first.
    rows : int
        Number of rows that are separated.
    complete : bool
        Whether all rows are separated.
    alone : bool
        Whether each of the columns separates by itself; otherwise they do so in a combination.
    outputs : tuple of int
        Classes of a softmax that single columns separate from the others.
    """

    columns: tuple[int, ...]
    rows: int
    complete: bool
    alone: bool
    outputs: tuple[int, ...] = ()


def explain(w: Array, g: Array, problem: Problem, config: Config) -> dict[str, Any] | None:
    """Return `find` for a run that has ended, as plain values for its summary. Collective.

    Parameters
    ----------
    w : array (k * p,) of float64
        Last parameters.
    g : array (k * p,) of float64
        Gradient there.
    problem, config : Problem, Config
        Those of the run.

    Returns
    -------
    dict or None
        The values of `as_values`. None if nothing separates the data, for other modes and losses,
        and if a penalty or bounds confine the coefficients.
    """
    penalty, loss, objective = problem.penalty, problem.loss.name, problem.objective
    if config.mode != "full" or loss not in LOSSES or not penalty.smooth or penalty.strength > 0.0:
        return None
    found = find(w, g, objective, objective.reducer(config.reduce, problem.reducer.comm))
    names = problem.shard.encoding.get("feature_names")
    labels = problem.classes.labels() if problem.classes else None
    return None if found is None else as_values(found, loss, names, labels)


def find(w: Array, g: Array, objective: Objective, reducer: Reducer) -> Separation | None:
    """Find what separates the data. Collective; its passes over the data are not counted.

    In the ordinary case one pass over the data refutes separation.

    Parameters
    ----------
    w : array (k * p,) of float64
        Parameters at which a run without penalty has ended.
    g : array (k * p,) of float64
        Gradient there.
    objective : Objective
        Mean loss over all rows.
    reducer : Reducer
        Sums over rows and ranks.

    Returns
    -------
    Separation or None
        What separates the data, or None.
    """
    reads = objective.counter.reads
    try:
        return _find(w, g, objective, reducer)
    except NotFinite:  # all ranks raise it together; such numbers decide nothing
        return None
    finally:
        objective.counter.reads = reads


def _find(w: Array, g: Array, objective: Objective, reducer: Reducer) -> Separation | None:
    comm, products = reducer.comm, float(objective.n) * objective.size * objective.size
    if not recession.is_factorised(objective) or products > MOST_PRODUCTS:
        return single_columns(objective, comm)
    found, looked = None, False
    # Three passes over the data are cheaper than a Hessian.
    if products > FEW_PRODUCTS:
        found, looked = single_columns(objective, comm), True
        if found is not None or not _is_confident(w, objective, comm):
            return found
    oracle = objective.on(Batch.whole(objective.n), reducer)
    oracle.look_at(w)
    step, replaced = recession.newton_direction(oracle.hessian(), g)
    is_deep = recession.is_deep(w, replaced, objective, comm)
    if not is_deep and not is_possible(step, objective, comm):
        return None
    found = None if looked else single_columns(objective, comm)
    if found is None:
        direction = recession.search(w, objective, reducer, LEAST_MOVE)
        found = None if direction is None else _of_direction(direction, comm)
    return found


def _is_confident(w: Array, objective: Objective, comm: Comm) -> bool:
    """Return whether some row's loss at w (k * p,) is small, as it becomes on separated rows.

    With several classes: whether some class is as good as excluded for some row.
    """
    rows, z = objective.rows, objective.margins(w)
    r, l, c = np.empty_like(z), np.empty(z.shape[1]), np.ascontiguousarray(rows.c)
    if objective.k > 1:
        assert objective.loss.second is not None
        objective.loss.second(z, rows.y, c, objective.parameter, r)
        return _count((r < CONFIDENT).any(axis=0) & (c > 0.0), comm) > 0
    objective.loss.kernel(z, rows.y, c, objective.parameter, r, l)
    small, counted = CONFIDENT, c > 0.0
    # Losses of expected events are small too, so only rows without events count.
    if objective.loss.name == "poisson":
        mean = float(total(rows.c * rows.y, comm)[0]) / (objective.statistics.weight or 1.0)
        small, counted = CONFIDENT * min(1.0, mean), counted & (rows.y == 0.0)
    return _count((l < small * c) & counted, comm) > 0


def is_possible(step: Array, objective: Objective, comm: Comm) -> bool:
    """Return whether a Newton direction leaves separation possible. Collective.

    This costs one pass over the data.

    Parameters
    ----------
    step : array (k * p,) of float64
        Newton direction.
    objective : Objective
        Mean loss over all rows.
    comm : Comm
        Communicator of all ranks.
    """
    farthest = np.array([np.max(np.abs(moves(step, objective)), initial=0.0)])
    comm.allreduce(farthest, "max")
    return not float(farthest[0]) < LEAST_MOVE


def single_columns(objective: Objective, comm: Comm) -> Separation | None:
    """Find all columns that separate alone: those with a threshold between the classes. Collective.

    The result is exact. It costs about three passes over the data.

    Parameters
    ----------
    objective : Objective
        Mean loss over all rows.
    comm : Comm
        Communicator of all ranks.

    Returns
    -------
    Separation or None
        The columns that separate, or None.
    """
    loss, k, d = objective.loss.name, objective.k, objective.rows.X.d
    groups = max(2, k)
    if groups * d > MOST_EXTREMES:
        return None
    y = objective.rows.y > 0.0 if loss == "poisson" else objective.rows.y
    sizes, low, high = _extremes(objective, y.astype(np.int64), groups, comm)
    if loss == "poisson" and not sizes[1]:
        return Separation((), int(sizes[0]), True, True)  # no events at all
    if not sizes.all():
        return None
    width = high.max(axis=0) - low.min(axis=0)
    usable = (objective.scaling.inverse > 0.0) & (width > 0.0)
    coef, intercept = np.zeros((k, d)), np.zeros(k)
    for q in range(k):
        own, others = (1, [0]) if k == 1 else (q, [s for s in range(k) if s != q])
        ends = low[own], high[own], low[others].min(axis=0), high[others].max(axis=0)
        sign, at = _thresholds(ends, loss == "poisson", objective.scaling.intercept)
        coef[q] = np.divide(sign, width, out=np.zeros(d), where=usable)
        for j in np.flatnonzero(coef[q]):
            intercept[q] -= coef[q, j] * at[j]
    places = np.flatnonzero(coef.any(axis=0))
    if not places.size:
        return None
    m = recession.signed(recession.margins(coef, intercept, objective), objective)
    rows = _count(np.any(m > COUNTED, axis=0), comm)
    outputs = tuple(int(q) for q in np.flatnonzero(coef.any(axis=1))) if k > 1 else ()
    columns = _numbers(places, objective, ordered=True)
    return Separation(columns, rows, rows == int(sizes.sum()), True, outputs)


def _thresholds(ends: Sequence[Array], is_count: bool, intercept: bool) -> tuple[Array, Array]:
    """Return the signs (d,) of the coefficients that separate, and the thresholds (d,).

    A sign is 0 for a column that does not separate. `ends`: the low and high ends (d,) of the class
    itself (for counts: of the rows with events), then those of the others.
    """
    low, high, other_low, other_high = ends
    if is_count:
        fixed = low == high
        up, down, at = fixed & (other_high <= low), fixed & (other_low >= low), low
    else:
        up, down = other_high <= low, high <= other_low
        at = np.where(up, 0.5 * other_high + 0.5 * low, 0.5 * high + 0.5 * other_low)
    if not intercept:  # without an intercept the threshold is zero
        zero = np.zeros_like(at)
        up &= (other_high <= zero) & (low >= zero)
        down &= (high <= zero) & (other_low >= zero)
        if is_count:
            up, down = up & (low == zero), (low == zero) & (high == zero) & (other_low >= zero)
        at = zero
    return np.where(up, 1.0, np.where(down, -1.0, 0.0)), at


def _extremes(
    objective: Objective,
    group: Array,
    groups: int,
    comm: Comm,
) -> tuple[Array, Array, Array]:
    """Count the rows of positive weight in each group, and find the columns' extremes there.

    Returns sizes (groups,), low and high (groups, d). Collective.
    """
    X, heavy = objective.rows.X, objective.rows.c > 0.0
    low, high = np.full((groups, X.d), np.inf), np.full((groups, X.d), -np.inf)
    sizes, stored = np.zeros(groups, dtype=np.int64), np.zeros((groups, X.d), dtype=np.int64)
    for rows in blocks(X):
        part = X.rows(rows)
        for q in range(groups):
            chosen = np.flatnonzero((group[rows] == q) & heavy[rows])
            if chosen.size:
                found = part.rows(chosen).columns()
                np.minimum(low[q], found.low, out=low[q])
                np.maximum(high[q], found.high, out=high[q])
                stored[q] += found.count
                sizes[q] += chosen.size
    comm.allreduce(sizes)
    comm.allreduce(stored)
    comm.allreduce(low, "min")
    comm.allreduce(high, "max")
    holes = stored < sizes[:, np.newaxis]  # a sparse column's missing entries are zeros
    return (
        sizes,
        np.where(holes, np.minimum(low, 0.0), low),
        np.where(holes, np.maximum(high, 0.0), high),
    )


def _of_direction(direction: Direction, comm: Comm) -> Separation:
    objective = direction.objective
    scaling, k = objective.scaling, objective.k
    rows = _count(np.any(direction.moved, axis=0), comm)
    all_rows = _count(np.asarray(objective.rows.c > 0.0), comm)
    size = np.abs(direction.v.reshape(k, -1))[:, : scaling.center.size].max(axis=0)
    size *= objective.statistics.deviation * scaling.inverse
    places = np.argsort(-size, kind="stable")
    places = places[size[places] > 0.05 * size.max(initial=0.0)]
    return Separation(_numbers(places, objective), rows, rows == all_rows, places.size == 1)


def _numbers(places: Array, objective: Objective, ordered: bool = False) -> tuple[int, ...]:
    number = objective.scaling.number
    found = places if number is None else number[places]
    return tuple(int(j) for j in (np.sort(found) if ordered else found))


def _count(chosen: Array, comm: Comm) -> int:
    count = np.array([np.count_nonzero(chosen)], dtype=np.int64)
    comm.allreduce(count)
    return int(count[0])


def as_values(
    found: Separation,
    loss: str,
    names: Sequence[str] | None,
    labels: Sequence[Any] | None,
) -> dict[str, Any]:
    """Return plain values for a run's summary: the first columns by name, and `text` for people.

    Parameters
    ----------
    found : Separation
        What separates the data.
    loss : str
        Name of the loss.
    names : sequence of str or None
        Names of the columns, if the data have any.
    labels : sequence of Any or None
        Labels of the classes, if there are any.
    """
    shown = [names[j] if names else f"column {j}" for j in found.columns[:SHOWN]]
    return {
        "columns": shown,
        "count": len(found.columns),
        "rows": found.rows,
        "complete": found.complete,
        "alone": found.alone,
        "text": f"{_what(found, loss, shown, labels)}: the likelihood has no optimum and the "
        "coefficients would grow without end; a ridge penalty (--l2 1e-4) gives finite ones",
    }


def _what(found: Separation, loss: str, shown: Sequence[str], labels: Sequence[Any] | None) -> str:
    """Say what separates what."""
    if not found.columns:
        return "y is 0 in all rows" if loss == "poisson" else "the columns separate the classes"
    subject = _some(shown, len(found.columns))
    rows = "all rows" if found.complete else f"{found.rows:,} row{'s' * (found.rows != 1)}"
    verb = "separate" if found.alone and len(found.columns) > 1 else "separates"
    if not found.alone:
        subject = f"a combination of {subject}"
    if loss == "poisson":
        return f"{subject} {verb} {rows} without events from those with events"
    objects = "the classes"
    if found.outputs and labels:
        classes = [str(labels[q]) for q in found.outputs]
        noun = "classes" if len(classes) > 1 else "class"
        objects = f"{noun} {_some(classes[:SHOWN], len(classes))} from the others"
    return f"{subject} {verb} {objects} ({rows})"


def _some(shown: Sequence[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown):,} more" if count > len(shown) else "")
