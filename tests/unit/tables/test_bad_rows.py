"""Rows that do not fit an encoding.

Policies for unseen levels and missing values, names of rows that are left out, ids, and the origins
of rows.
"""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.preprocessing import OneHotEncoder

from mpigd.errors import DataError, UsageError
from mpigd.storage import hdf5
from mpigd.tables import csv_reader, ids
from mpigd.tables.encoding import Column, Encoding, Target
from mpigd.tables.importer import encode_like, import_data
from mpigd.tables.policies import Policies

ENCODING = Encoding(
    format="table",
    features=6,
    columns=(
        Column("a", "number", mean=2.5),
        Column("b", "category", categories=("u", "v")),
        Column("c", "category", categories=("x", "y"), reference="x"),
        Column("d", "date", parts=("year", "month")),
    ),
    target=Target("t", ("no", "yes")),
)
GOOD = "1,u,x,2020-01-02,yes"
BAD = {
    "one,u,x,2020-01-02,yes": "column 'a' is 'one', expected a number",
    "inf,u,x,2020-01-02,yes": "column 'a' is inf, not a finite number",
    "1e39,u,x,2020-01-02,yes": "column 'a' is 1e+39, too large for float32",
    "1,w,x,2020-01-02,yes": "column 'b' is 'w', which the training data did not have (it had u, v)",
    "1,u,z,2020-01-02,yes": "column 'c' is 'z', which the training data did not have (it had x, y)",
    "1,u,x,2020-02-30,yes": "column 'd' is '2020-02-30', expected a date as in 2013-12-31",
    "1,u,x,2020-01-02,maybe": (
        "column 't' is 'maybe', which the training data did not have (it had no, yes)"
    ),
    ",u,x,2020-01-02,yes": "column 'a' is missing",
    "1,,x,2020-01-02,yes": "column 'b' is missing",
    "1,u,,2020-01-02,yes": "column 'c' is missing",
    "1,u,x,,yes": "column 'd' is missing",
    "1,u,x,2020-01-02,": "column 't' is missing",
    "1,u": "has 2 fields, expected 5",
    "1,u,x,2020-01-02,yes,more": "has 6 fields, expected 5",
}


def matrix(path):
    with h5py.File(path) as file:
        X = file["X"]
        if isinstance(X, h5py.Group):
            parts = (X[name][...] for name in ("data", "indices", "indptr"))
            return sp.csr_matrix(tuple(parts), X.attrs["shape"]).toarray()
        return X[...]


def vector(path, name):
    with h5py.File(path) as file:
        return file[name][...]


