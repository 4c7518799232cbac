"""Untrusted files.

Nothing but the file itself is read, nothing larger than it can hold is allocated, and no code is
loaded.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mpigd
from mpigd.config.schema import Config
from mpigd.data.loading import Layout, load
from mpigd.errors import DataError, StorageError
from mpigd.parallel.comm import SelfComm
from mpigd.scoring.predict import predict
from mpigd.scoring.prediction_files import Targets
from mpigd.storage import checksum, hdf5, safe_open
from tests.launch import python

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
Change = Callable[[h5py.File, Path], None]


def data(path: Path, change: Change | None = None) -> Path:
    """A small data set; `change` is told of the file and of a folder with a foreign one."""
    (path.parent / "elsewhere").mkdir(exist_ok=True)
    with h5py.File(path.parent / "elsewhere" / "secret.h5", "w") as other:
        other["X"], other["y"] = X + 1, Y + 1
    with h5py.File(path, "w") as file:
        file["X"], file["y"] = X, Y
        if change:
            change(file, path.parent / "elsewhere")
    return path


def refused(path: Path, *words: str, **layout: Any) -> None:
    with pytest.raises(DataError) as caught:
        load([str(path)], Layout(**layout), SelfComm())
    message = str(caught.value)
    assert message.startswith(str(path.parent)) and "\n" not in message
    assert all(word in message for word in words), message


def instead(name: str, thing: Callable[[Path], Any]) -> Change:
    def change(file: h5py.File, folder: Path) -> None:
        if name in file:
            del file[name]
        file[name] = thing(folder)

    return change


def external(folder: Path) -> h5py.ExternalLink:
    return h5py.ExternalLink(str(folder / "secret.h5"), "/X")


def soft_to_external(file: h5py.File, folder: Path) -> None:
    file["way"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")
    del file["X"]
    file["X"] = h5py.SoftLink("/way/X")


def virtual(file: h5py.File, folder: Path) -> None:
    del file["X"]
    layout = h5py.VirtualLayout((6, 2), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "X", (6, 2))
    file.create_virtual_dataset("X", layout)


def stored_outside(file: h5py.File, folder: Path) -> None:
    del file["X"]
    (folder / "raw").write_bytes((X + 1).tobytes())
    file.create_dataset("X", (6, 2), "f8", external=[(str(folder / "raw"), 0, 96)])


WAYS_OUT = {
    "external link": instead("X", external),
    "soft link to an external one": soft_to_external,
    "virtual dataset": virtual,
    "external storage": stored_outside,
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_other_files_are_read_only_where_that_is_allowed(way: str, tmp_path: Path) -> None:
    path = data(tmp_path / "data.h5", WAYS_OUT[way])
    refused(path, "--allow-links FOLDER")
    (tmp_path / "third").mkdir()
    refused(path, "elsewhere", "--allow-links FOLDER", links=(str(tmp_path / "third"),))
    shard = load(
        [str(path)],
        Layout(links=(str(tmp_path / "third"), str(tmp_path / "elsewhere"))),
        SelfComm(),
    )
    np.testing.assert_array_equal(shard.X.values, X + 1)  # type: ignore[union-attr]


def test_the_option_on_the_command_line(tmp_path: Path) -> None:
    path = data(tmp_path / "data.h5", WAYS_OUT["external link"])
    refusal = python("-m", "mpigd", "info", path)
    assert (refusal.returncode, refusal.stdout, len(refusal.stderr.splitlines())) == (65, "", 1)
    allowed = python("-m", "mpigd", "info", path, "--allow-links", tmp_path / "elsewhere")
    assert allowed.returncode == 0 and "rows" in allowed.stdout, allowed.stderr


@pytest.mark.parametrize("name", ["y", "sample_weight", "offset", "key", "encoding"])
def test_no_link_is_followed_for_what_stands_beside(name: str, tmp_path: Path) -> None:
    refused(
        data(tmp_path / "data.h5", instead(name, external)),
        f"'{name}' leads to another file",
        "--allow-links",
    )


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_no_link_is_followed_within_a_sparse_matrix(part: str, tmp_path: Path) -> None:
    def change(file: h5py.File, folder: Path) -> None:
        del file["X"]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": [6, 2]})
        group["data"], group["indices"], group["indptr"] = (
            X.ravel(),
            np.tile([0, 1], 6),
            np.arange(0, 13, 2),
        )
        load([file.filename], Layout(), SelfComm())
        del group[part]
        group[part] = external(folder)

    refused(data(tmp_path / "data.h5", change), f"'X/{part}' leads to another file")


def test_a_link_of_the_file_system_does_not_widen_a_folder(tmp_path: Path) -> None:
    path = data(
        tmp_path / "data.h5",
        instead("X", lambda folder: h5py.ExternalLink("allowed/way/secret.h5", "/X")),
    )
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "way").symlink_to(tmp_path / "elsewhere")
    refused(path, "leads to another file", links=(str(tmp_path / "allowed"),))


def test_a_virtual_dataset_whose_source_is_a_link(tmp_path: Path) -> None:
    """HDF5 would follow that by itself, wherever it leads."""

    def change(file: h5py.File, folder: Path) -> None:
        virtual(file, folder)
        with h5py.File(folder / "secret.h5", "w") as other:
            other["X"] = h5py.ExternalLink("/etc/hostname", "/X")

    refused(
        data(tmp_path / "data.h5", change),
        "'X' is a link, and HDF5 would follow",
        links=(str(tmp_path / "elsewhere"),),
    )


def test_files_named_by_a_pattern(tmp_path: Path) -> None:
    def change(file: h5py.File, folder: Path) -> None:
        del file["X"]
        layout = h5py.VirtualLayout((6, 2), "f8")
        layout[:] = h5py.VirtualSource(str(folder / "part%%.h5"), "X", (6, 2))
        file.create_virtual_dataset("X", layout)

    refused(data(tmp_path / "data.h5", change), "named by a pattern", links=(str(tmp_path),))


def test_links_within_the_file_are_followed(tmp_path: Path) -> None:
    def change(file: h5py.File, folder: Path) -> None:
        file["deep/matrix"] = X
        del file["X"]
        file["short"] = h5py.SoftLink("deep")
        file["X"] = h5py.SoftLink("/short/matrix")

    path = data(tmp_path / "data.h5", change)
    np.testing.assert_array_equal(load([str(path)], Layout(), SelfComm()).X.values, X)  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["/X", "/other", "/X/X/X/X"])
def test_links_in_a_circle(target: str, tmp_path: Path) -> None:
    def change(file: h5py.File, folder: Path) -> None:
        del file["X"]
        file["X"], file["other"] = h5py.SoftLink(target), h5py.SoftLink("/X")

    refused(data(tmp_path / "data.h5", change), "one link leads to another, more than 16 times")


def test_a_link_to_nothing(tmp_path: Path) -> None:
    refused(
        data(tmp_path / "data.h5", instead("X", lambda folder: h5py.SoftLink("/none"))),
        "no dataset 'X'",
    )
    gone = instead("X", lambda folder: h5py.ExternalLink("elsewhere/none.h5", "/X"))
    refused(
        data(tmp_path / "gone.h5", gone), "none.h5, which cannot be opened", links=(str(tmp_path),)
    )


# Sizes.


def declared(name: str, shape: Any, **how: Any) -> Change:
    def change(file: h5py.File, folder: Path) -> None:
        del file[name]
        file.create_dataset(name, shape, **how)

    return change


def too_wide(file: h5py.File, folder: Path) -> None:
    del file["X"]
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "shape": np.array([6, 2**60])})
    group["data"], group["indices"], group["indptr"] = (
        X.ravel(),
        np.tile([0, 1], 6),
        np.arange(0, 13, 2),
    )


BOMBS = {
    "rows": (
        declared("X", (2**56, 2), dtype="f8", chunks=(64, 2), compression="gzip"),
        "'X' declares 1.15e+18 bytes",
    ),
    "rows without chunks": (declared("X", (2**56, 2), dtype="f8"), "'X' declares 1.15e+18 bytes"),
    "columns": (declared("X", (6, 2**56), dtype="f4", chunks=(1, 64)), "'X' declares"),
    "rows of no columns": (
        declared("X", (2**60, 0), dtype="f4", chunks=(64, 1), maxshape=(None, None)),
        "'X' declares",
    ),
    "chunks": (
        declared("X", (6, 2), dtype="u1", chunks=(2**40, 1), maxshape=(None, 2)),
        "'X' declares chunks of 1.1e+12 bytes",
    ),
    "target": (declared("y", (2**60,), dtype="i1", chunks=(64,)), "'y' declares 1.15e+18 bytes"),
    "sparse columns": (too_wide, "'X' declares 1152921504606846976 columns"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_a_file_declares_must_fit_into_it(bomb: str, tmp_path: Path) -> None:
    """Also where the rows would not be held in memory."""
    change, message = BOMBS[bomb]
    path = data(tmp_path / "data.h5", change)
    assert path.stat().st_size < 100_000
    start = time.process_time()
    refused(path, message)
    refused(path, message, max_memory=1 << 20)
    assert time.process_time() - start < 1, "nothing of that size was made"


LITTLE = """
import resource, sys
from mpigd.__main__ import main
import mpigd.training.trainer, mpigd.parallel.comm
now = int(next(line for line in open("/proc/self/status") \
if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 28), now + (1 << 28)))
"""
INFO = (
    LITTLE
    + """
