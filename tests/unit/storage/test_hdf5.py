"""The door to HDF5: a file is whole or absent, damage is found, and every trouble is one line."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpigd.errors import DataError, StorageError
from mpigd.storage import hdf5
from tests.launch import python


def write(path: Path, value: float = 1.0) -> None:
    with hdf5.create(path) as file:
        hdf5.write_array(file, "coef", np.full(3, value))
        hdf5.seal(file)


def read(path: Path) -> float:
    with hdf5.open_read(path) as file:
        hdf5.verify(file)
        return float(hdf5.dataset(file, "coef")[0])


def test_a_new_file_appears_under_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    with hdf5.create(path) as file:
        hdf5.write_array(file, "coef", np.ones(3))
        assert not path.exists(), "not before it is complete"
        hdf5.seal(file)
    assert os.listdir(tmp_path) == ["model.h5"]
    assert read(path) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, DataError])
@pytest.mark.parametrize("old", [True, False])
def test_an_exception_in_the_body_changes_nothing(
    tmp_path: Path, error: type[BaseException], old: bool
) -> None:
    path = tmp_path / "model.h5"
    if old:
        write(path, 7)
    with pytest.raises(error), hdf5.create(path) as file:
        hdf5.write_array(file, "coef", np.ones(3))
        raise error("stop")
    assert os.listdir(tmp_path) == (["model.h5"] if old else [])
    assert not old or read(path) == 7


def test_an_old_file_is_replaced_for_new_readers_only(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    write(path, 1)
    with hdf5.open_read(path) as before:
        write(path, 2)
        assert before["coef"][0] == 1
    assert read(path) == 2


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_honoured(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "model.h5")
        assert os.umask(mask) == mask, "and left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.h5").stat().st_mode) == mode


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"nowhere/model\.h5: cannot be written: No such file or directory"
    ) as caught:
        write(tmp_path / "nowhere" / "model.h5")
    assert caught.value.code == 74
    with pytest.raises(StorageError, match="cannot be written: it is a folder"):
        write(tmp_path)
    assert [name for name in os.listdir(tmp_path.parent) if name.endswith(".tmp")] == []


FULL_DISK = """
import os, resource, sys
import numpy as np
from mpigd.storage import hdf5
from mpigd.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    with hdf5.create("model.h5") as file:
        for k in range(20):
            hdf5.write_array(file, f"a{k}", np.random.default_rng(k).random((50, 500)))
            file.create_dataset(f"b{k}", data=np.arange(1000))
        hdf5.seal(file)
except StorageError as error:
    print(error, os.listdir("."))
    sys.exit(error.code)
"""


@pytest.mark.parametrize("room", [0, 100, 4000, 300_000, 4_000_000])
def test_a_full_disk(tmp_path: Path, room: int) -> None:
    """HDF5 itself would leave a file that it cannot close, and crash at the end of the process."""
    done = python("-c", FULL_DISK, str(room), cwd=tmp_path)
    assert done.returncode == 74, done.stderr
    assert done.stdout == "model.h5: cannot be written: File too large []\n"
    assert done.stderr == ""


EVERY_BYTE = """
import os, random
import numpy as np
from mpigd.storage import hdf5
from mpigd.errors import DataError

with hdf5.create("good.h5") as file:
    hdf5.write_array(file, "coef", np.arange(5.0))
    hdf5.write_array(file.create_group("state"), "m", np.arange(4))
    hdf5.write_array(file, "empty", np.zeros((0, 3)))
    hdf5.write_array(file, "scalar", np.array(3.0))
    hdf5.write_json(file, "config", {"l2": 0.5})
    hdf5.write_text(file, "format", "test 1")
    hdf5.write_text(file["coef"], "unit", "minutes")
    hdf5.seal(file)

def contents(path):
    found = {}
    with hdf5.open_read(path) as file:
        hdf5.verify(file)
        found[""] = {name: str(value) for name, value in file.attrs.items()}
        def note(name, item):
            values = item[...].tobytes() if hasattr(item, "dtype") else None
            found[name] = values, {key: str(value) for key, value in item.attrs.items()}
        file.visititems(note)
    return found

truth, raw = contents("good.h5"), open("good.h5", "rb").read()
draw, harmless = random.Random(0), 0
for place in range(len(raw)):
    damaged = bytearray(raw)
    damaged[place] ^= draw.randrange(1, 256)
    open("bad.h5", "wb").write(damaged)
    try:
        assert contents("bad.h5") == truth, f"byte {place} changed what is read, unnoticed"
        harmless += 1
    except DataError as error:
        assert str(error).startswith("bad.h5: "), error
        assert "\\n" not in str(error), error