def table(path, rows, header="a,b,c,d,t"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def options_of(message):
    """The options that a message advises."""
    return re.findall(r"--([a-z-]+) ([a-z]+)", message)


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.h5")


@pytest.mark.parametrize("row", BAD)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_bad_row_is_an_error_or_is_left_out(tmp_path, out, row, command):
    source = table(tmp_path / "new.csv", [GOOD, GOOD, row, "3,v,y,2021-05-06,no"])
    needed = not (command == "predict" and "'t'" in BAD[row])
    place = f"{source} row 2"
    if needed:
        with pytest.raises(DataError) as error:
            encode_like([source], out, ENCODING, Policies(command=command))
        assert place in str(error.value)
        missing = "is missing" in BAD[row]
        assert ("missing values: " if missing else BAD[row]) in str(error.value)
        # Each piece of advice, word for word.
        for option, value in options_of(str(error.value)):
            name = option.replace("-", "_")
            done = encode_like([source], out, ENCODING, Policies(**{name: value}, command=command))
            assert done.rows == (3 if value in ("skip", "drop") else 4)
        assert "--on-bad-row skip" in str(error.value)
    if "fields" in BAD[row]:
        place = f"{source} row 2 "
    done = encode_like([source], out, ENCODING, Policies(on_bad_row="skip", command=command))
    if needed:
        assert (done.rows, done.skipped, done.dropped) == (3, 1, 0)
        assert done.notes[0] == "1 row was left out (--on-bad-row skip)"
        assert (
            done.notes[1].startswith(f"{place}")
            and BAD[row] in done.notes[1]
            and "--" not in done.notes[1]
        )
        assert vector(out, "source_row").tolist() == [0, 1, 3]
    else:
        assert done.rows == 4 and done.notes == ()
    assert matrix(out)[[0, -1]].tolist() == [[1, 1, 0, 0, 2020, 1], [3, 0, 1, 1, 2021, 5]]


def test_all_kinds_of_bad_rows_at_once_in_any_blocks(tmp_path, out, monkeypatch):
    rows, bad = [], []
    for i, row in enumerate([*BAD] * 4):
        rows += [GOOD] * (i % 3) + [row]
        bad.append(len(rows) - 1)
    source, other = (
        table(tmp_path / "a.csv", rows),
        table(tmp_path / "b.csv", [GOOD, *list(BAD)[:2]]),
    )
    notes = []
    for size in (64, 1 << 22):
        monkeypatch.setattr(csv_reader, "BLOCK_BYTES", size)
        done = encode_like(
            [source, other], out, ENCODING, Policies(on_bad_row="skip", command="evaluate")
        )
        kept = np.setdiff1d(np.arange(len(rows)), bad)
        assert vector(out, "source_row").tolist() == [*kept, 0]
        assert vector(out, "source_file").tolist() == [0] * kept.size + [1]
        with hdf5.open_read(out) as file:
            assert hdf5.read_json(file, "sources", list) == [source, other]
            assert hdf5.read_json(file, "skipped") == {"rows": len(bad) + 2}
        assert (done.rows, done.skipped) == (kept.size + 1, len(bad) + 2)
        assert np.all(matrix(out) == [1, 1, 0, 0, 2020, 1]) and np.all(vector(out, "y") == 1)
        assert done.notes[0] == f"{len(bad) + 2:,} rows were left out (--on-bad-row skip)"
        assert len(done.notes) == 12 and done.notes[-1] == f"... and {len(bad) - 8:,} more"
        notes.append(sorted(done.notes))
    assert [{row.split(":")[0] for row in each} for each in notes]


def test_if_all_rows_are_bad_nothing_is_written(tmp_path, out):
    source = table(tmp_path / "a.csv", BAD)
    with pytest.raises(
        DataError,
        match=r"no row can be encoded: 14 rows were left out .*row 0: column 'a' is 'one'",
    ):
        encode_like([source], out, ENCODING, Policies(on_bad_row="skip", command="evaluate"))
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("gap", [",u,y,2020-01-02,yes", "1,,y,2020-01-02,yes"])
def test_gaps_that_can_be_filled(tmp_path, out, gap):
    source = table(tmp_path / "a.csv", [gap])
    for missing in ("mean", "zero"):
        encode_like([source], out, ENCODING, Policies(missing=missing, command="predict"))
        a = (2.5 if missing == "mean" else 0.0) if gap.startswith(",") else 1.0
        b = [1, 0] if gap.startswith(",u") else [0, 0]
        assert matrix(out).tolist() == [[a, *b, 1, 2020, 1]]


@pytest.mark.parametrize("command", ["evaluate", "predict", "import --like"])
def test_gaps_that_no_value_can_fill(tmp_path, out, command):
    source = table(tmp_path / "a.csv", [GOOD, "1,u,,2020-01-02,yes"])
    with pytest.raises(
        DataError, match=r"column 'c' 1 .*: a missing category would be taken for the reference"
    ) as error:
        encode_like([source], out, ENCODING, Policies(missing="mean", command=command))
    assert options_of(str(error.value))
    for option, value in options_of(str(error.value)):
        told = Policies(**{option.replace("-", "_"): value}, command=command)
        assert encode_like([source], out, ENCODING, told).rows == 1
    source = table(tmp_path / "b.csv", [GOOD, "1,u,x,,yes"])
    with pytest.raises(
        DataError, match=r"column 'd' 1 \(first: .* row 1\): use --"
    ):  # there is no mean of dates
        encode_like([source], out, ENCODING, Policies(missing="mean", command=command))
    encode_like([source], out, ENCODING, Policies(missing="zero", command=command))
    assert matrix(out)[1].tolist() == [1, 1, 0, 0, 0, 0]


def test_a_model_of_rows_without_gaps_refuses_gaps_in_new_ones(tmp_path, out):
    dropping = Encoding.from_dict(ENCODING.to_dict() | {"missing": "drop"})
    source = table(tmp_path / "a.csv", [GOOD, ",u,x,2020-01-02,yes"])
    with pytest.raises(
        DataError, match=r"column 'a' 1 .*: use --missing mean, --missing zero or --on-bad-row skip"
    ):
        encode_like([source], out, dropping, Policies(command="predict"))
    with pytest.raises(DataError, match=r"--missing zero, --missing drop or --on-bad-row skip"):
        encode_like([source], out, dropping, Policies(command="evaluate"))
    assert (
        encode_like([source], out, dropping, Policies(on_bad_row="skip", command="predict")).skipped
        == 1
    )
    assert (
        encode_like([source], out, dropping, Policies(missing="drop", command="evaluate")).dropped
        == 1
    )
    assert encode_like([source], out, dropping).dropped == 1  # import --like
    with pytest.raises(
        UsageError, match="--missing drop is not for predict: use --on-bad-row skip"
    ):
        Policies(missing="drop", command="predict")


def test_a_prediction_reads_nothing_that_it_does_not_need(tmp_path, out):
    encoding = Encoding.from_dict(
        ENCODING.to_dict() | {"extras": {"sample_weight": "w", "key": "k"}}
    )
    source = table(
        tmp_path / "a.csv",
        ["1,u,x,2020-01-02,perhaps,-1,", "1,u,x,2020-01-02,,x,"],
        "a,b,c,d,t,w,k",
    )
    assert encode_like([source], out, encoding, Policies(command="predict")).rows == 2
    with h5py.File(out) as file:
        assert sorted(file) == ["X", "encoding", "skipped", "source_file", "source_row", "sources"]


FRAME = pd.DataFrame(
    {
        "city": ["rome"] * 5 + ["oslo"] * 4 + ["nice", "bonn", "pisa"],
        "size": ["s", "m"] * 6,
        "y": np.arange(12.0),
    }
)


def names(path):
    with hdf5.open_read(path) as file:
        return hdf5.read_json(file, "encoding")["feature_names"]


@pytest.mark.parametrize("unseen", ["error", "zero", "other"])
def test_rare_and_unseen_levels(tmp_path, out, unseen):
    source = str(tmp_path / "a.csv")
    FRAME.to_csv(source, index=False)
    done = import_data([source], out, target="y", min_count=4, unseen=unseen)
    assert names(out) == ["city=oslo", "city=rome", "city=<other>", "size=m", "size=s"]
    assert "rare levels share a column <other>: 3 of 'city'" in done.notes
    city = FRAME["city"].where(FRAME["city"].isin(["rome", "oslo"]), "<other>")
    expected = np.column_stack(
        [
            city == "oslo",
            city == "rome",
            city == "<other>",
            FRAME["size"] == "m",
            FRAME["size"] == "s",
        ]
    )
    np.testing.assert_array_equal(matrix(out), expected)
    new, other = (
        table(tmp_path / "b.csv", ["bonn,s,0", "kiel,m,0"], "city,size,y"),
        str(tmp_path / "b.h5"),
    )
    if unseen == "error":
        with pytest.raises(
            DataError,
            match=r"row 1: column 'city' is 'kiel', which .* use --unseen zero or --unseen other$",
        ):
            import_data([new], other, like=out)
    for chosen in ("error", "zero", "other"):
        told = {} if chosen == "error" else {"unseen": chosen}
        if chosen == "error" and unseen == "error":
            continue
        import_data([new], other, like=out, **told)
        policy = unseen if chosen == "error" else chosen
        assert matrix(other).tolist() == [[0, 0, 1, 0, 1], [0, 0, float(policy == "other"), 1, 0]]
    # No rare level stands for an unseen size.
    sizes = table(tmp_path / "c.csv", ["rome,xl,0"], "city,size,y")
    with pytest.raises(
        DataError,
        match=r"column 'size' is 'xl'.*: correct it, or use --unseen zero or --on-bad-row skip",
    ):
        encode_like(
            [sizes],
            other,
            Encoding.from_dict(stored(out)),
            Policies(unseen="other", command="predict"),
        )


def test_rare_levels_are_those_of_scikit_learn(tmp_path, out):
    rng = np.random.default_rng(4)
    levels = np.array([f"l{i:02}" for i in range(30)])
    train = pd.DataFrame({"c": levels[rng.geometric(0.15, 2000) % 30], "y": 0.5})
    new = pd.DataFrame({"c": [*levels, "new", "l1"], "y": 0.5})
    known = OneHotEncoder(
        min_frequency=25, handle_unknown="infrequent_if_exist", sparse_output=False
    )
    known.fit(train[["c"]])
    for frame, name in ((train, "train.csv"), (new, "new.csv")):
        frame.to_csv(tmp_path / name, index=False)
    import_data([str(tmp_path / "train.csv")], out, target="y", min_count=25, unseen="other")
    import_data([str(tmp_path / "new.csv")], out + "2", like=out)
    for frame, path in ((train, out), (new, out + "2")):
        np.testing.assert_array_equal(matrix(path), known.transform(frame[["c"]]))
    kept = [f"c={level}" for level in levels if level not in known.infrequent_categories_[0]]
    assert names(out) == [name for name in kept if name[2:] in set(train["c"])] + ["c=<other>"]


def stored(path):
    with hdf5.open_read(path) as file:
        return hdf5.read_json(file, "encoding")


def test_a_reference_level_has_no_room_for_unseen_ones(tmp_path, out):
    source = str(tmp_path / "a.csv")
    FRAME.to_csv(source, index=False)
    with pytest.raises(
        UsageError,
        match=(
            r"--unseen zero: zeros in all columns of 'city' stand for its reference level, rome: "
            r"use --unseen error"
        ),
    ):
        import_data([source], out, target="y", unseen="zero", reference={"city": "rome"})
    import_data([source], out, target="y", unseen="error", reference={"city": "rome"})
    new = table(tmp_path / "b.csv", ["kiel,m,0", "oslo,m,0"], "city,size,y")
    with pytest.raises(
        DataError, match=r"column 'city' is 'kiel'.*: correct it, or use --on-bad-row skip$"
    ):
        encode_like(
            [new],
            out + "2",
            Encoding.from_dict(stored(out)),
            Policies(unseen="zero", command="predict"),
        )
    import_data([source], out, target="y", min_count=4, unseen="other", drop_first=True)
    assert names(out) == ["city=rome", "city=<other>", "size=s"]
    encode_like([new], out + "2", Encoding.from_dict(stored(out)), Policies(command="predict"))
    assert matrix(out + "2").tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(unseen="other"), "--unseen other needs --min-count N"),
        (
            dict(unseen="other", min_count=2, drop=["city"]),
            "no category has a level of fewer than 2 rows",
        ),
        (dict(min_count=1), "--min-count 1: expected at least 2"),
        (
            dict(min_count=4, reference={"city": "bonn"}),
            "--reference city=bonn: --min-count 4 gathers it",
        ),
        (dict(hash_bits=4, min_count=4), "--min-count does not go with --hash"),
        (dict(hash_bits=4, unseen="zero"), "--unseen does not go with --hash"),
    ],
)
def test_options_that_do_not_fit(tmp_path, out, options, message):
    source = str(tmp_path / "a.csv")
    FRAME.to_csv(source, index=False)
    with pytest.raises(UsageError, match=re.escape(message)):
        import_data([source], out, target="y", **options)


