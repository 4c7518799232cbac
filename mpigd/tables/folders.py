"""Folders of raw tables: their files, and the columns in the names of folders.

Spark and other programs write files such as `year=2013/part-0.parquet`, in which year is a column.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from mpigd.errors import DataError
from mpigd.storage.file_order import natural

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Marks of folders with table formats, in which the Parquet files alone are not the table.
VERSIONED = {"_delta_log": "Delta Lake", ".hoodie": "Hudi", "metadata/version-hint.text": "Iceberg"}


def parts(folder: str) -> list[str]:
    """Return the files below a folder as relative paths, in natural order.

    Files that Spark hides (_SUCCESS, .part-0.crc) are left out.
    """
    hits: list[str] = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        hits += [
            os.path.relpath(os.path.join(top, name), folder)
            for name in files
            if not _is_hidden(name)
        ]
    return sorted(hits, key=natural)


def _is_hidden(name: str) -> bool:
    # Spark hides the same names: _year=2013 is a column and not hidden.
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def check_finished(folder: str) -> None:
    """Check that a folder holds a complete table.

    Raises
    ------
    DataError
        If the job that wrote the folder failed or still runs, or if the folder is a table of which
        the files are only a part (VERSIONED).
    """
    for mark, kind in VERSIONED.items():
        if os.path.exists(os.path.join(folder, mark)):
            raise DataError(
                f"{folder}: is a {kind} table, whose files also hold deleted rows: "
                "write a copy as plain Parquet"
            )
    for top, folders, files in os.walk(folder):
        left = [
            name for name in folders if name == "_temporary" or name.startswith(".spark-staging")
        ]
        left += [name for name in files if name.endswith((".inprogress", "._COPYING_"))]
        if left:
            raise DataError(
                f"{os.path.join(top, left[0])}: the job that wrote {folder} did not finish: "
                f"write it again, or remove {left[0]} to read what is there"
            )


def keys(part: str) -> dict[str, str]:
    """Return the column values in the folder names of a path.

    For city=A%20b/year=2013/x.parquet these are {"city": "A b", "year": "2013"}.
    """
    pairs = (name.split("=", 1) for name in Path(part).parts[:-1] if "=" in name)
    return {unquote(key): unquote(value) for key, value in pairs if key}
