"""Numbers written as text, many columns at once, against Python's float."""

from __future__ import annotations

import math
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpigd.tables.number_text import PLAIN, NumberFormat, read_cells, read_matrix
from mpigd.tables.readers import Block

EUROPE = NumberFormat(",", ".")
words = st.text("0123456789", min_size=1, max_size=4) | st.sampled_from(
    ["1e3", ".5", "-2.", "+7", "nan", "-inf", "1E-2"]
)
junk = st.text("01.,eE+-infatrue_x() %$", max_size=5)


def number(text, plain=PLAIN):
    """What Python makes of a text; None for what is no number."""
    text = text.strip(" ")
    if text == "":
        return math.nan
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    if plain.thousands:
        mark = re.escape(plain.thousands)
        if re.fullmatch(rf"[+-]?\d{{1,3}}({mark}\d{{3}})+(\D\d*)?", text):
            text = text.replace(plain.thousands, "")
        elif plain.thousands in text:
            return None
    if plain.decimal != ".":
        if "." in text:
            return None
        text = text.replace(plain.decimal, ".")
    if re.fullmatch(r"[+-]?nan\(\w*\)", text, re.I | re.A):
        return math.nan
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def block(columns, **kind):
    names = [f"x{j}" for j in range(len(columns))]
    arrays = [pa.array(column, **kind) for column in columns]
    return Block("f.csv", 0, len(columns[0]), dict(zip(names, arrays, strict=True))), names


@settings(deadline=None)  # the first call loads modules of pyarrow
@given(st.lists(st.lists(words | junk | st.none(), min_size=3, max_size=3), min_size=1, max_size=5))
@pytest.mark.parametrize("form", [PLAIN, EUROPE])
def test_every_cell_is_what_python_reads(form, columns):
    rows, names = block(columns, type=pa.string())
    values, wrong = read_cells(rows, names, [form] * len(names))
    for j, column in enumerate(columns):
        for i, text in enumerate(column):
            expected = math.nan if text is None else number(text, form)
            assert (wrong is not None and wrong[j, i]) == (expected is None), text
            np.testing.assert_equal(values[j, i], math.nan if expected is None else expected)
    matrix, misfits = read_matrix(rows, names, [form] * len(names))
    for j in range(len(names)):
        alone, wrong = read_cells(rows, [names[j]], [form])
        assert misfits.get(j) == (None if wrong is None else wrong[0].tolist().index(True))
        np.testing.assert_array_equal(matrix[j], alone[0] if wrong is None else np.full(3, np.nan))


def test_types_and_forms_may_differ():
    names = ["a", "b", "c", "d", "e", "f"]
    arrays = [
        pa.array(["1", " 2 "]), pa.array([True, None]), pa.array([3, 4]),
        pa.array(["1.234,5", "-0,5"]),
        pa.array(["$1,200", "12%"]), pa.array(["x", "1"]),
    ]  # fmt: skip
    rows = Block("f.csv", 0, 2, dict(zip(names, arrays, strict=True)))
    forms = [PLAIN, PLAIN, PLAIN, EUROPE, NumberFormat(adorned=True), PLAIN]
    values, wrong = read_cells(rows, names, forms)
    nan = math.nan
    np.testing.assert_array_equal(
        values, [[1, 2], [1, nan], [3, 4], [1234.5, -0.5], [1200, 12], [nan, 1]]
    )
    assert np.argwhere(wrong).tolist() == [[5, 0]]
    assert read_matrix(rows, names, forms)[1] == {5: 0}


def test_slices_are_read_where_they_lie():
    whole = pa.array(["x", "1", "2", "y"])
    values, wrong = read_cells(Block("f", 1, 2, {"a": whole.slice(1, 2)}), ["a"], [PLAIN])
    assert values.tolist() == [[1, 2]] and wrong is None


def test_text_after_the_first_rows_is_found_too():
    late, early = ["1"] * 300 + ["x"] + ["2"] * 99, ["1"] * 5 + ["y"] * 395
    rows, names = block([["1"] * 400, late, early, ["3"] * 400])
    values, misfits = read_matrix(rows, names, [PLAIN] * 4)
    assert misfits == {1: 300, 2: 5}
    assert np.all(values[0] == 1) and np.all(values[3] == 3) and np.isnan(values[1:3]).all()
