"""Fits of the zoo: mpigd's defaults and named optimisers on a case, judged by the reference."""

from __future__ import annotations

import contextlib
import io
import math
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.zoo import cases, reference

Row = dict[str, Any]
PEERS = ("lbfgs", "newton-cholesky", "newton")
RIGHT = 1e-5  # excess up to which a fit is right
COUNTS = 1e-4  # excess up to which a named optimiser's reads are a bar
FACTOR, EXTRA = 1.5, 5.0  # reads may be FACTOR times the best ones plus EXTRA
STATUSES = ("right", "said", "wrong", "silent", "refused", "hang")
NAMED = ("separat", "no optimum", "no finite optimum", "no events", "without events")
LIMIT = 30.0  # seconds of a fit
PEER_LIMIT = 10.0


class OutOfTime(BaseException):
    """Raised by the alarm; not an Exception, so that no handler of errors swallows it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the main thread after so many seconds of wall time."""

    def ring(number: int, frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def train(path: str, loss: str, l2: float, limit: float, optimizer: str = "auto") -> Row:
    """One training run: the model under `model`, or `error` or `hang`; and what was said."""
    import mpigd
    from mpigd.errors import MpigdError

    row: Row = {}
    stream = io.StringIO()
    begin = time.perf_counter()
    with contextlib.redirect_stderr(stream), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with time_limit(limit):
                row["model"] = mpigd.train(path, loss=loss, l2=l2, optimizer=optimizer)
        except MpigdError as error:
            row |= {"error": f"{type(error).__name__}: {error}", "code": error.code}
        except OutOfTime:
            row["hang"] = True
        except Exception as error:
            row |= {"error": f"{type(error).__name__}: {error}", "code": None}
    said = [line.strip() for line in stream.getvalue().splitlines() if line.strip()]
    said += [str(warning.message) for warning in caught]
    return row | {"seconds": time.perf_counter() - begin, "said": said}


def warm() -> None:
    """Compile, or load from the cache, what the fits need: no fit is charged for it."""
    import numpy as np
    from scipy import sparse

    import mpigd

    random = np.random.default_rng(0)
    X = random.normal(size=(200, 3)).astype(np.float32)
    for loss, k in (("squared", 0), ("gamma", 0), ("poisson", 0), ("logistic", 2), ("softmax", 3)):
        y = random.integers(0, k, 200).astype(np.float64) if k else random.gamma(2.0, size=200)
        for matrix in (X, sparse.csr_array(X * (random.random(X.shape) < 0.2))):
            for optimizer in ("auto", *PEERS):
                with contextlib.redirect_stderr(io.StringIO()):
                    mpigd.train((matrix, y), loss=loss, optimizer=optimizer)


def _measure(run: Row, data: cases.Data, design: reference.Design, loss: str, l2: float) -> Row:
    """Return the record of a run: the objective by the reference's arithmetic, and its summary."""
    kept = {key: run[key] for key in ("seconds", "said", "error", "code", "hang") if key in run}
    if model := run.get("model"):
        summary = model.summary
        kept["value"] = reference.objective(design, data.y, loss, l2, model.coef, model.intercept)
        kept |= {key: summary.get(key) for key in ("reads", "steps", "stop_reason", "converged")}
        kept |= {key: summary[key] for key in ("separation",) if key in summary}
        if kept["converged"] is None:
            kept["converged"] = summary["stop_reason"] == "tolerance"
    return kept


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def fits(
    case: cases.Case,
    data: cases.Data,
    limit: float = LIMIT,
    peer_limit: float = PEER_LIMIT,
) -> Iterator[Row]:
    """The rows of a case: each loss with each penalty."""
    about: Row = {
        "package": case.package, "item": case.item, "target": case.target, "kind": case.kind,
        "rows": data.X.shape[0], "features": data.X.shape[1], "outputs": data.k,
        "layout": data.layout, "missing": data.missing,
    }  # fmt: skip
    design = reference.Design(data.X)
    about |= {"rank": design.rank, "near": design.near}
    for loss in case.losses:
        for l2 in cases.PENALTIES:
            row = about | {"loss": loss, "l2": l2} | _ours(data, design, loss, l2, limit)
            row["peers"] = {name: _peer(data, design, row, name, peer_limit) for name in PEERS}
            row["status"], row["cause"] = judge(row)
            yield row | reads_bar(row)


def _ours(data: cases.Data, design: reference.Design, loss: str, l2: float, limit: float) -> Row:
    """The fit with defaults and its reference."""
    begin = time.perf_counter()
    best = reference.optimum(design, data.y, loss, l2, data.k)
    row: Row = {
        "reference": best.value, "null": best.null, "gain": best.gain, "left": best.left,
        "exists": best.exists, "reference_seconds": time.perf_counter() - begin,
    }  # fmt: skip
    row |= _measure(train(data.path, loss, l2, limit), data, design, loss, l2)
    if "value" in row:
        row["excess"] = best.excess(row["value"])
        if design.near:
            other = reference.optimum(design, data.y, loss, l2, data.k, aliased=True)
            row["excess_aliased"] = other.excess(row["value"])
    return row


def _peer(data: cases.Data, design: reference.Design, row: Row, name: str, limit: float) -> Row:
    """The same fit by a named optimiser."""
    loss, l2 = row["loss"], row["l2"]
    run = _measure(train(data.path, loss, l2, limit, name), data, design, loss, l2)
    run.pop("said")
    if "value" in run:
        run["excess"] = (run.pop("value") - row["reference"]) / row["gain"]
    return run


# The reference itself may be this far from the optimum if columns are nearly aliased.
REFERENCE = 1e-6


def judge(row: Row) -> tuple[str, str]:
    """The status of a fit, one of STATUSES, and what is wrong with it.

    Where no optimum exists a fit has to say so; one that says only that it has not converged
    counts as said, under a cause of its own.
    """
    said = " ".join(row["said"]).lower()
    if row.get("hang"):
        return "hang", "time limit"
    if "error" in row:
        if row["code"] is None:
            return "wrong", "traceback"
        return ("refused", "refused") if row["code"] in (2, 65) else ("said", "error")
    named = any(word in said for word in NAMED) or bool(row.get("separation"))
    if row["excess"] < -REFERENCE:
        return "wrong", "below the reference: its fault"
    if row["exists"] and named:
        return "wrong", "separation is reported where an optimum exists"
    if row["converged"] and row["excess"] > RIGHT:
        return "wrong", "converged away from the optimum"
    if row["converged"] and row["exists"]:
        return "right", ""
    if not said:
        return "silent", "not converged" if row["exists"] else "no optimum exists"
    if named:
        return "said", "separation"
    return "said", "not converged" if row["exists"] else "not converged, separation not named"


def reads_bar(row: Row) -> Row:
    """The best reads of the optimisers that reach the optimum, and whether ours keep the bar.

    Where no optimum exists, optimisers stop at different places on an endless way, and their
    reads do not compare.
    """
    arrived = {name: run for name, run in row["peers"].items() if run.get("excess", 1.0) <= COUNTS}
    reads = {name: run["reads"] for name, run in arrived.items()}
    if not reads or row.get("reads") is None or not row.get("exists", True):
        return {"best": None, "best_reads": None, "within": None}
    best = min(reads, key=lambda name: reads[name])
    return {
        "best": best,
        "best_reads": reads[best],
        "within": row["reads"] <= FACTOR * reads[best] + EXTRA,
    }


def run_case(
    case: cases.Case,
    folder: Path,
    limit: float = LIMIT,
    peer_limit: float = PEER_LIMIT,
) -> Iterator[Row]:
    """The rows of a case from its raw data on; one row says why if it cannot be fitted."""
    about = {"package": case.package, "item": case.item, "target": case.target, "kind": case.kind}
    try:
        data = cases.prepare(case, folder)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        yield about | {"loss": "import", "l2": 0.0, "status": "refused", "error": text}
        return
    if cases.too_large(case, *data.X.shape, data.k):
        text = "too large for the reference"
        yield about | {"loss": "import", "l2": 0.0, "status": "refused", "error": text}
        return
    yield from fits(case, data, limit, peer_limit)
