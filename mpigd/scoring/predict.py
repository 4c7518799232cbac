"""Evaluate a model on distributed rows, and write predictions in row order.

The order of the predictions does not depend on which rank holds which rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpigd.config.schema import Config
from mpigd.data.column_names import check_columns, tell
from mpigd.data.loading import Layout, load, passing
from mpigd.data.row_labels import Beside, beside, named
from mpigd.data.shard import Shard
from mpigd.errors import DataError, MpigdError, StorageError, UsageError
from mpigd.model.losses import LOSSES, Loss
from mpigd.model.targets import (
    Classes,
    as_trained,
    check_codes,
    check_domain,
    check_numeric,
    check_weights,
)
from mpigd.parallel.comm import Comm, bcast_bytes, together
from mpigd.parallel.session import enter
from mpigd.parallel.working_directory import located
from mpigd.reduction.base import total
from mpigd.scoring.fitted_model import Model
from mpigd.scoring.metrics import score
from mpigd.scoring.prediction_files import Form, Slab, Targets, writing
from mpigd.scoring.response import margins, mean_response, predicted_class

if TYPE_CHECKING:  # at run time this would import modules that training does not need
    from mpigd.tables.policies import Policies

Array = np.ndarray[Any, Any]
Note = Callable[[str], None]
SLAB = 1 << 16  # rows that are scored, or sent to the writing rank, at once


def silent(text: str) -> None:
    """Ignore a note."""


class Evaluator:
    """Score coefficients on this rank's rows of a data set."""

    def __init__(
        self, shard: Shard, loss: Loss, parameter: float, classes: Classes | None, comm: Comm
    ) -> None:
        assert shard.y is not None
        check_numeric(shard.name, shard.encoding, loss)
        check_domain(shard, loss, comm)
        self._y = classes.codes(as_trained(shard, classes, comm)) if classes else shard.y
        if classes:
            check_codes(self._y, shard, classes, comm)
        self._c = np.ones(shard.y.size) if shard.c is None else shard.c
        if shard.c is not None:
            check_weights(shard.c, self._y, shard, None, comm)
        self._shard, self._loss, self._parameter, self._classes, self._comm = (
            shard,
            loss,
            parameter,
            classes,
            comm,
        )

    def scores(self, coef: Array, intercept: Array, penalty: float = 0.0) -> dict[str, Any]:
        """Return metrics by name, and `objective`, the weighted mean loss plus penalty. Collective.

        Parameters
        ----------
        coef : (k, d) float64
            Coefficients of the original columns.
        intercept : (k,) float64
        penalty
            The penalty's value at these coefficients.
        """
        return self.judge(margins(self._shard.X, coef, intercept, self._shard.offset), penalty)

    def judge(self, z: Array, penalty: float = 0.0) -> dict[str, Any]:
        """Return `scores` from margins. Collective.

        Parameters
        ----------
        z : (k, m) float64
            Margins of this rank's rows; they are overwritten.
        penalty
            The penalty's value.
        """
        l = self._respond(z)
        # For generalised linear models the loss is the half deviance. Hinge, Huber and quantile
        # losses have no deviance.
        deviance = (
            l if self._loss.name in ("squared", "logistic", "softmax", "poisson", "gamma") else None
        )
        labels = self._classes.labels() if self._classes else None
        result: dict[str, Any] = score(
            self._loss.kind,
            self._y,
            z.T if self._loss.kind == "multiclass" else z[0],
            self._c,
            self._comm,
            loss_values=deviance,
            classes=labels,
        )
        losses, weight = total(np.column_stack([self._c * l, self._c]), self._comm)
        return result | {
            "objective": float(losses / weight) + penalty if weight > 0 else float("nan")
        }

    def _respond(self, z: Array) -> Array:
        """Return losses (m,) for margins z (k, m), and replace z by the mean responses.

        This is done in place and in slabs to save memory.
        """
        l = np.empty(z.shape[1])
        for start in range(0, l.size, SLAB):
            rows = slice(start, start + SLAB)
            part = np.ascontiguousarray(z[:, rows])
            self._loss.kernel(
                part,
                self._y[rows],
                np.ones(part.shape[1]),
                self._parameter,
                np.empty_like(part),
                l[rows],
            )
            z[:, rows] = mean_response(self._loss, part)
        return l


def model_classes(model: Model) -> Classes | None:
    """Return the classes of a model with the names that its encoding has; None for regression."""
    if model.classes is None:
        return None
    names = (model.encoding.get("target") or {}).get("classes")
    return Classes(model.classes, tuple(names) if names else None)


