"""Files of predictions, in HDF5, CSV and Parquet.

All three have the same columns and the same numbers. They are written in slabs of rows, in row
order.
"""

from __future__ import annotations

import csv
import glob
import importlib.util
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpigd.errors import UsageError
from mpigd.model.losses import LOSSES
from mpigd.scoring.fitted_model import Model
from mpigd.storage import hdf5

Array = np.ndarray[Any, Any]
# The column beside the label, by kind of loss; for all other kinds it is the probability.
SECOND = {"regression": "", "margin": "margin"}
SLAB = 1 << 16  # rows of a chunk


@dataclass(frozen=True)
class Targets:
    """The files to write: an HDF5 file, and a CSV and a Parquet file or None."""

    hdf5: str
    csv: str | None = None
    parquet: str | None = None

    def check(self, read: Sequence[str]) -> None:
        """Check that the files can be written and replace nothing that is read. Not collective.

        Rank 0, which writes them, calls this.

        Parameters
        ----------
        read
            Paths, globs or folders of the files that are read.

        Raises
        ------
        UsageError
            If a file would replace another one of them, or one that is read, or pyarrow, which
            writes Parquet, is not installed.
        StorageError
            If a file cannot be written.
        """
        if self.parquet is not None and importlib.util.find_spec("pyarrow") is None:
            raise UsageError("--parquet needs pyarrow: pip install pyarrow")
        named = [("-o", self.hdf5), ("--csv", self.csv), ("--parquet", self.parquet)]
        seen: dict[str, str] = {}
        for option, path in named:
            if path is None:
                continue
            hdf5.check_target(path)
            real = os.path.realpath(path)
            if real in seen:
                raise UsageError(f"{option} {path} is the file of {seen[real]} as well")
            seen[real] = option
            if os.path.exists(path) and any(_is_of(path, other) for other in read):
                raise UsageError(f"{option} {path} would replace a file that is read")
        suffix = os.path.splitext(self.hdf5)[1].lower()
        if suffix in (".csv", ".parquet"):
            raise UsageError(
                f"-o {self.hdf5} would be an HDF5 file: use --{suffix[1:]} {shlex.quote(self.hdf5)}"
            )


def _is_of(path: str, data: str) -> bool:
    """Return whether an existing file is one of those that a path, a glob or a folder names."""
    if os.path.isdir(data):
        return os.path.commonpath(
            [os.path.realpath(data), os.path.realpath(path)]
        ) == os.path.realpath(data)
    found = [data] if os.path.exists(data) else glob.glob(data)
    return any(os.path.samefile(path, hit) for hit in found)


def targets_of(output: str, csv: str | None, parquet: str | None) -> Targets:
    """Return the targets that the command line gives.

    Parameters
    ----------
    output
        Path of the HDF5 file.
    csv, parquet
        Paths, or None for no such file; "" stands for the name of the HDF5 file with another
        ending.
    """
    stem = os.path.splitext(output)[0]
    return Targets(
        output, f"{stem}.csv" if csv == "" else csv, f"{stem}.parquet" if parquet == "" else parquet
    )


class Slab(NamedTuple):
    """Some rows of predictions.

    Parameters
    ----------
    values : (m, q) float64
        The label's code and then probabilities or the margin; for regression, the mean response.
    ids : (m,) or None
        Ids of the rows.
    files : (m,) or None
        Positions of the rows' files.
    rows : (m,) or None
        Row numbers in these files.
    """

    values: Array
    ids: Array | None = None
    files: Array | None = None
    rows: Array | None = None