def test_unseen_other_needs_a_model_that_has_rare_levels(tmp_path, out):
    source = table(tmp_path / "a.csv", [GOOD])
    with pytest.raises(
        DataError, match=r"--unseen other: no column has a level for rare ones.*: use --unseen zero"
    ):
        encode_like([source], out, ENCODING, Policies(unseen="other", command="predict"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7, -3, 12345678901234567, 0], np.array([7, -3, 12345678901234567, 0])),
        (["007", "8", "9", "10"], ["007", "8", "9", "10"]),
        (["a", "zoë", "b c", "日本"], ["a", "zoë", "b c", "日本"]),
        ([1.5, 2, 3, 4], ["1.5", "2", "3", "4"]),
    ],
)
def test_ids_are_kept(tmp_path, out, kind, values, expected, monkeypatch):
    monkeypatch.setattr(ids, "SLAB_ROWS", 3)
    frame = pd.DataFrame({"who": values, "a": [1.0, 2, 3, 4], "y": [0, 1, 0, 1]})
    source = str(tmp_path / f"a.{kind}")
    frame.to_csv(source, index=False) if kind == "csv" else frame.to_parquet(source)
    if kind == "csv" and values[0] == 1.5:
        expected = ["1.5", "2.0", "3.0", "4.0"]
    import_data([source], out, target="y", id="who")
    for path in (out, str(tmp_path / "new.h5")):
        if path != out:
            encode_like(
                [source], path, Encoding.from_dict(stored(out)), Policies(command="predict")
            )
        with h5py.File(path) as file:
            assert "who" not in stored(path)["feature_names"]
            found = file["id"]
            assert found.fletcher32
            if isinstance(expected, np.ndarray):
                assert found.dtype == np.int64
                np.testing.assert_array_equal(found[...], expected)
            else:
                assert (
                    found.dtype.kind == "S"
                    and h5py.check_string_dtype(found.dtype).encoding == "utf-8"
                )
                assert found.asstr()[...].tolist() == expected


