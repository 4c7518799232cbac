"""Targets and weights: classes agreed over ranks, labels checked against the loss, class weights.

Functions named `check_...` raise DataError on all ranks together, whichever rank holds the row that
is wrong.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpigd.config.units import ClassWeight, class_weights_of, quoted_label
from mpigd.data.extreme_values import LARGEST, advice
from mpigd.data.loading import shared_encoding
from mpigd.data.metadata import Info, agreed
from mpigd.data.shard import Shard
from mpigd.errors import DataError, UsageError
from mpigd.model.losses import LOSSES, Loss
from mpigd.parallel.comm import Comm, together
from mpigd.reduction.base import total

Array = np.ndarray[Any, Any]
MOST_CLASSES = 10_000
SLAB = 1 << 16  # labels that are processed at once
SHOWN = 10  # the most classes that a message lists


@dataclass(frozen=True)
class Classes:
    """The distinct values of y, ascending (k,), and their names if the data have names."""

    values: Array
    names: tuple[str, ...] | None

    def labels(self) -> list[Any]:
        """Return the labels that users see: names, or else the values themselves."""
        if self.names is not None:
            return [self.names[int(value)] for value in self.values]
        return [int(value) if value == int(value) else float(value) for value in self.values]

    def codes(self, y: Array) -> Array:
        """Return positions of y (m,) in `values` as float64; -1 for an unseen value."""
        codes = np.empty(y.size)
        for start in range(0, y.size, SLAB):
            part = y[start : start + SLAB]
            at = np.minimum(np.searchsorted(self.values, part), self.values.size - 1)
            codes[start : start + SLAB] = np.where(self.values[at] == part, at, -1)
        # If the labels are codes already, no second array is kept.
        return y if y.dtype == codes.dtype and np.array_equal(codes, y) else codes


def class_names(encoding: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a text target, of which y holds the positions; None for a numeric one."""
    names = (encoding.get("target") or {}).get("classes")
    return None if names is None else [str(name) for name in names]


def check_target(info: Info, loss: str, comm: Comm) -> None:
    """Do `check_numeric` with the metadata of a file, before rows are read. Collective.

    Parameters
    ----------
    info
        Metadata of the data set.
    loss
        Name of the loss.
    comm
        The communicator of these ranks.
    """
    if not LOSSES[loss].classifies:
        check_numeric(info.path, shared_encoding(info, comm), LOSSES[loss])


def check_numeric(name: str, encoding: Mapping[str, Any], loss: Loss) -> None:
    """Reject a regression loss on a text target.

    The loss would fit the positions of class names as if they were measured numbers.

    Parameters
    ----------
    name
        Name of the data set, for the message.
    encoding
        How the data set was encoded; the same on every rank, so that all raise together.
    loss
        The loss that would be fitted.

    Raises
    ------
    DataError
        If the target was text and the loss is for regression.
    """
    names = class_names(encoding)
    if loss.classifies or names is None:
        return
    target = (encoding.get("target") or {}).get("name") or "y"
    losses = "logistic or softmax" if len(names) == 2 else "softmax"
    raise agreed(
        DataError(
            f"{name}: the target {target!r} is text, with {len(names):,} classes "
            f"({_listed(names)}): the {loss.name} loss would "
            f"take their positions in the alphabet for numbers: use --loss {losses}"
        )
    )


def find_classes(shard: Shard, loss: Loss, comm: Comm) -> Classes:
    """Return the classes of a classification loss over all ranks. Collective.

    Parameters
    ----------
    shard
        This rank's rows, with y.
    loss
        The loss, which decides how many classes there may be.
    comm
        The communicator of these ranks.

    Raises
    ------
    DataError
        On all ranks, if the number of classes is wrong for the loss, or a target has no name among
        those of the data.
    """
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
    names = shard.class_names
    if names is not None and (stray := np.setdiff1d(values, np.arange(len(names)))).size:
        known = f"there are {len(names):,} class names, for 0 to {len(names) - 1}"
        raise agreed(
            DataError(f"{shard.name}: the target is {stray[0]:g} in some row, but {known}")
        )
    classes = Classes(values, None if names is None else tuple(names))
    _check_number(shard.name, classes, loss)
    return classes


