"""Raw files as bytes: unpacked on the way, and whatever a reader raises as one line that names the file."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from mpigd.errors import DataError

PACKED = (".gz", ".zip")


@contextmanager
def reading(path: str, after: Sequence[int] = ()) -> Iterator[None]:
    """Turn whatever a reader raises into one line that names the file and, from `after`, the rows read before it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, EOFError, UnicodeError, zlib.error, zipfile.BadZipFile, NotImplementedError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        place = f"after row {after[0]}: " if after and after[0] else ""
        raise DataError(f"{path}: cannot be read: {place}{reason[:300]}") from error


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if its name ends in .gz or .zip."""
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive, archive.open(member(path, archive)) as packed:
            yield io.BufferedReader(packed)  # type: ignore[type-var]
        return
    with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
        yield file  # type: ignore[misc]


def member(path: str, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise DataError(f"{path}: holds {len(names)} files, expected one: unpack it and name them")
    return names[0]
