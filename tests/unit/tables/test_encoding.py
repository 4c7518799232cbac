"""Values of raw columns, the stored encoding and the written layout.

They are compared with Fractions, hashlib and scipy.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from decimal import Decimal

import h5py
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import strategies as st

from mpigd.errors import DataError
from mpigd.storage import growing_dataset, hdf5
from mpigd.tables import writer
from mpigd.tables.columns import stable_hash, to_keys, to_text
from mpigd.tables.encoder import Encoder
from mpigd.tables.encoding import Column, Encoding, Target
from mpigd.tables.number_text import PLAIN, read_cells
from mpigd.tables.readers import Block
from mpigd.tables.text_counts import counted

finite = st.floats(allow_nan=False, allow_infinity=False)


def block(first=1, **columns):
    arrays = {
        name: value if isinstance(value, pa.Array) else pa.array(value)
        for name, value in columns.items()
    }
    return Block("new.csv", first, len(next(iter(arrays.values()))), arrays)


def encode(encoder, rows):
    """The rows of a block as parts of CSR, and their vectors."""
    encoded = encoder.read(rows)
    return *encoder.pieces(encoded), encoded.vectors


def dense(encoding, pieces):
    """Rows as a dense array, put together by scipy."""
    lengths, indices, data, _ = pieces
    shape = (lengths.size, encoding.features)
    return sp.csr_matrix(
        (data, indices, np.concatenate([[0], np.cumsum(lengths)])), shape
    ).toarray()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["1", " 2.5 ", None, "-1e3", "+4"]), [1, 2.5, math.nan, -1000, 4]),
        (pa.array(["true", "False", " TRUE", None]), [1, 0, 1, math.nan]),
        (pa.array([True, None, False]), [1, math.nan, 0]),
        (pa.array([1, 2**53 + 1, None]), [1, float(2**53 + 1), math.nan]),
        (pa.array([Decimal("1.25")]), [1.25]),
        (pa.array([1.5, math.nan], pa.float16()), [1.5, math.nan]),
        (pa.array([3, 3, None]).dictionary_encode(), [3, 3, math.nan]),
        (pa.nulls(2), [math.nan, math.nan]),
    ],
)
def test_to_numbers(array, expected):
    values, wrong = read_cells(block(x=array), ["x"], [PLAIN])
    assert wrong is None
    np.testing.assert_array_equal(values, [expected])


def test_text_of_floats_is_that_of_whole_numbers():
    assert to_text(pa.array([1.0, None, 2.5, math.nan])).to_pylist() == ["1", None, "2.5", None]
    assert to_text(pa.array([1, 20])).to_pylist() == ["1", "20"]


def test_hashes_and_keys_are_stable():
    word = int.from_bytes(hashlib.blake2b("carrier=UÄ".encode(), digest_size=8).digest(), "little")
    assert stable_hash(["carrier=UÄ"]).tolist() == [word]
    assert stable_hash([]).size == 0
    assert to_keys(pa.array(["7", " -12", None])).tolist() == [7, -12, 0]
    assert to_keys(pa.array([2**62 + 1, None])).tolist() == [2**62 + 1, 0]
    assert to_keys(pa.array(["a", "5"])).tolist() == [int(stable_hash(["a"]).view(np.int64)[0]), 5]


def test_numbers_that_do_not_fit_are_named():
    single, double = (
        Encoding(format="table", features=1, columns=(Column("x", "number"),), dtype=dtype)
        for dtype in ("float32", "float64")
    )
    with pytest.raises(DataError, match=r"new.csv row 12: column 'x' is 'abc', expected a number"):
        encode(Encoder(double, []), block(10, x=["1", "2", "abc", "z"]))
    with pytest.raises(DataError, match=r"row 2: column 'x' is -inf, not a finite number"):
        encode(Encoder(double, []), block(x=[1.0, -math.inf]))
    with pytest.raises(
        DataError,
        match=r"row 1: column 'x' is 1e\+39, too large for float32: .*use --dtype float64",
    ):
        encode(Encoder(single, []), block(x=[1e39]))
    assert encode(Encoder(double, []), block(x=[1e39]))[2].tolist() == [1e39]


ENCODING = Encoding(
    format="table",
    features=4,
    columns=(
        Column("a", "number", mean=2.5),
        Column("b", "category", categories=("u", "v")),
        Column("c", "number"),
    ),
    target=Target("t", ("no", "yes")),
    extras={"sample_weight": "w"},
    missing="zero",
)


def test_the_encoding_survives_json():
    for encoding in (ENCODING, Encoding(format="svmlight", features=9, zero_based=True)):
        assert Encoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding
    assert ENCODING.to_dict()["feature_names"] == ["a", "b=u", "b=v", "c"]
    assert (
        Encoding(format="table", features=8, columns=(Column("b", "hash"),)).feature_names is None
    )


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"columns": [{"name": "a"}]},
        {"columns": [{"name": "a", "kind": "eval", "categories": None}]},
        {"x": 1},
    ],
)
def test_a_foreign_encoding_is_refused(change):
    with pytest.raises(DataError, match="import anew"):
        Encoding.from_dict(ENCODING.to_dict() | change)


def test_encode_one_hot_and_vectors():
    rows = block(
        a=[1.0, None, 3.0],
        b=["v", "u", None],
        c=[0, 5, 6],
        t=["yes", "no", "yes"],
        w=[1.0, 2.0, 0.0],
    )
    pieces = encode(Encoder(ENCODING, ["y", "sample_weight"]), rows)
    assert dense(ENCODING, pieces).tolist() == [[1, 0, 1, 0], [0, 1, 0, 5], [3, 0, 0, 6]]
    assert pieces[0].tolist() == [2, 2, 2]  # zeros are not stored
    assert pieces[3]["y"].tolist() == [1, 0, 1] and pieces[3]["sample_weight"].tolist() == [1, 2, 0]


def test_unseen_categories_and_classes_and_negative_weights_are_named():
    good = dict(a=[1, 1], b=["u", "u"], c=[1, 1], t=["no", "no"], w=[1, 1])
    encoder = Encoder(ENCODING, ["y", "sample_weight"])
    with pytest.raises(
        DataError,
        match=(
            r"new.csv row 2: column 'b' is 'ZZ', which the training data did not have "
            r"\(it had u, v\)"
        ),
    ):
        encode(encoder, block(**good | {"b": ["u", "ZZ"]}))
    with pytest.raises(
        DataError, match=r"row 1: column 't' is 'perhaps', which the training data did not have"
    ):
        encode(encoder, block(**good | {"t": ["perhaps", "no"]}))
    with pytest.raises(DataError, match=r"row 2: column 'w' is -1: weights are at least 0"):
        encode(encoder, block(**good | {"w": [0, -1]}))


def test_hashing_is_signed_and_collisions_add_up():
    bits, texts = 1, [f"k{i}" for i in range(30)]
    columns = (Column("x", "number"), Column("p", "hash"), Column("q", "hash"))
    encoding = Encoding(format="table", features=3, columns=columns, hash_bits=bits, missing="zero")
    pieces = encode(Encoder(encoding, []), block(x=[0.5] * 30, p=texts, q=[None, *texts[1:]]))
    expected = np.zeros((30, 3))
    expected[:, 0] = 0.5
    for i, text in enumerate(texts):
        for name in ("p", "q") if i else ("p",):
            word = int.from_bytes(
                hashlib.blake2b(f"{name}={text}".encode(), digest_size=8).digest(), "little"
            )
            expected[i, 1 + word % 2] += -1 if word >> 63 else 1
    assert (expected == 0).any() and (
        np.abs(expected) == 2
    ).any()  # the test has seen signs cancel and add up
    np.testing.assert_array_equal(dense(encoding, pieces), expected)
    starts = np.concatenate([[0], np.cumsum(pieces[0])])
    assert all(np.all(np.diff(pieces[1][a:b]) > 0) for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_the_layout_on_disk_whatever_the_pieces(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(growing_dataset, "CHUNK_BYTES", 512)
    rng = np.random.default_rng(1)
    X = sp.random(300, 7, 0.3, format="csr", random_state=1, dtype=np.float32)
    y = rng.random(300)
    for step in (1, 37, 300):
        path = tmp_path / f"{step}.h5"
        with hdf5.create(path) as file:
            out = writer.Writer(file, layout, 7, "float32", ["y", "key"])
            for start in range(0, 300, step):
                part = X[start : start + step]
                rows = slice(start, start + step)
                out.append(
                    np.diff(part.indptr),
                    part.indices,
                    part.data,
                    {"y": y[rows], "key": np.arange(300)[rows]},
                )
            out.close()
            assert (out.rows, out.nonzeros) == (300, X.nnz)
        with h5py.File(path) as file:
            datasets = [
                file["y"],
                file["key"],
                *([file["X"]] if layout == "dense" else file["X"].values()),
            ]
            assert all(
                d.fletcher32 and d.maxshape[0] is None and d.chunks[0] * d.dtype.itemsize <= 512
                for d in datasets
            )
            if layout == "dense":
                assert file["X"].shape == (300, 7) and file["X"].chunks == (512 // 28, 7)
                np.testing.assert_array_equal(file["X"][...], X.toarray())
            else:
                group = file["X"]
                assert group.attrs["encoding-type"] == "csr_matrix" and list(
                    group.attrs["shape"]
                ) == [300, 7]
                assert (
                    group.attrs["encoding-version"] == "0.1.0" and group["indptr"].dtype == np.int64
                )
                again = sp.csr_matrix(
                    tuple(group[name][...] for name in ("data", "indices", "indptr")), (300, 7)
                )
                assert (again != X).nnz == 0
            np.testing.assert_array_equal(file["y"][...], y)
            np.testing.assert_array_equal(file["key"][...], np.arange(300))


@pytest.mark.parametrize("columns", [1, 2, 40])
@pytest.mark.parametrize("rows", [0, 1, 50, 2000])
def test_texts_are_counted_in_the_order_in_which_they_come(columns, rows):
    rng = np.random.default_rng(rows)
    values = [rng.choice(["a", "b", "", "zz", None], rows).tolist() for _ in range(columns)]
    values[0] = [3 if text is None else None for text in values[0]]  # numbers are texts too
    found = list(
        counted(
            [
                pa.array(column, pa.int64() if j == 0 else pa.string())
                for j, column in enumerate(values)
            ]
        )
    )
    assert len(found) == columns
    for column, (gone, texts, counts) in zip(values, found, strict=True):
        assert gone.tolist() == [value is None for value in column]
        truth = Counter(str(value) for value in column if value is not None)
        assert list(zip(texts, counts, strict=True)) == list(truth.items())