def _check_number(name: str, classes: Classes, loss: Loss) -> None:
    """Raise DataError (agreed) unless the loss allows this number of classes."""
    k, two = classes.values.size, loss.kind != "multiclass"
    if k == 2 or (not two and 2 < k <= MOST_CLASSES):
        return
    few = Classes(classes.values[: SHOWN + 1], classes.names)
    wanted = "exactly two" if two else f"2 to {MOST_CLASSES}"
    way_out = ""
    if two and 2 < k <= MOST_CLASSES:
        way_out = ": --loss softmax takes more than two classes" + (
            "" if classes.names else ", --loss squared numbers"
        )
    raise agreed(
        DataError(
            f"{name}: the {loss.name} loss needs {wanted} different values in the target, found "
            f"{f'{k:,}' if k <= MOST_CLASSES else 'more'}: {_listed(few.labels(), 5)}{way_out}"
        )
    )


def as_trained(shard: Shard, classes: Classes, comm: Comm) -> Array:
    """Return y (m,) with the codes that a model's classes have. Collective.

    Each data set numbers the names of its classes in its own way, so codes are translated by name.

    Parameters
    ----------
    shard
        This rank's rows, with y and the names of its classes.
    classes
        The model's classes.
    comm
        The communicator of these ranks.

    Raises
    ------
    DataError
        On all ranks, naming the row, for a class that the model does not have; or if the target is
        text, but the model was trained on numbers.
    """
    assert shard.y is not None
    own, known = shard.class_names, classes.names
    if own is None or known == tuple(own):
        return shard.y
    if known is None:
        error = DataError(
            f"{shard.name}: the target holds texts ({_listed(own, 5)}), but the model was "
            "trained on numbers"
        )
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
            raise DataError(
                f"{shard.where(row)}: label {name!r} is none of the model's classes "
                f"({_listed(known)})"
            )
    return y


def check_weights(
    c: Array, codes: Array, shard: Shard, classes: Classes | None, comm: Comm
) -> None:
    """Check that some row, and some row of each class, has a weight above 0. Collective.

    Parameters
    ----------
    c : (m,) float64
        Sample weights of this rank's rows.
    codes : (m,) float64
        Class codes; unused without classes.
    shard
        This rank's rows, for the message.
    classes
        The classes, or None.
    comm
        The communicator of these ranks.

    Raises
    ------
    DataError
        On all ranks, if there is no such row.
    """
    columns = np.array([np.count_nonzero(c)], dtype=np.int64)
    if classes is not None:
        columns = np.bincount(codes[c > 0.0].astype(np.int64), minlength=classes.values.size)
    comm.allreduce(columns)
    if not columns.any():
        raise agreed(DataError(f"{shard.name}: all weights are zero: there is nothing to fit"))
    if classes is not None and not columns.all():
        label = classes.labels()[int(np.argmin(columns))]
        raise agreed(
            DataError(
                f"{shard.name}: all weights of class {label!r} are zero: leave its rows out, or "
                "give it weight"
            )
        )


def _listed(labels: Sequence[Any], most: int = SHOWN) -> str:
    """Return some of the classes as a text for a message.

    Names are quoted if one of them could be read as several.
    """
    texts = [str(label) for label in labels[:most]]
    if any(not text.isprintable() or "," in text or text != text.strip() for text in texts):
        texts = [repr(text) for text in texts]
    return ", ".join(texts) + (", ..." if len(labels) > most else "")


def check_domain(shard: Shard, loss: Loss, comm: Comm) -> None:
    """Raise DataError on all ranks, naming the row, unless the loss accepts every y. Collective."""
    with together(comm):
        if loss.accepts is not None and shard.y is not None:
            bad = np.flatnonzero(~loss.accepts(shard.y))
            if bad.size:
                row, value = shard.rows[bad[0]], shard.y[bad[0]]
                raise DataError(
                    f"{shard.where(row)}: y is {value:g}: the {loss.name} loss needs {loss.domain}"
                )


def check_size(shard: Shard, comm: Comm) -> None:
    """Raise DataError on all ranks, naming the row, if the square of a target overflows a sum.

    Collective.
    """
    with together(comm):
        if shard.y is not None and (bad := np.flatnonzero(np.abs(shard.y) > LARGEST)).size:
            row, value = shard.rows[bad[0]], shard.y[bad[0]]
            told = f"{shard.where(row)}: y is {value:g}: its square overflows a sum"
            raise DataError(f"{told}: {advice(value, 'all targets')}")


