"""Import of Parquet files as pandas and Spark write them, beside the same data as CSV."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpigd.errors import DataError, UsageError
from mpigd.tables.importer import import_data
from tests.unit.tables.test_import import encoding, matrix, vector
from tests.unit.tables.test_spread import VECTOR, dense, sparse, table


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.h5")


def test_row_labels_are_left_out_with_a_note_and_kept_if_named(tmp_path, out):
    frame = pd.DataFrame(
        {"x": [1.0, 2, 3], "y": [4, 5, 6]}, index=pd.Index([7, 8, 7], name="row id")
    )
    frame.to_parquet(tmp_path / "f.parquet")
    path = str(tmp_path / "f.parquet")
    done = import_data([path], out, target="y")
    assert encoding(out)["feature_names"] == ["x"]
    note = done.notes[0]
    assert note.startswith(
        f"column 'row id' of {path} has the row labels of pandas and is left out: "
    )
    for option, name, features in re.findall(r"--(number|text) '(.*?)'()", note):
        import_data(
            [path], out, target="y", **{"categorical" if option == "text" else option: [name]}
        )
        features = ["x", "row id"] if option == "number" else ["x", "row id=7", "row id=8"]
        assert encoding(out)["feature_names"] == features
    assert import_data([path], out, target="y", drop=["row id"]).notes == done.notes[1:]
    import_data([path], out, target="row id")
    assert encoding(out)["feature_names"] == ["x", "y"] and vector(out).tolist() == [7, 8, 7]
    import_data([path], out, target="y", key="row id")
    assert vector(out, "key").tolist() == [7, 8, 7]


def test_labels_of_a_filtered_table_are_no_column_of_the_others(tmp_path, out):
    frame = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": [4, 5, 6, 7]})
    frame.to_parquet(tmp_path / "1.parquet")
    frame.iloc[[0, 1, 3]].to_parquet(tmp_path / "2.parquet")
    done = import_data([str(tmp_path / "*.parquet")], out, target="y")
    assert matrix(out).ravel().tolist() == [1, 2, 3, 4, 1, 2, 4]
    assert "'__index_level_0__' of" in done.notes[0]
    frame.to_parquet(tmp_path / "3.parquet", index=False)
    frame.set_index("x").to_parquet(
        tmp_path / "4.parquet"
    )  # a column of the others: one like the others
    assert not any(
        "row labels" in note
        for note in import_data([str(tmp_path / "[34].parquet")], out, target="y").notes
    )
    assert matrix(out).ravel().tolist() == [1, 2, 3, 4, 1, 2, 3, 4]


def test_lists_are_features_that_can_be_dropped_as_one(tmp_path, out):
    path = table(
        tmp_path,
        {"v": [[1.0, 2.0], [3.0, 4.0]], "s": [{"a": 1, "b": "u"}, {"a": 2, "b": "v"}], "y": [0, 1]},
    )
    import_data([path], out, target="y")
    assert encoding(out)["feature_names"] == ["v[0]", "v[1]", "s.a", "s.b=u", "s.b=v"]
    assert matrix(out).tolist() == [[1, 2, 1, 1, 0], [3, 4, 2, 0, 1]]
    import_data([path], out, target="s.a", drop=["v", "s.b"])
    assert encoding(out)["feature_names"] == ["y"]
    import_data([path], out, target="y", drop=["v[0]", "s"])
    assert encoding(out)["feature_names"] == ["v[1]"]
    with pytest.raises(UsageError, match=r"no column 'v'"):
        import_data([path], out, target="v")


def test_new_lists_have_the_length_of_the_old_ones(tmp_path, out):
    import_data(
        [table(tmp_path, {"v": [[1.0, 2.0], None], "y": [0, 1]})], out, target="y", missing="zero"
    )
    for rows, message in (
        ([[1.0, 2.0, 3.0]], r"b.parquet: column 'v' has 3 parts, but 2 in the training data"),
        ([[1.0]], r"b.parquet: column 'v' has 1 parts, but 2 in the training data"),
    ):
        with pytest.raises(DataError, match=message):
            import_data(
                [table(tmp_path, {"v": rows}, "b.parquet")], str(tmp_path / "b.h5"), like=out
            )
    done = import_data(
        [table(tmp_path, {"v": [[5.0, None]]}, "b.parquet")], str(tmp_path / "b.h5"), like=out
    )
    assert matrix(done.path).tolist() == [[5, 0]]
    (tmp_path / "b.csv").write_text("v[1],v[0]\n7,8\n")
    done = import_data([str(tmp_path / "b.csv")], str(tmp_path / "b.h5"), like=out)
    assert matrix(done.path).tolist() == [[8, 7]]


def test_vectors_of_spark_are_the_matrix(tmp_path, out):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5)) * (rng.random((300, 5)) < 0.5)
    rows = [
        dense(*row) if i % 2 else sparse(5, **{f"i{j}": row[j] for j in np.flatnonzero(row)})
        for i, row in enumerate(X.tolist())
        if not isinstance(row, np.ndarray)
    ]  # fmt: skip
    metadata = {b"org.apache.spark.sql.parquet.row.metadata": b'{"type":"struct","fields":[]}'}
    schema = pa.schema([("features", VECTOR), ("label", pa.float64())], metadata=metadata)
    pq.write_table(
        pa.table([pa.array(rows, VECTOR), pa.array(X[:, 0])], schema=schema), tmp_path / "a.parquet"
    )
    import_data([str(tmp_path / "a.parquet")], out, target="label", dtype="float64")
    np.testing.assert_array_equal(matrix(out), X)


def test_durations_are_seconds_whatever_their_unit(tmp_path, out):
    for unit, scale in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        import_data(
            [
                table(
                    tmp_path,
                    {"d": pa.array([2 * scale, 7 * scale], pa.duration(unit)), "y": [0, 1]},
                )
            ],
            out,
            target="y",
        )
        assert matrix(out).ravel().tolist() == [2, 7]


def test_duplicates_of_parquet_as_of_csv(tmp_path, out):
    path = table(tmp_path, [("a", [1, 2]), ("a", [3, 4]), ("y", [5, 6])])
    with pytest.raises(
        DataError, match=r"2 columns are named 'a': --rename-duplicates calls them a, a.1$"
    ):
        import_data([path], out, target="y")
    import_data([path], out, target="y", rename_duplicates=True)
    assert encoding(out)["feature_names"] == ["a", "a.1"] and matrix(out).tolist() == [
        [1, 3],
        [2, 4],
    ]
    (tmp_path / "a.csv").write_text("a,a,y\n1,3,5\n2,4,6\n")
    for source in (path, str(tmp_path / "a.csv")):
        done = import_data([source], str(tmp_path / "like.h5"), like=out)
        assert matrix(done.path).tolist() == [[1, 3], [2, 4]]


def test_svmlight_options_are_for_svmlight(tmp_path, out):
    path = table(tmp_path, {"a": [1], "y": [2]})
    for options, name in (
        (dict(features=3), "--features"),
        (dict(zero_based=True), "--zero-based or --one-based"),
        (dict(zero_based=False), "--zero-based or --one-based"),
    ):
        with pytest.raises(
            UsageError, match=rf"{name} is for svmlight, and .*a.parquet is parquet$"
        ):
            import_data([path], out, target="y", **options)