@contextmanager
def encoded(
    paths: Sequence[str],
    model: Model,
    comm: Comm,
    policies: Policies,
    note: Note = silent,
    allow_duplicates: bool = False,
) -> Iterator[list[str]]:
    """Yield paths of HDF5 files for these data; raw tables are encoded first. Collective.

    Rank 0 encodes raw tables as the model's training data were, into a temporary file.

    Parameters
    ----------
    paths
        Files of the data: raw tables (CSV, Parquet) or HDF5.
    model
        The model, whose encoding is used.
    comm
        The communicator of these ranks.
    policies
        What happens to rows that do not fit.
    note
        Called with messages for the user.
    allow_duplicates
        Whether a file may be given twice.
    """
    if not _any_raw(paths, comm):
        if policies.given():
            raise UsageError(
                f"{policies.given()}: for raw tables (CSV, Parquet); {paths[0]} has been imported"
            )
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
                _encode(paths, file, model, policies, note, allow_duplicates)
        yield [file]
    except MpigdError as error:
        # The user has named these paths, not the temporary file made from them.
        error.args = (str(error).replace(file, ", ".join(paths)),)
        raise
    finally:
        if comm.rank == 0:
            with suppress(OSError):  # the files may have been removed already
                Path(file).unlink(missing_ok=True)
                Path(folder).rmdir()


def _any_raw(paths: Sequence[str], comm: Comm) -> bool:
    """Return whether raw tables are among these paths, as rank 0 sees it. Collective.

    What a folder holds may look different on another host.
    """
    from mpigd.tables.importer import is_raw

    found = np.zeros(1, dtype=np.int64)
    with together(comm):
        if comm.rank == 0:
            found[0] = any(is_raw(path) for path in paths)
    comm.bcast(found)
    return bool(found[0])


def _temporary_folder() -> str:
    where = located(os.environ.get("MPIGD_TMPDIR", "."))
    try:
        return tempfile.mkdtemp(prefix=".mpigd-", dir=where)
    except OSError as error:
        raise StorageError(
            f"{where}: no folder for encoded data can be made: {error.strerror} (MPIGD_TMPDIR)"
        ) from error


def _policies(command: str) -> Policies:
    """Return the default policies for a command."""
    from mpigd.tables.policies import Policies

    return Policies(command=command)


def _encode(
    paths: Sequence[str],
    output: str,
    model: Model,
    policies: Policies,
    note: Note,
    allow_duplicates: bool,
) -> None:
    from mpigd.tables.encoding import Encoding
    from mpigd.tables.importer import encode_like

    if not model.encoding.get("format"):  # the encoding has the names of the classes alone
        raise DataError(
            f"{paths[0]} is a raw table, but the model was not trained on imported data"
        )
    encoding, need_y = Encoding.from_dict(model.encoding), policies.command == "evaluate"
    done = encode_like(
        paths, output, encoding, policies, need_y=need_y, allow_duplicates=allow_duplicates
    )
    for text in done.notes:
        note(text)
    if done.dropped:
        note(f"{done.dropped:,} rows with missing values were left out (--missing drop)")


def _layout(model: Model, config: Config, partition: str, need_y: bool = True) -> Layout:
    links, unwritten, duplicates = (
        config.allow_links,
        config.allow_unwritten,
        config.allow_duplicates,
    )
    return Layout(
        config.x,
        config.y,
        model.config.dtype,
        partition,
        need_y,
        links=links,
        unwritten=unwritten,
        duplicates=duplicates,
    )


def evaluate(
    model: Model,
    paths: Sequence[str],
    config: Config,
    comm: Comm,
    policies: Policies | None = None,
    note: Note = silent,
) -> dict[str, Any]:
    """Return the metrics of a model on a data set. Collective.

    Parameters
    ----------
    model
        The model.
    paths
        Files of the data.
    config
        Options of the run.
    comm
        The communicator of these ranks, mpigd's or mpi4py's.
    policies
        What happens to rows of raw tables that do not fit; by default that of the command.
    note
        Called with messages for the user.

    Returns
    -------
    scores
        The metrics by name, `objective`, and `rows`, the number of rows.
    """
    comm = enter(comm, "evaluate")
    policies = policies or _policies("evaluate")
    with encoded(paths, model, comm, policies, note, config.allow_duplicates) as files:
        layout = _layout(model, config, config.partition)
        shard, slabs = passing(files, layout, comm)
        shard = named(shard, comm) if files != list(paths) else shard
        tell(
            check_columns(shard, model.coef.shape[1], model.encoding.get("feature_names")),
            note,
            comm,
        )
        loss = LOSSES[model.config.loss]
        evaluator = Evaluator(shard, loss, loss.parameter(model.config), model_classes(model), comm)
        z = np.empty((model.coef.shape[0], shard.rows.size))
        with together(comm):
            for rows, X in slabs:
                offset = None if shard.offset is None else shard.offset[rows]
                z[:, rows] = margins(X, model.coef, model.intercept, offset)
        scores = evaluator.judge(z, float(model.summary.get("penalty", 0.0)))
    return scores | {"rows": shard.n}