@dataclass(frozen=True)
class Form:
    """The columns that a model's predictions have.

    Parameters
    ----------
    n
        The number of rows.
    labels
        The labels as CSV and Parquet have them; None for regression.
    stored : (k,) or None
        The labels as HDF5 has them.
    second
        Name of the columns after the label, "" if there are none.
    k
        The number of outputs.
    ids
        Dtype of the ids, or None.
    files
        Names of the files that rows come from, or None.
    """

    n: int
    labels: list[Any] | None
    stored: Array | None
    second: str
    k: int
    ids: np.dtype[Any] | None = None
    files: tuple[str, ...] | None = None

    @staticmethod
    def of(
        model: Model, n: int, ids: np.dtype[Any] | None = None, files: tuple[str, ...] | None = None
    ) -> Form:
        """Return the form of n rows of predictions.

        Parameters
        ----------
        model
            The model.
        n
            The number of rows over all ranks.
        ids
            Dtype of the rows' ids, or None.
        files
            Names of the files that rows come from, or None.
        """
        second = SECOND.get(LOSSES[model.config.loss].kind, "probability")
        return Form(
            n, model.labels(), _stored_labels(model), second, model.coef.shape[0], ids, files
        )

    @property
    def beside(self) -> list[str]:
        """Names of the columns before the predictions."""
        return ["id"] * (self.ids is not None) + ["file", "row"] * (self.files is not None)

    def names(self) -> list[str]:
        """Return the names of the columns of CSV and Parquet."""
        found = [*self.beside, "prediction"]
        if self.second:
            found += (
                [self.second]
                if self.k == 1
                else [f"{self.second}_{label}" for label in self.labels or []]
            )
        return found


def _stored_labels(model: Model) -> Array | None:
    """Return the labels (k,) as an HDF5 file holds them; None for regression.

    They are the values of y, or texts of fixed length in UTF-8.
    """
    if model.classes is None:
        return None
    labels = model.labels() or []
    return hdf5.texts(labels) if any(isinstance(label, str) for label in labels) else model.classes


class Sink(Protocol):
    """A file to which slabs are appended."""

    def append(self, slab: Slab) -> None: ...


@contextmanager
def writing(targets: Targets, form: Form) -> Iterator[list[Sink]]:
    """Open the files, and yield a sink for each.

    They appear under their names when the body ends without an error.

    Parameters
    ----------
    targets
        The paths.
    form
        The columns of the predictions.
    """
    with ExitStack() as opened:
        sinks: list[Sink] = [opened.enter_context(_hdf5(targets.hdf5, form))]
        if targets.csv is not None:
            sinks.append(opened.enter_context(_csv(targets.csv, form)))
        if targets.parquet is not None:
            sinks.append(opened.enter_context(_parquet(targets.parquet, form)))
        yield sinks


@contextmanager
def _hdf5(path: str, form: Form) -> Iterator[Sink]:
    with hdf5.create(path) as file:
        yield Datasets(file, form)


class Datasets:
    """Predictions in HDF5.

    The datasets are `prediction` (n,), `probability` or `margin` (n,) or (n, k), and `id`, `file`
    and `row` (n,).
    """

    def __init__(self, file: Any, form: Form) -> None:
        self._file, self._form, self._at = file, form, 0
        self._names = None if form.files is None else hdf5.texts(form.files)
        self._make("prediction", np.dtype(np.float64) if form.stored is None else form.stored.dtype)
        if form.second:
            self._make(form.second, np.dtype(np.float64), () if form.k == 1 else (form.k,))
        if form.ids is not None:
            self._make(
                "id", hdf5.text_type(form.ids.itemsize) if form.ids.kind == "S" else form.ids
            )
        if self._names is not None:
            # Long runs of rows have the same file name, so it compresses well.
            self._make("file", self._names.dtype, compression="gzip")
            self._make("row", np.dtype(np.int64))

    def _make(
        self, name: str, kind: np.dtype[Any], inner: tuple[int, ...] = (), **more: Any
    ) -> None:
        chunk = (min(max(self._form.n, 1), SLAB), *inner)
        self._file.create_dataset(
            name, (self._form.n, *inner), kind, chunks=chunk, fletcher32=True, **more
        )

    def append(self, slab: Slab) -> None:
        form, file = self._form, self._file
        rows = slice(self._at, self._at + slab.values.shape[0])
        first = slab.values[:, 0]
        file["prediction"][rows] = (
            first if form.stored is None else form.stored[first.astype(np.int64)]
        )
        if form.second:
            file[form.second][rows] = slab.values[:, 1:] if form.k > 1 else slab.values[:, 1]
        if slab.ids is not None:
            file["id"][rows] = (
                slab.ids
                if slab.ids.dtype.kind != "S"
                else slab.ids.astype(hdf5.text_type(slab.ids.itemsize))
            )
        if self._names is not None and slab.files is not None:
            file["file"][rows], file["row"][rows] = self._names[slab.files], slab.rows
        self._at = rows.stop


