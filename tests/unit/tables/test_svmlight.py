"""Streaming svmlight against scikit-learn's reader and writer."""

from __future__ import annotations

import gzip
import zipfile

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file, load_svmlight_file, load_svmlight_files

from mpigd.errors import DataError, UsageError
from mpigd.storage import hdf5
from mpigd.tables import svmlight
from mpigd.tables.importer import import_data


def matrix(path):
    """X (n, d) as a dense array and y from an imported file."""
    with h5py.File(path) as file:
        X = file["X"]
        if isinstance(X, h5py.Group):
            X = sp.csr_matrix(
                tuple(X[name][...] for name in ("data", "indices", "indptr")), X.attrs["shape"]
            ).toarray()
        return np.asarray(X), file["y"][...]


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.fixture
def table():
    rng = np.random.default_rng(3)
    return sp.random(400, 60, 0.05, format="csr", random_state=3), np.round(rng.normal(size=400), 6)


@pytest.mark.parametrize("zero_based", [True, False])
@pytest.mark.parametrize("packed", ["", ".gz", ".zip"])
def test_round_trip_against_scikit_learn(tmp_path, table, zero_based, packed, monkeypatch):
    monkeypatch.setattr(svmlight, "BLOCK_BYTES", 700)
    X, y = table
    plain = tmp_path / "a.svm"
    dump_svmlight_file(X, y, str(plain), zero_based=zero_based)
    truth, labels = load_svmlight_file(str(plain))
    path = str(plain) + packed
    if packed == ".gz":
        with gzip.open(path, "wb") as file:
            file.write(plain.read_bytes())
    elif packed == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, "inner.svm")
    done = import_data([path], str(tmp_path / "a.h5"), dtype="float64")
    assert (done.rows, done.features, done.nonzeros, done.layout) == (
        400,
        truth.shape[1],
        X.nnz,
        "csr",
    )
    found, found_y = matrix(done.path)
    np.testing.assert_array_equal(found, truth.toarray())
    np.testing.assert_array_equal(found_y, labels)


def test_several_files_agree_on_the_first_index(tmp_path):
    one, two = write(tmp_path / "1.svm", "1 1:5 3:1\n"), write(tmp_path / "2.svm", "0 0:2 2:7\n")
    truth = load_svmlight_files([one, two])
    found, y = matrix(import_data([one, two], str(tmp_path / "o.h5")).path)
    np.testing.assert_array_equal(found, np.vstack([truth[0].toarray(), truth[2].toarray()]))
    assert y.tolist() == [1, 0]
    alone, _ = matrix(import_data([one], str(tmp_path / "o.h5")).path)
    np.testing.assert_array_equal(alone, load_svmlight_file(one)[0].toarray())


def test_comments_blank_lines_qid_and_no_last_newline(tmp_path):
    path = write(
        tmp_path / "c.svm",
        "# a comment 1:2\n\n+1 qid:3 1:0.5 2:0 4:1e-3 # 9:9\r\n-1\t2:3  \n 0 # no features\n"
        "-1.5 1:2",
    )
    done = import_data([path], str(tmp_path / "c.h5"), dtype="float64")
    found, y = matrix(done.path)
    np.testing.assert_array_equal(found, [[0.5, 0, 0, 1e-3], [0, 3, 0, 0], [0] * 4, [2, 0, 0, 0]])
    assert y.tolist() == [1, -1, 0, -1.5]
    assert done.notes == (f"{path}: qid is ignored",) and done.nonzeros == 4


