"""Compressed files: every format, whole and in pieces, cut short and damaged.

Other tests have files whose contents do not match their names.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mpigd
from mpigd.errors import DataError, MpigdError
from mpigd.tables import compression
from mpigd.tables.compression import open_bytes, reading
from mpigd.tables.importer import import_data
from tests.unit.tables.test_import import matrix, vector


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def in_zip(data, name="a.csv"):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return sink.getvalue()


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".zstd": zstd,
    ".zip": in_zip,
}
STREAMS = [suffix for suffix in PACK if suffix != ".zip"]


def unpack(path):
    with reading(str(path)), open_bytes(str(path)) as file:
        return file.read()


def put(folder, name, data):
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.mark.parametrize("suffix", STREAMS)
@pytest.mark.parametrize("chunk", [7, 1 << 18])
def test_pieces_follow_each_other(tmp_path, suffix, chunk, monkeypatch):
    monkeypatch.setattr(compression, "CHUNK", chunk)
    draw = random.Random(3)
    pieces = [draw.randbytes(5000), b"", b"1,2\n" * 3000, b"\0" * 100_000]
    pack = PACK[suffix]
    assert unpack(put(tmp_path, f"a{suffix}", b"".join(map(pack, pieces)))) == b"".join(pieces)
    if suffix in (".gz", ".bz2", ".xz"):
        padded = pack(b"one") + b"\0" * 512 + pack(b"two") + b"\0" * 1024
        assert unpack(put(tmp_path, f"a{suffix}", padded)) == b"onetwo"


@pytest.mark.parametrize("suffix", STREAMS)
def test_what_is_cut_or_followed_by_something_else_is_refused(tmp_path, suffix):
    pack = PACK[suffix]
    whole = pack(os.urandom(3000)) + pack(os.urandom(300))
    for cut in (*range(1, 40), len(whole) - 1, len(whole) - 9):
        with pytest.raises(DataError, match="cannot be read") as caught:
            unpack(put(tmp_path, f"a{suffix}", whole[:-cut] if cut < 40 else whole[:cut]))
        assert "\n" not in str(caught.value)
    # Python's own readers of bz2 and xz take the rest for the end of the file, and lose it.
    with pytest.raises(DataError, match="cannot be read"):
        unpack(put(tmp_path, f"a{suffix}", whole + b"more text"))


@pytest.mark.parametrize("suffix", list(PACK))
def test_packed_csv_and_svmlight_are_the_data_in_them(tmp_path, suffix):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.normal(size=3000), "b": rng.integers(0, 9, 3000), "y": rng.normal(size=3000)}
    )
    text = frame.to_csv(index=False).encode()
    done = import_data(
        [put(tmp_path, f"a.csv{suffix}", PACK[suffix](text))],
        str(tmp_path / "a.h5"),
        target="y",
        dtype="float64",
    )
    np.testing.assert_array_equal(matrix(done.path), frame[["a", "b"]])
    np.testing.assert_array_equal(vector(done.path), frame["y"])
    lines = b"".join(b"%d 1:%d 2:%d\n" % (i % 2, i, 2 * i) for i in range(1, 3000))
    done = import_data(
        [put(tmp_path, f"a.svm{suffix}", PACK[suffix](lines))],
        str(tmp_path / "s.h5"),
        dtype="float64",
    )
    np.testing.assert_array_equal(matrix(done.path), np.outer(np.arange(1, 3000), [1, 2]))


def test_zips_that_cannot_be_read_are_one_line(tmp_path):
    sink = io.BytesIO(in_zip(b"a,y\n1,2\n"))
    raw = bytearray(sink.getvalue())
    for offset in (6, raw.index(b"PK\x01\x02") + 8):  # the flag "encrypted" of both headers
        raw[offset] |= 1
    with pytest.raises(DataError, match="is protected by a password: unpack it"):
        import_data([put(tmp_path, "a.csv.zip", bytes(raw))], str(tmp_path / "o.h5"), target="y")
    with zipfile.ZipFile(tmp_path / "b.csv.zip", "w") as archive:
        archive.writestr("1.csv", "a")
        archive.writestr("2.csv", "a")
    with pytest.raises(
        DataError, match=r"b.csv.zip: holds 2 files, expected one: unpack it and name them"
    ):
        import_data([str(tmp_path / "b.csv.zip")], str(tmp_path / "o.h5"), target="y")


TEXT = b"a,y\n1,2\n3,4\n"


def parquet():
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 3], "y": [2, 4]}), sink)
    return sink.getvalue()


def hdf5():
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        file["X"] = [[1.0], [2.0]]
        file["y"] = [1.0, 3.0]
    return sink.getvalue()


def tar():
    import tarfile

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        member = tarfile.TarInfo("a.csv")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT))
    return sink.getvalue()


WRONG = {
    "gzip": ("a.csv", gzip.compress(TEXT), "holds gzip data, not text: call it {path}.gz"),
    "bzip2": ("a.csv", bz2.compress(TEXT), "holds bzip2 data, not text: call it {path}.bz2"),
    "xz": ("a.svm", lzma.compress(b"1 1:2\n"), "holds xz data, not svmlight: call it {path}.xz"),
    "zstd": ("a.csv", zstd(TEXT), "holds zstd data, not text: call it {path}.zst"),
    "zip": ("a.csv", in_zip(TEXT), "holds a zip archive, not text: call it {path}.zip"),
    "unpacked": ("a.csv.gz", TEXT, "holds no packed data, not gz: call it {bare}"),
    "other": ("a.csv.gz", bz2.compress(TEXT), "holds bzip2 data, not gz: call it {bare}.bz2"),
    "twice": (
        "a.csv.gz",
        gzip.compress(gzip.compress(TEXT)),
        "holds gzip data that is packed: gzip -d '{path}' unpacks it",
    ),
    "hdf5 in gzip": (
        "a.csv.gz",
        gzip.compress(hdf5()),
        "holds HDF5 that is packed: gzip -d '{path}' unpacks it",
    ),
    "parquet": ("a.csv", parquet(), "holds Parquet, not text: --format parquet reads it"),
    "text": ("a.parquet", TEXT, "is no Parquet: --format csv reads it if it is CSV"),
    "hdf5": ("a.csv", hdf5(), "holds HDF5, not text: call it {path}.h5"),
    "hdf5 as parquet": ("a.parquet", hdf5(), "holds HDF5, is no Parquet: call it {path}.h5"),
    "tar": (
        "a.csv.gz",
        gzip.compress(tar()),
        "holds a tar archive that is packed: gzip -d '{path}' unpacks it",
    ),
    "tar as csv": ("a.csv", tar(), "holds a tar archive, not text: call it {path}.tar"),
    "page": (
        "a.csv",
        b"\n<!DOCTYPE html><html><p>Log in",
        "holds a page (<!doctype html><html), not a table: .*",
    ),
    "json": ("a.csv", b'[{"a": 1, "y": 2}]', "holds JSON, not a table: call it {path}.json, .*"),
    "lfs": (
        "a.csv",
        b"version https://git-lfs.github.com/spec/v1\noid",
        "holds a pointer of Git LFS, .*",
    ),
    "zeros": ("a.csv", b"a,y\n" + b"\0" * 5000, "holds bytes that are no text"),
    "empty": ("a.csv", b"", "is empty"),
    "empty parquet": ("a.parquet", b"", "is empty"),
    "empty in gz": ("a.csv.gz", gzip.compress(b""), "is empty"),
    "utf-16 csv": (
        "a.csv",
        TEXT.decode().encode("utf-16"),
        "the text is not UTF-8: --encoding utf-16",
    ),
    "utf-16 csv without mark": (
        "a.csv",
        TEXT.decode().encode("utf-16-le"),
        "the text is not UTF-8: --encoding utf-16le",
    ),
    "utf-16": ("a.svm", "1 1:2\n".encode("utf-16"), "the text is not UTF-8: iconv -f UTF-16 .*"),
    "utf-16 without mark": (
        "a.svm",
        "1 1:2\n2 2:2\n".encode("utf-16-be"),
        "the text is not UTF-8: iconv -f UTF-16BE .*",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_contents_that_contradict_a_name(tmp_path, name):
    file, data, message = WRONG[name]
    path = put(tmp_path, file, data)
    expected = re.escape(message.format(path=path, bare=path.removesuffix(".gz"))).replace(
        r"\.\*", ".*"
    )
    with pytest.raises(MpigdError, match=f"^{re.escape(path)}: {expected}$") as caught:
        import_data([path], str(tmp_path / "o.h5"), target=None if "svm" in file else "y")
    _follow(str(caught.value).removeprefix(f"{path}: "), path, tmp_path)


def _follow(message, path, folder):
    """Do what a message says, and see that it works."""
    target = None if ".svm" in path else "y"
    out, options = str(folder / "o.h5"), {}
    if found := re.search(r"call it (\S+?)(, and .*)?$", message):
        os.rename(path, found[1])
        path = found[1]
    elif found := re.search(r"--format (\w+)", message):
        options = {"format": found[1]}
    elif found := re.search(r"--encoding (\S+)", message):
        options = {"encoding": found[1]}
    elif found := re.search(r"iconv .*", message):
        new = str(folder / "new.svm")
        command = found[0].replace(" makes UTF-8 of it", "").replace("NEW", shlex.quote(new))
        subprocess.run(command, shell=True, check=True)
        path = new
    elif found := re.search(r'python -c "(.*)" makes CSV', message):
        subprocess.run([sys.executable, "-c", found[1]], check=True)
        path = os.path.splitext(path)[0] + ".csv"
    elif found := re.search(r"(gzip -d|bzip2 -d|xz -d|unzip|tar -xf) '(.*)'", message):
        if shutil.which(found[1].split()[0]) is None:
            pytest.skip(f"no {found[1]} here")
        subprocess.run(found[0], shell=True, check=True, cwd=folder)
        path = (
            str(folder / "a.csv") if "tar" in found[1] else re.sub(r"\.(gz|bz2|xz|zip)$", "", path)
        )
    elif "train on it as it is" in message:
        assert mpigd.train(path, loss="squared").coef.shape == (1, 1)
        return
    else:
        return  # something that only a person can do
    try:
        assert import_data([path], out, target=target, **options).rows > 0
    except MpigdError as error:
        again = str(error).removeprefix(f"{path}: ")
        assert again != message
        _follow(again, path, folder)


def _frame():
    return pd.DataFrame({"a": [1.0, 3.0], "y": [2, 4]})


ELSEWHERE = {
    "a.json": lambda path: _frame().to_json(path),
    "a.jsonl": lambda path: _frame().to_json(path, orient="records", lines=True),
    "a.dta": lambda path: _frame().to_stata(path, write_index=False),
    "a.pkl": lambda path: _frame().to_pickle(path),
    "a.xlsx": lambda path: _frame().to_excel(path, index=False),
    "a.tar": lambda path: Path(path).write_bytes(tar()),
    "a.tar.gz": lambda path: Path(path).write_bytes(gzip.compress(tar())),
    "a.parquet.gz": lambda path: Path(path).write_bytes(gzip.compress(parquet())),
    "a.parquet.zip": lambda path: Path(path).write_bytes(in_zip(parquet(), "a.parquet")),
}


@pytest.mark.parametrize("name", list(ELSEWHERE))
def test_formats_that_are_not_read_have_a_way_out_that_works(tmp_path, name):
    if name == "a.xlsx":
        pytest.importorskip("openpyxl")
    path = str(tmp_path / name)
    ELSEWHERE[name](path)
    with pytest.raises(MpigdError) as caught:
        import_data([path], str(tmp_path / "o.h5"), target="y")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    _follow(message, path, tmp_path)
    assert (tmp_path / "o.h5").exists()
    np.testing.assert_array_equal(matrix(str(tmp_path / "o.h5"))[:, 0], [1, 3])


@pytest.mark.parametrize(
    "name",
    [
        "a.7z",
        "a.xls",
        "a.ods",
        "a.sas7bdat",
        "a.sav",
        "a.rds",
        "a.RData",
        "a.avro",
        "a.sqlite",
        "a.h5",
        "a.npy",
        "a.html",
    ],
)
def test_all_other_formats_are_one_line(tmp_path, name):
    path = put(tmp_path, name, b"something")
    with pytest.raises(DataError, match=rf"^{re.escape(path)}: not read by import: \w+") as caught:
        import_data([path], str(tmp_path / "o.h5"), target="y")
    assert "\n" not in str(caught.value) and "{" not in str(caught.value)


def test_a_pipe_is_refused_since_import_reads_twice(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(
        DataError,
        match=r"a.csv: is no file but a pipe or device, and import reads twice: save it to a file",
    ):
        import_data([str(tmp_path / "a.csv")], str(tmp_path / "o.h5"), target="y")


def test_text_that_begins_like_something_else_is_text(tmp_path):
    for head in ("ORC,y", "PAR1,y", "BZh9,y", "Obj,y", "[x],y"):
        path = put(tmp_path, "a.csv", f"{head}\n1,2\n".encode())
        assert import_data([path], str(tmp_path / "o.h5"), target="y").rows == 1