@contextmanager
def _csv(path: str, form: Form) -> Iterator[Sink]:
    with (
        hdf5.atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="", opener=hdf5.no_link) as table,
    ):
        yield Lines(table, form)


class _Endings:
    """A file that ends lines with a line feed, although the csv module writes both characters.

    The csv module therefore quotes fields that contain either of them.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line[:-2] + "\n")


class Lines:
    """Predictions in CSV as in RFC 4180, except that lines end with a line feed.

    Quotes are written only if they are needed; floats are written as repr.
    """

    def __init__(self, file: Any, form: Form) -> None:
        self._form = form
        self._lines = csv.writer(_Endings(file), lineterminator="\r\n")
        self._lines.writerow(form.names())

    def append(self, slab: Slab) -> None:
        form = self._form
        columns: list[list[Any]] = []
        if slab.ids is not None:
            columns.append(_plain(slab.ids))
        if form.files is not None and slab.files is not None and slab.rows is not None:
            columns += [[form.files[file] for file in slab.files.tolist()], slab.rows.tolist()]
        first, *rest = slab.values.T.tolist()
        columns.append(first if form.labels is None else [form.labels[int(code)] for code in first])
        self._lines.writerows(zip(*columns, *rest, strict=True))


def _plain(ids: Array) -> list[Any]:
    return [text.decode() for text in ids.tolist()] if ids.dtype.kind == "S" else ids.tolist()


@contextmanager
def _parquet(path: str, form: Form) -> Iterator[Sink]:
    import pyarrow.parquet as pq

    with hdf5.atomic_path(path) as temporary:
        columns = Arrow(form)
        handle = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "wb") as file, pq.ParquetWriter(file, columns.schema) as writer:
            columns.writer = writer
            yield columns


class Arrow:
    """Predictions in Parquet, one row group a slab.

    Labels and file names are dictionaries of strings.
    """

    writer: Any = None

    def __init__(self, form: Form) -> None:
        import pyarrow as pa

        self._form = form
        texts = pa.dictionary(pa.int32(), pa.string())
        kinds = []
        if form.ids is not None:
            kinds.append(pa.string() if form.ids.kind == "S" else pa.from_numpy_dtype(form.ids))
        if form.files is not None:
            kinds += [texts, pa.int64()]
        self._labels = None if form.labels is None else pa.array(form.labels)
        label = None if self._labels is None else self._labels.type
        kinds.append(
            pa.float64() if label is None else texts if pa.types.is_string(label) else label
        )
        kinds += [pa.float64()] * (len(form.names()) - len(kinds))
        self.schema = pa.schema(list(zip(form.names(), kinds, strict=True)))

    def append(self, slab: Slab) -> None:
        import pyarrow as pa

        columns: list[Any] = []
        if slab.ids is not None:
            columns.append(pa.array(_plain(slab.ids), self.schema.field("id").type))
        if self._form.files is not None:
            columns += [
                pa.DictionaryArray.from_arrays(slab.files, pa.array(self._form.files)),
                pa.array(slab.rows),
            ]
        first = np.ascontiguousarray(slab.values[:, 0])
        if self._labels is None:
            columns.append(pa.array(first))
        elif pa.types.is_string(self._labels.type):
            columns.append(pa.DictionaryArray.from_arrays(first.astype(np.int32), self._labels))
        else:
            columns.append(self._labels.take(pa.array(first.astype(np.int64))))
        columns += [pa.array(np.ascontiguousarray(column)) for column in slab.values.T[1:]]
        self.writer.write_batch(
            pa.record_batch(columns, schema=self.schema), row_group_size=max(1, len(first))
        )