def test_ids_that_are_missing_or_no_ids(tmp_path, out):
    header = "who,a,y"
    source = table(tmp_path / "a.csv", ["p,1,0", ",2,1"], header)
    with pytest.raises(DataError, match=r"column 'who' 1 \(first: .*a.csv row 1\)"):
        import_data([source], out, target="y", id="who")
    for option in ("target", "weight", "key", "offset"):
        with pytest.raises(UsageError, match="column 'who' has two uses"):
            import_data([source], out, **{"target": "y", "id": "who", option: "who"})
    import_data([source], out, target="y", id="who", missing="drop")
    assert vector(out, "id").tolist() == [b"p"]
    long = table(tmp_path / "b.csv", ["p,1,0", "q" * 2000 + ",2,1"], header)
    encoding = Encoding.from_dict(stored(out) | {"missing": "refuse"})
    with pytest.raises(
        DataError, match=r"row 1: column 'who' is 'q+'\.\.\.: an id has at most 1,024 bytes"
    ):
        encode_like([long], out + "2", encoding)
    bare = table(tmp_path / "c.csv", ["1,0"], "a,y")
    done = encode_like([bare], out + "2", encoding, Policies(command="predict"))
    assert done.notes == ("no column 'who', so there are no ids",)


def test_infinities_can_be_missing_values(tmp_path, out):
    encoding = Encoding(
        format="table", features=1, columns=(Column("a", "number", mean=4.0),), target=Target("y"),
        extras={"sample_weight": "w"}, missing="mean", infinite=True,
    )  # fmt: skip
    source = table(tmp_path / "a.csv", ["inf,1,1", "-inf,2,1", "3,3,1"], "a,y,w")
    encode_like([source], out, encoding)
    assert matrix(out).tolist() == [[4], [4], [3]]
    source = table(tmp_path / "b.csv", ["1,inf,1", "2,2,inf"], "a,y,w")
    with pytest.raises(
        DataError, match=r"missing values: column 'y' 1 .*row 0\), column 'w' 1 \(first: .*row 1\)"
    ):
        encode_like([source], out, encoding)


