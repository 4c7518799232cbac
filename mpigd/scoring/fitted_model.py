"""A trained model, its predictions for arrays, and its file."""

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
    """Coefficients for the original columns, with what is needed to use and to explain them.

    Parameters
    ----------
    coef : (k, d) float64
        Coefficients of k outputs.
    intercept : (k,) float64
        Intercepts.
    classes : (k',) float64 or None
        Distinct values of y, ascending, for losses with classes.
    config
        The options of the run.
    encoding
        How columns and target of raw tables become numbers; {} if they were numbers.
    summary
        The numbers of the run (objective, gradient_norm, gap, reads, steps, epochs, stop_reason,
        ...).
    history
        A record for each epoch or validation.
    statistics
        Standard errors and so on (mpigd/model/inference.py); under `refused`, why there are none.
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
        """The sha256 digest of the bits of coefficients and intercepts."""
        return digest({"coef": self.coef, "intercept": self.intercept})

    def labels(self) -> list[Any] | None:
        """Return the labels that users see: stored names, or else the values themselves."""
        if self.classes is None:
            return None
        names = (self.encoding.get("target") or {}).get("classes")
        if names is not None:
            return [names[int(value)] for value in self.classes]
        return [int(value) if value == int(value) else float(value) for value in self.classes]

    def predict(self, X: Any, offset: Array | None = None) -> Array:
        """Return predicted labels, or for regression mean responses, (m,).

        Parameters
        ----------
        X : numpy array or scipy.sparse matrix (m, d)
            The rows, with the model's d columns.
        offset : (m,) float64 or None
            Added to the linear predictor.
        """
        output = self._response(X, offset)
        if self.classes is None:
            return np.asarray(output[0])
        codes = predicted_class(LOSSES[self.config.loss], output)
        labels: Array = np.asarray(self.labels())
        return np.asarray(labels[codes])

    def predict_proba(self, X: Any, offset: Array | None = None) -> Array:
        """Return class probabilities (m, k) float64; k = 2 for the logistic loss.

        Parameters
        ----------
        X : numpy array or scipy.sparse matrix (m, d)
            The rows, with the model's d columns.
        offset : (m,) float64 or None
            Added to the linear predictor.

        Raises
        ------
        UsageError
            If the loss has no probabilities.
        """
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
        """Write the model to a file, which appears under `path` only when it is complete.

        Raises StorageError if it cannot be written.
        """
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
            "config": to_dict(self.config),
            "encoding": self.encoding,
            "summary": self.summary,
            "history": self.history,
            "statistics": self.statistics,
        }


def load(path: str) -> Model:
    """Read a model file.

    Raises
    ------
    DataError
        If it is not a model file, or is damaged.
    """
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
    """Return the sha256 over named arrays, in the order of their names.

    It covers names, types, shapes and bytes.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.data)
    return total.hexdigest()