def predict(
    model: Model,
    paths: Sequence[str],
    targets: Targets,
    config: Config,
    comm: Comm,
    with_source: bool = False,
    note: Note = silent,
    models: Sequence[str] = (),
    policies: Policies | None = None,
) -> int:
    """Write predictions for a data set in row order, and return the number of rows. Collective.

    Ids that the data have are written too. The file and the row (from 0) from which each prediction
    comes are written if `with_source` is true, or if rows were left out, which `policies` may
    demand for rows of raw tables that do not fit.

    Parameters
    ----------
    model
        The model.
    paths
        Files of the data.
    targets
        The files to write.
    config
        Options of the run.
    comm
        The communicator of these ranks, mpigd's or mpi4py's.
    with_source
        Whether to write file and row.
    note
        Called with messages for the user.
    models
        Files that must not be replaced, beside those of the data.
    policies
        What happens to rows of raw tables that do not fit; by default that of the command.
    """
    comm = enter(comm, "predict")
    with together(comm):
        if comm.rank == 0:
            targets.check([*paths, *models])
    policies = policies or _policies("predict")
    with encoded(paths, model, comm, policies, note, config.allow_duplicates) as files:
        shard = load(files, _layout(model, config, "range", need_y=False), comm)
        tell(
            check_columns(shard, model.coef.shape[1], model.encoding.get("feature_names")),
            note,
            comm,
        )
        found = beside(shard, config.allow_links, comm)
        slabs = _in_order(lambda rows: _columns(model, shard, rows), shard, model, comm)
        if found is not None:
            if found.note:
                note(found.note)
            names = found.names if with_source or found.skipped else None
            _write(slabs, Form.of(model, shard.n, found.ids, names), found, targets, note)
        else:
            for _ in slabs:
                pass
    return shard.n


def _write(slabs: Iterator[Array], form: Form, found: Beside, targets: Targets, note: Note) -> None:
    """Write the predictions with their ids, files and rows."""
    wild, first = 0, ""
    with found.reading() as take, writing(targets, form) as sinks:
        for values in _even(slabs):
            ids, files, rows = take(values.shape[0])
            slab = Slab(values, ids, files, rows) if form.files is not None else Slab(values, ids)
            for sink in sinks:
                sink.append(slab)
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                at = int(finite.argmin())
                first = first or f"{found.names[files[at]]} row {rows[at]}"
                wild += int(np.count_nonzero(~finite))
    if wild:
        note(
            f"predictions of {wild:,} rows are not finite (first: {first}): their numbers are "
            "far outside the training data's"
        )


def _even(slabs: Iterator[Array]) -> Iterator[Array]:
    """Regroup the rows into slabs of SLAB rows, except for the last.

    Row groups and chunks of the files then do not depend on the number of ranks.
    """
    waiting: list[Array] = []
    held = 0
    for slab in slabs:
        waiting.append(slab)
        held += slab.shape[0]
        if held >= SLAB:
            rows = np.concatenate(waiting)
            whole = held // SLAB * SLAB
            yield from np.split(rows[:whole], held // SLAB)
            waiting, held = [rows[whole:]], held - whole
    if held:
        yield np.concatenate(waiting)


def _columns(model: Model, shard: Shard, rows: slice) -> Array:
    """Return predictions of some rows (m, q).

    The columns are the label's code, then probabilities or the margin; for regression, the mean
    response.
    """
    loss = LOSSES[model.config.loss]
    offset = None if shard.offset is None else shard.offset[rows]
    z = margins(shard.X.rows(rows), model.coef, model.intercept, offset)
    output = mean_response(loss, z)
    if loss.kind == "regression":
        return output.T
    return np.column_stack([predicted_class(loss, output), output.T])


def _in_order(columns: Any, shard: Shard, model: Model, comm: Comm) -> Iterator[Array]:
    """Yield the predictions of all rows in order, in slabs, on rank 0.

    The other ranks yield nothing and send theirs to rank 0.
    """
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
