"""Columns of every type in Parquet, Arrow and ORC files.

They are compared with the Python values that they were made of.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

from mpigd.errors import DataError
from mpigd.tables import nested_columns, parquet_reader
from mpigd.tables.csv_reader import Dialect
from mpigd.tables.number_text import PLAIN, read_cells
from mpigd.tables.readers import expand


def table(folder, columns, name="a.parquet", **options):
    """Write columns (arrays by name, or pairs) and return the path."""
    pairs = list(columns.items() if isinstance(columns, dict) else columns)
    whole = pa.Table.from_arrays(
        [pa.array(values) for _, values in pairs], names=[name for name, _ in pairs]
    )
    path = str(folder / name)
    if name.endswith(".parquet"):
        pq.write_table(whole, path, **options)
    elif name.endswith(".feather"):
        feather.write_feather(whole, path)
    elif name.endswith(".arrows.arrow"):
        with pa.ipc.new_stream(path, whole.schema) as file:
            file.write_table(whole, max_chunksize=2)
    else:
        orc.write_table(whole, path)
    return path


def read(path, wanted=None, rename=False):
    """Kinds, and the values of all plain columns as lists."""
    (source,) = expand([path], None, Dialect(rename_duplicates=rename))
    kinds = source.kinds()
    wanted = list(kinds) if wanted is None else wanted
    found = {name: [] for name in wanted}
    for block in source.blocks(wanted):
        assert list(block.columns) == wanted or set(block.columns) == set(wanted)
        for name in wanted:
            assert len(block.columns[name]) == block.rows
            found[name] += block.columns[name].to_pylist()
    return kinds, found


LISTS = [[1.5, 2.0, None], None, [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
COLUMNS = {
    "v[0]": [1.5, None, 4.0, 7.0],
    "v[1]": [2.0, None, 5.0, 8.0],
    "v[2]": [None, None, 6.0, 9.0],
}


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrows.arrow", "a.orc"])
@pytest.mark.parametrize(
    "type", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float64())]
)
@pytest.mark.parametrize("rows", [1, 3, 1 << 20])
def test_lists_become_columns(tmp_path, name, type, rows, monkeypatch):
    if name == "a.orc" and type != pa.list_(pa.float64()):
        pytest.skip("ORC has one type of lists")
    monkeypatch.setattr(parquet_reader, "FEWEST_ROWS", rows)
    monkeypatch.setattr(parquet_reader, "BLOCK_BYTES", 1)
    path = table(tmp_path, {"x": [1, 2, 3, 4], "v": pa.array(LISTS, type)}, name)
    kinds, found = read(path)
    assert kinds == {"x": "number", "v[0]": "number", "v[1]": "number", "v[2]": "number"}
    assert found == {"x": [1, 2, 3, 4], **COLUMNS}
    assert read(path, ["v[1]"])[1] == {"v[1]": COLUMNS["v[1]"]}
    assert read(path, [])[1] == {}


def test_lists_in_many_row_groups_and_with_their_beginning_missing(tmp_path):
    rng = np.random.default_rng(0)
    rows = [None] * 700 + [list(rng.integers(0, 9, 4)) for _ in range(900)]
    path = table(tmp_path, {"v": pa.array(rows, pa.list_(pa.int64()))}, row_group_size=300)
    _, found = read(path)
    assert list(map(list, zip(*found.values(), strict=True))) == [
        [None] * 4 if row is None else row for row in rows
    ]


def test_lists_of_other_lengths_are_refused_with_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "FEWEST_ROWS", 2)
    monkeypatch.setattr(parquet_reader, "BLOCK_BYTES", 1)
    path = table(tmp_path, {"x": range(5), "v": [[1, 2], [1, 2], None, [3], [4, 5]]})
    with pytest.raises(
        DataError,
        match=(
            r"a.parquet row 3: column 'v' is a list of 1, but lists before it have 2: "
            r".* --drop v$"
        ),
    ):
        read(path)
    assert read(path, ["x"])[1] == {"x": [0, 1, 2, 3, 4]}
    assert read(table(tmp_path, {"v": pa.array([[], []], pa.list_(pa.int8()))}))[0] == {
        "v": "empty lists"
    }


def test_lists_of_all_sorts_of_things(tmp_path):
    rows = [
        {"p": [[1, 2], [3, 4]], "q": [{"s": "a", "t": 1}]},
        {"p": [[5, 6], None], "q": [None]},
        None,
    ]
    kinds, found = read(table(tmp_path, {"a": pa.array(rows)}))
    assert kinds == {
        "a.p[0][0]": "number", "a.p[0][1]": "number", "a.p[1][0]": "number", "a.p[1][1]": "number",
        "a.q[0].s": "string", "a.q[0].t": "number",
    }  # fmt: skip
    assert list(found.values()) == [
        [1, 5, None],
        [2, 6, None],
        [3, None, None],
        [4, None, None],
        ["a", None, None],
        [1, None, None],
    ]


def test_sliced_lists_keep_their_rows():
    lengths = {}
    for type in (pa.list_(pa.int64()), pa.list_(pa.int64(), 2)):
        whole = pa.array([[0, 1], None, [2, 3], [4, 5], [6, 7]], type)
        for array in (whole.slice(1), whole.slice(2, 2), whole.slice(4)):
            nested_columns.measure("v", type, whole, lengths)
            first, second = nested_columns.arrays("v", array, lengths)
            assert first.to_pylist() == [row and row[0] for row in array.to_pylist()]
            assert second.to_pylist() == [row and row[1] for row in array.to_pylist()]


VECTOR = pa.struct(
    [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
)


def dense(*values):
    return {"type": 1, "size": None, "indices": None, "values": list(values)}


def sparse(size, **entries):
    return {
        "type": 0,
        "size": size,
        "indices": [int(key[1:]) for key in entries],
        "values": list(entries.values()),
    }


def test_vectors_of_spark(tmp_path):
    rows = [
        None,
        sparse(3, i1=2.5),
        dense(1.0, 2.0, 3.0),
        sparse(3),
        sparse(3, i0=-1.0, i2=4.0),
        dense(7.0, 8.0, 9.0),
    ]
    kinds, found = read(table(tmp_path, {"features": pa.array(rows, VECTOR), "label": range(6)}))
    assert kinds == {
        "features[0]": "number",
        "features[1]": "number",
        "features[2]": "number",
        "label": "number",
    }
    truth = [[None] * 3, [0, 2.5, 0], [1, 2, 3], [0, 0, 0], [-1, 0, 4], [7, 8, 9]]
    assert list(map(list, zip(*list(found.values())[:3], strict=True))) == truth
    for row, message in (
        (sparse(4, i1=2.5), "row 6: column 'features' is a list of 4, but lists before it have 3"),
        (dense(1.0, 2.0), "row 6: column 'features' is a list of 2, but lists before it have 3"),
        (sparse(3, i3=2.5), "row 6: column 'features' is a vector with index 3 of 3"),
        (
            sparse(3, i0=2.5) | {"values": [1.0, 2.0]},
            "row 6: column 'features' is a damaged vector",
        ),
    ):
        with pytest.raises(DataError, match=message):
            read(table(tmp_path, {"features": pa.array([*rows, row], VECTOR)}))


def test_vectors_against_scipy(tmp_path):
    import scipy.sparse as sp

    X = sp.random(500, 40, 0.1, format="csr", random_state=0)
    rows = []
    for i in range(500):
        row = X[i]
        if i % 3:
            rows.append(
                {
                    "type": 0,
                    "size": 40,
                    "indices": row.indices.tolist(),
                    "values": row.data.tolist(),
                }
            )
        else:
            rows.append(dense(*row.toarray()[0].tolist()))
    _, found = read(table(tmp_path, {"f": pa.array(rows, VECTOR)}))
    np.testing.assert_array_equal(np.array(list(found.values())).T, X.toarray())


def test_a_vector_too_wide_for_columns_is_refused(tmp_path):
    kinds, _ = read(table(tmp_path, {"f": pa.array([sparse(1 << 18, i1=2.0)], VECTOR)}), [])
    assert kinds == {
        "f": "lists of 262,144 numbers, more than 65,536 (svmlight files can hold so many)"
    }


DAY, ZONE = dt.datetime(2013, 1, 1, 10), dt.UTC
TYPES = {  # array, kind, values
    "decimal128": (pa.array([Decimal("1.50"), None], pa.decimal128(38, 2)), "number", [1.5, None]),
    "decimal256": (
        pa.array([Decimal("0.1"), Decimal("1e30")], pa.decimal256(76, 20)),
        "number",
        [0.1, 1e30],
    ),
    "half": (pa.array(np.array([1.5, 65504], np.float16)), "number", [1.5, 65504]),
    "bool": (pa.array([True, None]), "number", [1, None]),
    "duration": (pa.array([1500, None], pa.duration("ms")), "number", [1.5, None]),
    "dictionary": (pa.array([7, 8]).dictionary_encode(), "number", [7, 8]),
    "null": (pa.array([None, None]), "null", [None, None]),
    "uint64": (pa.array([2**53, 2**64 - 1], pa.uint64()), "number", [2.0**53, 2.0**64]),
    "text": (pa.array(["a", "b"]), "string", ["a", "b"]),
    "large text": (pa.array(["a", None], pa.large_string()), "string", ["a", None]),
    "text view": (pa.array(["a", "b" * 50], pa.string_view()), "string", ["a", "b" * 50]),
    "large dictionary": (
        pa.array(["a", "b"], pa.large_string()).dictionary_encode(),
        "category",
        ["a", "b"],
    ),
    "view dictionary": (
        pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["a", "b"], pa.string_view())),
        "category",
        ["b", "a"],
    ),
    "date": (pa.array([DAY.date()] * 2, pa.date32()), "time", [DAY.date()] * 2),
    "time": (pa.array([DAY] * 2, pa.timestamp("us")), "time", [DAY] * 2),
    "zone": (
        pa.array([DAY] * 2, pa.timestamp("us", "UTC")),
        "time",
        [DAY.replace(tzinfo=ZONE)] * 2,
    ),
    "clock": (pa.array([DAY.time()] * 2, pa.time64("us")), "time", [DAY.time()] * 2),
    "binary": (pa.array([b"a", b"b"]), "binary", None),
    "map": (
        pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        "map<string, int64>",
        None,
    ),
    "binaries": (pa.array([[b"a"], [b"b"]]), "list<element: binary>", None),
}


@pytest.mark.parametrize("name", list(TYPES))
def test_every_type(tmp_path, name):
    array, kind, values = TYPES[name]
    path = table(
        tmp_path, {"a": array}, "a.arrows.arrow" if name == "view dictionary" else "a.parquet"
    )
    kinds, found = read(path, None if values else [])
    assert kinds == {"a": kind} or (kind.startswith("map") and kinds["a"].startswith("map"))
    if kind == "number":
        (source,) = expand([path])
        numbers = np.concatenate(
            [read_cells(block, ["a"], [PLAIN])[0][0] for block in source.blocks(["a"])]
        )
        np.testing.assert_array_equal(numbers, np.array(values, dtype=float))
    elif values:
        assert found["a"] == values


def test_decimals_become_the_nearest_numbers(tmp_path):
    rng = np.random.default_rng(0)
    whole = rng.integers(-(10**18), 10**18, 20_000)
    for type in (pa.decimal128(38, 12), pa.decimal256(60, 12)):
        values = [Decimal(int(number)).scaleb(-12) for number in whole]
        (source,) = expand([table(tmp_path, {"a": pa.array(values, type)})])
        found = np.concatenate(
            [read_cells(block, ["a"], [PLAIN])[0][0] for block in source.blocks(["a"])]
        )
        np.testing.assert_array_equal(found, [float(value) for value in values])


def test_extension_types_that_pyarrow_knows_or_not(tmp_path):
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6.0).reshape(3, 2))
    assert read(table(tmp_path, {"t": tensor}))[1] == {"t[0]": [0, 2, 4], "t[1]": [1, 3, 5]}
    field = pa.field("p", pa.int64(), metadata={"ARROW:extension:name": "someone.period"})
    whole = pa.Table.from_arrays([pa.array([1, 2])], schema=pa.schema([field]))
    pq.write_table(whole, tmp_path / "e.parquet")
    assert read(str(tmp_path / "e.parquet"), [])[0] == {"p": "someone.period"}


def test_columns_with_the_same_name(tmp_path):
    pairs = [
        ("a", [1, 2]),
        ("b", [[1, 2], [3, 4]]),
        ("a", ["x", "y"]),
        ("b[0]", [5, 6]),
        ("a", [7, 8]),
    ]
    for name in ("a.parquet", "a.feather"):
        path = table(tmp_path, pairs, name)
        with pytest.raises(
            DataError, match=r"3 columns are named 'a': --rename-duplicates calls them a, a.1, a.2$"
        ):
            read(path)
        assert read(path, rename=True)[1] == {
            "a": [1, 2], "b[0]": [1, 3], "b[1]": [2, 4], "a.1": ["x", "y"], "b[0].1": [5, 6],
            "a.2": [7, 8],
        }  # fmt: skip
        assert read(path, ["a.2", "b[0].1"], rename=True)[1] == {"a.2": [7, 8], "b[0].1": [5, 6]}


@pytest.mark.parametrize(
    "names",
    [["a", "a", "a"], ["a", "a.1", "a"], ["a", "a", "a.1", "a"], ["b", "a.1", "a.1", "a", "a"]],
)
def test_new_names_are_those_of_pandas(names):
    import io

    from mpigd.tables.duplicate_names import rename_duplicates

    text = ",".join(names) + "\n" + ",".join("1" for _ in names)
    assert rename_duplicates(names) == list(pd.read_csv(io.StringIO(text)).columns)


def test_row_labels_of_pandas_are_told_apart(tmp_path):
    frame = pd.DataFrame({"x": [1.0, 2], "y": [3, 4]})
    for index, names in (
        (None, []),
        (pd.Index([7, 9]), ["__index_level_0__"]),
        (pd.Index([7, 9], name="id"), ["id"]),
    ):
        frame.index = range(2) if index is None else index
        frame.to_parquet(tmp_path / "f.parquet")
        (source,) = expand([str(tmp_path / "f.parquet")])
        assert source.index() == names and sorted(source.kinds()) == sorted(["x", "y", *names])
    (source,) = expand([table(tmp_path, {"id": [1, 2]})])
    assert source.index() == []


def test_a_part_without_rows_has_the_lists_of_the_others(tmp_path):
    type = pa.list_(pa.float64())
    for i, rows in enumerate(([], [None], [[1.0, 2.0]], [[3.0, 4.0], None])):
        table(
            tmp_path,
            {
                "v": pa.array(rows, type),
                "w": pa.array([{"z": row} for row in rows], pa.struct([("z", type)])),
            },
            f"part-{i}.parquet",
        )
    sources = expand([str(tmp_path)])
    assert all(
        source.kinds() == dict.fromkeys(["v[0]", "v[1]", "w.z[0]", "w.z[1]"], "number")
        for source in sources
    )
    found = [
        block.columns["v[1]"].to_pylist() for source in sources for block in source.blocks(["v[1]"])
    ]
    assert [value for part in found for value in part] == [None, 2.0, 4.0, None]
    assert expand([str(tmp_path / "part-0.parquet")])[0].kinds() == {"v": "null", "w.z": "null"}


def test_groups_are_the_columns_of_a_nested_one(tmp_path):
    (source,) = expand([table(tmp_path, {"x": [1], "v": [[1, 2]], "s": [{"a": 1}]})])
    assert source.groups() == {"v": ["v[0]", "v[1]"], "s": ["s.a"]}


def test_a_dotted_name_is_not_a_field(tmp_path):
    path = table(tmp_path, {"s": [{"a": 1, "b": 2}], "s.c": [3]})
    assert read(path, ["s.c"])[1] == {"s.c": [3]}
    assert read(path)[1] == {"s.a": [1], "s.b": [2], "s.c": [3]}


def test_damaged_text_is_named_with_its_file(tmp_path):
    path = table(
        tmp_path,
        {"a": ["good", "hmm!"]},
        use_dictionary=False,
        compression="none",
        write_statistics=False,
    )
    raw = Path(path).read_bytes()
    Path(path).write_bytes(raw.replace(b"hmm!", b"hm\xff!", 1))
    with pytest.raises(
        DataError,
        match=r"a.parquet: cannot be read: column 'a': .*UTF8.*: leave it out with --drop a$",
    ):
        read(path)


def test_two_columns_of_lists_with_the_same_name(tmp_path):
    path = table(tmp_path, [("v", [[1, 2]]), ("v", [[3, 4, 5]])])
    assert read(path, rename=True)[1] == {
        "v[0]": [1],
        "v[1]": [2],
        "v.1[0]": [3],
        "v.1[1]": [4],
        "v.1[2]": [5],
    }


def test_many_columns_of_lists_are_measured_in_one_pass(tmp_path, monkeypatch):
    opened = []
    usual = pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda *args, **options: opened.append(1) or usual(*args, **options)
    )
    path = table(tmp_path, {f"v{j}": [[1.0, 2.0]] for j in range(50)})
    opened.clear()
    kinds, _ = read(path)
    assert len(kinds) == 100 and len(opened) <= 3
