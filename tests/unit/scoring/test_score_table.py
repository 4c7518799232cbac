"""`evaluate` prints counts as counts, and classes on a line of their own."""

from __future__ import annotations

from mpigd.config.units import readable
from mpigd.scoring.metrics import score_table


def test_counts_have_separators() -> None:
    scores = {
        "log_loss": 0.123456789, "rmse": 12345.678, "objective": 0.5, "rows": 1_000_000,
        "classes": [
            {"class": "a, b", "support": 1234567.0, "precision": 0.98765, "recall": 1.0, "f1": 0.5,
             "auc": float("nan")},
            {"class": "two\nlines", "support": 123456.5, "precision": 0.0, "recall": 0.0, "f1": 0.0,
             "auc": 1.0},
            {"class": 3, "support": 12.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "auc": 1.0},
        ],
    }  # fmt: skip
    assert score_table(scores).splitlines() == [
        "log_loss           0.123457",
        "rmse               12345.7",
        "objective          0.5",
        "rows               1,000,000",
        "class a, b  support 1,234,567  precision 0.9877  recall 1  f1 0.5  auc nan",
        "class 'two\\nlines'  support 123456  precision 0  recall 0  f1 0  auc 1",
        "class 3  support 12  precision 0  recall 0  f1 0  auc 1",
    ]


def test_readable() -> None:
    cases = {
        0.0: "0", 1e6: "1,000,000", 5: "5", -2000.0: "-2,000", 1234567.5: "1,234,567.5", 0.1: "0.1",
        2.5e17: "2.5e+17",
        float("nan"): "nan", float("inf"): "inf", 123456.75: "123457",
    }  # fmt: skip
    assert {value: readable(value) for value in cases} == cases
