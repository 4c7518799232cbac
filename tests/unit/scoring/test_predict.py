"""`predict` writes labels as people gave them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import mpigd
from mpigd.config.schema import Config
from mpigd.parallel.comm import SelfComm
from mpigd.scoring.predict import predict
from mpigd.scoring.prediction_files import Targets


@pytest.mark.parametrize(
    ("loss", "words"),
    [("logistic", ("früh", "spät")), ("softmax", ("a", "bb", "ccc")), ("hinge", ("no", "yes"))],
)
def test_labels_that_are_texts(tmp_path: Path, loss: str, words: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(0, len(words), 200)
    x = given + 0.1 * rng.standard_normal(200)
    rows = "".join(
        f"{value!r},{words[code]}\n" for value, code in zip(x.tolist(), given, strict=True)
    )
    (tmp_path / "raw.csv").write_text("x,label\n" + rows, encoding="utf-8")
    data = str(tmp_path / "data.h5")
    mpigd.import_data(tmp_path / "raw.csv", data, target="label")
    model = mpigd.train(data, loss=loss, l2=1e-4)
    assert predict(model, [data], Targets(str(tmp_path / "out.h5")), Config(), SelfComm()) == 200
    with h5py.File(tmp_path / "out.h5") as file:
        found = file["prediction"].asstr()[...].tolist()
    assert found == model.predict(x[:, np.newaxis].astype(np.float32)).tolist()
    if loss != "softmax":  # one number tells three classes apart only by its neighbours
        assert found == [words[code] for code in given]
