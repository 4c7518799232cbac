"""`mpigd import --drop-first` and `--reference`: against pandas, in every file that is encoded
alike, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

import mpigd
from mpigd.commands import info
from mpigd.errors import DataError, UsageError
from mpigd.parallel.comm import SelfComm
from mpigd.scoring.predict import evaluate, predict
from mpigd.scoring.prediction_files import Targets
from mpigd.tables.encoding import Encoding
from mpigd.tables.importer import import_data
from tests.unit.tables.test_import import encoding, matrix, vector, write


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.h5")


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    n = 400
    wide = [f"l{i:02}" for i in range(24)]
    table = {
        "size": rng.choice(["s", "m", "l"], n), "x": rng.normal(size=n),
        "code": rng.choice([3, 10, 7], n), "place": rng.choice(wide, n), "one": "always",
    }  # fmt: skip
    return pd.DataFrame(table | {"y": rng.normal(size=n)})


def saved(frame, tmp_path, name="a.csv"):
    return write(tmp_path / name, frame.to_csv(index=False))


def dummies(frame, left_out):
    """One-hot columns in the order of the frame, less those named COLUMN=LEVEL."""
    parts = []
    for name in frame.columns.drop("y", errors="ignore"):
        text = frame[name].astype(str) if frame[name].dtype.kind not in "f" else None
        part = frame[[name]] if text is None else pd.get_dummies(text, prefix=name, prefix_sep="=")
        parts.append(part.astype(float))
    return pd.concat(parts, axis=1).drop(columns=left_out)


FIRST = ["size=l", "code=10", "place=l00", "one=always"]


@pytest.mark.parametrize("more", [[], ["place", "one"]])
def test_drop_first_is_that_of_get_dummies(frame, tmp_path, out, more):
    columns = ["size", "x", "code", *more, "y"]
    frame = frame[columns]
    options = dict(target="y", dtype="float64", categorical=["code"])
    done = import_data([saved(frame, tmp_path)], out, drop_first=True, **options)
    left_out = [level for level in FIRST if level.split("=")[0] in columns]
    truth = dummies(frame, left_out)
    assert encoding(out)["feature_names"] == list(truth.columns)
    np.testing.assert_array_equal(matrix(out), truth.to_numpy())
    assert done.layout == ("csr" if "place" in columns else "dense")
    assert done.features == truth.shape[1]
    assert done.notes == (f"reference levels, which have no column: {', '.join(left_out)}",)
    with h5py.File(out) as file:  # zeros are not stored
        assert "place" not in columns or file["X/data"].size == np.count_nonzero(truth)


def test_named_levels(frame, tmp_path, out):
    source = saved(frame, tmp_path)
    import_data(
        [source],
        out,
        target="y",
        dtype="float64",
        reference={"size": "s", "code": 3},
        categorical=["code"],
    )
    np.testing.assert_array_equal(matrix(out), dummies(frame, ["size=s", "code=3"]))
    options = dict(drop_first=True, reference={"size": "m"})
    mpigd.import_data([source], out, target="y", dtype="float64", **options)
    truth = dummies(frame.astype({"code": float}), ["size=m", "place=l00", "one=always"])
    np.testing.assert_array_equal(matrix(out), truth)


def test_the_same_model_for_raw_files(frame, tmp_path, out):
    """Raw files that are scored are encoded like the training data, by statsmodels' dummies."""
    sm = pytest.importorskip("statsmodels.api")
    source = saved(frame, tmp_path)
    import_data(
        [source],
        out,
        target="y",
        dtype="float64",
        drop_first=True,
        reference=["size=m"],
        categorical=["code"],
    )
    model = mpigd.train(out, tol=1e-10)
    X = dummies(frame, ["size=m", "code=10", "place=l00", "one=always"])
    truth = sm.OLS(frame["y"], sm.add_constant(X)).fit()
    np.testing.assert_allclose(model.coef[0], truth.params.iloc[1:], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.statistics["standard_errors"], truth.bse.iloc[1:], rtol=1e-6)
    new = saved(frame[::-1].drop(columns="y").head(50), tmp_path, "new.csv")
    predictions = str(tmp_path / "p.h5")
    comm, config = SelfComm(), model.config
    predict(model, [new], Targets(predictions), config, comm)
    expected = truth.predict(sm.add_constant(X))[::-1].head(50)
    with h5py.File(predictions) as file:
        np.testing.assert_allclose(file["prediction"][...], expected, rtol=1e-6, atol=1e-8)
    scores = evaluate(model, [source], config, comm)
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean(truth.resid**2)), rel=1e-8)
    again = import_data([source], str(tmp_path / "again.h5"), like=out)
    np.testing.assert_array_equal(matrix(again.path), matrix(out))
    np.testing.assert_array_equal(vector(again.path), vector(out))


