"""`mpigd import` of CSV and Parquet against pandas, with every way a table can be wrong."""

from __future__ import annotations

import gzip
import os
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
import scipy.sparse as sp

from mpigd.errors import DataError
from mpigd.storage import hdf5
from mpigd.tables import csv_reader
from mpigd.tables.encoding import Encoding
from mpigd.tables.importer import encode_like, import_data, is_raw
from mpigd.tables.policies import Policies
from scripts import flights as demo

ROOT = Path(__file__).parents[3]


def matrix(path):
    with h5py.File(path) as file:
        X = file["X"]
        if isinstance(X, h5py.Group):
            return sp.csr_matrix(
                tuple(X[name][...] for name in ("data", "indices", "indptr")), X.attrs["shape"]
            ).toarray()
        return X[...]


def vector(path, name="y"):
    with h5py.File(path) as file:
        return file[name][...]


def encoding(path):
    with hdf5.open_read(path) as file:
        return hdf5.read_json(file, "encoding")


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def flights():
    table = demo.raw("flights")[
        ["month", "dep_delay", "distance", "carrier", "origin", "dest", "air_time", "arr_delay"]
    ]
    return table.dropna().sample(4000, random_state=0).reset_index(drop=True)


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.h5")


def test_one_hot_is_that_of_get_dummies(flights, tmp_path, out):
    source = str(tmp_path / "flights.csv")
    flights.to_csv(source, index=False)
    done = import_data([source], out, target="arr_delay", dtype="float64")
    dummies = pd.get_dummies(flights.drop(columns="arr_delay"), prefix_sep="=").astype(float)
    names = encoding(out)["feature_names"]
    assert sorted(names) == sorted(dummies.columns) and done.layout == "csr"
    np.testing.assert_array_equal(matrix(out), dummies[names].to_numpy())
    np.testing.assert_array_equal(vector(out), flights["arr_delay"])
    assert (done.rows, done.features, done.dropped) == (4000, dummies.shape[1], 0)
    assert done.nonzeros == np.count_nonzero(dummies)
    with h5py.File(out) as file:
        assert (
            all(file["X"][name].fletcher32 for name in ("data", "indices", "indptr"))
            and file["y"].fletcher32
        )


