"""The coefficient table: standard errors, tests and intervals, as text or as plain values.

`mpigd info model.h5 --summary` prints it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpigd.config.units import readable
from mpigd.errors import UsageError
from mpigd.scoring.fitted_model import Model

LEVEL = 0.95  # confidence level of the intervals
NORMAL = 1.959963984540054  # quantile of the standard normal distribution for LEVEL
NUMBERS = (
    ("log-likelihood", "log_likelihood"),
    ("AIC", "aic"),
    ("deviance", "deviance"),
    ("null deviance", "null_deviance"),
    ("Pearson chi2", "pearson"),
    ("dispersion", "dispersion"),
    ("degrees of freedom", "degrees_of_freedom"),
    ("residual degrees", "residual_degrees"),
)


def table(model: Model) -> dict[str, Any]:
    """Return the model's statistics as plain values.

    Values for coefficients are lists over the intercept (if any) and the columns. They are None for
    a column without a coefficient of its own. `dropped` names columns that depend on columns before
    them; the coefficients are then not those that the model stores, but those of the other columns
    alone.

    Test statistics are z. For the squared loss they are t with the residual degrees of freedom,
    which needs scipy; without scipy p-values and intervals are left out, and `missing` says so.
    """
    found = dict(
        model.statistics or {"refused": "the file has none: it was written before there were any"}
    )
    if "refused" in found:
        return found
    d = model.coef.shape[1]
    names = model.encoding.get("feature_names") or [f"column {j}" for j in range(d)]
    errors, values = list(found.pop("standard_errors")), found.pop("coef", model.coef[0].tolist())
    intercept = found.pop("intercept", model.intercept.tolist()[0])
    intercept_error = found.pop("intercept_error")
    if "dropped" in found:
        found["dropped"] = [names[j] for j in found["dropped"]]
    if intercept_error is not None:
        names, errors = ["intercept", *names], [intercept_error, *errors]
        values = [intercept, *values]
    values = [None if error is None else value for value, error in zip(values, errors, strict=True)]
    ratios = [value / error if error else None for value, error in zip(values, errors, strict=True)]
    test = "t" if model.config.loss == "squared" else "z"
    found |= {
        "names": list(names),
        "coef": values,
        "std_err": errors,
        "test": test,
        "statistic": ratios,
    }
    try:
        tail, quantile = (
            _student(found["residual_degrees"]) if test == "t" else (_normal_tail, NORMAL)
        )
    except ModuleNotFoundError:
        return found | {
            "missing": "p-values and intervals of the t distribution need scipy: pip install scipy"
        }
    found["p_value"] = [None if ratio is None else tail(abs(ratio)) for ratio in ratios]
    for name, sign in (("low", -1.0), ("high", 1.0)):
        found[name] = [
            None if e is None else v + sign * quantile * e
            for v, e in zip(values, errors, strict=True)
        ]
    return found


def _normal_tail(z: float) -> float:
    """Return P(|Z| > z) for a standard normal Z."""
    return math.erfc(z / math.sqrt(2.0))


def _student(degrees: float) -> tuple[Callable[[float], float], float]:
    """Return the function P(|T| > t) for Student's t, and its quantile for LEVEL."""
    from scipy.special import betainc, stdtrit

    def tail(t: float) -> float:
        # The incomplete beta function keeps the digits that 1 - P would lose.
        return float(betainc(0.5 * degrees, 0.5, degrees / (degrees + t * t)))

    return tail, float(stdtrit(degrees, 0.5 + 0.5 * LEVEL))


def text(path: str, model: Model) -> str:
    """Return the table as text for a terminal.

    Raises UsageError with the reason if the model has no statistics.
    """
    found, config = table(model), model.config
    if "refused" in found:
        raise UsageError(f"{path}: no standard errors: {found['refused']}")
    rows = model.summary.get("rows", 0)
    parameters = sum(error is not None for error in found["std_err"])
    size = f"{rows:,} rows, {parameters:,} parameters"
    lines = [f"{path}: {config.loss} loss, {size}, l2 {config.l2:g}"]
    numbers = [
        f"{label:20}{_shown_number(found[key]):>16}"
        for label, key in NUMBERS
        if found[key] is not None
    ]
    lines += ["    ".join(numbers[i : i + 2]) for i in range(0, len(numbers), 2)]
    width = min(40, max(len(name) for name in found["names"]))
    lines += [
        "",
        _line(
            "",
            ("coef", "std err", found["test"], f"P>|{found['test']}|", "[0.025", "0.975]"),
            width,
        ),
    ]
    empty = [None] * len(found["names"])
    columns = ("coef", "std_err", "statistic", "p_value", "low", "high")
    for name, *values in zip(
        found["names"], *(found.get(column, empty) for column in columns), strict=True
    ):
        lines.append(_line(name, [_shown(value, i) for i, value in enumerate(values)], width))
    return "\n".join([*lines, "", *notes(model, found)])


def _shown_number(value: float) -> str:
    """Return a whole number with separators, another number with eight digits.

    Degrees of freedom are whole without a penalty.
    """
    return (
        f"{int(value):,}" if float(value).is_integer() and abs(value) < 2.0**53 else f"{value:.8g}"
    )


def _line(name: str, cells: Any, width: int) -> str:
    return f"{name[:width]:{width}}" + "".join(f"{cell:>12}" for cell in cells)


def _shown(value: float | None, column: int) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if column in (2, 3) and abs(value) < 1e5 else f"{value:.5g}"


def _weighting(model: Model, found: dict[str, Any]) -> str:
    """Return a sentence on how the weights were counted."""
    if found.get("repeated", True):
        classes = (
            "; so do class weights, as so many rows of each class"
            if model.config.class_weight
            else ""
        )
        return f"Weights count as repeated rows{classes}."
    rows, weight = found["rows"], found["weight"]
    if model.config.loss in ("squared", "gamma"):
        return (
            f"Weights are not whole numbers: they are the relative precisions of {rows:,} rows, "
            "in any unit."
        )
    return (
        f"Weights are not whole numbers: {rows:,} rows with a sum of weights of "
        f"{readable(weight)} count as so many. "
        "Standard errors depend on the unit of such weights (as in R)."
    )


def notes(model: Model, found: dict[str, Any]) -> list[str]:
    """Return the sentences that explain these numbers to the reader."""
    said = [_weighting(model, found)]
    if model.config.l2:
        said.append(
            "Ridge: the covariance is the inverse of the penalised information (no sandwich); "
            "intervals are conditional on the "
            "penalty and do not cover its bias; degrees of freedom are those of the fit."
        )
    if None in found["std_err"]:
        said.append("-: a constant column, or one that depends on those before it (NA in R).")
    if found.get("dropped"):
        said.append(
            "Coefficients are those without such columns. The model stores others that predict the "
            "same: the data do not tell coefficients of columns that depend on each other."
        )
    return said + ([found["missing"]] if "missing" in found else [])
