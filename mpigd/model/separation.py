"""Separation: data for which a likelihood without penalty has no optimum, and the columns that cause it.

With the signed moves m_i of a direction v (logistic: x_i.v for y = 1 and -x_i.v for y = 0; softmax: x_i.(v_y - v_q) for every
other class q; Poisson: -x_i.v for y = 0 and -|x_i.v| for y > 0), an optimum does not exist if and only if some v has m >= 0 for
all rows and m > 0 for one of them: the objective falls along v for ever (Albert and Anderson, Biometrika 1984; Haberman, "The
Analysis of Frequency Data", 1974). Rows of weight zero do not count, and offsets change nothing.

The search has three stages. `is_possible` refutes separation with a Newton direction: the equation H v = -g, multiplied by a
direction of recession, shows that some move of v is at least 1 (softmax: 1/2 in size) on separated data, at any point; near
an optimum all moves are tiny. `single_columns` compares the extremes of each column between the classes, which finds every
column that separates alone. `recession.search` follows Newton's method and proves or refutes a combination of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.batches import Batch
from mpigd.comm import Comm
from mpigd.model import recession
from mpigd.model.objective import Objective
from mpigd.model.penalties import L2, Penalty
from mpigd.model.recession import Direction, moves
from mpigd.model.scaling import blocks
from mpigd.reduce import Reducer
from mpigd_kernels import linalg

Array = np.ndarray[Any, Any]
LOSSES = ("logistic", "softmax", "poisson")
MOST_PARAMETERS = 4000  # whose Hessian is factorised
MOST_EXTREMES = 4_000_000  # classes times columns
SHOWN = 5  # columns and classes named in a message
LEAST_MOVE = 0.45  # of a Newton direction on separated data; 1/2 but for rounding
COUNTED = 1e-9  # a move that is more than rounding, where each column's range is 1


@dataclass(frozen=True)
class Separation:
    """columns: numbers in the data of those that separate, most important first; alone: each of them does so by itself.

    rows: how many rows are separated; complete: all of them. outputs: the classes that a softmax separates from the others.
    """

    columns: tuple[int, ...]
    rows: int
    complete: bool
    alone: bool
    outputs: tuple[int, ...] = ()


def why_never(loss: str, penalty: Penalty) -> bool:
    """Whether data cannot separate: the loss is no such likelihood, or a penalty confines the coefficients."""
    return loss not in LOSSES or not isinstance(penalty, L2) or not penalty.smooth or penalty.strength > 0.0


def find(w: Array, g: Array, objective: Objective, reducer: Reducer, step: Array | None = None) -> Separation | None:
    """What separates the data, or None. Collective; the objective's counter of reads stays as it is.

    w (k * p,): where a run without penalty has ended; g (k * p,): the gradient there. step (k * p,): the Newton direction
    -H^-1 g, if the caller has it: otherwise it is computed, for one read. One more read refutes separation.
    """
    reads = objective.counter.reads
    try:
        if step is None:
            step = newton_direction(w, g, objective, reducer)
        if step is not None and not is_possible(step, objective, reducer.comm):
            return None
        found = single_columns(objective, reducer.comm)
        if found is None and step is not None:
            direction = recession.search(w, objective, reducer, LEAST_MOVE)
            found = None if direction is None else _of_direction(direction, objective, reducer.comm)
        return found
    finally:
        objective.counter.reads = reads


def newton_direction(w: Array, g: Array, objective: Objective, reducer: Reducer) -> Array | None:
    """-H^-1 g at w (k * p,); None for more parameters than are factorised. One read. Collective."""
    if not is_factorised(objective):
        return None
    oracle = objective.on(Batch(slice(None), objective.n, 0, 0, True), reducer)
    oracle.look_at(w)
    (H,) = oracle.hessian()
    linalg.cholesky(H)
    step = np.empty_like(g)
    linalg.solve(H, -g, step)
    return step


def is_factorised(objective: Objective) -> bool:
    return objective.size <= (MOST_PARAMETERS if objective.k == 1 else recession.WHOLE)


def is_possible(step: Array, objective: Objective, comm: Comm) -> bool:
    """Whether a Newton direction (k * p,) leaves separation possible. One read. Collective."""
    farthest = np.array([np.max(np.abs(moves(step, objective)), initial=0.0)])
    comm.allreduce(farthest, "max")
    return not float(farthest[0]) < LEAST_MOVE


def single_columns(objective: Objective, comm: Comm) -> Separation | None:
    """All columns that separate alone: those with a threshold between the classes. Exact, two or three reads. Collective."""
    loss, k, d = objective.loss.name, objective.k, objective.rows.X.d
    groups = max(2, k)
    if groups * d > MOST_EXTREMES:
        return None
    y = objective.rows.y > 0.0 if loss == "poisson" else objective.rows.y
    sizes, low, high = _extremes(objective, y.astype(np.int64), groups, comm)
    if loss == "poisson" and not sizes[1]:
        return Separation((), int(sizes[0]), True, True)  # the intercept, or every column: there is no event at all
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
    rows = _count((m > COUNTED).any(axis=0), comm)
    outputs = tuple(int(q) for q in np.flatnonzero(coef.any(axis=1))) if k > 1 else ()
    return Separation(_numbers(places, objective, ordered=True), rows, rows == int(sizes.sum()), True, outputs)


def _thresholds(ends: Sequence[Array], is_count: bool, intercept: bool) -> tuple[Array, Array]:
    """Signs (d,) of the coefficients that separate, 0 for columns that do not, and thresholds (d,).

    ends: low and high of the class of its own (of counts: of the rows with events), low and high of the others.
    """
    low, high, other_low, other_high = ends
    if is_count:
        fixed = low == high
        up, down, at = fixed & (other_high <= low), fixed & (other_low >= low), low
    else:
        up, down = other_high <= low, high <= other_low
        at = np.where(up, 0.5 * other_high + 0.5 * low, 0.5 * high + 0.5 * other_low)
    if not intercept:  # the threshold is zero
        zero = np.zeros_like(at)
        up &= (other_high <= zero) & (low >= zero)
        down &= (high <= zero) & (other_low >= zero)
        if is_count:
            up, down = up & (low == zero), (low == zero) & (high == zero) & (other_low >= zero)
        at = zero
    return np.where(up, 1.0, np.where(down, -1.0, 0.0)), at


def _extremes(objective: Objective, group: Array, groups: int, comm: Comm) -> tuple[Array, Array, Array]:
    """Rows of positive weight in each group (groups,), and each column's extremes among them (groups, d). Collective."""
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
    return sizes, np.where(holes, np.minimum(low, 0.0), low), np.where(holes, np.maximum(high, 0.0), high)