pairs = st.lists(
    st.tuples(st.integers(0, 50), st.floats(allow_nan=True, allow_infinity=False)),
    unique_by=lambda p: p[0],
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 3), pairs), min_size=1, max_size=8))
def test_the_fast_way_is_the_careful_way(rows):
    texts = [
        f"{y}{''.join(f' {j}:{x!r}' for j, x in sorted(entries))}\n".encode() for y, entries in rows
    ]
    fast, slow = svmlight._plain("p", 5, texts), svmlight._careful("p", 5, texts)
    assert fast is not None
    for name in ("y", "lengths", "indices", "values", "lines"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
        assert getattr(fast, name).dtype == getattr(slow, name).dtype


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 3:1 2:1", "line 3: index 2 after 3: indices must ascend"),
        ("1 2:1 2:1", "line 3: index 2 after 2"),
        ("1 2:1 3", "line 3: '3' is not index:value"),
        ("1 a:1", "line 3: 'a:1' is not index:value"),
        ("1 -1:1", "line 3: '-1:1' is not index:value"),
        ("1 2:x", "line 3: value 'x' is not a number"),
        ("1 2:3:4", "line 3: value '3:4' is not a number"),
        ("1 2:1_0", "line 3: value '1_0' is not a number"),
        ("1 2: 3", "line 3: value '' is not a number"),
        ("yes 2:1", "line 3: label 'yes' is not a number: number the classes 0, 1, 2"),
        ("1,2 2:1", "line 3: label '1,2' names several classes: a row has one number for a label"),
        ("nan 2:1", "line 3: the label is nan"),
        ("1 2:inf", "line 3: index 2 is not a finite number"),
        ("1 2:1e39", r"line 3: index 2 is 1e\+39, too large for float32 \(use --dtype float64\)"),
        ("1 99999999999999999999:1", "line 3: index 99999999999999999999 is too large"),
        ("1 2:1 1:1:1 3", "line 3: value '1:1' is not a number"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_mistakes_are_named_by_line(tmp_path, line, message, block, monkeypatch):
    monkeypatch.setattr(svmlight, "BLOCK_BYTES", block)
    path = write(tmp_path / "bad.svm", f"1 1:1\n-1 1:1 7:2\n{line}\n1 1:1\n")
    with pytest.raises(DataError, match=message) as caught:
        import_data([path], str(tmp_path / "o.h5"), dtype="float32")
    assert str(caught.value).startswith(path) and "\n" not in str(caught.value)
    assert not (tmp_path / "o.h5").exists()


def test_missing_values_by_policy(tmp_path):
    path = write(tmp_path / "m.svm", "1 1:1 2:nan\n0 1:3\n1 1:nan 2:4\n")
    with pytest.raises(
        DataError,
        match=(
            r"missing values: 2 \(first: .*m.svm line 1 index 2\): "
            r"use --missing zero or --missing drop"
        ),
    ):
        import_data([path], str(tmp_path / "o.h5"))
    zero = import_data([path], str(tmp_path / "zero.h5"), missing="zero")
    assert matrix(zero.path)[0].tolist() == [[1, 0], [3, 0], [0, 4]]
    drop = import_data([path], str(tmp_path / "drop.h5"), missing="drop")
    assert matrix(drop.path)[0].tolist() == [[3, 0]] and drop.dropped == 2
    with pytest.raises(UsageError, match="use --missing zero or --missing drop"):
        import_data([path], str(tmp_path / "o.h5"), missing="mean")
    wrong = write(
        tmp_path / "wrong.svm", "1 x:3\n"
    )  # the option is refused before any line is read
    with pytest.raises(UsageError, match="--missing mean is not for svmlight"):
        import_data([wrong], str(tmp_path / "o.h5"), missing="mean")


def test_like_keeps_columns_and_first_index(tmp_path):
    first = import_data([write(tmp_path / "a.svm", "1 1:1 9:1\n0 5:2\n")], str(tmp_path / "a.h5"))
    done = import_data(
        [write(tmp_path / "b.svm", "1 2:3\n")], str(tmp_path / "b.h5"), like=first.path
    )
    assert matrix(done.path)[0].tolist() == [[0, 3, 0, 0, 0, 0, 0, 0, 0]]
    with hdf5.open_read(first.path) as one, hdf5.open_read(done.path) as two:
        assert hdf5.read_json(one, "encoding") == hdf5.read_json(two, "encoding")
    for index, where in ((10, "index 10 is outside 1 to 9"), (0, "index 0 is outside 1 to 9")):
        path = write(tmp_path / "c.svm", f"# new\n1 {index}:1\n")
        with pytest.raises(
            DataError, match=f"c.svm line 2: {where}, the indices of the training data"
        ):
            import_data([path], str(tmp_path / "c.h5"), like=first.path)


def test_empty_files_and_column_options_are_refused(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        import_data([write(tmp_path / "e.svm", "# nothing\n")], str(tmp_path / "o.h5"))
    with pytest.raises(DataError, match="no features"):
        import_data([write(tmp_path / "f.svm", "1\n0\n")], str(tmp_path / "o.h5"))
    with pytest.raises(UsageError, match="--target does not go with it"):
        import_data([write(tmp_path / "g.svm", "1 1:1\n")], str(tmp_path / "o.h5"), target="y")


def test_how_many_features_and_from_which_index(tmp_path):
    one = write(tmp_path / "a.svm", "1 1:5 3:1\n-1 2:4\n")
    for options, expected in (
        (dict(), [[5, 0, 1], [0, 4, 0]]),
        (dict(features=3), [[5, 0, 1], [0, 4, 0]]),
        (dict(features=5), [[5, 0, 1, 0, 0], [0, 4, 0, 0, 0]]),
        (dict(zero_based=True), [[0, 5, 0, 1], [0, 0, 4, 0]]),
        (dict(zero_based=True, features=5), [[0, 5, 0, 1, 0], [0, 0, 4, 0, 0]]),
        (dict(zero_based=False), [[5, 0, 1], [0, 4, 0]]),
    ):
        done = import_data([one], str(tmp_path / "o.h5"), **options)
        assert matrix(done.path)[0].tolist() == expected and done.features == len(expected[0])
        assert matrix(done.path)[1].tolist() == [1, -1]
    zero = write(tmp_path / "z.svm", "# a header\n1 1:5 3:1\n1 0:4\n")
    assert import_data([zero], str(tmp_path / "o.h5"), features=4).features == 4


def advised(error):
    """The option that a message ends with, as a keyword of import_data."""
    import re

    name, value = re.search(r"--(zero-based|one-based|features) ?(\d*)$", str(error)).groups()
    return {"features": int(value)} if value else {"zero_based": name == "zero-based"}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "1 1:1\n1 2:1 4:1\n",
            dict(features=3),
            "line 2: index 4 is beyond --features 3: use --features 4",
        ),
        (
            "1 1:1\n1 2:1 4:1\n",
            dict(features=4, zero_based=True),
            "line 2: index 4 is beyond --features 4: use --features 5",
        ),
        # That indices count from 0 is known only after index 3 was read.
        (
            "1 1:1 3:1\n1 0:1\n",
            dict(features=3),
            "line 1: index 3 is beyond --features 3: use --features 4",
        ),
        (
            "1 1:1\n1 0:1\n",
            dict(zero_based=False),
            "line 2: index 0, but --one-based says .* from 1: use --zero-based",
        ),
    ],
)
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_indices_that_the_options_exclude_are_named_with_an_option(
    tmp_path, text, options, message, block, monkeypatch
):
    monkeypatch.setattr(svmlight, "BLOCK_BYTES", block)
    path = write(tmp_path / "a.svm", text)
    with pytest.raises(DataError, match=f"a.svm {message}$") as caught:
        import_data([path], str(tmp_path / "o.h5"), **options)
    import_data([path], str(tmp_path / "o.h5"), **options | advised(caught.value))


