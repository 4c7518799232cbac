"""Targets and weights: classes agreed over ranks, labels checked against the loss, class weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.comm import Comm, together
from mpigd.data.shard import Shard
from mpigd.errors import DataError, UsageError
from mpigd.model.losses import Loss
from mpigd.reduce import total

Array = np.ndarray[Any, Any]
LARGEST = 2.0**500  # of a target: as many of its squares as rows are ever counted can be added up
MOST_CLASSES = 10_000
SLAB = 1 << 16  # labels looked at at once


@dataclass(frozen=True)
class Classes:
    """The distinct values of y, ascending (k,), and their names where the data has some."""

    values: Array
    names: tuple[str, ...] | None

    def labels(self) -> list[Any]:
        """What people call the classes."""
        if self.names is not None:
            return [self.names[int(value)] for value in self.values]
        return [int(value) if value == int(value) else float(value) for value in self.values]

    def codes(self, y: Array) -> Array:
        """Positions of y in `values`, as float64; -1 for an unseen value."""
        codes = np.empty(y.size)
        for start in range(0, y.size, SLAB):
            part = y[start : start + SLAB]
            at = np.minimum(np.searchsorted(self.values, part), self.values.size - 1)
            codes[start : start + SLAB] = np.where(self.values[at] == part, at, -1)
        # Labels that are codes already need no second array.
        return y if y.dtype == codes.dtype and np.array_equal(codes, y) else codes


def find_classes(shard: Shard, loss: Loss, comm: Comm) -> Classes:
    """The classes of a classification loss over all ranks. Collective; DataError on all ranks if their number is wrong."""
    assert shard.y is not None
    mine = np.zeros(0)
    for start in range(0, shard.y.size, SLAB):
        mine = np.unique(np.append(mine, shard.y[start : start + SLAB]))[: MOST_CLASSES + 1]
    longest = np.array([mine.size], dtype=np.int64)
    comm.allreduce(longest, "max")
    padded = np.full(int(longest[0]), np.nan)
    padded[: mine.size] = mine
    values = np.unique(comm.allgather(padded))
    values = values[~np.isnan(values)]
    two = loss.kind != "multiclass"
    if values.size > MOST_CLASSES or (two and values.size != 2) or values.size < 2:
        labels = Classes(values[:5], tuple(shard.class_names) if shard.class_names else None).labels()
        shown = ", ".join(f"{label}" for label in labels) + (", ..." if values.size > 5 else "")
        wanted = "exactly two" if two else f"2 to {MOST_CLASSES}"
        error = DataError(
            f"{shard.name}: the {loss.name} loss needs {wanted} different values in the target, found "
            f"{values.size if values.size <= MOST_CLASSES else 'more'}: {shown}"
        )
        error.agreed = True
        raise error
    names = shard.class_names
    return Classes(values, tuple(names) if names else None)


def as_trained(shard: Shard, classes: Classes, comm: Comm) -> Array:
    """y (m,) with the numbers that the names of its classes have in `classes`: each data set numbers its own.

    Collective; DataError on all ranks, naming the row, for a name that is not among them.
    """
    assert shard.y is not None
    own, known = shard.class_names, classes.names
    if own is None or known == tuple(own):
        return shard.y
    if known is None:
        error = DataError(f"{shard.name}: the target holds texts ({', '.join(own[:5])}), but the model was trained on numbers")
        error.agreed = True
        raise error
    with together(comm):
        place = {name: float(code) for code, name in enumerate(known)}
        codes = np.array([place.get(name, -1.0) for name in own])
        numbers = shard.y.astype(np.int64)
        within = (numbers == shard.y) & (numbers >= 0) & (numbers < codes.size)
        y = np.append(codes, -1.0)[np.where(within, numbers, codes.size)]
        bad = np.flatnonzero(y < 0)
        if bad.size:
            row, at = shard.rows[bad[0]], bad[0]
            name = own[numbers[at]] if within[at] else f"{shard.y[at]:g}"
            raise DataError(f"{shard.where(row)}: label {name!r} is none of the model's classes ({', '.join(known[:10])})")
    return y


def check_domain(shard: Shard, loss: Loss, comm: Comm) -> None:
    """DataError on all ranks, naming the row, unless the loss accepts every y."""
    with together(comm):
        if loss.accepts is not None and shard.y is not None:
            bad = np.flatnonzero(~loss.accepts(shard.y))
            if bad.size:
                row, value = shard.rows[bad[0]], shard.y[bad[0]]
                raise DataError(f"{shard.where(row)}: y is {value:g}: the {loss.name} loss needs {loss.domain}")


def check_size(shard: Shard, comm: Comm) -> None:
    """DataError on all ranks, naming the row, if the square of a target would overflow a sum of them."""
    with together(comm):
        if shard.y is not None and (bad := np.flatnonzero(np.abs(shard.y) > LARGEST)).size:
            row, value = shard.rows[bad[0]], shard.y[bad[0]]
            raise DataError(f"{shard.where(row)}: y is {value:g}: its square overflows a sum: scale the targets down")


def check_codes(codes: Array, shard: Shard, classes: Classes, comm: Comm) -> None:
    """DataError on all ranks, naming the row, if a label is none of the model's classes."""
    with together(comm):
        bad = np.flatnonzero(codes < 0)
        if bad.size and shard.y is not None:
            known = ", ".join(str(label) for label in classes.labels()[:10])
            row, value = shard.rows[bad[0]], shard.y[bad[0]]
            raise DataError(f"{shard.where(row)}: label {value:g} is none of the model's classes ({known})")


def class_weights(text: str | None, codes: Array, c: Array, classes: Classes | None, comm: Comm) -> Array | None:
    """The weight of each class (k,), or None. "balanced": sum of all weights over k times that of the class."""
    if text is None:
        return None
    if classes is None:
        raise UsageError("--class-weight goes with losses that have classes")
    k = classes.values.size
    if text == "balanced":
        sums = total(np.where(codes[:, None] == np.arange(k), c[:, None], 0.0), comm)
        return np.asarray(np.where(sums > 0, _ordered_sum(sums) / (k * np.where(sums > 0, sums, 1.0)), 0.0))
    return _named_weights(text, classes)


def _ordered_sum(values: Array) -> float:
    result = 0.0
    for value in values:
        result += float(value)
    return result


def _named_weights(text: str, classes: Classes) -> Array:
    labels = [str(label) for label in classes.labels()]
    weights = np.ones(len(labels))
    for part in text.split(","):
        label, equals, number = part.rpartition("=")
        if not equals:
            raise UsageError(f"--class-weight {text}: expected balanced, or LABEL=WEIGHT,...")
        if label.strip() not in labels:
            raise UsageError(f"--class-weight {part}: no class {label!r}; the classes are {', '.join(labels[:10])}")
        try:
            weights[labels.index(label.strip())] = float(number)
        except ValueError:
            raise UsageError(f"--class-weight {part}: {number!r} is not a number") from None
    if not np.all(np.isfinite(weights) & (weights >= 0)):
        raise UsageError(f"--class-weight {text}: weights are finite and at least 0")
    return weights