sys.argv = ["mpigd", "info", sys.argv[1]]
sys.exit(main())
"""
)
LOAD = (
    LITTLE
    + """
from mpigd.parallel.comm import SelfComm
from mpigd.data.loading import Layout, load
from mpigd.errors import MpigdError
try:
    print(type(load([sys.argv[1]], Layout(max_memory=int(sys.argv[2])), SelfComm()).X).__name__)
except MpigdError as error:
    print(str(error).splitlines()[-1])
"""
)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_one_line_and_65(bomb: str, tmp_path: Path) -> None:
    path = data(tmp_path / "data.h5", BOMBS[bomb][0])
    done = python("-c", INFO, path)
    assert (done.returncode, done.stdout) == (65, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1 and str(path) in done.stderr


def test_what_a_small_file_does_hold_takes_no_more_than_allowed(tmp_path: Path) -> None:
    """--max-memory limits what is read from a file that is small only because it is compressed.

    One or two megabytes become a third of a gigabyte, and a quarter is available.
    """
    with h5py.File(tmp_path / "data.h5", "w") as file:
        ones = np.ones((250_000, 320), "u1")
        file.create_dataset(
            "X", data=ones, chunks=(4_000, 320), compression="gzip", compression_opts=1
        )
        file["y"] = np.zeros(250_000, "u1")
    assert os.path.getsize(tmp_path / "data.h5") < 2_000_000
    for allowed, told in ((1 << 25, "Streamed"), (1 << 30, "Unable to allocate 305. MiB")):
        done = python("-c", LOAD, tmp_path / "data.h5", str(allowed))
        assert told in done.stdout, done.stderr


@pytest.mark.parametrize("codec", ["gzip", "lzf", "none", "zstd"])
def test_constants_that_compress_well_are_no_bombs(codec: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"compression": codec} if codec in ("gzip", "lzf") else {}
    if codec == "zstd":
        how = dict(pytest.importorskip("hdf5plugin").Zstd())
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("X", data=np.zeros((20_000_000, 1), "u1"), chunks=(1 << 20, 1), **how)
        file["y"] = file.create_dataset(
            "z", data=np.ones(20_000_000, "i1"), chunks=(1 << 20,), **how
        )
    with hdf5.open_read(tmp_path / "data.h5") as file:
        assert file["X"].shape == (20_000_000, 1) and file["y"][-1] == 1


# Types, attributes, filters.


def typed(dtype: Any) -> Change:
    def change(file: h5py.File, folder: Path) -> None:
        del file["y"]
        file.create_dataset("y", (6,), dtype)

    return change


TYPES = {
    "texts": (h5py.string_dtype(), "'y': no row was ever written"),
    "short texts": ("S5", "'y': no row was ever written"),
    "references": (h5py.ref_dtype, "'y' holds object, expected numbers"),
    "regions": (h5py.regionref_dtype, "'y' holds object, expected numbers"),
    "lists": (h5py.vlen_dtype(np.int32), "'y' holds object, expected numbers"),
    "records": (
        [("a", "f8"), ("b", h5py.string_dtype())],
        "'y' is a table of records (fields a, b)",
    ),
    "arrays": (np.dtype("(3,)f8"), "'y' holds ('<f8', (3,)), expected numbers"),
    "opaque": ("V4", "'y' holds |V4, expected numbers"),
    "complex": ("c16", "'y' holds complex128, expected numbers"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_types_that_are_no_numbers(kind: str, tmp_path: Path) -> None:
    refused(data(tmp_path / "data.h5", typed(TYPES[kind][0])), TYPES[kind][1])


def test_a_dataset_without_a_shape(tmp_path: Path) -> None:
    refused(
        data(tmp_path / "data.h5", instead("y", lambda folder: h5py.Empty("f8"))),
        "'y' is empty: it has no shape",
    )


@pytest.mark.parametrize("value", [np.zeros(9000), np.array([[1, 2]] * 3000)])
def test_large_attributes(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["large"] = value
        file.attrs.create("lists", [np.arange(3), np.arange(2)], dtype=h5py.vlen_dtype(int))
        file.attrs["small"] = value[:3]
    with hdf5.open_read(path) as file:
        assert file.attrs["small"].shape == value[:3].shape and "none" not in file.attrs
        for name in ("large", "lists") if value.nbytes > safe_open.ATTRIBUTE else ("lists",):
            with pytest.raises(DataError, match="neither a text of fixed length nor a few numbers"):
                file.attrs[name]


PLUGIN = """
import os, sys
import h5py  # as in a notebook: before anything of ours could forbid plugins
if sys.argv[2] == "ours":
    sys.modules["hdf5plugin"] = None
    from mpigd.storage import hdf5
    with hdf5.open_read(sys.argv[1]) as file:
        file["X"]
