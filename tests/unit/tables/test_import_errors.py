"""Every way in which raw tables can be wrong is one clear line, and leaves no file behind."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpigd.__main__ import main
from mpigd.errors import DataError, StorageError, UsageError
from mpigd.tables import first_pass
from mpigd.tables.importer import import_data, preview
from tests.unit.tables.test_import import encoding, matrix, write


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.h5")


def test_a_row_that_is_no_unicode_and_too_long_prints_no_traceback(tmp_path, out, monkeypatch):
    printed = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    (tmp_path / "a.csv").write_bytes(b"a,t\n1,2\n3,caf\xe9,4\n")
    with pytest.raises(DataError, match=r"a\.csv: cannot be read: .*Expected 2 columns, got 3"):
        import_data([str(tmp_path / "a.csv")], out, target="t")
    assert not printed


def test_like_names_what_new_data_lack(tmp_path, out):
    import_data([write(tmp_path / "a.csv", "a,c,t\n1,UA,no\n2,AA,yes\n")], out, target="t")
    for text, message in (
        (
            "a,c,t\n1,AA,no\n3,ZZ,no\n",
            r"b.csv row 1: column 'c' is 'ZZ', which the training data did not have "
            r"\(it had AA, UA\)",
        ),
        ("a,t\n1,no\n", r"b.csv: no column 'c', which the training data had; it has a, t"),
        ("A1,c,t\n1,UA,no\n", r"b.csv: no column 'a', which the training data had"),
        (
            "a,c,t\n1,UA,maybe\n",
            r"b.csv row 0: column 't' is 'maybe', which the training data did not have",
        ),
        ("a,c,t\nx,UA,no\n", r"b.csv row 0: column 'a' is 'x', expected a number"),
        (
            "a,c,t\n1,UA,no\n,UA,no\n,AA,no\n",
            r"missing values: column 'a' 2 \(first: .*b.csv row 1\)",
        ),
    ):
        with pytest.raises(DataError, match=message) as caught:
            import_data([write(tmp_path / "b.csv", text)], str(tmp_path / "b.h5"), like=out)
        assert "\n" not in str(caught.value) and not (tmp_path / "b.h5").exists()
    with pytest.raises(
        UsageError, match=r"--like encodes as .* was, so --target does not go with it"
    ):
        import_data([str(tmp_path / "a.csv")], str(tmp_path / "b.h5"), like=out, target="t")
    hashed = import_data([str(tmp_path / "a.csv")], str(tmp_path / "h.h5"), target="t", hash_bits=5)
    assert hashed.features == 33
    unseen = import_data(
        [write(tmp_path / "b.csv", "a,c,t\n3,ZZ,no\n")], str(tmp_path / "b.h5"), like=hashed.path
    )
    row = matrix(unseen.path)[0]
    assert row[0] == 3 and np.abs(row[1:]).sum() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv: is empty"),
        ("a,t\n", "a.csv: no data rows"),
        ("a,a,t\n1,2,3\n", "a.csv: column 'a' appears twice in the header"),
        ("a,t\n1,2\n3\n", r"a.csv: row 1 has 1 fields, expected 2: '3'"),
        ("a,t\n1,2\n3,inf\n", "a.csv row 1: column 't' is inf, not a finite number"),
        (
            "a,when,t\n1,2013-01-01T10:00:00Z,3\n",
            r"column 'when' has dates or times \('2013-01-01T10:00:00Z'\): --date when makes",
        ),
        (
            "a,t\n1,\xff\n",
            "a.csv: the text is not UTF-8: say what it is, for example --encoding cp1252",
        ),
    ],
)
def test_bad_csv(tmp_path, out, text, message):
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message) as caught:
        import_data([str(tmp_path / "a.csv")], out, target="t")
    assert "\n" not in str(caught.value) and not os.path.exists(out)


def test_files_that_differ_or_are_damaged(tmp_path, out):
    first = write(tmp_path / "1.csv", "a,b,t\n1,2,3\n")
    for text, message in (
        ("a,t\n1,2\n", "2.csv: no column 'b' as in .*1.csv"),
        ("a,b,c,t\n1,2,3,4\n", "2.csv: column 'c' is not in"),
    ):
        with pytest.raises(DataError, match=message):
            import_data([first, write(tmp_path / "2.csv", text)], out, target="t")
    for name, values in (
        ("1.parquet", [1, 2]),
        ("2.parquet", ["x", "y"]),
        ("3.parquet", [b"1", b"2"]),
    ):
        pq.write_table(pa.table({"a": values, "t": [0.0, 1.0]}), tmp_path / name)
    paths = [str(tmp_path / f"{i}.parquet") for i in (1, 2, 3)]
    with pytest.raises(
        DataError, match=r"2.parquet: column 'a' is string, but number in .*1.parquet"
    ):
        import_data(paths[:2], out, target="t")
    with pytest.raises(
        DataError, match=r"3.parquet: column 'a' holds binary: leave it out with --drop a"
    ):
        import_data(paths[2:], out, target="t")
    with pytest.raises(UsageError, match="one data set has one format"):
        import_data([first, paths[0]], out, target="t")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:900])
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:-20])
    (tmp_path / "broken.zip").write_bytes(b"PK no")
    for path in (str(broken), paths[1]):
        with pytest.raises(DataError, match=f"{Path(path).name}: cannot be read"):
            import_data([path], out, target="t")


def test_usage(tmp_path, out):
    source = write(tmp_path / "a.csv", "late,b\n1,2\n")
    for options, message in (
        (dict(), "--target COLUMN is needed, or --like FILE for new data; the columns are late, b"),
        (dict(target="latte"), "no column 'latte'; did you mean 'late'"),
        (dict(target="late", drop=["late"]), "column 'late' has two uses"),
        (dict(target="late", drop=["b"]), "no column is left besides late"),
        (dict(target="late", hash_bits=40), "--hash 40: expected 1 to 30"),
        (
            dict(target="late", missing="guess"),
            "--missing guess: expected refuse, mean, zero, drop",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            import_data([source], out, **options)
    with pytest.raises(UsageError, match="would replace a file that is read"):
        import_data([source], source, target="late")
    with pytest.raises(UsageError, match="say --format"):
        import_data([write(tmp_path / "a.data", "late,b\n1,2\n")], out, target="late")
    assert import_data([str(tmp_path / "a.data")], out, target="late", format="csv").rows == 1
    with pytest.raises(DataError, match="no such file"):
        import_data([str(tmp_path / "none.csv")], out, target="late")
    with pytest.raises(DataError, match=r"x\*.csv: no file matches"):
        import_data([str(tmp_path / "x*.csv")], out, target="late")
    with pytest.raises(StorageError, match="cannot be written"):
        import_data([source], str(tmp_path / "no" / "o.h5"), target="late")


def test_too_many_values_are_no_category(tmp_path, out, monkeypatch):
    monkeypatch.setattr(first_pass, "MOST_CATEGORIES", 3)
    source = write(tmp_path / "a.csv", "name,t\n" + "".join(f"n{i},1\n" for i in range(4)))
    with pytest.raises(
        DataError,
        match="column 'name' is text with more than 3 different values: hash them with --hash BITS",
    ):
        import_data([source], out, target="t")
    assert import_data([source], out, target="t", hash_bits=3).features == 8


def test_a_text_in_a_number_target_is_no_class(tmp_path, out):
    source = write(tmp_path / "a.csv", "x,t\n1,1\n2,2\n3,oops\n")
    with pytest.raises(
        DataError,
        match=(
            r"column 't' has numbers .* and other values: 'oops': "
            r"--na oops if they are missing values, --text t if"
        ),
    ):
        import_data([source], out, target="t")
    import_data([source], out, target="t", categorical=["t"])
    assert encoding(out)["target"]["classes"] == ["1", "2", "oops"]


def test_what_is_given_beside_like_replaces_what_is_stored(tmp_path):
    out, new = str(tmp_path / "a.h5"), str(tmp_path / "b.h5")
    import_data(
        [write(tmp_path / "a.csv", "a;t\n1,5;0\n-;1\n'3';1\n")], out,
        target="t", missing="mean", delimiter=";", decimal=",", na=["-"], quote="'",
    )  # fmt: skip
    same = write(tmp_path / "b.csv", "a;t\n2,5;0\n-;1\n'4';1\n")
    import_data([same], new, like=out)
    with h5py.File(new) as file:
        assert file["X"][:].tolist() == [[2.5], [2.25], [4.0]]
    other = write(tmp_path / "b.csv", 'a,t\n2.5,0\n-,1\n"4",1\n')
    marks = dict(delimiter=",", decimal=".", quote='"')  # two are the defaults
    import_data([other], new, like=out, **marks)
    with h5py.File(new) as file:
        assert file["X"][:].tolist() == [[2.5], [2.25], [4.0]]
    import_data([other], new, like=new)  # the file says how it was read
    with pytest.raises(DataError, match=r"missing values: column 'a' 1"):
        import_data([other], new, like=out, missing="refuse", **marks)
    lines = import_data([write(tmp_path / "a.svm", "1 1:3\n")], str(tmp_path / "s.h5")).path
    with pytest.raises(UsageError, match=r"--delimiter is for CSV, and .*a.svm is svmlight"):
        import_data([str(tmp_path / "a.svm")], new, like=lines, delimiter=";")
    frame = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": [2.5], "t": [0]}), frame)
    with pytest.raises(UsageError, match=r"--quote is for CSV, and .*a.parquet is parquet"):
        import_data([frame], new, like=out, quote="'")
    assert import_data([frame], new, like=out).rows == 1


def test_a_dry_run_is_not_for_like(tmp_path, capsys):
    source, out = write(tmp_path / "a.csv", "a,t\n1,0\n2,1\n"), str(tmp_path / "a.h5")
    import_data([source], out, target="t")
    assert main(["import", source, "--dry-run", "--like", out, "--target", "t"]) == 2
    assert "--dry-run is not for --like" in capsys.readouterr().err


def test_options_of_another_format(tmp_path, out):
    frame, csv = str(tmp_path / "a.parquet"), write(tmp_path / "a.csv", "x,t\n1,0\n2,1\n")
    pq.write_table(pa.table({"x": ["1,5", "2", "3", "?"] * 4, "t": [0, 1] * 8}), frame)
    for path, options, message in (
        (frame, dict(delimiter=";", header=False), "--delimiter, --header or --no-header is for"),
        (frame, dict(na=["?"]), "--na is for CSV, and .*a.parquet is parquet"),
        (frame, dict(default_na=False), "--no-default-na is for CSV"),
        (frame, dict(features=3), "--features is for svmlight"),
        (csv, dict(zero_based=True), "--zero-based or --one-based is for svmlight"),
    ):
        with pytest.raises(UsageError, match=message):
            import_data([path], out, target="t", **options)
        with pytest.raises(UsageError, match=message):
            preview([path], target="t", **options)
    numbers = dict(number=["x"], decimal=",")  # text in Parquet has a decimal mark too
    with pytest.raises(DataError, match=r"row 3: column 'x' is '\?', expected a number"):
        import_data([frame], out, target="t", **numbers)
    with pytest.raises(
        DataError, match=r"other values: '1,5', '\?': write nulls if they are missing values"
    ) as error:
        import_data([frame], out, target="t")
    assert "--na" not in str(error.value)
