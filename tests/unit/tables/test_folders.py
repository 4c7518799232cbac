"""Folders and globs of raw tables: their order, their keys, and what is left of jobs that died."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mpigd.errors import DataError
from mpigd.storage.file_order import natural
from mpigd.tables.importer import encode_like, import_data, read_encoding
from mpigd.tables.readers import expand
from tests.unit.tables.test_import import encoding, matrix, vector, write


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.h5")


def test_numbers_in_names_count_as_numbers():
    names = [
        "",
        "1",
        "2a",
        "10",
        "a",
        "a/part-1",
        "a/part-2",
        "a/part-10",
        "a/part-10b",
        "a/x",
        "b1.2",
        "b1.10",
        "b2",
    ]
    shuffled = list(names)
    for seed in range(50):
        random.Random(seed).shuffle(shuffled)
        assert sorted(shuffled, key=natural) == names
    assert (
        len({natural("part-2")[1], natural("part-02")[1]}) == 2
        and natural("part-2")[0] == natural("part-02")[0]
    )


def test_globs_and_folders_are_in_natural_order(tmp_path, out):
    (tmp_path / "t").mkdir()
    for i in (1, 2, 9, 10, 11, 100):
        write(tmp_path / "t" / f"part-{i}.csv", f"a,y\n{i},{i}\n")
    for source in ("t", "t/part-*.csv", "t/*1*.csv"):
        import_data([str(tmp_path / source)], out, target="y")
        assert vector(out).tolist() == (
            [1, 10, 11, 100] if "*1" in source else [1, 2, 9, 10, 11, 100]
        )


def test_a_file_named_twice_is_refused(tmp_path, out):
    one, two = write(tmp_path / "1.csv", "a,y\n1,1\n"), write(tmp_path / "2.csv", "a,y\n2,2\n")
    os.symlink(one, tmp_path / "s.csv")
    os.link(one, tmp_path / "h.csv")
    for again in (
        one,
        str(tmp_path / "." / "1.csv"),
        str(tmp_path / "s.csv"),
        str(tmp_path / "h.csv"),
        str(tmp_path / "[1x].csv"),
    ):
        with pytest.raises(
            DataError,
            match=(
                r"csv (is named twice|and .*csv are the same file): "
                r"its rows would count double \(--allow-duplicates\)$"
            ),
        ):
            import_data([one, two, again], out, target="y")
        assert import_data([one, two, again], out, target="y", allow_duplicates=True).rows == 3
        assert vector(out).tolist() == [1, 2, 1]
        with pytest.raises(DataError, match="would count double"):
            import_data([one, again], str(tmp_path / "like.h5"), like=out)
        assert (
            import_data(
                [one, again], str(tmp_path / "like.h5"), like=out, allow_duplicates=True
            ).rows
            == 2
        )


FRAME = pd.DataFrame(
    {
        "x": np.arange(12.0) ** 2, "y": np.tile([0.0, 1, 2], 4),
        "city": np.repeat(["A b/c=d%é", "C"], 6),
        "year": np.tile(np.repeat([2013, 2014], 3), 2), "open": np.tile([True, False], 6),
    }
)  # fmt: skip


def test_keys_nested_encoded_numbers_and_booleans(tmp_path, out):
    FRAME.to_parquet(tmp_path / "t", partition_cols=["city", "year", "open"])
    import_data([str(tmp_path / "t")], out, target="y")
    assert encoding(out)["feature_names"] == ["x", "city=A b/c=d%é", "city=C", "year", "open"]
    truth = FRAME.sort_values(["city", "year", "open"], kind="stable")
    expected = np.column_stack(
        [truth["x"], truth["city"] != "C", truth["city"] == "C", truth["year"], truth["open"]]
    )
    np.testing.assert_array_equal(matrix(out), expected.astype(float))
    # The same rows as one file of CSV are encoded alike.
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    like = import_data([str(tmp_path / "t.csv")], str(tmp_path / "like.h5"), like=out)
    expected = np.column_stack(
        [FRAME["x"], FRAME["city"] != "C", FRAME["city"] == "C", FRAME["year"], FRAME["open"]]
    )
    np.testing.assert_array_equal(matrix(like.path), expected.astype(float))


def test_a_key_without_a_value_is_missing(tmp_path, out):
    frame = pd.DataFrame({"x": [1.0, 2, 3], "y": [1, 2, 3], "k": [5.0, None, 7]})
    for name, value in (("5", 5), ("__HIVE_DEFAULT_PARTITION__", None), ("7", 7)):
        folder = tmp_path / "t" / f"k={name}"
        folder.mkdir(parents=True)
        rows = frame[frame["k"].isna()] if value is None else frame[frame["k"] == value]
        rows.drop(columns="k").to_parquet(folder / "a.parquet")
    import_data([str(tmp_path / "t")], out, target="y", missing="mean")
    assert sorted(map(tuple, matrix(out).tolist())) == [(1, 5), (2, 6), (3, 7)]


def test_a_key_that_is_also_in_the_file(tmp_path, out):
    for key, values in (("1", [1, 1]), ("2", [2, 2])):
        (tmp_path / "t" / f"k={key}").mkdir(parents=True)
        pd.DataFrame({"y": [0.5, 1], "k": values}).to_parquet(
            tmp_path / "t" / f"k={key}" / "a.parquet"
        )
    import_data([str(tmp_path / "t")], out, target="y")
    assert matrix(out).ravel().tolist() == [1, 1, 2, 2]
    (tmp_path / "t" / "k=2").rename(tmp_path / "t" / "k=02")  # the same number
    import_data([str(tmp_path / "t")], out, target="y")
    (tmp_path / "t" / "k=02").rename(tmp_path / "t" / "k=3")
    message = (
        r"k=3/a.parquet row 0: column 'k' is '2', but the file is in the folder k=3: "
        r"rename the folder$"
    )
    with pytest.raises(DataError, match=message):
        import_data([str(tmp_path / "t")], out, target="y")
    (tmp_path / "t" / "k=3").rename(tmp_path / "t" / "k=2")
    import_data([str(tmp_path / "t")], out, target="y")


def test_files_with_their_columns_in_another_order(tmp_path, out):
    (tmp_path / "t").mkdir()
    FRAME[:6].to_parquet(tmp_path / "t" / "1.parquet")
    FRAME[6:][FRAME.columns[::-1]].to_parquet(tmp_path / "t" / "2.parquet", index=False)
    import_data([str(tmp_path / "t")], out, target="y")
    np.testing.assert_array_equal(matrix(out)[:, 0], FRAME["x"])


def test_what_a_job_leaves_that_died(tmp_path, out):
    (tmp_path / "t").mkdir()
    FRAME.to_parquet(tmp_path / "t" / "part-0.parquet")
    for name in (
        "_SUCCESS",
        ".part-0.parquet.crc",
        "_metadata",
        "_common_metadata",
        "_committed_77",
    ):
        (tmp_path / "t" / name).write_text("x")
    assert import_data([str(tmp_path / "t")], out, target="y").notes == ()
    for left in ("_temporary/0/task", ".spark-staging-77"):
        (tmp_path / "t" / left).mkdir(parents=True)
        with pytest.raises(
            DataError,
            match=(
                r"t/[_.]\w.*: the job that wrote .*/t did not finish: write it again, "
                r"or remove \S+"
            ),
        ) as caught:
            import_data([str(tmp_path / "t")], out, target="y")
        name = re.search(r"remove (\S+) to read what is there", str(caught.value))[1]
        shutil.rmtree(tmp_path / "t" / name)
        assert import_data([str(tmp_path / "t")], out, target="y").rows == 12
    for mark, kind in (("_delta_log", "Delta Lake"), (".hoodie", "Hudi")):
        (tmp_path / "t" / mark).mkdir()
        with pytest.raises(
            DataError, match=f"is a {kind} table, whose files also hold deleted rows"
        ):
            import_data([str(tmp_path / "t")], out, target="y")
        (tmp_path / "t" / mark).rmdir()


def test_what_a_folder_has_besides_is_said(tmp_path, out):
    (tmp_path / "t").mkdir()
    write(tmp_path / "t" / "a.csv", "a,y\n1,2\n")
    write(tmp_path / "t" / "README.md", "words")
    write(tmp_path / "t" / "empty.csv", "")
    done = import_data([str(tmp_path / "t")], out, target="y")
    assert done.notes == (
        f"{tmp_path}/t: files left out (their names tell no format): README.md",
        f"{tmp_path}/t: files left out (empty): empty.csv",
    )
    os.remove(tmp_path / "t" / "a.csv")
    with pytest.raises(
        Exception, match=r"README.md: the name does not tell the format: say --format csv"
    ):
        import_data([str(tmp_path / "t")], out, target="y")


def test_a_part_of_a_partitioned_table_has_no_keys_and_says_so(tmp_path, out):
    FRAME.to_parquet(tmp_path / "t", partition_cols=["year"])
    (part,) = (tmp_path / "t" / "year=2013").iterdir()
    for source in (part, part.parent, tmp_path / "t" / "year=*"):
        done = import_data([str(source)], out, target="y")
        assert done.notes[0] == (
            "year=2013 in the name of a folder is no column here: "
            f"it is one if {tmp_path}/t is imported"
        )
        assert "year" not in encoding(out)["feature_names"]
    assert import_data([str(tmp_path / "t")], out, target="y").notes == ()
    assert "year" in encoding(out)["feature_names"]


def test_an_underscore_hides_unless_it_is_a_key(tmp_path):
    for name in ("_year=1/a.csv", "_hidden/a.csv", ".b/a.csv", "k=1/_c.csv"):
        Path(tmp_path, "t", name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "t" / name, "a,y\n1,2\n")
    assert [source.constants for source in expand([str(tmp_path / "t")])] == [{"_year": "1"}]


def test_predict_reads_folders_alike(tmp_path, out):
    FRAME.to_parquet(tmp_path / "t", partition_cols=["year"])
    import_data([str(tmp_path / "t")], out, target="y")
    done = encode_like([str(tmp_path / "t")], str(tmp_path / "p.h5"), read_encoding(out))
    np.testing.assert_array_equal(matrix(done.path), matrix(out))


def test_new_data_from_a_part_of_a_partitioned_table_say_what_is_missing(tmp_path, out):
    FRAME.to_parquet(tmp_path / "t", partition_cols=["year"])
    import_data([str(tmp_path / "t")], out, target="y")
    write(tmp_path / "t" / "README.md", "words")
    message = (
        r"no column 'year', which .*; year=2013 in .* is no column here: "
        rf"it is one if {tmp_path}/t is imported$"
    )
    with pytest.raises(DataError, match=message):
        encode_like([str(tmp_path / "t" / "year=2013")], str(tmp_path / "p.h5"), read_encoding(out))
    done = encode_like([str(tmp_path / "t")], str(tmp_path / "p.h5"), read_encoding(out))
    assert done.notes == (f"{tmp_path}/t: files left out (their names tell no format): README.md",)


def test_keys_of_svmlight_are_said_to_be_left_out(tmp_path, out):
    (tmp_path / "t" / "year=2013").mkdir(parents=True)
    write(tmp_path / "t" / "year=2013" / "a.svm", "1 1:2\n")
    done = import_data([str(tmp_path / "t")], out)
    assert done.notes == (f"{tmp_path}/t: svmlight has no named columns, so year is left out",)
