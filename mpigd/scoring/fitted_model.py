"""A trained model and its file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpigd.config.schema import Config, from_dict, to_dict
from mpigd.data.in_memory import matrix_of
from mpigd.errors import DataError, UsageError
from mpigd.model.losses import LOSSES
from mpigd.parallel import kernel_cache
from mpigd.scoring.response import margins, mean_response, predicted_class
from mpigd.storage import hdf5

Array = np.ndarray[Any, Any]
FORMAT = "mpigd model 1"


@dataclass(frozen=True)
class Model:
    """Coefficients for the original columns, (k, d) and (k,), with what is needed to use and to explain them.

    classes (k' ,): distinct values of y, ascending, for losses with classes, else None. summary: the numbers of the run
    (objective, gradient_norm, gap, reads, steps, epochs, stop_reason, ...). history: a record per epoch or validation.
    statistics: standard errors and so on (mpigd/model/inference.py), or under `refused` why there are none.
    """

    coef: Array
    intercept: Array
    classes: Array | None
    config: Config
    encoding: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 over the bits of coefficients and intercepts."""
        return digest({"coef": self.coef, "intercept": self.intercept})

    def labels(self) -> list[Any] | None:
        """What people call the classes: stored names, else the values themselves."""
        if self.classes is None:
            return None
        names = (self.encoding.get("target") or {}).get("classes")
        if names is not None:
            return [names[int(value)] for value in self.classes]
        return [int(value) if value == int(value) else float(value) for value in self.classes]

    def predict(self, X: Any, offset: Array | None = None) -> Array:
        """Labels, or mean responses, (m,) for X (m, d), a numpy array or scipy.sparse matrix."""
        output = self._response(X, offset)
        if self.classes is None:
            return np.asarray(output[0])
        codes = predicted_class(LOSSES[self.config.loss], output)
        labels: Array = np.asarray(self.labels())
        return np.asarray(labels[codes])

    def predict_proba(self, X: Any, offset: Array | None = None) -> Array:
        """Class probabilities (m, k), k = 2 for the logistic loss. UsageError for losses without any."""
        if self.config.loss not in ("logistic", "softmax"):
            raise UsageError(f"the {self.config.loss} loss has no probabilities")
        output = self._response(X, offset)
        return (
            output.T
            if self.config.loss == "softmax"
            else np.column_stack([1.0 - output[0], output[0]])
        )

    def _response(self, X: Any, offset: Array | None) -> Array:
        kernel_cache.check()
        matrix = matrix_of(X)
        if matrix.d != self.coef.shape[1]:
            raise DataError(
                f"X has {matrix.d} columns, but the model was trained on {self.coef.shape[1]}"
            )
        return mean_response(
            LOSSES[self.config.loss], margins(matrix, self.coef, self.intercept, offset)
        )

    def save(self, path: str) -> None:
        """Write the model; it appears under `path` when it is whole. StorageError if that cannot be."""
        k = self.coef.shape[0]
        with hdf5.create(path) as file:
            hdf5.write_text(file, "format", FORMAT)
            hdf5.write_array(file, "coef", self.coef[0] if k == 1 else self.coef)
            hdf5.write_array(file, "intercept", self.intercept)
            if self.classes is not None:
                hdf5.write_array(file, "classes", self.classes)
            for name, value in self._texts().items():
                hdf5.write_json(file, name, value)
            hdf5.seal(file)

    def _texts(self) -> dict[str, Any]:
        return {
            "config": to_dict(self.config), "encoding": self.encoding, "summary": self.summary, "history": self.history,
            "statistics": self.statistics,
        }  # fmt: skip


def load(path: str) -> Model:
    """Read a model file. Raises DataError if it is none, or damaged."""
    with hdf5.open_read(path) as file:
        if hdf5.read_text(file, "format") != FORMAT:
            raise DataError(f"{path}: not a model of mpigd")
        hdf5.verify(file)
        return _read(file)


def _read(file: hdf5.Group) -> Model:
    coef = np.atleast_2d(hdf5.dataset(file, "coef")[...])
    return Model(
        coef=np.ascontiguousarray(coef),
        intercept=hdf5.dataset(file, "intercept")[...],
        classes=hdf5.dataset(file, "classes")[...] if "classes" in file else None,
        config=from_dict(hdf5.read_json(file, "config")),
        encoding=hdf5.read_json(file, "encoding"),
        summary=hdf5.read_json(file, "summary"),
        history=hdf5.read_json(file, "history", list),
        statistics=hdf5.read_json(file, "statistics") if "statistics" in file else {},
    )


def digest(arrays: Mapping[str, Array]) -> str:
    """sha256 over named arrays: names, types, shapes and bytes, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.data)
    return total.hexdigest()
