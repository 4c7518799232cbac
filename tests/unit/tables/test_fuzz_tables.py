"""Damaged raw files of every kind: import ends with a one-line message, or without an error.

`python -m tests.unit.tables.test_fuzz_tables FOLDER FIRST COUNT` goes through other seeds.
"""

from __future__ import annotations

import datetime as dt
import io
import random
import subprocess
import sys
import traceback
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

from mpigd.errors import DataError, MpigdError
from mpigd.tables.importer import import_data
from tests.unit.tables.test_packed import PACK

ROWS = 120
COUNT = 400  # of damaged files for each of the runs below


def table():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 99, ROWS).tolist()
    return pa.table(
        {
            "y": rng.normal(size=ROWS), "f": rng.normal(size=ROWS),
            "i": pa.array([i if i > 3 else None for i in numbers]),
            "s": [f"k{i % 9}" for i in numbers],
            "c": pa.array([f"k{i % 7}" for i in numbers]).dictionary_encode(),
            "b": [i % 2 == 0 for i in numbers], "v": [[1.0, float(i)] for i in numbers],
            "q": [{"p": i, "t": "a"} for i in numbers],
            "d": pa.array([Decimal(i) / 4 for i in numbers], pa.decimal128(9, 2)),
            "h": pa.array([dt.datetime(2013, 1, 1)] * ROWS, pa.timestamp("us", "UTC")),
        }
    )  # fmt: skip


def files():
    """Name -> bytes of a good file."""
    found = {}
    for name, options in (
        ("a.parquet", {}),
        ("b.parquet", dict(compression="none", use_dictionary=False)),
        ("c.parquet", dict(compression="zstd", data_page_version="2.0", write_page_checksum=True)),
    ):
        sink = io.BytesIO()
        pq.write_table(table(), sink, row_group_size=50, **options)
        found[name] = sink.getvalue()
    for name, compression in (("a.feather", "uncompressed"), ("b.feather", "lz4")):
        sink = io.BytesIO()
        feather.write_feather(table(), sink, compression=compression)
        found[name] = sink.getvalue()
    sink = io.BytesIO()
    orc.write_table(table().drop_columns(["c"]), sink)
    found["a.orc"] = sink.getvalue()
    text = table().select(["y", "f", "i", "s", "b"]).to_pandas().to_csv(index=False).encode()
    lines = b"".join(b"%d 1:%d 7:%d\n" % (i % 2, i, 2 * i) for i in range(ROWS))
    found |= {f"a.csv{suffix}": pack(text) for suffix, pack in PACK.items()} | {
        "a.csv": text,
        "a.svm": lines,
    }
    return found | {f"a.svm{suffix}": pack(lines) for suffix, pack in PACK.items()}


def attempt(path, out):
    columns = dict(target="y", missing="zero")
    if ".csv" not in path:
        columns["drop"] = ["h"]
    import_data([path], out, **({} if ".svm" in path else columns))


def damage(raw, draw):
    """Cut the bytes short, flip bits, change bytes, or remove, zero or double pieces.

    Changes near the end are likely, since formats keep their index there.
    """
    raw, kind = bytearray(raw), draw.randrange(6)
    if kind == 0:
        return bytes(raw[: draw.randrange(len(raw))])
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        at = draw.randrange(len(raw))
        if draw.random() < 0.4:
            at = (len(raw) - 1 - int(draw.expovariate(1 / 800))) % len(raw)
        if kind < 4:
            raw[at] ^= 1 << draw.randrange(8)
        elif kind == 4:
            raw[at] = draw.choice([0, 255, 127, 128])
        else:
            end = min(len(raw), at + draw.randrange(1, 64))
            raw[at:end] = draw.choice([b"", bytes(end - at), bytes(raw[at:end]) * 2])
    return bytes(raw)


def main(folder, first, count):
    good = files()
    for name, raw in good.items():
        (Path(folder) / name).write_bytes(raw)
        attempt(str(Path(folder) / name), str(Path(folder) / "o.h5"))
    for seed in range(first, first + count):
        draw = random.Random(seed)
        name = draw.choice(list(good))
        path = Path(folder) / name
        path.write_bytes(damage(good[name], draw))
        print(seed, name, flush=True)  # the last line is that of a crash
        try:
            attempt(str(path), str(Path(folder) / "o.h5"))
        except MpigdError as error:
            assert "\n" not in str(error) and str(error).startswith(
                (str(path), "missing", "column")
            ), str(error)
        except Exception:
            sys.exit(f"seed {seed}, {name}: {traceback.format_exc()}")


@pytest.mark.parametrize("first", [0, 100_000, 200_000])
def test_damaged_files_are_one_line(tmp_path, first):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.unit.tables.test_fuzz_tables",
        str(tmp_path),
        str(first),
        str(COUNT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-60:]} {done.stderr[-3000:]}"


def test_pages_with_a_checksum_are_checked(tmp_path):
    options = dict(compression="none", use_dictionary=False, write_page_checksum=True)
    pq.write_table(pa.table({"a": [1.25, 2.5], "y": [1.0, 2.0]}), tmp_path / "a.parquet", **options)
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    at = raw.index(np.array([1.25, 2.5]).tobytes())  # the page itself, not its statistics
    raw[at] ^= 1
    (tmp_path / "a.parquet").write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"a.parquet: cannot be read: .*(CRC|checksum)"):
        import_data([str(tmp_path / "a.parquet")], str(tmp_path / "o.h5"), target="y")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
