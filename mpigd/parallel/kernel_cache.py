"""The cache of compiled kernels: a private folder for one CPU, one set of versions and of sources.

The name of the folder is a hash of the CPU, of the versions of Python, numba, llvmlite and numpy,
and of the kernel sources, so that code that was compiled for something else is never loaded. The
folder must belong to this user, and no other user may write to it, since loading a compiled kernel
runs its code. Call `prepare` before numba is imported.
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
LINKS = 40  # maximal number of symbolic links in a chain; the limit of Linux


def prepare() -> Path:
    """Create the cache folder if necessary, point numba to it and return it.

    A folder that cannot be created or that others may write to is replaced by a new temporary one.
    """
    check()
    # This comes first, so that child processes inherit the features and compute the same folder.
    if "NUMBA_CPU_NAME" not in os.environ:
        host = import_module("mpigd_kernels.host")  # imported late, since it loads LLVM
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
    """Raise UsageError if numba is configured not to compile.

    The kernels cannot run as Python code, since they use intrinsics of numba.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("", "0"):
        raise UsageError(
            "NUMBA_DISABLE_JIT is set, but the kernels of mpigd have to be compiled: "
            "unset NUMBA_DISABLE_JIT"
        )


def import_lean() -> None:
    """Import numba while scipy is hidden from it.

    numba imports scipy for its BLAS, which mpigd never uses; this saves half a second and 300
    modules per rank. Only mpigd's own commands may call this function: in a user's process numba
    would not find BLAS for the user's own compiled functions.
    """
    hidden = "scipy" not in sys.modules
    if hidden:
        sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import_module("numba.np.arraymath")  # the module that imports scipy
    finally:
        if hidden:
            del sys.modules["scipy"]


def location() -> Path:
    """Return the cache folder; valid after a call of `prepare`.

    It is below $MPIGD_CACHE_DIR, or below the temporary folder, which is local to the host.
    """
    base = os.environ.get(VARIABLE) or os.path.join(
        tempfile.gettempdir(), f"mpigd-cache-{os.getuid()}"
    )
    return Path(located(base)).absolute() / _key()


def make_private(folder: Path) -> str | None:
    """Create a folder for this user alone, or check an existing one.

    Parameters
    ----------
    folder : Path
        The folder. It may be a symbolic link, if only this user or root may write to the folder
        that holds the link: others could redirect it at any time.

    Returns
    -------
    str or None
        None if the folder is private; otherwise a text that says what is wrong and what to do.

    Raises
    ------
    OSError
        If the folder cannot be created.
    """
    real, place = os.path.realpath(folder), folder
    for _ in range(LINKS):
        if not place.is_symlink():
            break
        holder = Path(os.path.realpath(place.parent))
        if not _closed(holder.stat(), {os.getuid(), 0}):
            return (
                f"this link lies in {holder}, where others may write: "
                f"name the folder that it leads to, {real}"
            )
        place = holder / os.readlink(place)
    if os.path.lexists(real) and not os.path.isdir(real):  # a file, or a circle of links
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
    """Return a hash of all Python files in a folder and its sub-folders, with their relative paths.

    Their lengths are hashed too, so that moving text from the end of one file to the beginning of
    the next changes the hash.
    """
    total = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name in sorted(files):
        content = files[name].read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.digest()


def _cpu() -> str:
    """Return model and instruction sets by /proc/cpuinfo, and the CPU that numba is set to use."""
    told = os.environ.get("NUMBA_CPU_NAME", "") + os.environ.get("NUMBA_CPU_FEATURES", "")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor() + told
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted))) + told
