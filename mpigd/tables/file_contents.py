"""Recognise files by their first bytes, and advise what to do about unsupported formats.

`unknown` advises by the ending of the name, `check` by the contents.
"""

from __future__ import annotations

import os
import stat

from mpigd.errors import DataError, UsageError
from mpigd.tables.compression import PACKED, open_bytes, reading, unpacked_name

BYTES = 1024  # read of each file
TEXT = ("csv", "svmlight")
HDF5 = "it is HDF5 already: train on it as it is"
UNPACK = "unpack it, and name the files in it"


def _pandas(call: str) -> str:
    return (
        f"python -c \"import pandas; pandas.{call}.to_csv('{{stem}}.csv', index=False)\""
        " makes CSV of it"
    )


# Endings of names -> what to do. {path} and {stem} (the path without the ending) are filled in.
ELSEWHERE = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"),
                    "an archive: tar -xf '{path}' unpacks it"),
    **dict.fromkeys((".7z", ".rar"), f"an archive: {UNPACK}"),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb", ".ods"),
                    "a spreadsheet: " + _pandas("read_excel('{path}')")),
    **dict.fromkeys((".jsonl", ".ndjson"), "JSON: " + _pandas("read_json('{path}', lines=True)")),
    ".json": "JSON: " + _pandas("read_json('{path}')"),
    ".dta": "a Stata file: " + _pandas("read_stata('{path}')"),
    **dict.fromkeys((".sas7bdat", ".xpt"), "a SAS file: " + _pandas("read_sas('{path}')")),
    **dict.fromkeys((".sav", ".zsav"), "an SPSS file: " + _pandas("read_spss('{path}')")),
    **dict.fromkeys((".pkl", ".pickle"), "a Python pickle: " + _pandas("read_pickle('{path}')")),
    ".rds": "an R file: Rscript -e \"write.csv(readRDS('{path}'), '{stem}.csv', row.names=FALSE)\""
            " makes CSV of it",
    **dict.fromkeys((".rdata", ".rda"),
                    "an R file: load it in R, and write each table with write.csv"),
    ".avro": "an Avro file: write it as Parquet with the program that made it",
    ".arff": "an ARFF file: write it as CSV with the program that made it",
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"),
                    "a database: sqlite3 -header -csv '{path}' 'select * from TABLE' > TABLE.csv"
                    " makes CSV of a table"),
    **dict.fromkeys((".h5", ".hdf5", ".he5", ".h5ad", ".nc", ".nc4"), HDF5),
    **dict.fromkeys((".npy", ".npz", ".mat"),
                    "arrays, not a table: write X and y to HDF5 with h5py"),
    **dict.fromkeys((".html", ".htm", ".xml"), "a page, not a table: download the table itself"),
}  # fmt: skip