for length in range(0, len(raw), 40):
    open("bad.h5", "wb").write(raw[:length])
    try:
        contents("bad.h5")
        raise SystemExit(f"cut after {length} of {len(raw)} bytes, unnoticed")
    except DataError:
        pass
print(harmless / len(raw))
"""


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    """Each byte of a small file is flipped in turn, and the file is cut at every length.

    A file that passes must read as before, since the byte was in unused space.
    """
    done = python("-c", EVERY_BYTE, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout) < 0.5


def test_values_that_were_changed_behind_the_checksums(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        file["coef"][1] = 2.0
    with pytest.raises(
        DataError, match=r"model\.h5: damaged: its contents do not match their checksum"
    ) as caught:
        read(path)
    assert caught.value.code == 65


@pytest.mark.parametrize("change", ["add", "remove", "rename", "retype", "unseal"])
def test_a_changed_structure_is_found(tmp_path: Path, change: str) -> None:
    path = tmp_path / "model.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        if change == "add":
            file["more"] = np.ones(1)
        if change == "rename":
            file.move("coef", "other")
        if change == "retype":
            values = file["coef"][...].view(np.int64)  # the same bytes
            del file["coef"]
            file["coef"] = values
        if change == "remove":
            del file["coef"]
        if change == "unseal":
            del file.attrs[hdf5.CHECKSUM]
    with hdf5.open_read(path) as file, pytest.raises(DataError, match="damaged"):
        hdf5.verify(file)


def test_the_digest_is_of_the_contents_and_not_of_the_file(tmp_path: Path) -> None:
    digests = []
    for name in ("a.h5", "b.h5"):
        with hdf5.create(tmp_path / name) as file:
            for key in ("u", "v") if name == "a.h5" else ("v", "u"):
                hdf5.write_array(file, key, np.arange(4.0))
            digests.append(hdf5.content_digest(file))
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3)), np.array(2.5), np.arange(6).reshape(2, 3), np.ones(7, "float32")]
)
def test_arrays_survive(tmp_path: Path, array: np.ndarray) -> None:
    with hdf5.create(tmp_path / "a.h5") as file:
        hdf5.write_array(file, "array", array)
    with hdf5.open_read(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["array"][...], array, strict=True)
        assert file["array"].fletcher32 == (array.size > 0 and array.ndim > 0)


def test_texts_survive(tmp_path: Path) -> None:
    value = {"a": [1, None, "grün"], "long": "x" * 100_000, "b": 1e-300}
    with hdf5.create(tmp_path / "a.h5") as file:
        hdf5.write_json(file, "json", value)
        hdf5.write_text(file, "text", "grün")
    with hdf5.open_read(tmp_path / "a.h5") as file:
        assert hdf5.read_json(file, "json") == value
        assert hdf5.read_text(file, "text") == "grün"
        assert hdf5.read_text(file, "missing") == ""


def message(path: Path) -> str:
    with pytest.raises(DataError) as caught, hdf5.open_read(path):
        pass
    assert caught.value.code == 65
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(tmp_path / "none.h5").endswith("no such file")
    assert message(tmp_path).endswith("is a folder; name the files in it")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    assert "not an HDF5 file" in message(tmp_path / "table.csv")
    assert "mpigd import" in message(tmp_path / "table.csv")
    (tmp_path / "empty.h5").touch()
    assert "not an HDF5 file" in message(tmp_path / "empty.h5")
    write(tmp_path / "secret.h5")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(
            errno.EACCES, "Unable to synchronously open file"
        )  # root may read everything

    monkeypatch.setattr(h5py, "File", refuse)
    assert message(tmp_path / "secret.h5").endswith("may not be read (permission denied)")


def test_a_missing_dataset_names_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "model.h5")
    with (
        hdf5.open_read(tmp_path / "model.h5") as file,
        pytest.raises(DataError, match="no dataset 'X'; it has coef"),
    ):
        hdf5.dataset(file, "X")


def test_an_error_that_is_not_of_the_file_passes(tmp_path: Path) -> None:
    """Somebody else's trouble inside the block must not be told as damage of this file."""
    write(tmp_path / "model.h5")
    for error in (
        KeyError("coefficient"),
        FileNotFoundError(2, "No such file"),
        RuntimeError("no convergence"),
    ):
        with pytest.raises(type(error)) as caught, hdf5.open_read(tmp_path / "model.h5"):
            raise error
        assert caught.value is error
