"""The command `mpigd info`, which describes a data file, a model or a checkpoint.

The description is text of at most one screen, or JSON with everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpigd.config.schema import to_dict
from mpigd.data import column_names, foreign_marks, unwritten
from mpigd.data.metadata import look
from mpigd.scoring import fitted_model
from mpigd.scoring.coefficient_table import table
from mpigd.scoring.coefficient_table import text as summary_text
from mpigd.storage import hdf5
from mpigd.tables.encoding import references
from mpigd.training import checkpoint

SHOWN = 12  # maximal number of coefficients or columns in the text


def describe(
    path: str, x: str = "X", y: str = "y", links: Sequence[str] = (), allow_unwritten: bool = False
) -> dict[str, Any]:
    """Return everything about a model, a checkpoint or a data file as values for JSON.

    Parameters
    ----------
    path : str
        The file.
    x, y : str
        The paths of data matrix and target inside a data file.
    links : sequence of str
        Folders whose files may be reached by links in the file.
    allow_unwritten : bool
        Whether rows that were never written are allowed in a data file.

    Returns
    -------
    dict
        Its item "kind" is "data", "model" or "checkpoint".

    Raises
    ------
    DataError
        If the file is none of these, or damaged.
    """
    with hdf5.open_read(path, links) as file:
        form = hdf5.read_text(file, "format")
        if form not in (fitted_model.FORMAT, checkpoint.FORMAT):
            return {"kind": "data", **_data(file, path, x, y, allow_unwritten)}
    return (
        {"kind": "model", **_model(path)}
        if form == fitted_model.FORMAT
        else {"kind": "checkpoint", **_checkpoint(path)}
    )


def _data(file: hdf5.Group, path: str, x: str, y: str, allow_unwritten: bool) -> dict[str, Any]:
    info = look(file, path, x, y)
    if not allow_unwritten:
        unwritten.check(file, [x, *([y] if info.has_y else []), *info.extras])
    encoding = hdf5.read_json(file, "encoding") if "encoding" in file else {}
    known = column_names.columns(file, x, info.d)
    classes = info.classes or (encoding.get("target") or {}).get("classes")
    return {
        "rows": info.n,
        "columns": info.d,
        "layout": info.layout,
        "dtype": info.dtype,
        "nonzeros": info.nonzeros,
        "rows_per_chunk": info.chunk,
        "target": ((encoding.get("target") or {}).get("name") or y) if info.has_y else None,
        "classes": classes and list(classes),
        "extras": list(info.extras),
        "feature_names": known,
        "reference": references(encoding) or None,
        "read_as": foreign_marks.words(file[x]) or None if info.layout == "dense" else None,
    }


def _model(path: str) -> dict[str, Any]:
    model = fitted_model.load(path)
    known = model.encoding.get("feature_names")
    return {
        "digest": model.digest,
        **model.summary,
        "loss": model.config.loss,
        "labels": model.labels(),
        "intercept": model.intercept.tolist(),
        "coefficients": model.coef.tolist(),
        "feature_names": known,
        "config": to_dict(model.config),
        "history": model.history,
        "statistics": table(model),
        "reference": references(model.encoding) or None,
    }


def summary(path: str) -> str:
    """Return the table of the coefficients of a model.

    Raises UsageError if the model has no standard errors, and DataError if the file is no model.
    """
    return summary_text(path, fitted_model.load(path))


def _checkpoint(path: str) -> dict[str, Any]:
    saved = checkpoint.read(path)
    arrays = {
        f"{part}/{name}": value
        for part, group in saved.parts.items()
        for name, value in group.items()
    }
    return {
        "step": saved.step,
        "parameters": int(saved.w.size),
        "digest": fitted_model.digest({"w": saved.w}),
        "state_digest": fitted_model.digest(arrays),
        "reason": saved.notes.get("reason"),
        "fingerprint": saved.notes.get("fingerprint"),
        "config": to_dict(saved.config),
    }


def text(path: str, about: dict[str, Any]) -> str:
    """Return the result of `describe` as text of at most one screen.

    Parameters
    ----------
    path : str
        The file, named in the first line.
    about : dict
        The result of `describe`.
    """
    lines = [f"{path}: {about['kind']}"]
    hidden = {
        "kind",
        "config",
        "history",
        "coefficients",
        "feature_names",
        "ranks",
        "time",
        "intercept",
    }
    hidden |= {"statistics", "separation"}
    lines += [
        f"  {key:16} {_short(value)}"
        for key, value in about.items()
        if key not in hidden and value is not None
    ]
    if about["kind"] == "model":
        lines += _coefficients(about)
        if "separation" in about:
            lines.append(f"  {'separation':16} {about['separation']['text']}")
        why, dropped = about["statistics"].get("refused"), about["statistics"].get("dropped")
        if dropped:
            lines.append(
                f"  {'not determined':16} {_short(dropped)}: depend on columns before them"
            )
        lines.append(
            f"  {'standard errors':16} {f'none: {why}' if why else 'info --summary shows them'}"
        )
    elif about.get("feature_names"):
        lines.append(f"  {'column names':16} {_short(about['feature_names'])}")
    if "config" in about:
        config = {
            key: value for key, value in about["config"].items() if value not in (None, [], False)
        }
        lines.append(
            "  " + f"{'config':16} " + " ".join(f"{key}={value}" for key, value in config.items())
        )
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list):
        return ", ".join(str(item) for item in value[:SHOWN]) + (
            f", ... ({len(value)})" if len(value) > SHOWN else ""
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _coefficients(about: dict[str, Any]) -> list[str]:
    """Return lines with the coefficients of the first output that are largest in absolute value."""
    coef, names = about["coefficients"][0], about["feature_names"]
    order = sorted(range(len(coef)), key=lambda j: (-abs(coef[j]), j))[:SHOWN]
    lines = [f"  {'intercept':16} {_short(about['intercept'])}", "  largest coefficients"]
    return lines + [f"    {names[j] if names else f'column {j}':30} {coef[j]: .6g}" for j in order]