else:
    with h5py.File(sys.argv[1]) as file:
        print(file["X"][0, 0])
"""


def test_no_filter_is_loaded_from_a_folder_of_plugins(tmp_path: Path) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="the extra [filters] is not installed")
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=X, chunks=X.shape, **hdf5plugin.Zstd())
    environment = {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH, "HDF5_PLUGIN_PRELOAD": ""}
    plainly = python("-c", PLUGIN, path, "plainly", env=environment)
    assert plainly.stdout == "0.0\n", "HDF5 itself would load it: " + plainly.stderr
    ours = python("-c", PLUGIN, path, "ours", env=environment)
    assert "'/X' is compressed with filter 32015, unknown here: pip install" in ours.stderr


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (str(tmp_path / "pipe.h5"), "/dev/zero"):
        with pytest.raises(DataError, match="is not a regular file"), hdf5.open_read(path):
            pass


def test_damage_of_a_sealed_file_is_found_before_hdf5_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.h5"
    with hdf5.create(path) as file:
        hdf5.write_array(file, "coef", np.ones(300))
        hdf5.seal(file)
    whole = path.read_bytes()
    monkeypatch.setattr(
        safe_open, "open_file", lambda path: pytest.fail("HDF5 has seen the damaged file")
    )
    for place in range(0, len(whole) - checksum.TRAILER_BYTES, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with (
            pytest.raises(DataError, match="damaged: its contents do not match their checksum"),
            hdf5.open_read(path),
        ):
            pass


# What we create.


def fits(folder: Path) -> None:
    """Every kind of file that the commands write, in `folder`."""
    table = folder / "table.csv"
    table.write_text("a,b,y\n" + "".join(f"{k},{k % 7},{k % 2}\n" for k in range(40)))
    mpigd.import_data(str(table), folder / "data.h5", target="y")
    model = mpigd.train(folder / "data.h5", loss="logistic", l2=0.1, log=str(folder / "log.jsonl"))
    model.save(str(folder / "model.h5"))
    files = [str(folder / "data.h5")]
    predict(
        model, files, Targets(str(folder / "out.h5"), str(folder / "out.csv")), Config(), SelfComm()
    )


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_user_gives_to_new_ones(
    mask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        fits(tmp_path)
    finally:
        os.umask(before)
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert made == dict.fromkeys(
        ["table.csv", "data.h5", "log.jsonl", "model.h5", "out.h5", "out.csv"], mode
    )


def test_temporary_names_are_new_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are not followed at a temporary name, nor at a final name.

    Somebody could put a link at the temporary name; a link at the final name is replaced.
    """
    victim, flags = tmp_path / "victim", []
    victim.write_text("mine")
    (tmp_path / "model.h5").symlink_to(victim)
    plainly = os.open

    def noted(path: Any, how: int, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".tmp") and how & os.O_ACCMODE:
            flags.append(how)
        return plainly(path, how, *rest, **more)

    monkeypatch.setattr(os, "open", noted)
    with hdf5.create(tmp_path / "model.h5") as file:
        hdf5.write_array(file, "coef", np.ones(3))
    assert victim.read_text() == "mine" and not (tmp_path / "model.h5").is_symlink()
    assert all(how & os.O_NOFOLLOW for how in flags) and flags[0] & os.O_EXCL, flags
    with (
        pytest.raises(StorageError, match="cannot be written"),
        hdf5.atomic_path(tmp_path / "x.csv") as temporary,
    ):
        os.unlink(temporary)
        os.symlink(victim, temporary)
        with open(temporary, "w", opener=hdf5.no_link):
            pass
    assert victim.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["model.h5", "victim"]


def test_what_is_renamed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synchronised first, then renamed, then its folder is synchronised.

    A host that loses power therefore shows the old file or the new one.
    """
    done, sync, rename = list[str](), hdf5.fsync, os.replace
    monkeypatch.setattr(
        hdf5,
        "fsync",
        lambda path: done.append("folder" if os.path.isdir(path) else "file") or sync(path),
    )
    monkeypatch.setattr(os, "replace", lambda *names: done.append("name") or rename(*names))
    with hdf5.create(tmp_path / "new.h5") as file:
        file["X"] = X
    assert done == ["file", "name", "folder"]


def test_files_are_read_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked, usual = data(tmp_path / "data.h5"), list[object](), h5py.File
    monkeypatch.setattr(
        safe_open.h5py,
        "File",
        lambda path, mode, **how: asked.append((mode, how)) or usual(path, mode, **how),
    )
    safe_open.open_file(path).close()
    assert asked == [("r", {"locking": False})]
