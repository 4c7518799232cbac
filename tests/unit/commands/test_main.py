"""Commands as a whole: errors become one sentence and an exit code."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mpigd.__main__ import main
from mpigd.commands import parser as commands
from mpigd.errors import UsageError
from mpigd.parallel.comm import Comm
from tests.scenarios import generate, write
from tests.threadcomm import run


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


def test_the_folder_of_the_model_matters_on_the_rank_that_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of other hosts may differ; the ranks still do the same."""
    (data,) = write(generate("squared", n=60), tmp_path)
    output = tmp_path / "m.h5"
    words = ["train", data, "-o", str(output), "--quiet"]
    missing = ""

    def train(comm: Comm) -> int:
        arguments = commands.parser().parse_args(words)
        arguments.comm = comm
        return commands.train_command(arguments)

    usual = Path.is_dir
    monkeypatch.setattr(commands, "_connect", lambda arguments, limit: arguments.comm)
    monkeypatch.setattr(
        Path,
        "is_dir",
        lambda self: usual(self) and threading.current_thread().name != missing,
    )
    missing = "rank 1"
    assert run(2, train) == [0, 0]
    assert output.exists()
    missing = "rank 0"
    with pytest.raises(UsageError, match=r"m\.h5: the folder does not exist"):
        run(2, train)
