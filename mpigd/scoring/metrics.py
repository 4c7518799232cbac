"""Metrics of predictions over all ranks' rows, weighted.

They have the same bits for any partition of the rows. Every sum is a set function of the rows
(`mpigd.reduction.base.total`), every number of a row is a function of that row alone, and every
metric is a quotient of sums. Names and conventions are those of sklearn.metrics, against which the
tests compare. Sums run over all ranks' rows i with weights c_i; W = sum c_i.

    log_loss   sum c_i -log q_i / W, with q_i the probability given to the row's own class,
               clipped to [eps, 1 - eps]
    accuracy   weight of the correctly predicted rows / W; class 1 is predicted for a
               probability > 1/2 or a decision value > 0, of k classes the first one with the
               highest probability
    auc, average_precision
               see mpigd/scoring/ranking.py; for k classes the plain mean of each against the rest
    rmse, mae  sqrt(sum c_i (y_i - f_i)**2 / W), sum c_i |y_i - f_i| / W
    r2         1 - sum c_i (y_i - f_i)**2 / sum c_i (y_i - mean y)**2; for a constant y 1 if all
               predictions are right, else 0
    deviance   2 sum c_i loss_i / W: the mean deviance, from half deviances (McCullagh and
               Nelder 1989, 2.3)
    classes    for each of k classes: class, support = TP + FN, precision = TP / (TP + FP),
               recall = TP / (TP + FN), f1 = 2 TP / (2 TP + FP + FN) (each 0 for 0 / 0), and auc
               and average_precision against the rest

An undefined metric is NaN, and its key is present. All metrics are undefined if no row has weight,
auc is if a class is missing, and average_precision is if the positive class is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from mpigd.config.units import readable
from mpigd.errors import DataError, MpigdError, NumericalError, UsageError
from mpigd.parallel.comm import Array, Comm
from mpigd.reduction.base import total
from mpigd.scoring.ranking import rank_scores

Scores = dict[str, float | list[dict[str, Any]]]

# metric -> whether lower or higher values are better
METRICS = {
    "log_loss": "lower",
    "accuracy": "higher",
    "auc": "higher",
    "average_precision": "higher",
    "rmse": "lower",
    "mae": "lower",
    "r2": "higher",
    "deviance": "lower",
}

# kind of prediction -> the metric that early stopping watches. For hinge losses this is accuracy,
# as in sklearn.linear_model's SGDClassifier; the AUC does not depend on the intercept, so it would
# miss a drift of it.
PRIMARY = {
    "binary": "log_loss",
    "margin": "accuracy",
    "multiclass": "log_loss",
    "regression": "rmse",
}

SLAB = 1 << 16  # rows whose logarithms are taken at once
# log_loss clips probabilities to [EPSILON, 1 - EPSILON], as scikit-learn does.
EPSILON = float(np.finfo(np.float64).eps)


def better(metric: str, new: float, best: float) -> bool:
    """Return whether `new` improves on `best`.

    A NaN (the metric is undefined) never does; any number improves on a NaN.
    """
    if math.isnan(new) or math.isnan(best):
        return not math.isnan(new)
    return new > best if METRICS[metric] == "higher" else new < best


def score(
    kind: str,
    y: Array,
    output: Array,
    c: Array,
    comm: Comm,
    *,
    loss_values: Array | None = None,
    classes: Sequence[Any] | None = None,
) -> Scores:
    """Return the metrics of predictions over all ranks' rows. Collective; equal bits on all ranks.

        kind        y                       output                   keys
        binary      0 or 1                  (n,) P(class 1)          log_loss accuracy auc
                                                                     average_precision
        margin      0 or 1                  (n,) decision values     accuracy auc average_precision
        multiclass  class codes 0 .. k - 1  (n, k) probabilities     log_loss accuracy auc
                                                                     average_precision classes
        regression  finite numbers          (n,) mean responses      rmse mae r2

    Parameters
    ----------
    kind
        The kind of prediction, as in the table above.
    y : (n,) float64
        Targets of this rank's rows; n may be 0 on some ranks or on all.
    output : (n,) or (n, k) float64
        Predictions.
    c : (n,) float64
        Sample weights >= 0.
    comm
        The communicator of these ranks.
    loss_values : (n,) float64 or None
        Half deviances of the rows, not multiplied by c, on all ranks or on none; they add the key
        deviance.
    classes
        The k labels in the list `classes`, by default the codes.

    Raises
    ------
    NumericalError
        On all ranks, for an output that is not finite or a sum that overflows.
    DataError
        On all ranks, for y or c outside the above.
    UsageError
        For an unknown kind.
    """
    if kind not in SCORERS:
        raise UsageError(f"unknown kind of prediction {kind!r}: one of {', '.join(SCORERS)}")
    y, output, c = (np.asarray(array, dtype=np.float64) for array in (y, output, c))
    _check(kind, y, output, c, loss_values, comm)
    with np.errstate(over="ignore"):  # `total` rejects an overflow, on all ranks
        scores = SCORERS[kind](y, output, c, comm)
        if kind == "multiclass":
            scores |= _per_class(
                y, output, c, comm, range(output.shape[1]) if classes is None else classes
            )
        if loss_values is not None:
            loss_sum, weight_sum = _sums((c * loss_values, c), comm)
            scores["deviance"] = _ratio(2.0 * loss_sum, weight_sum)
    return scores


def _binary(y: Array, output: Array, c: Array, comm: Comm) -> Scores:
    logs = _log(np.clip(np.where(y == 1, output, 1.0 - output), EPSILON, 1.0 - EPSILON))
    loss_sum, weight_sum = _sums((-c * logs, c), comm)
    return {"log_loss": _ratio(loss_sum, weight_sum)} | _two_classes(y, output, 0.5, c, comm)


def _margin(y: Array, output: Array, c: Array, comm: Comm) -> Scores:
    return _two_classes(y, output, 0.0, c, comm)


def _two_classes(y: Array, output: Array, threshold: float, c: Array, comm: Comm) -> Scores:
    auc, average_precision = rank_scores(y == 1, output, c, comm)
    right = (output > threshold) == (y == 1)
    return {
        "accuracy": _accuracy(right, c, comm),
        "auc": auc,
        "average_precision": average_precision,
    }


def _multiclass(y: Array, output: Array, c: Array, comm: Comm) -> Scores:
    own = output[np.arange(y.size), y.astype(np.int64)]
    loss_sum, weight_sum = _sums((-c * _log(np.clip(own, EPSILON, 1.0 - EPSILON)), c), comm)
    accuracy = _accuracy(output.argmax(axis=1) == y, c, comm)
    return {"log_loss": _ratio(loss_sum, weight_sum), "accuracy": accuracy}


def _per_class(y: Array, output: Array, c: Array, comm: Comm, classes: Sequence[Any]) -> Scores:
    predicted = output.argmax(axis=1)
    report: list[dict[str, Any]] = []
    # One class at a time, so that temporary arrays hold three numbers a row instead of three k.
    for q, label in enumerate(classes):
        true, chosen = y == q, predicted == q
        hit, false, missed = _sums(
            (c * (true & chosen), c * (chosen & ~true), c * (true & ~chosen)), comm
        )
        auc, average_precision = rank_scores(true, output[:, q], c, comm)
        report.append(
            {
                "class": label,
                "support": hit + missed,
                "precision": _ratio(hit, hit + false, 0.0),
                "recall": _ratio(hit, hit + missed, 0.0),
                "f1": _ratio(2.0 * hit, 2.0 * hit + false + missed, 0.0),
                "auc": auc,
                "average_precision": average_precision,
            }
        )
    # Not sum(), which rounds differently from Python 3.12 on.
    means = {
        name: math.fsum(row[name] for row in report) / len(report)
        for name in ("auc", "average_precision")
    }
    return {**means, "classes": report}


def _regression(y: Array, output: Array, c: Array, comm: Comm) -> Scores:
    error, used = y - output, c > 0
    squares, absolutes, y_sum, weight_sum = _sums(
        (c * error * error, c * np.abs(error), c * y, c), comm
    )
    limits = np.array([-y[used].min(initial=math.inf), y[used].max(initial=-math.inf)])
    comm.allreduce(limits, "max")
    # The mean is kept within the limits, so that of a constant y it is that constant exactly.
    mean = min(max(_ratio(y_sum, weight_sum, 0.0), -limits[0]), limits[1])
    deviation = np.where(used, y - mean, 0.0)
    (spread,) = _sums((c * deviation * deviation,), comm)
    r2 = 1.0 - squares / spread if spread > 0 else float(squares == 0)
    return {
        "rmse": math.sqrt(_ratio(squares, weight_sum)),
        "mae": _ratio(absolutes, weight_sum),
        "r2": r2 if weight_sum > 0 else math.nan,
    }


SCORERS: dict[str, Callable[[Array, Array, Array, Comm], Scores]] = {
    "binary": _binary,
    "margin": _margin,
    "multiclass": _multiclass,
    "regression": _regression,
}


def _accuracy(right: Array, c: Array, comm: Comm) -> float:
    right_sum, wrong_sum = _sums((c * right, c * ~right), comm)
    return _ratio(right_sum, right_sum + wrong_sum)


def _sums(columns: Sequence[Array], comm: Comm) -> tuple[float, ...]:
    return tuple(float(value) for value in total(np.stack(columns).T, comm))


def _ratio(part: float, whole: float, empty: float = math.nan) -> float:
    return part / whole if whole != 0 else empty


def _check(
    kind: str, y: Array, output: Array, c: Array, loss_values: Array | None, comm: Comm
) -> None:
    """Raise the same error on all ranks if any rank has a row for which no metric is defined."""
    finite = np.isfinite(output)
    values = np.zeros(0) if loss_values is None else loss_values
    codes = {"multiclass": output.shape[-1], "regression": 0}.get(kind, 2)
    known = np.isfinite(y) if kind == "regression" else (y >= 0) & (y < codes) & (y == np.floor(y))
    bad = [
        finite.size - np.count_nonzero(finite),
        values.size - np.count_nonzero(np.isfinite(values)),
    ]
    bad += [y.size - np.count_nonzero(known), c.size - np.count_nonzero((c >= 0) & (c < math.inf))]
    counts = np.array(bad, dtype=np.int64)
    comm.allreduce(counts)
    outputs, losses, targets, weights = counts.tolist()
    if outputs or losses:
        what = f"{outputs} predictions" if outputs else f"{losses} losses"
        _fail(
            NumericalError(
                f"{what} are not finite: the model has diverged or the data hold extreme values"
            )
        )
    if targets:
        want = "a finite number" if kind == "regression" else f"a class code from 0 to {codes - 1}"
        _fail(DataError(f"y of {targets} rows is not {want}: correct the data that are evaluated"))
    if weights:
        _fail(
            DataError(
                f"sample weights of {weights} rows are negative or not finite: correct "
                "sample_weight"
            )
        )


def _fail(error: MpigdError) -> NoReturn:
    error.agreed = True
    raise error


def score_table(scores: Mapping[str, Any]) -> str:
    """Return scores as text for people: a line for each metric, and a line for each class."""
    lines = [
        f"{name:18} {_shown(value)}"
        for name, value in scores.items()
        if not isinstance(value, list)
    ]
    for record in scores.get("classes", []):
        label = str(record["class"])
        shown = record | {"class": label if label.isprintable() else repr(label)}
        lines.append("  ".join(f"{key} {_shown(value, 4)}" for key, value in shown.items()))
    return "\n".join(lines)


def _shown(value: Any, digits: int = 6) -> str:
    """Return a number as text; whole numbers from 1000 on, such as counts, with separators.

    The weight of a class is not a whole number if weights are not.
    """
    if isinstance(value, str):
        return value
    return f"{value:.{digits}g}" if abs(value) < 1000 else readable(value)


# log(2) in two parts, such that n * LN2_HIGH is exact (fdlibm, e_log.c).
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


def _log(x: Array) -> Array:
    """Return log(x) for x > 0 (n,), in slabs, to keep temporary arrays small."""
    out = np.empty_like(x)
    for start in range(0, x.size, SLAB):
        out[start : start + SLAB] = _log_slab(x[start : start + SLAB])
    return out


def _log_slab(x: Array) -> Array:
    """Return log(x) for x > 0 to 2 units in the last place.

    It uses additions, multiplications and divisions alone, as mpigd_kernels.elementary.log does:
    the last bit of np.log depends on the CPU and, for some strides, on the position in the array.

    log(x) = n log 2 + 2 atanh(s) with x = m 2**n, m in [0.7, 1.42) and s = (m - 1) / (m + 1).
    """
    m, n = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, n = np.where(low, 2.0 * m, m), n - low
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    tail = np.zeros_like(t)
    for power in range(25, 1, -2):
        tail *= t
        tail += 1.0 / power
    return np.asarray(n * LN2_HIGH + (2.0 * s + (2.0 * s * t * tail + n * LN2_LOW)))
