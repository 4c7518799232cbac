"""Where compiled kernels are kept: a private folder for this CPU, these versions and these sources.

Code compiled for another CPU, by another version, or placed there by somebody else is never loaded: the folder's name is a
hash of all that, and it must belong to this user and be closed to others. Call `prepare` before numba is imported.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shlex
import sys
import tempfile
from importlib import import_module, metadata, util
from pathlib import Path

from mpigd.errors import StorageError, UsageError
from mpigd.parallel.working_directory import located

VARIABLE = "MPIGD_CACHE_DIR"
LINKS = 40  # one after the other, as the system follows them


def prepare() -> Path:
    """Point numba to the cache folder, made if need be; a fresh temporary one if that cannot be trusted."""
    check()
    if (
        "NUMBA_CPU_NAME" not in os.environ
    ):  # first, for processes that this one starts are to take the same folder
        host = import_module("mpigd_kernels.host")  # only now: it loads LLVM
        os.environ.setdefault("NUMBA_CPU_FEATURES", host.features())
    folder = location()
    try:
        for part in (folder.parent, folder):
            if make_private(part) is not None:
                raise PermissionError(part)
    except OSError:
        folder = _temporary()
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return folder


def _temporary() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="mpigd-"))
    except OSError as error:
        why = f"no folder for compiled kernels can be made ({error.strerror})"
        raise StorageError(f"{why}: set {VARIABLE} to one that you may write to") from error


def check() -> None:
    """UsageError where numba is told not to compile: the kernels are not Python, and use what numba alone provides."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("", "0"):
        raise UsageError(
            "NUMBA_DISABLE_JIT is set, but the kernels of mpigd have to be compiled: unset NUMBA_DISABLE_JIT"
        )


def import_lean() -> None:
    """Import numba without the scipy that it looks for: half a second and 300 modules a rank, for a BLAS never used here.

    For a process of our own only: numba would not find BLAS later, for a user's own compiled functions.
    """
    hidden = "scipy" not in sys.modules
    if hidden:
        sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import_module("numba.np.arraymath")  # where it looks
    finally:
        if hidden:
            del sys.modules["scipy"]


def location() -> Path:
    """The folder, once `prepare` was called: below $MPIGD_CACHE_DIR, or below the temporary folder, which is this host's own."""
    base = os.environ.get(VARIABLE) or os.path.join(
        tempfile.gettempdir(), f"mpigd-cache-{os.getuid()}"
    )
    return Path(located(base)).absolute() / _key()


def make_private(folder: Path) -> str | None:
    """Make the folder if need be, for this user alone; None, or what is wrong with one that is there, and what to do. OSError.

    Symbolic links lead to it only from folders that others may not write to: they could have it lead elsewhere at any time.
    """
    real, place = os.path.realpath(folder), folder
    for _ in range(LINKS):
        if not place.is_symlink():
            break
        holder = Path(os.path.realpath(place.parent))
        if not _closed(holder.stat(), {os.getuid(), 0}):
            return f"this link lies in {holder}, where others may write: name the folder that it leads to, {real}"
        place = holder / os.readlink(place)
    if os.path.lexists(real) and not os.path.isdir(real):  # a file, or links that lead in a circle
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), real)
    Path(real).mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.stat(real)
    if found.st_uid != os.getuid():
        return f"{real} is not yours: use another folder"
    if not _closed(found, {os.getuid()}):
        return f"others may write to this folder: chmod go-w {shlex.quote(real)}"
    return None


def _closed(found: os.stat_result, owners: set[int]) -> bool:
    return found.st_uid in owners and not found.st_mode & 0o022


def _key() -> str:
    total = hashlib.sha256()
    total.update(_cpu().encode())
    total.update(sys.version.encode())
    for name in ("numba", "llvmlite", "numpy"):
        total.update(f"{name} {metadata.version(name)}\n".encode())
    spec = util.find_spec("mpigd_kernels")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        total.update(_sources(Path(folder)))
    return total.hexdigest()[:16]


def _sources(folder: Path) -> bytes:
    """A hash of all Python files in a folder and its sub-folders, with their relative paths.

    Lengths are hashed too, so that no text can pass from the end of one file to the next.
    """
    total = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name in sorted(files):
        content = files[name].read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.digest()


def _cpu() -> str:
    """Model and instruction sets, as the kernel tells them; what numba is told to compile for."""
    told = os.environ.get("NUMBA_CPU_NAME", "") + os.environ.get("NUMBA_CPU_FEATURES", "")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor() + told
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted))) + told