# First bytes, what they are, and what to do if the name says otherwise. An advice that begins with
# a dot is the ending that the name should have.
MAGIC = (
    (b"\x1f\x8b", "gzip data", ".gz"),
    (b"BZh", "bzip2 data", ".bz2"),
    (b"\xfd7zXZ\0", "xz data", ".xz"),
    (b"\x28\xb5\x2f\xfd", "zstd data", ".zst"),
    (b"PK\x03\x04", "a zip archive", ".zip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"PAR1", "Parquet", "--format parquet reads it"),
    (b"ARROW1", "Arrow data", "--format arrow reads it"),
    (b"ORC", "ORC data", "--format orc reads it"),
    (b"PARE", "encrypted Parquet", "write it without encryption"),
    (b"FEA1", "Feather of version 1", "write it anew with a newer pyarrow"),
    (b"\x89HDF\r\n\x1a\n", "HDF5", ".h5"),
    (b"CDF\x01", "netCDF of version 3", "nccopy -k nc4 makes HDF5 of it"),
    (b"CDF\x02", "netCDF of version 3", "nccopy -k nc4 makes HDF5 of it"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet", "save it as CSV in a spreadsheet program"),
    (b"SQLite format 3\0", "a database", "write its table as CSV"),
    (b"\x93NUMPY", "an array of numpy", "write X and y to HDF5 with h5py"),
    (b"Obj\x01", "Avro data", "write it as Parquet with the program that made it"),
    (b"%PDF", "a PDF document", "download the table itself"),
    (b"\x80\x04\x95", "a Python pickle", "write its table as CSV with Python"),
)  # fmt: skip
FIRST = {"parquet": (b"PAR1",), "arrow": (b"ARROW1", b"\xff\xff\xff\xff"), "orc": (b"ORC",)}
NAMES = {"parquet": "Parquet", "arrow": "Arrow data", "orc": "ORC"}
UNPACKERS = {
    ".gz": "gzip -d",
    ".bz2": "bzip2 -d",
    ".xz": "xz -d",
    ".zst": "zstd -d",
    ".zstd": "zstd -d",
    ".zip": "unzip",
}


def unknown(path: str) -> Exception:
    """Return the error for a file whose name does not tell a format that import reads."""
    name = os.path.basename(path).lower()
    ending = max((ending for ending in ELSEWHERE if name.endswith(ending)), key=len, default=None)
    if ending is not None:
        advice = (
            ELSEWHERE[ending]
            .replace("{path}", path)
            .replace("{stem}", path[: len(path) - len(ending)])
        )
        return DataError(f"{path}: not read by import: {advice}")
    packing = next((suffix for suffix in PACKED if name.endswith(suffix)), None)
    if packing is not None and unpacked_name(name).endswith(
        (".parquet", ".pq", ".arrow", ".feather", ".orc")
    ):
        return DataError(
            f"{path}: such files are packed inside already: "
            f"{UNPACKERS[packing]} '{path}' unpacks it"
        )
    return UsageError(
        f"{path}: the name does not tell the format: "
        "say --format csv, parquet, arrow, orc or svmlight"
    )


def check(path: str, format: str, encoding: str = "utf-8") -> None:
    """Check that the first bytes of a file agree with its name or --format.

    Parameters
    ----------
    path : str
        The file.
    format : str
        "csv", "svmlight", "parquet", "arrow" or "orc".
    encoding : str
        The encoding of a CSV file. Only if this is UTF-8, the text is checked for other encodings.

    Raises
    ------
    DataError
        If the contents are of another format, or the file is empty, a pipe or a device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(
            f"{path}: is no file but a pipe or device, and import reads twice: "
            "save it to a file first"
        )
    with reading(path), open(path, "rb") as file:
        head = file.read(BYTES)
    if not head:
        raise DataError(f"{path}: is empty")
    packing = (
        next((suffix for suffix in PACKED if path.lower().endswith(suffix)), None)
        if format in TEXT
        else None
    )
    found, advice = _known(head)
    if packing is not None:
        # packing[:4] makes .zst of .zstd. A damaged file is reported by its reader.
        if advice != packing[:4]:
            bare = unpacked_name(path)
            name = bare + advice if advice.startswith(".") else bare
            raise DataError(
                f"{path}: holds {found or 'no packed data'}, not {packing[1:]}: call it {name}"
            )
        with reading(path), open_bytes(path) as unpacked:
            head = unpacked.read(BYTES)
        if not head:
            raise DataError(f"{path}: is empty")
        found, advice = _known(head)
        if found:
            raise DataError(
                f"{path}: holds {found} that is packed: {UNPACKERS[packing]} '{path}' unpacks it"
            )
    if format in FIRST:
        if not head.startswith(FIRST[format]):
            known = f"holds {found}, " if found else ""
            way_out = _way_out(path, advice) or "--format csv reads it if it is CSV"
            raise DataError(f"{path}: {known}is no {NAMES[format]}: {way_out}")
    elif found:
        raise DataError(
            f"{path}: holds {found}, not {'text' if format == 'csv' else format}: "
            f"{_way_out(path, advice)}"
        )
    else:
        _check_text(path, head, format, encoding)


def _way_out(path: str, advice: str) -> str:
    return f"call it {path}{advice}" if advice.startswith(".") else advice


def _known(head: bytes) -> tuple[str, str]:
    """Return what the first bytes are and what to do; ("", "") for text and unknown formats."""
    binary = any(byte < 9 or 13 < byte < 32 for byte in head)
    for magic, what, advice in MAGIC:
        # A text may begin with ORC, too. Then only other binary bytes prove the format.
        if head.startswith(magic) and (binary or not magic.isalnum()):
            return what, advice
    if head[257:262] == b"ustar":
        return "a tar archive", ".tar"
    return "", ""


def _check_text(path: str, head: bytes, format: str, encoding: str) -> None:
    """Raise DataError if the first bytes of text are a page, JSON or a pointer of Git LFS.

    If `encoding` is UTF-8, also raise it for UTF-16, UTF-32 and bytes that are not text.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise DataError(
            f"{path}: holds a page ({_shown(start)}), not a table: download the table itself"
        )
    if start.startswith((b'{"', b'[{"')):
        raise DataError(
            f"{path}: holds JSON, not a table: call it {path}.json, "
            "and import says how to make CSV of it"
        )
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: holds a pointer of Git LFS, not the file: git lfs pull brings it")
    if encoding.lower() not in ("utf-8", "utf8", "utf-8-sig"):
        return
    wide = next((name for mark, name in WIDE.items() if head.startswith(mark)), None)
    if wide is None and b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        wide = "UTF-16LE" if odd > 4 * even else "UTF-16BE" if even > 4 * odd else None
        if wide is None:
            raise DataError(f"{path}: holds bytes that are no text")
    if wide is not None:
        advice = (
            f"--encoding {wide.lower()}"
            if format == "csv"
            else f"iconv -f {wide} -t UTF-8 '{path}' > NEW makes UTF-8 of it"
        )
        raise DataError(f"{path}: the text is not UTF-8: {advice}")


WIDE = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def _shown(start: bytes) -> str:
    return start[:20].decode(errors="replace").split("\n")[0]