def test_train_and_test_files_of_one_set(tmp_path):
    train, test = (
        write(tmp_path / "t.svm", "1 1:1 4:1\n0 2:2\n"),
        write(tmp_path / "e.svm", "1 1:3\n0 6:5\n"),
    )
    first = import_data([train], str(tmp_path / "t.h5"))
    with pytest.raises(
        DataError,
        match=(
            r"e.svm line 2: index 6 is outside 1 to 4, .* training data: "
            r"import those with --features 6"
        ),
    ) as caught:
        import_data([test], str(tmp_path / "e.h5"), like=first.path)
    first = import_data([train], str(tmp_path / "t.h5"), **advised(caught.value))
    assert matrix(import_data([test], str(tmp_path / "e.h5"), like=first.path).path)[
        0
    ].tolist() == [
        [3, 0, 0, 0, 0, 0],
        [0] * 5 + [5],
    ]
    fewer = write(tmp_path / "f.svm", "1 1:3\n")
    assert matrix(import_data([fewer], str(tmp_path / "f.h5"), like=first.path).path)[
        0
    ].tolist() == [[3, 0, 0, 0, 0, 0]]
    zero = write(tmp_path / "z.svm", "1 0:3\n")
    with pytest.raises(
        DataError,
        match=r"z.svm line 1: index 0 is outside 1 to 6, .* import those with --zero-based",
    ) as caught:
        import_data([zero], str(tmp_path / "z.h5"), like=first.path)
    again = import_data([train], str(tmp_path / "t.h5"), features=7, **advised(caught.value))
    assert matrix(import_data([zero], str(tmp_path / "z.h5"), like=again.path).path)[
        0
    ].tolist() == [[3, 0, 0, 0, 0, 0, 0]]
    for options in (dict(features=7), dict(zero_based=True), dict(zero_based=False)):
        with pytest.raises(
            UsageError, match=r"--like encodes as .* was, so --(features|zero-based|one-based)"
        ):
            import_data([test], str(tmp_path / "e.h5"), like=first.path, **options)