def spark(folder, frame, parts=3):
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    step = -(-len(frame) // parts)
    for i in range(parts):
        name = f"part-{i:05d}-c000.snappy.parquet"
        frame[i * step : (i + 1) * step].to_parquet(folder / name, index=False)
        (folder / f".{name}.crc").write_bytes(b"crc")
    return str(folder)


@pytest.mark.parametrize(
    "form", ["gz", "zip", "tsv", "parts", "glob", "parquet", "spark", "row groups", "dictionary"]
)
def test_every_container_gives_the_same_data(flights, tmp_path, out, form):
    text = flights.to_csv(index=False).encode()
    (tmp_path / "a.csv").write_bytes(text)
    sources = [str(tmp_path / "b.csv.gz")]
    if form == "gz":  # two members, as `cat a.gz b.gz` makes them
        Path(sources[0]).write_bytes(gzip.compress(text[:999]) + gzip.compress(text[999:]))
    elif form == "zip":
        sources = [str(tmp_path / "b.zip")]
        with zipfile.ZipFile(sources[0], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner/flights.csv", text)
    elif form == "tsv":
        sources = [write(tmp_path / "b.tsv", flights.to_csv(index=False, sep="\t"))]
    elif form in ("parts", "glob"):
        paths = [tmp_path / f"p{i}.csv" for i in range(2)]
        flights[:1500].to_csv(paths[0], index=False)
        flights[1500:][flights.columns[::-1]].to_csv(
            paths[1], index=False
        )  # columns are found by name
        sources = [str(path) for path in paths] if form == "parts" else [str(tmp_path / "p*.csv")]
    elif form == "spark":
        sources = [spark(tmp_path / "table", flights)]
    else:
        sources = [str(tmp_path / "b.parquet")]
        frame = (
            flights.astype({"carrier": "category", "origin": "category"})
            if form == "dictionary"
            else flights
        )
        frame.to_parquet(sources[0], row_group_size=300 if form == "row groups" else None)
    options = dict(target="arr_delay", dtype="float64")
    truth = import_data([str(tmp_path / "a.csv")], str(tmp_path / "a.h5"), **options)
    found = import_data(sources, out, **options)
    np.testing.assert_array_equal(matrix(out), matrix(truth.path))
    np.testing.assert_array_equal(vector(out), vector(truth.path))
    assert encoding(out) == encoding(truth.path) and found.nonzeros == truth.nonzeros


def test_folders_of_a_partitioned_spark_table_are_columns(tmp_path, out):
    frame = pd.DataFrame(
        {
            "x": [1.0, 2, 3, 4],
            "y": [0, 1, 0, 1],
            "city": ["A b", "C", "C", "A b"],
            "year": [1, 2, 1, 2],
        }
    )
    frame.to_parquet(tmp_path / "table", partition_cols=["city", "year"])
    import_data([str(tmp_path / "table")], out, target="y")
    assert encoding(out)["feature_names"] == ["x", "city=A b", "city=C", "year"]
    truth = frame.sort_values(["city", "year"])
    expected = np.column_stack(
        [truth["x"], truth["city"] == "A b", truth["city"] == "C", truth["year"]]
    )
    np.testing.assert_array_equal(matrix(out), expected)


@pytest.mark.parametrize("policy", ["mean", "zero", "drop", "refuse"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_values(tmp_path, out, policy, kind):
    frame = pd.DataFrame(
        {"a": [1.0, None, 4.0, None, 0.5], "b": ["u", "v", None, "u", "v"], "t": [1, 2, 3, 4, 5]}
    )
    source = str(tmp_path / f"m.{kind}")
    frame.to_csv(source, index=False) if kind == "csv" else frame.to_parquet(source)
    if policy == "refuse":
        with pytest.raises(
            DataError,
            match=(
                r"column 'a' 2 \(first: .* row 1\), column 'b' 1 \(first: .* row 2\): "
                r"use --missing"
            ),
        ):
            import_data([source], out, target="t")
        assert not os.path.exists(out)
        return
    done = import_data([source], out, target="t", missing=policy, dtype="float64")
    filled = {
        "mean": frame.fillna({"a": frame["a"].mean()}),
        "zero": frame.fillna({"a": 0}),
        "drop": frame.dropna(),
    }[policy]
    np.testing.assert_array_equal(
        matrix(out), pd.get_dummies(filled.drop(columns="t")).astype(float)
    )
    np.testing.assert_array_equal(vector(out), filled["t"])
    assert done.dropped == (3 if policy == "drop" else 0)
    new = write(tmp_path / "new.csv", "a,b,t\n,u,9\n2,v,8\n")
    import_data([new], str(tmp_path / "new.h5"), like=out)  # the mean is that of the first data
    expected = {
        "mean": [[5.5 / 3, 1, 0], [2, 0, 1]],
        "zero": [[0, 1, 0], [2, 0, 1]],
        "drop": [[2, 0, 1]],
    }[policy]
    np.testing.assert_array_equal(matrix(str(tmp_path / "new.h5")), expected)
    assert encoding(str(tmp_path / "new.h5")) == encoding(out)  # so that both can be one data set


def test_a_missing_target_is_refused_unless_dropped(tmp_path, out):
    source = write(tmp_path / "t.csv", "a,t\n1,x\n2,\n3,NA\n4,y\n")
    for policy in ("refuse", "mean", "zero"):
        with pytest.raises(
            DataError, match=r"column 't' 2 \(first: .*t.csv row 1\): use --missing drop"
        ):
            import_data([source], out, target="t", missing=policy)
    assert import_data([source], out, target="t", missing="drop").dropped == 2
    assert vector(out).tolist() == [0, 1] and encoding(out)["target"] == {
        "name": "t",
        "classes": ["x", "y"],
    }


def test_types_are_decided_over_all_rows_and_blocks(tmp_path, out, monkeypatch):
    def row(i):
        code = {7: "inf", 700: "K1A"}.get(
            i, i
        )  # an infinity is no number here, since a text follows
        memo = '"two\nlines, quoted"' if i % 2 else "one"
        return (
            f"{i},{'true' if i % 3 else 'False'},{code},{memo},{0.1 * i},{'' if i < 500 else i}\n"
        )

    text = ["".join(map(row, range(start, start + 450))) for start in (0, 450)]
    sources = [
        write(tmp_path / f"{i}.csv", "id,flag,zip,memo,x,late\n" + text[i]) for i in range(2)
    ]
    results = []
    for size in (csv_reader.BLOCK_BYTES, 99, 999):
        monkeypatch.setattr(csv_reader, "BLOCK_BYTES", size)
        done = import_data(sources, out, target="x", missing="mean", categorical=["zip"])
        results.append((matrix(out).tobytes(), vector(out).tobytes(), encoding(out), done))
    assert results[0] == results[1] == results[2]
    assert done.notes == ("column 'id' counts the rows (0 to 899): --drop id if it is no feature",)
    with pytest.raises(
        DataError,
        match=(
            r"column 'zip' has numbers \('0', '1', '2', ...\) and other values: 'K1A': "
            r"--na K1A if"
        ),
    ):
        import_data(sources, out, target="x", missing="mean")
    names = encoding(out)["feature_names"]
    assert names[:2] == ["id", "flag"] and {"zip=K1A", "zip=inf", "zip=899"} <= set(names)
    assert names[-3:] == ["memo=one", "memo=two\nlines, quoted", "late"] and len(names) == 905
    assert (
        matrix(out)[:4, 1].tolist() == [0, 1, 1, 0] and encoding(out)["columns"][4]["mean"] == 699.5
    )


def test_columns_by_role(tmp_path, out):
    text = "a,w,o,k,code,junk,t\n1,2,0.5,77,10,x,1\n2,3,0.25,user,9,y,0\n"
    options = dict(target="t", weight="w", offset="o", key="k", drop=["junk"], categorical=["code"])
    import_data([write(tmp_path / "r.csv", text)], out, **options)
    assert encoding(out)["feature_names"] == ["a", "code=10", "code=9"]
    assert matrix(out).tolist() == [[1, 1, 0], [2, 0, 1]]
    assert vector(out, "sample_weight").tolist() == [2, 3] and vector(out, "offset").tolist() == [
        0.5,
        0.25,
    ]
    assert vector(out, "key")[0] == 77 and vector(out, "key").dtype == np.int64
    new = str(tmp_path / "new.h5")
    encode_like(
        [write(tmp_path / "n.csv", "o,code,a,more\n3,9,4,z\n")],
        new,
        Encoding.from_dict(encoding(out)),
    )
    with h5py.File(new) as file:  # without a target neither y nor weights, but the offset
        assert sorted(file) == ["X", "encoding", "offset"] and file["X"][...].tolist() == [
            [4, 0, 1]
        ]
    with pytest.raises(DataError, match=r"n.csv: no column 'o', which the training data had"):
        import_data([write(tmp_path / "n.csv", "code,a\n9,4\n")], new, like=out)


def test_columns_that_float32_would_damage_make_the_data_float64(tmp_path, out):
    source = write(tmp_path / "a.csv", "day,x,t\n20130101,16777216,1\n20130102,0.1,2\n")
    done = import_data([source], out, target="t", dtype="float32")
    why = "column 'day': float32 rounds values between 20130101 and 20130102 to steps of 2"
    assert done.notes == (f"{why}: --dtype float64 keeps them",)
    assert matrix(out).dtype == np.float32
    done = import_data([source], out, target="t")
    assert done.notes == (f"X is float64, because of {why}",) and matrix(out).dtype == np.float64
    assert import_data([source], out, target="t", dtype="float64").notes == ()
    assert matrix(out).tolist() == [[20130101, 16777216], [20130102, 0.1]]


def test_dropped_rows_would_shift_predictions(tmp_path, out):
    import_data([write(tmp_path / "a.csv", "a,t\n1,1\n,2\n3,4\n")], out, target="t", missing="drop")
    new = write(tmp_path / "b.csv", 'a\n1\n""\n')
    with pytest.raises(DataError, match=r"column 'a' 1 \(first: .*b.csv row 1\)"):
        encode_like([new], str(tmp_path / "b.h5"), Encoding.from_dict(encoding(out)))
    assert (
        encode_like(
            [new], str(tmp_path / "b.h5"), Encoding.from_dict(encoding(out)), Policies("mean")
        ).rows
        == 2
    )
    assert matrix(str(tmp_path / "b.h5"))[:, 0].tolist() == [1, 2]


def test_is_raw(tmp_path, flights):
    for name in ("a.csv", "A.CSV.GZ", "a.csv.zip", "x*.parquet", "a.svm.gz", "a.libsvm", "a.tsv"):
        assert is_raw(str(tmp_path / name))
    for name in ("a.h5", "a", "a.zip", "a.parquet.gz", str(tmp_path)):
        assert not is_raw(str(tmp_path / name))
    assert is_raw(spark(tmp_path / "table", flights[:10]))


# Allocators that give freed memory back at once, so that the peak is what the program holds.
GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
PROBE = """
import sys
from pathlib import Path
from mpigd.tables import csv_reader, kept_blocks, parquet_reader, svmlight
from mpigd.tables.importer import import_data
kept_blocks.KEPT_BYTES = 1 << 20
csv_reader.BLOCK_BYTES = parquet_reader.BLOCK_BYTES = svmlight.BLOCK_BYTES = 1 << 18
source, out, target = sys.argv[1:]
import_data([source], out, target=target or None, dtype="float64")
# Not getrusage: its peak begins with that of the process that started this one.
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() \
if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("kind", ["csv", "parquet", "svm"])
def test_memory_is_bounded(tmp_path, out, kind):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.random((2500, 20)), columns=[f"x{j}" for j in range(20)]).assign(
        c=rng.choice(list("pqr"), 2500)
    )

    def table(name, copies):
        path = tmp_path / f"{name}.{kind}"
        if kind == "csv":
            text = frame.to_csv(index=False, float_format="%.8f").split("\n", 1)
            path.write_text(text[0] + "\n" + text[1] * copies)
        elif kind == "svm":
            line = "1 " + " ".join(f"{j}:{j / 7:.8f}" for j in range(1, 21)) + "\n"
            path.write_text(line * (2500 * copies))
        else:
            with pq.ParquetWriter(path, pa.Table.from_pandas(frame).schema) as writer:
                for _ in range(copies):
                    writer.write_table(pa.Table.from_pandas(frame))
        return str(path)

    peaks = []
    for name, copies in (("small", 15), ("large", 60)):
        command = [
            sys.executable,
            "-c",
            PROBE,
            table(name, copies),
            out,
            "" if kind == "svm" else "x0",
        ]
        env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"} | GIVE_BACK
        peaks.append(
            int(
                subprocess.run(
                    command, env=env, capture_output=True, text=True, timeout=200, check=True
                ).stdout
            )
        )
    # 45 more copies are over 20 MB of text, of numbers, or of output. HDF5 itself keeps up to 16 MB
    # of freed chunks.
    assert peaks[1] - peaks[0] < 16 << 10, peaks
