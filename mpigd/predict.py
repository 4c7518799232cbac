"""Using a model: scores over distributed rows, and predictions in row order, whoever holds the rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from mpigd.comm import Comm, bcast_bytes, together
from mpigd.config import Config
from mpigd.data import hdf5
from mpigd.data.loading import Layout, load, passing
from mpigd.data.shard import Shard
from mpigd.data.source import agreed
from mpigd.errors import DataError, MpigdError, StorageError
from mpigd.metrics import score
from mpigd.model.fitted import Model
from mpigd.model.losses import LOSSES, Loss
from mpigd.model.response import margins, mean_response, predicted_class
from mpigd.model.targets import Classes, check_codes, check_domain
from mpigd.places import located
from mpigd.reduce import total
from mpigd.world import enter

Array = np.ndarray[Any, Any]
SLAB = 1 << 16  # rows that are scored, or travel to the writing rank, at once


class Evaluator:
    """Scores coefficients on this rank's rows of a data set."""

    def __init__(self, shard: Shard, loss: Loss, parameter: float, classes: Classes | None, comm: Comm) -> None:
        assert shard.y is not None
        check_domain(shard, loss, comm)
        self._y = classes.codes(shard.y) if classes else shard.y
        if classes:
            check_codes(self._y, shard, classes, comm)
        self._c = np.ones(shard.y.size) if shard.c is None else shard.c
        self._shard, self._loss, self._parameter, self._classes, self._comm = shard, loss, parameter, classes, comm

    def scores(self, coef: Array, intercept: Array, penalty: float = 0.0) -> dict[str, Any]:
        """Metrics by name, and `objective`: the weighted mean loss plus `penalty`. Collective."""
        return self.judge(margins(self._shard.X, coef, intercept, self._shard.offset), penalty)

    def judge(self, z: Array, penalty: float = 0.0) -> dict[str, Any]:
        """`scores` from the margins z (k, m), which this uses up. Collective."""
        l = self._respond(z)
        # A class and its half deviance are one thing for GLMs; hinge, Huber and quantile have no deviance.
        deviance = l if self._loss.name in ("squared", "logistic", "softmax", "poisson", "gamma") else None
        labels = self._classes.labels() if self._classes else None
        result: dict[str, Any] = score(
            self._loss.kind, self._y, z.T if self._loss.kind == "multiclass" else z[0], self._c, self._comm,
            loss_values=deviance, classes=labels,
        )  # fmt: skip
        losses, weight = total(np.column_stack([self._c * l, self._c]), self._comm)
        return result | {"objective": float(losses / weight) + penalty if weight > 0 else float("nan")}

    def _respond(self, z: Array) -> Array:
        """Losses (m,) of margins z (k, m), which become mean responses, in place: arrays of all rows are few."""
        l = np.empty(z.shape[1])
        for start in range(0, l.size, SLAB):
            rows = slice(start, start + SLAB)
            part = np.ascontiguousarray(z[:, rows])
            self._loss.kernel(part, self._y[rows], np.ones(part.shape[1]), self._parameter, np.empty_like(part), l[rows])
            z[:, rows] = mean_response(self._loss, part)
        return l


def model_classes(model: Model) -> Classes | None:
    if model.classes is None:
        return None
    names = (model.encoding.get("target") or {}).get("classes")
    return Classes(model.classes, tuple(names) if names else None)


def check_columns(shard: Shard, d: int, known: Sequence[str] | None) -> None:
    """DataError, the same on all ranks, unless the data's columns are the d that were trained on, `known` by their names."""
    if shard.X.d != d:
        raise agreed(DataError(f"{shard.name}: {shard.X.d} columns, but the model was trained on {d}"))
    here = shard.feature_names
    if known is not None and here is not None and list(known) != here:
        j = next(j for j in range(d) if known[j] != here[j])
        raise agreed(DataError(f"{shard.name}: column {j} is {here[j]!r}, but the model was trained on {known[j]!r}"))


@contextmanager
def encoded(paths: Sequence[str], model: Model, comm: Comm, need_y: bool = True) -> Iterator[list[str]]:
    """Paths of HDF5 files for these data: raw tables are encoded, as the model's training data were, by rank 0."""
    from mpigd.data.importers import is_raw

    if not any(is_raw(path) for path in paths):
        yield list(paths)
        return
    folder = ""
    with together(comm):
        if comm.rank == 0:
            folder = _temporary_folder()
    file = bcast_bytes(comm, str(Path(folder, "data.h5")).encode()).decode()
    try:
        with together(comm):
            if comm.rank == 0:
                _encode(paths, file, model, need_y)
        yield [file]
    except MpigdError as error:
        error.args = (str(error).replace(file, ", ".join(paths)),)  # the user knows these, not the file made of them
        raise
    finally:
        if comm.rank == 0:
            with suppress(OSError):  # somebody has cleaned up already
                Path(file).unlink(missing_ok=True)
                Path(folder).rmdir()


def _temporary_folder() -> str:
    where = located(os.environ.get("MPIGD_TMPDIR", "."))
    try:
        return tempfile.mkdtemp(prefix=".mpigd-", dir=where)
    except OSError as error:
        raise StorageError(f"{where}: no folder for encoded data can be made: {error.strerror} (MPIGD_TMPDIR)") from error


def _encode(paths: Sequence[str], output: str, model: Model, need_y: bool) -> None:
    from mpigd.data.encoding import Encoding
    from mpigd.data.importers import encode_like

    if not model.encoding:
        raise DataError(f"{paths[0]} is a raw table, but the model was not trained on imported data")
    # A dropped row would shift all predictions after it: those rows are refused here.
    policy = None if model.encoding.get("missing") != "drop" else "refuse"
    encode_like(paths, output, Encoding.from_dict(model.encoding), missing=policy, need_y=need_y)