def test_numbers_of_other_countries(tmp_path, out):
    encoding = Encoding(
        format="table", features=2,
        columns=(Column("a", "number"), Column("b", "number", adorned=True)),
        target=Target("y"), csv={"decimal": ",", "thousands": ".", "delimiter": ";"},
        dtype="float64",
    )  # fmt: skip
    source = table(tmp_path / "a.csv", ["1.234,5;€ 2.000,25;0,5", "-7;12,5 %;1"], "a;b;y")
    encode_like([source], out, encoding)
    assert matrix(out).tolist() == [[1234.5, 2000.25], [-7, 12.5]]
    assert vector(out, "y").tolist() == [0.5, 1]
    source = table(tmp_path / "b.csv", ["1.5;1;1"], "a;b;y")
    with pytest.raises(DataError, match=r"row 0: column 'a' is '1.5', expected a number"):
        encode_like([source], out, encoding)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_svmlight_says_where_rows_come_from_and_what_helps(tmp_path, out, command):
    first, second = tmp_path / "a.svm", tmp_path / "b.svm"
    first.write_text("1 1:1\n0 1:nan\n1 2:3\n")
    second.write_text("0 1:2\n")
    encoding = Encoding(format="svmlight", features=2)
    sources = [str(first), str(second)]
    with pytest.raises(DataError, match=r"missing values: 1 .*: use --missing zero") as error:
        encode_like(sources, out, encoding, Policies(command=command))
    advised = dict.fromkeys(value for _, value in options_of(str(error.value)))
    assert list(advised) == (["zero"] if command == "predict" else ["zero", "drop"])
    for missing in advised:
        encode_like(sources, out, encoding, Policies(missing=missing, command=command))
        assert vector(out, "source_row").tolist() == (
            [0, 1, 2, 0] if missing == "zero" else [0, 2, 0]
        )
        assert vector(out, "source_file").tolist() == (
            [0, 0, 0, 1] if missing == "zero" else [0, 0, 1]
        )
    with pytest.raises(UsageError, match="--on-bad-row skip is not for svmlight"):
        encode_like(sources, out, encoding, Policies(on_bad_row="skip", command=command))