@pytest.mark.parametrize(
    "start",
    [b"\xef\xbb\xbf", b"\xef\xbb\xbf# made by a program\r\n\r\n", b"# made by a program\n#\n"],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_headers_and_line_ends_of_windows(tmp_path, start, end):
    (tmp_path / "a.svm").write_bytes(
        start + end.join([b"+1 1:0.5 2:-2", b"-1 2:3 # x", b"+1 1:7"]) + end
    )
    found, y = matrix(import_data([str(tmp_path / "a.svm")], str(tmp_path / "o.h5")).path)
    assert found.tolist() == [[0.5, -2], [0, 3], [7, 0]] and y.tolist() == [1, -1, 1]


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(svmlight, "MOST_LINE", 5000)
    monkeypatch.setattr(svmlight, "BLOCK_BYTES", 1000)
    path = write(tmp_path / "a.svm", "1 1:1\n" + " " * 9000)
    with pytest.raises(DataError, match=r"a.svm: a line is longer than 5,000 bytes"):
        import_data([path], str(tmp_path / "o.h5"))


def test_columns_that_float32_would_damage_make_the_data_float64(tmp_path):
    path, out = tmp_path / "a.svm", str(tmp_path / "a.h5")
    path.write_text("".join(f"{i % 2} 1:{1577836800 + i} 2:{i / 7} 900:0.1\n" for i in range(60)))
    why = "index 1: float32 rounds values between 1577836800 and 1577836859 to steps of 128"
    assert import_data([str(path)], out).notes == (f"X is float64, because of {why}",)
    with h5py.File(out) as file:
        data, indices = file["X/data"][...], file["X/indices"][...]
    assert data.dtype == np.float64 and data[indices == 0].tolist() == [
        1577836800 + i for i in range(60)
    ]
    assert import_data([str(path)], out, dtype="float32").notes == (
        f"{why}: --dtype float64 keeps them",
    )
    path.write_text("".join(f"{i % 2} 1:{i} 2:{i / 7} 900:0.1\n" for i in range(60)))
    assert import_data([str(path)], out).notes == ()
