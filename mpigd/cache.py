"""Where compiled kernels are kept: a private folder for this CPU, these versions and these sources.

Code compiled for another CPU, by another version, or placed there by somebody else is never loaded: the folder's name is a
hash of all that, and it must belong to this user and be closed to others. Call `prepare` before numba is imported.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sys
import tempfile
from importlib import import_module, metadata, util
from pathlib import Path

VARIABLE = "MPIGD_CACHE_DIR"


def prepare() -> Path:
    """Point numba to the cache folder, made if need be; a fresh temporary one if that cannot be trusted."""
    if "NUMBA_CPU_NAME" not in os.environ:  # first, for processes that this one starts are to take the same folder
        host = import_module("mpigd_kernels.host")  # only now: it loads LLVM
        os.environ.setdefault("NUMBA_CPU_FEATURES", host.features())
    folder = location()
    try:
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not private(part):
                raise PermissionError(part)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="mpigd-"))
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return folder


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
    base = os.environ.get(VARIABLE) or os.path.join(tempfile.gettempdir(), f"mpigd-cache-{os.getuid()}")
    return Path(base) / _key()


def private(folder: Path) -> bool:
    """A real folder of this user's that others may not write to."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _key() -> str:
    total = hashlib.sha256()
    total.update(_cpu().encode())
    total.update(sys.version.encode())
    for name in ("numba", "llvmlite", "numpy"):
        total.update(f"{name} {metadata.version(name)}\n".encode())
    spec = util.find_spec("mpigd_kernels")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


def _cpu() -> str:
    """Model and instruction sets, as the kernel tells them; what numba is told to compile for."""
    told = os.environ.get("NUMBA_CPU_NAME", "") + os.environ.get("NUMBA_CPU_FEATURES", "")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor() + told
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted))) + told