VERSION_1 = {
    "format": "table", "features": 3, "missing": "mean", "hash_bits": None, "dtype": "float32",
    "layout": "dense", "zero_based": False, "extras": {},
    "target": {"name": "t", "classes": ["no", "yes"]}, "version": 1,
    "columns": [
        {"name": "a", "kind": "number", "categories": None, "mean": 2.5},
        {"name": "b", "kind": "category", "categories": ["u", "v"], "mean": None},
    ],
    "feature_names": ["a", "b=u", "b=v"],
}  # fmt: skip
VERSION_2 = VERSION_1 | {
    "features": 2, "version": 2, "feature_names": ["a", "b=v"],
    "columns": [VERSION_1["columns"][0], VERSION_1["columns"][1] | {"reference": "u"}],
}  # fmt: skip


@pytest.mark.parametrize("old", [VERSION_1, VERSION_2])
def test_encodings_of_before_are_read_and_written_as_before(tmp_path, out, old):
    encoding = Encoding.from_dict(old)
    assert json.loads(json.dumps(encoding.to_dict())) == old
    source = table(tmp_path / "a.csv", ["1,v,yes", ",u,no"], "a,b,t")
    encode_like([source], out, encoding, Policies(command="evaluate"))
    assert matrix(out).tolist() == (
        [[1, 0, 1], [2.5, 1, 0]] if old is VERSION_1 else [[1, 1], [2.5, 0]]
    )
    assert vector(out, "y").tolist() == [1, 0]


def test_the_policies_survive_json():
    column = Column("b", "category", categories=("u",), rare=("v", "w"))
    encoding = Encoding(
        format="table", features=2, columns=(column,), unseen="other", target=Target("y")
    )
    assert Encoding.from_dict(encoding.to_dict()) == encoding
    assert encoding.to_dict()["version"] == 3 and encoding.feature_names == ["b=u", "b=<other>"]
