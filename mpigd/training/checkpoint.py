"""Write and read checkpoints: one HDF5 file with all a run needs to continue with the same bits.

A checkpoint file is either complete or absent: it is written under a temporary name, read back,
and then renamed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpigd.config.schema import FIELDS, Config, from_dict, to_dict
from mpigd.errors import DataError, StorageError, UsageError
from mpigd.parallel.comm import Comm, bcast_bytes, together
from mpigd.parallel.working_directory import located
from mpigd.storage import hdf5

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
# Name and version of the file format.
FORMAT = "mpigd checkpoint 2"
# Names of checkpoint files; they sort by step.
NAME = re.compile(r"step-(\d{12})\.h5")
# The file in a checkpoint folder that a job holds locked. It also records `Comm.epoch`, the
# number of times that the job has continued after rank failures.
CLAIM = "claim"
# Temporary names of files that are being written.
LEFT = re.compile(r"\.step-\d{12}\.h5\..*\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """A position in a run.

    Parameters
    ----------
    step : int
        Number of the next step to take.
    w : array (k * p,) of float64
        Parameters.
    parts : dict
        Named arrays of each part of the run that has a state.
    config : Config
        Options of the run.
    notes : dict
        JSON values: the history, the reason if the run has come to its end, and the fingerprints of
        the data.
    """

    step: int
    w: Array
    parts: dict[str, Arrays]
    config: Config
    notes: dict[str, Any]

    def copy(self) -> Checkpoint:
        """Return a copy that stays unchanged while it is being written."""
        parts = {
            part: {name: array.copy() for name, array in arrays.items()}
            for part, arrays in self.parts.items()
        }
        return replace(
            self,
            w=self.w.copy(),
            parts=parts,
            notes=self.notes | {"history": list(self.notes["history"])},
        )

    def save(self, folder: str, epoch: int | None = None) -> str:
        """Write the checkpoint to `folder` and read it back.

        Parameters
        ----------
        folder : str
            Where checkpoints are saved; made if need be.
        epoch : int or None
            `Comm.epoch` if the other ranks may go on without this rank, else None.

        Returns
        -------
        str
            The path of the file.

        Raises
        ------
        StorageError
            If the file cannot be written; earlier checkpoints stay intact.
        """
        path = Path(located(folder)) / f"step-{self.step:012d}.h5"
        try:
            Path(os.path.realpath(path.parent)).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error

        def whole(temporary: str) -> None:
            _read_back(temporary, path)
            if epoch is not None:
                fence(folder, epoch)

        with hdf5.create(path, whole) as file:
            self._fill(file)
        return str(path)

    def _fill(self, file: h5py.File) -> None:
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


def _read_back(temporary: str, path: Path) -> None:
    """Raise StorageError unless the disk holds what was written. OSError may be raised too."""
    hdf5.fsync(temporary)
    if hasattr(os, "posix_fadvise"):
        # Drop the cached pages, so that the file is read from the disk if the system supports
        # that.
        with open(temporary, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        with hdf5.open_read(temporary, sealed=True):
            pass
    except DataError as error:
        raise StorageError(
            f"{path}: cannot be written: what is read back is not what was written"
        ) from error


def fence(folder: str, epoch: int) -> None:
    """Raise StorageError if other ranks have claimed the folder after a rank failure.

    This rank was then suspended, and the other ranks, whose `Comm.epoch` is larger, went on without
    it.

    Parameters
    ----------
    folder : str
        Where checkpoints are saved.
    epoch : int
        `Comm.epoch` of this rank.
    """
    with suppress(OSError):
        later = re.search(
            r", world (\d+)", Path(located(folder), CLAIM).read_text(errors="replace")
        )
        if later and int(later[1]) > epoch:
            raise StorageError(
                f"{folder}: the other ranks went on without this one: it saves nothing any more"
            )


def prune(folder: str, first: int) -> None:
    """Remove the checkpoints of steps before `first`.

    Parameters
    ----------
    folder : str
        Where checkpoints are saved.
    first : int
        The earliest step whose checkpoint is kept.

    Raises
    ------
    StorageError
        If a file cannot be removed.
    """
    for path in found(folder):
        if path.name < f"step-{first:012d}.h5":
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(
                    f"{path}: this old checkpoint cannot be removed: {error.strerror}"
                ) from error


def tidy(folder: str) -> None:
    """Remove temporary files of a process that was killed while it wrote.

    Only the job that saves in this folder may call this.
    """
    with suppress(OSError):
        for name in os.listdir(located(folder)):
            if LEFT.fullmatch(name):
                os.unlink(Path(located(folder)) / name)


def found(folder: str) -> list[Path]:
    """Return the paths of the checkpoint files in a folder, newest first."""
    try:
        names = [name for name in os.listdir(located(folder)) if NAME.fullmatch(name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    return [Path(located(folder)) / name for name in sorted(names, reverse=True)]


def read(path: str | Path) -> Checkpoint:
    """Read one checkpoint file. Raise DataError if it is damaged or not a checkpoint."""
    with hdf5.open_read(path, sealed=True) as file:
        if hdf5.read_text(file, "format") != FORMAT:
            raise DataError(f"{path}: not a checkpoint of mpigd, or one of another version")
        parts = {
            part: {name: group[name][...] for name in group}
            for part, group in file.items()
            if isinstance(group, h5py.Group)
        }
        return Checkpoint(
            step=int(file.attrs["step"]),
            w=hdf5.dataset(file, "w")[...],
            parts=parts,
            config=from_dict(hdf5.read_json(file, "config")),
            notes=hdf5.read_json(file, "notes"),
        )


def resume(
    config: Config, fingerprint: str, comm: Comm, warn: Callable[[str], None], validation: str = ""
) -> Checkpoint | None:
    """Return the checkpoint to continue from, the same on every rank, or None to begin. Collective.

    With --resume auto, files that are damaged, or that belong to a run with other data or another
    configuration, are skipped with a warning.

    Parameters
    ----------
    config : Config
        Options of this run.
    fingerprint : str
        Identifies the training data.
    comm : Comm
        Communicator of all ranks of the run.
    warn : callable
        Shows a warning.
    validation : str
        Fingerprint of the validation data, "" if there are none.

    Raises
    ------
    UsageError
        If there are only checkpoints of other runs: those that this run saves would replace them.
    """
    if config.resume == "never" or (config.resume == "auto" and config.checkpoint is None):
        return None

    def fits(saved: Checkpoint, path: str | Path) -> Checkpoint:
        _same_run(saved, config, fingerprint, validation, path)
        return saved

    path = b""
    with together(comm):
        if comm.rank == 0:
            path = os.fsencode(_newest(config, fits, warn))
    path = bcast_bytes(comm, path)
    if not path:
        return None
    with together(comm):
        name = os.fsdecode(path)
        return fits(read(name), name)


def _newest(
    config: Config,
    fits: Callable[[Checkpoint, str | Path], Checkpoint],
    warn: Callable[[str], None],
) -> str:
    if config.resume != "auto":
        fits(read(config.resume), config.resume)
        return config.resume
    folder = config.checkpoint or ""
    tidy(folder)
    refused = None
    for path in found(folder):
        try:
            fits(read(path), path)
            return str(path)
        except UsageError as error:
            warn(f"{error}; trying the one before")
            refused = refused or error
        except DataError as error:
            warn(f"{error}; trying the one before")
    if refused is not None:
        raise refused
    return ""


def _same_run(
    checkpoint: Checkpoint, config: Config, fingerprint: str, validation: str, path: str | Path
) -> None:
    """Raise UsageError unless data and fixed options are those of the checkpoint."""
    if checkpoint.notes["fingerprint"] != fingerprint:
        raise UsageError(
            f"{path} was made from other data: use another --checkpoint folder, or --resume never"
        )
    if checkpoint.notes["validation"] != validation:
        raise UsageError(
            f"{path} was made with other --validation data: they may not change on the way"
        )
    for name, field in FIELDS.items():
        before, now = getattr(checkpoint.config, name), getattr(config, name)
        if field.metadata["fixed"] and before != now:
            option = name.replace("_", "-")
            raise UsageError(
                f"{path} was made with --{option} {before}, not {now}: that may not change on "
                "the way"
            )
