"""Checkpoints: everything a run needs to go on with the same bits, in one HDF5 file that is whole or absent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpigd.comm import Comm, bcast_bytes, together
from mpigd.config import FIELDS, Config, from_dict, to_dict
from mpigd.data import hdf5
from mpigd.errors import DataError, StorageError, UsageError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
FORMAT = "mpigd checkpoint 1"
NAME = re.compile(r"step-(\d{12})\.h5")
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A position in a run. `step`: the next one to take; `parts`: named arrays of each part that has a state.

    `notes`: JSON values (history, the reason if the run had come to its end, the data's fingerprints).
    """

    step: int
    w: Array
    parts: dict[str, Arrays]
    config: Config
    notes: dict[str, Any]

    def save(self, folder: str) -> str:
        """Write to `folder`, then remove all but the newest. Raises StorageError; older files stay whole then."""
        path = Path(folder) / f"step-{self.step:012d}.h5"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error
        with hdf5.create(path) as file:
            hdf5.write_text(file, "format", FORMAT)
            file.attrs["step"] = self.step
            hdf5.write_array(file, "w", self.w)
            for part, arrays in self.parts.items():
                group = file.create_group(part)
                for name, array in arrays.items():
                    hdf5.write_array(group, name, array)
            hdf5.write_json(file, "config", to_dict(self.config))
            hdf5.write_json(file, "notes", self.notes)
            hdf5.seal(file)
        for old in found(folder)[KEPT:]:
            old.unlink(missing_ok=True)
        return str(path)


def found(folder: str) -> list[Path]:
    """Checkpoint files in a folder, newest first."""
    try:
        names = [name for name in os.listdir(folder) if NAME.fullmatch(name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    return [Path(folder) / name for name in sorted(names, reverse=True)]


def read(path: str | Path) -> Checkpoint:
    """Read one file. Raises DataError if it is no checkpoint, or damaged."""
    with hdf5.open_read(path) as file:
        if hdf5.read_text(file, "format") != FORMAT:
            raise DataError(f"{path}: not a checkpoint of mpigd")
        hdf5.verify(file)
        parts = {
            part: {name: group[name][...] for name in group} for part, group in file.items() if isinstance(group, h5py.Group)
        }
        return Checkpoint(
            step=int(file.attrs["step"]),
            w=hdf5.dataset(file, "w")[...],
            parts=parts,
            config=from_dict(hdf5.read_json(file, "config")),
            notes=hdf5.read_json(file, "notes"),
        )


def resume(config: Config, fingerprint: str, comm: Comm, say: Callable[[str], None], validation: str = "") -> Checkpoint | None:
    """The checkpoint to go on from, the same on every rank, or None to begin. Collective.

    fingerprint, validation: of the data to train on and to score. With --resume auto damaged files are passed over with a
    message, the newest whole one is taken. Raises UsageError if that belongs to other data or to another configuration.
    """
    if config.resume == "never" or (config.resume == "auto" and config.checkpoint is None):
        return None
    path = b""
    with together(comm):
        if comm.rank == 0:
            path = _newest(config, say).encode()
    path = bcast_bytes(comm, path)
    if not path:
        return None
    with together(comm):
        checkpoint = read(path.decode())
        _same_run(checkpoint, config, fingerprint, validation, path.decode())
    return checkpoint


def _newest(config: Config, say: Callable[[str], None]) -> str:
    if config.resume != "auto":
        read(config.resume)
        return config.resume
    for path in found(config.checkpoint or ""):
        try:
            read(path)
            return str(path)
        except DataError as error:
            say(f"{error}; trying the one before")
    return ""


def _same_run(checkpoint: Checkpoint, config: Config, fingerprint: str, validation: str, path: str) -> None:
    """UsageError unless data and every option that must stay are those of the checkpoint."""
    if checkpoint.notes["fingerprint"] != fingerprint:
        raise UsageError(f"{path} was made from other data: use another --checkpoint folder, or --resume never")
    if checkpoint.notes["validation"] != validation:
        raise UsageError(f"{path} was made with other --validation data: they may not change on the way")
    for name, field in FIELDS.items():
        before, now = getattr(checkpoint.config, name), getattr(config, name)
        if field.metadata["fixed"] and before != now:
            option = name.replace("_", "-")
            raise UsageError(f"{path} was made with --{option} {before}, not {now}: that may not change on the way")