def _of_direction(direction: Direction, objective: Objective, comm: Comm) -> Separation:
    scaling, k = objective.scaling, objective.k
    rows = _count(direction.moved.any(axis=0), comm)
    all_rows = _count(objective.rows.c > 0.0, comm)
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


def as_values(found: Separation, names: Sequence[str] | None) -> dict[str, Any]:
    """For a run's summary: plain values, with the first columns by name."""
    shown = [names[j] if names else f"column {j}" for j in found.columns[:SHOWN]]
    return {"columns": shown, "count": len(found.columns), "rows": found.rows, "complete": found.complete, "alone": found.alone}


def sentence(found: Separation, loss: str, names: Sequence[str] | None, labels: Sequence[Any] | None) -> str:
    """For people: what separates, what it means, what helps."""
    values = as_values(found, names)
    more = found.columns[SHOWN:]
    columns = ", ".join(values["columns"]) + (f" and {len(more):,} more" if more else "")
    rows = "all rows" if found.complete else f"{found.rows:,} row" + "s" * (found.rows != 1)
    single = len(found.columns) == 1
    subject = f"column{'' if single else 's'} {columns}".replace("column column", "column")
    if loss == "poisson":
        what = f"y is 0 in all rows of {subject}" if found.columns else "y is 0 in all rows"
        if found.columns and not found.alone:
            what = f"a combination of {subject} keeps apart rows where y is 0"
        what += f" ({rows})" if found.columns else ""
    else:
        verb = "separates" if single or not found.alone else "separate"
        whose = ", ".join(str(labels[q]) for q in found.outputs[:SHOWN]) if labels and found.outputs else ""
        more_classes = f" and {len(found.outputs) - SHOWN} more" if len(found.outputs) > SHOWN else ""
        objects = f"class {whose}{more_classes} from the others" if whose else "the classes"
        what = f"{subject if found.alone else f'a combination of {subject}'} {verb} {objects} ({rows})"
    return (
        f"{what}: the likelihood has no optimum, and these coefficients would grow without end; a ridge penalty "
        "(--l2 1e-4) gives finite ones"
    )
