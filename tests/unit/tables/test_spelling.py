"""The same table as CSV and as Parquet, written by other programs.

A category is one value however it is written.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from itertools import permutations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from mpigd.errors import DataError
from mpigd.tables.importer import import_data
from mpigd.tables.spelling import meaning, merged
from tests.unit.tables.test_import import encoding, matrix, write


@pytest.mark.parametrize(
    ("texts", "others"),
    [
        (["True", "true", "TRUE"], ["t", "True ", "1"]),
        (["1", "1.0", "1.00", "1."], ["01", "1.5", "v1.0", "+1"]),
        (
            ["2013-01-01", "2013-01-01 00:00:00", "2013-01-01T00:00:00.000", "2013-01-01 00:00"],
            ["2013-01-01 00:00:00Z"],
        ),
        (
            [
                "2013-01-01 10:00:00Z",
                "2013-01-01T10:00:00.000+00:00",
                "2013-01-01 10:00:00.000000+0000",
            ],
            ["2013-01-01 10:00:00+0100"],
        ),
        (["2013-01-01 10:00:00.5", "2013-01-01 10:00:00.500000"], ["2013-01-01 10:00:00.05"]),
        (["3.10"], ["3.1"]),
        (["1e-7", "1e-07", "1.0E-07"], ["1e-8"]),
        (["1e+20", "100000000000000000000"], []),
        (["12e4"], ["120000"]),
    ],
)
def test_what_texts_mean(texts, others):
    assert len({meaning(text) for text in texts}) == 1
    assert meaning(texts[0]) not in {meaning(text) for text in others}


def test_numbers_have_no_zeros_at_their_end():
    assert (
        meaning("1.50", number=True) == meaning("1.5", number=True) == "1.5"
        and meaning("10", number=True) == "10"
    )


def test_true_and_false_are_one_pair():
    assert merged({"True": 2, "TRUE": 1, "false": 4}) == {"true": 3, "false": 4}
    assert merged({"True": 2, "TRUE": 1, "maybe": 4}) == {"True": 2, "TRUE": 1, "maybe": 4}
    assert merged({}) == {}


DAYS = [
    dt.datetime(2013, 1, 1),
    dt.datetime(2013, 1, 2, 10, 30),
    dt.datetime(2013, 1, 2, 10, 30, 5, 250000),
]
VALUES = {
    "flag": [True, False, None],
    "whole": pa.array([1.0, 2.0, None]),
    "int": [1, 2, 3],
    "decimal": pa.array([Decimal("1.50"), Decimal("2.00"), None], pa.decimal128(9, 2)),
    "float": [0.1, 2.5, 1e-7],
    "date": pa.array([day.date() for day in DAYS], pa.date32()),
    "midnight": pa.array([DAYS[0], dt.datetime(2014, 5, 5), None], pa.timestamp("us")),
    "time": pa.array(DAYS, pa.timestamp("ms")),
    "zone": pa.array(DAYS, pa.timestamp("us", "UTC")),
    "text": ["True", "1.0", "x"],
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
}


def pandas(table, path):
    table.to_pandas().to_csv(path, index=False)


def arrow(table, path):
    plain = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    pc.write_csv(pa.table(plain, names=table.column_names), path)


def spark(table, path):
    """As Spark writes CSV: small letters, 1.0 of doubles, ISO 8601 with a T and milliseconds."""

    def text(value):
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, dt.datetime):
            return value.isoformat(timespec="milliseconds") + ("Z" if value.tzinfo else "")
        return "" if value is None else str(value)

    rows = [
        [text(value).replace("+00:00Z", "Z") for value in row]
        for row in zip(*table.to_pydict().values(), strict=True)
    ]
    path.write_text("\n".join(",".join(row) for row in [table.column_names, *rows]) + "\n")


def parquet(table, path):
    pq.write_table(table, path)


def orc(table, path):
    from pyarrow import orc

    orc.write_table(table, path)


WRITERS = {"a.csv": pandas, "b.csv": arrow, "c.csv": spark, "d.parquet": parquet}


@pytest.mark.parametrize("hash_bits", [None, 12])
@pytest.mark.parametrize("column", list(VALUES))
def test_train_on_one_and_encode_another(tmp_path, column, hash_bits):
    table = pa.table({column: VALUES[column], "y": [1.5, 2.5, 4.0]})
    for name, writer in WRITERS.items():
        writer(table, tmp_path / name)
    for one, other in permutations(WRITERS, 2):
        options = dict(target="y", categorical=[column], missing="zero", hash_bits=hash_bits)
        import_data([str(tmp_path / one)], str(tmp_path / "1.h5"), **options)
        import_data([str(tmp_path / other)], str(tmp_path / "2.h5"), like=str(tmp_path / "1.h5"))
        np.testing.assert_array_equal(
            matrix(str(tmp_path / "1.h5")), matrix(str(tmp_path / "2.h5")), err_msg=f"{one} {other}"
        )
        assert np.count_nonzero(matrix(str(tmp_path / "1.h5"))) == 3 - table[column].null_count


def test_a_class_of_true_and_false(tmp_path):
    parquet(pa.table({"x": [1.0, 2.0], "y": [True, False]}), tmp_path / "a.parquet")
    write(tmp_path / "b.csv", "x,y\n1,TRUE\n2,False\n")
    for one, other in permutations(["a.parquet", "b.csv"]):
        import_data([str(tmp_path / one)], str(tmp_path / "1.h5"), target="y", categorical=["y"])
        assert encoding(str(tmp_path / "1.h5"))["target"]["classes"] == ["false", "true"]
        import_data([str(tmp_path / other)], str(tmp_path / "2.h5"), like=str(tmp_path / "1.h5"))
        assert (tmp_path / "2.h5").exists()


def test_what_the_training_data_told_apart_stays_apart(tmp_path):
    text = "version,y\n3.1,1\n3.10,2\n3,3\n3.0,4\n"
    done = import_data(
        [write(tmp_path / "a.csv", text)],
        str(tmp_path / "a.h5"),
        target="y",
        categorical=["version"],
    )
    assert encoding(done.path)["columns"][0]["categories"] == ["3", "3.0", "3.1", "3.10"]
    assert matrix(done.path).tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    with pytest.raises(
        DataError, match=r"column 'version' is '3.00', which the training data did not have"
    ):
        import_data(
            [write(tmp_path / "b.csv", "version,y\n3.00,1\n")],
            str(tmp_path / "b.h5"),
            like=done.path,
        )


def test_encodings_of_before_stay_valid(tmp_path):
    """False of CSV was a level of its own, and hashed as it was written."""
    import json

    from mpigd.tables.encoding import Encoding
    from mpigd.tables.importer import encode_like

    frame = pd.DataFrame({"flag": [True, False], "y": [0.5, 1]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for old in ("False True", "false true"):
        columns = [{"name": "flag", "kind": "category", "categories": old.split(), "mean": None}]
        stored = dict(
            version=1, format="table", features=2, columns=columns,
            target={"name": "y", "classes": None}, extras={}, missing="refuse", hash_bits=None,
            dtype="float32", layout="dense", zero_based=False,
        )  # fmt: skip
        for name in ("a.csv", "a.parquet"):
            done = encode_like(
                [str(tmp_path / name)],
                str(tmp_path / "o.h5"),
                Encoding.from_dict(json.loads(json.dumps(stored))),
            )
            assert matrix(done.path).tolist() == [[0, 1], [1, 0]]