def evaluate(model: Model, paths: Sequence[str], config: Config, comm: Comm) -> dict[str, Any]:
    """Metrics of a model on a data set. comm: also one of mpi4py's. Collective."""
    comm = enter(comm, "evaluate")
    with encoded(paths, model, comm) as files:
        layout = Layout(config.x, config.y, model.config.dtype, config.partition, links=config.allow_links)
        shard, slabs = passing(files, layout, comm)
        check_columns(shard, model.coef.shape[1], model.encoding.get("feature_names"))
        loss = LOSSES[model.config.loss]
        evaluator = Evaluator(shard, loss, loss.parameter(model.config), model_classes(model), comm)
        z = np.empty((model.coef.shape[0], shard.rows.size))
        with together(comm):
            for rows, X in slabs:
                offset = None if shard.offset is None else shard.offset[rows]
                z[:, rows] = margins(X, model.coef, model.intercept, offset)
        scores = evaluator.judge(z, float(model.summary.get("penalty", 0.0)))
    return scores | {"rows": shard.n}


def predict(model: Model, paths: Sequence[str], output: str, csv: str | None, config: Config, comm: Comm) -> int:
    """Write predictions for a data set in row order; returns the number of rows. comm: also one of mpi4py's. Collective."""
    comm = enter(comm, "predict")
    with encoded(paths, model, comm, need_y=False) as files:
        shard = load(files, Layout(config.x, config.y, model.config.dtype, "range", need_y=False, links=config.allow_links), comm)
    check_columns(shard, model.coef.shape[1], model.encoding.get("feature_names"))
    slabs = _in_order(lambda rows: _columns(model, shard, rows), shard, model, comm)
    if comm.rank == 0:
        _write(slabs, shard.n, model, output, csv)
    else:
        for _ in slabs:
            pass
    return shard.n


def _columns(model: Model, shard: Shard, rows: slice) -> Array:
    """Predictions of some rows (m, q): the label's code or the mean response, then probabilities or the margin."""
    loss = LOSSES[model.config.loss]
    offset = None if shard.offset is None else shard.offset[rows]
    z = margins(shard.X.rows(rows), model.coef, model.intercept, offset)
    output = mean_response(loss, z)
    if loss.kind == "regression":
        return output.T
    return np.column_stack([predicted_class(loss, output), output.T])


def _in_order(columns: Any, shard: Shard, model: Model, comm: Comm) -> Iterator[Array]:
    """On rank 0 the predictions of all rows, slab by slab in their order; the other ranks send theirs meanwhile."""
    classes = LOSSES[model.config.loss].kind != "regression"
    width = model.coef.shape[0] + classes
    counts = comm.allgather(np.array([shard.rows.size], dtype=np.int64))[:, 0]
    for rank, count in enumerate(counts):
        for start in range(0, int(count), SLAB):
            rows = slice(start, min(int(count), start + SLAB))
            if rank == comm.rank:
                slab = np.ascontiguousarray(columns(rows), dtype=np.float64)
                if rank:
                    comm.send(slab, 0)
                else:
                    yield slab
            elif comm.rank == 0:
                slab = np.empty((rows.stop - rows.start, width))
                comm.recv(slab, rank)
                yield slab


def _write(slabs: Iterator[Array], n: int, model: Model, output: str, csv: str | None) -> None:
    loss, labels = LOSSES[model.config.loss], model.labels()
    k = model.coef.shape[0]
    second = {"regression": "", "margin": "margin"}.get(loss.kind, "probability")
    with hdf5.create(output) as file, _table(csv) as table:
        chunk = (min(max(n, 1), SLAB),)
        stored = _stored_labels(model)
        kind = np.dtype(np.float64) if stored is None else stored.dtype
        values = file.create_dataset("prediction", (n,), kind, chunks=chunk, fletcher32=True)
        extra = None
        if second:
            shape = (n,) if k == 1 else (n, k)
            extra = file.create_dataset(second, shape, np.float64, chunks=chunk + shape[1:], fletcher32=True)
        if table:
            table.write(",".join(["prediction", *_headers(second, labels, k)]) + "\n")
        at = 0
        for slab in slabs:
            rows = slice(at, at + slab.shape[0])
            values[rows] = slab[:, 0] if stored is None else stored[slab[:, 0].astype(np.int64)]
            if extra is not None:
                extra[rows] = slab[:, 1:] if k > 1 else slab[:, 1]
            if table:
                _write_lines(table, slab, labels)
            at = rows.stop


def _stored_labels(model: Model) -> Array | None:
    """The labels (k,) as an HDF5 file holds them: the values of y, or texts of fixed length in UTF-8; None for numbers."""
    if model.classes is None:
        return None
    labels = model.labels() or []
    return hdf5.texts(labels) if any(isinstance(label, str) for label in labels) else model.classes


def _headers(second: str, labels: list[Any] | None, k: int) -> list[str]:
    if not second:
        return []
    return [second] if k == 1 else [f"{second}_{label}" for label in labels or []]


@contextmanager
def _table(path: str | None) -> Iterator[Any]:
    if path is None:
        yield None
        return
    with hdf5.atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", opener=hdf5.no_link) as table:
        yield table


def _write_lines(table: Any, slab: Array, labels: list[Any] | None) -> None:
    for row in slab:
        first = repr(float(row[0])) if labels is None else str(labels[int(row[0])])
        table.write(",".join([first, *(repr(float(value)) for value in row[1:])]) + "\n")
