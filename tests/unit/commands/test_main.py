"""`main` turns the errors of a command into one sentence and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpigd.__main__ import main
from tests.scenarios import generate, write


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Unable to allocate 3 TiB\nfor an array", "Unable to allocate 3 TiB for an array"),
        ("", "memory allocation failed"),
    ],
)
def test_a_lack_of_memory_in_training_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    shown: str,
) -> None:
    def lacking(self: object) -> None:
        raise MemoryError(text)

    (data,) = write(generate("squared", n=60), tmp_path)
    monkeypatch.setattr("mpigd.training.trainer.Run.train", lacking)
    assert main(["train", data, "-o", str(tmp_path / "m.h5"), "--quiet"]) == 69
    assert capsys.readouterr().err == (
        f"mpigd: not enough memory: {shown} (use fewer ranks on a host, or more hosts)\n"
    )