def test_unseen_and_missing_levels_are_never_the_reference(tmp_path, out):
    source = write(tmp_path / "a.csv", "c,x,t\nu,1,5\nv,2,6\nw,,7\n")
    for options in (dict(drop_first=True), dict(reference={"c": "v"})):
        import_data([source], out, target="t", missing="zero", **options)
        new = write(tmp_path / "b.csv", "c,x,t\nzz,1,5\n")
        with pytest.raises(
            DataError,
            match=r"b.csv row 0: column 'c' is 'zz', which the training data did not have",
        ):
            import_data([new], str(tmp_path / "b.h5"), like=out)
        new = write(tmp_path / "b.csv", "c,x,t\nu,,1\n,1,5\n")
        for policy in ("zero", "mean"):
            with pytest.raises(
                DataError,
                match=r"column 'c' 1 \(first: .*b.csv row 1\): .* taken for the reference level",
            ):
                import_data([new], str(tmp_path / "b.h5"), like=out, missing=policy)
        kept = write(tmp_path / "b.csv", "c,x,t\nu,2,1\n,1,5\n")
        assert import_data([kept], str(tmp_path / "b.h5"), like=out, missing="drop").rows == 1
    holes = write(tmp_path / "c.csv", "c,x,t\nu,1,5\n,2,6\nw,3,7\n")
    advice = "use --missing drop, or keep that column's levels"
    with pytest.raises(DataError, match=rf"column 'c' 1 .* {advice}"):
        import_data([holes], out, target="t", missing="mean", drop_first=True)
    assert import_data([holes], out, target="t", missing="drop", drop_first=True).rows == 2
    assert import_data([holes], out, target="t", missing="mean").rows == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(reference={"cc": "u"}), "no column 'cc'; did you mean 'c'?"),
        (
            dict(reference={"c": "uu"}),
            "--reference c=uu: column 'c' has no level 'uu'; did you mean 'u'?",
        ),
        (dict(reference={"c": "q7"}), "column 'c' has no level 'q7'; it has u, v"),
        (
            dict(reference={"x": "1"}),
            r"--reference x=1: the column holds numbers \(levels\? then --text x too\)",
        ),
        (dict(reference={"t": "5"}), "--reference t=5: the column is not one of the features"),
        (
            dict(reference={"c": "u"}, drop=["c"]),
            "--reference c=u: the column is not one of the features",
        ),
        (dict(reference=["c"]), "--reference c: expected COLUMN=LEVEL"),
        (dict(reference=["c=u", "c=v"]), "--reference names two levels of column 'c': u and v"),
        (dict(drop_first=True, hash_bits=4), "--drop-first does not go with --hash"),
        (dict(reference={"c": "u"}, hash_bits=4), "--reference does not go with --hash"),
        (dict(drop_first=True, drop=["x", "c"]), "no column is left: each has one level alone"),
    ],
)
def test_what_is_refused(tmp_path, out, options, message):
    source = write(tmp_path / "a.csv", "c,x,one,t\nu,1,k,5\nv,2,k,6\n")
    with pytest.raises(UsageError, match=message) as caught:
        import_data([source], out, **(dict(target="t") | options))
    assert "\n" not in str(caught.value) and caught.value.code == 2


def test_where_levels_do_not_belong(tmp_path, out):
    source = write(tmp_path / "a.csv", "c,x,t\nu,1,5\nv,2,6\n")
    import_data([source], out, target="t")
    for options, name in (
        (dict(drop_first=True), "--drop-first"),
        (dict(reference={"c": "u"}), "--reference"),
    ):
        why = f"so {name} does not go with it"
        with pytest.raises(UsageError, match=f"--like encodes as .* was, {why}"):
            import_data([source], str(tmp_path / "b.h5"), like=out, **options)
        lines = write(tmp_path / "a.svm", "1 1:2\n0 2:1\n")
        with pytest.raises(UsageError, match=f"svmlight has no named columns, {why}"):
            import_data([lines], str(tmp_path / "b.h5"), **options)


def test_info_and_the_stored_encoding(tmp_path, out):
    source = write(tmp_path / "a.csv", "c,x,t\nu,1,5\nv,2,6\nu,3,8\n")
    import_data([source], out, target="t")
    plain = encoding(out)
    assert plain["version"] == 1 and all("reference" not in column for column in plain["columns"])
    assert info.describe(out)["reference"] is None
    import_data([source], out, target="t", reference={"c": "v"})
    stored = encoding(out)
    assert stored["version"] == 2  # programs of before would read all levels into it
    assert json.loads(json.dumps(Encoding.from_dict(stored).to_dict())) == stored
    assert info.describe(out)["reference"] == {"c": "v"}
    assert "reference        c=v" in info.text(out, info.describe(out))
    model = str(tmp_path / "m.h5")
    mpigd.train(out, l2=0.1).save(model)
    assert info.describe(model)["reference"] == {"c": "v"}
    assert "reference        c=v" in info.text(model, info.describe(model))
    stored["columns"][0]["reference"] = "w"
    with pytest.raises(DataError, match="the stored encoding is damaged"):
        Encoding.from_dict(stored)


def ran(*command):
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(tmp_path):
    source = write(tmp_path / "a.csv", "c,d,x,t\nu,p,1,5\nv,q,2,6\nu,q,3,8\n")
    command = [
        sys.executable,
        "-m",
        "mpigd",
        "import",
        source,
        "-o",
        str(tmp_path / "o.h5"),
        "--target",
        "t",
    ]
    done = ran(*command, "--drop-first", "--reference", "c=v")
    assert done.returncode == 0
    assert "note: reference levels, which have no column: c=v, d=p" in done.stderr
    shown = ran(*command[:3], "info", str(tmp_path / "o.h5"), "--json")
    assert json.loads(shown.stdout)["feature_names"] == ["c=u", "d=q", "x"]
    done = ran(*command, "--reference", "c=w")
    assert done.returncode == 2 and "column 'c' has no level 'w'; it has u, v" in done.stderr
    assert "--drop-first" in ran(*command[:4], "--help").stdout