def check_codes(codes: Array, shard: Shard, classes: Classes, comm: Comm) -> None:
    """Raise DataError on all ranks, naming the row, for a label that the model does not have.

    Collective.

    Parameters
    ----------
    codes : (m,) float64
        Positions in the model's classes, -1 for an unseen label.
    shard
        This rank's rows.
    classes
        The model's classes.
    comm
        The communicator of these ranks.
    """
    with together(comm):
        bad = np.flatnonzero(codes < 0)
        if bad.size and shard.y is not None:
            row, value = shard.rows[bad[0]], float(shard.y[bad[0]])
            names = classes.names
            known = names is not None and value.is_integer() and 0 <= value < len(names)
            label = repr(names[int(value)]) if known and names is not None else f"{value:g}"
            listed = _listed(classes.labels())
            raise DataError(
                f"{shard.where(row)}: label {label} is none of the model's classes ({listed})"
            )


def row_weights(
    text: str | None, codes: Array, shard: Shard, classes: Classes | None, comm: Comm
) -> Array:
    """Return the weight of each row: its sample weight times that of its class. Collective.

    Parameters
    ----------
    text
        The option --class-weight, or None.
    codes : (m,) float64
        Class codes of this rank's rows (for regression, any array of that shape).
    shard
        This rank's rows.
    classes
        The classes, or None for regression.
    comm
        The communicator of these ranks.

    Returns
    -------
    c : (m,) float64
        One number broadcast if all weights are 1.

    Raises
    ------
    DataError
        On all ranks, if all rows, or all rows of a class, have weight 0.
    """
    # One number is broadcast, so that weights of 1 take no memory.
    c = np.broadcast_to(1.0, codes.shape) if shard.c is None else shard.c
    weights = class_weights(text, codes, c, classes, comm)
    if weights is not None:
        c = c * weights[codes.astype(np.int64)]
    if shard.c is not None or weights is not None:
        check_weights(c, codes, shard, classes, comm)
    return c


def class_weights(
    text: str | None, codes: Array, c: Array, classes: Classes | None, comm: Comm
) -> Array | None:
    """Return the weight of each class (k,) float64, or None without class weights. Collective.

    For "balanced" the weight is the sum of all sample weights, divided by k times that of the
    class.

    Parameters
    ----------
    text
        The option --class-weight, or None.
    codes : (m,) float64
        Class codes of this rank's rows.
    c : (m,) float64
        Sample weights.
    classes
        The classes, or None for regression.
    comm
        The communicator of these ranks.
    """
    if text is None:
        return None
    if classes is None:
        raise UsageError(NO_CLASSES)
    k = classes.values.size
    if text == "balanced":
        sums = total(np.where(codes[:, None] == np.arange(k), c[:, None], 0.0), comm)
        return np.asarray(
            np.where(sums > 0, _ordered_sum(sums) / (k * np.where(sums > 0, sums, 1.0)), 0.0)
        )
    return _named_weights(class_weights_of(text), classes)


NO_CLASSES = "--class-weight goes with losses that have classes: " + ", ".join(
    name for name, loss in LOSSES.items() if loss.classifies
)


def _ordered_sum(values: Array) -> float:
    result = 0.0
    for value in values:
        result += float(value)
    return result


def _named_weights(parts: Sequence[ClassWeight], classes: Classes) -> Array:
    labels = classes.labels()
    texts = [str(label) for label in labels]
    weights, given = np.ones(len(labels)), set[int]()
    for part in parts:
        place = _class_place(part, labels, texts)
        if place in given:
            raise UsageError(f"--class-weight: class {texts[place]!r} is given twice")
        weights[place] = part.value
        given.add(place)
    return weights


def _class_place(part: ClassWeight, labels: Sequence[Any], texts: Sequence[str]) -> int:
    """Return the position of the class that a part of --class-weight names.

    Raises UsageError with the most similar class if there is no such class.
    """
    # The unchanged spelling comes first, since a label may contain quotation marks itself.
    for spelling in (part.spelled, part.label):
        if spelling in texts:
            return texts.index(spelling)
    try:
        number = float(part.label)  # 1.0, 1e0 and 1 are the same class
    except ValueError:
        number = float("nan")
    if not isinstance(labels[0], str) and number in labels:
        return labels.index(number)
    stripped = [text.strip() for text in texts]
    if stripped.count(part.label.strip()) == 1:
        return stripped.index(part.label.strip())
    starts = [text for text in texts if part.label and text.startswith(part.label)]
    near = starts[:1] or difflib.get_close_matches(part.label, texts, 1)
    if near:
        spelled = shlex.quote(f"{quoted_label(near[0])}={part.value:g}")
        raise UsageError(
            f"--class-weight: no class {part.label!r}: did you mean {near[0]!r}? Write "
            f"--class-weight {spelled}"
        )
    raise UsageError(f"--class-weight: no class {part.label!r}; the classes are {_listed(texts)}")
