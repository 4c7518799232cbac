"""Open raw files as streams of unpacked bytes, and turn errors of readers into one-line messages.

A packed file may consist of several packed pieces (gzip members, bz2 and xz streams, zstd frames).
Their contents are concatenated.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from mpigd.errors import DataError

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".zip")
CHUNK = 1 << 18  # packed bytes read at a time
FAULTS = (
    OSError,
    EOFError,
    UnicodeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
)


@contextmanager
def reading(path: str, after: Sequence[int] = ()) -> Iterator[None]:
    """Turn an error of a reader into a DataError of one line that names the file.

    Parameters
    ----------
    path : str
        The file.
    after : sequence of int
        If `after[0]` is positive, it is the number of rows read so far, which the message names.
        The caller may update it inside the context.
    """
    import pyarrow as pa

    try:
        yield
    except (*FAULTS, pa.ArrowException) as error:
        reason = (
            getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        )
        place = f"after row {after[0]}: " if after and after[0] else ""
        raise DataError(f"{path}: cannot be read: {place}{reason[:300]}") from error


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """Open a file as bytes, unpacked if its name ends in one of PACKED."""
    name = path.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive, archive.open(member(path, archive)) as packed:
            yield io.BufferedReader(packed)  # type: ignore[type-var]
        return
    make = next((make for suffix, make in DECODERS.items() if name.endswith(suffix)), None)
    with open(path, "rb") as raw:
        if make is not None:
            yield io.BufferedReader(Unpacked(raw, make), CHUNK)
        elif name.endswith((".zst", ".zstd")):
            yield _zstd(raw)
        else:
            yield raw


def _zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    # pyarrow's stream is not an io.RawIOBase, which BufferedReader needs; `_Readable` adapts it.
    return io.BufferedReader(
        _Readable(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")), CHUNK
    )


class _Readable(io.RawIOBase):
    """A pyarrow stream with the interface of a raw Python file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Inflate:
    """A decoder of one gzip member, with the interface of the decoders of bz2 and lzma."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)
        self._pending = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._decoder.decompress(self._pending + data, max_length)
        self._pending = self._decoder.unconsumed_tail
        return out

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._pending


class Unpacked(io.RawIOBase):
    """The concatenated contents of the packed pieces of `raw`.

    `make` creates a decoder for one piece. Python's own readers of bz2 and xz take bytes after a
    piece that do not begin a new one for the end of the file. So they lose rows silently if a piece
    is damaged. Here such bytes are an error, except for zeros, which pad a file to whole blocks.
    """

    def __init__(self, raw: BinaryIO, make: Callable[[], Any]) -> None:
        self._raw, self._make = raw, make
        self._decoder: Any = None
        self._rest = b""  # bytes that are read but not yet unpacked
        self._pieces = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decoder is None and not self._begin():
                return 0
            needed = self._decoder.needs_input and not self._rest
            data = self._raw.read(CHUNK) if needed else self._rest
            if needed and not data:
                raise EOFError("the packed data end too early: the file is not complete")
            self._rest = b""
            out = self._decoder.decompress(data, len(buffer))
            if self._decoder.eof:
                self._rest = self._decoder.unused_data
                self._decoder = None
            if out:
                buffer[: len(out)] = out
                return len(out)

    def _begin(self) -> bool:
        """Create the decoder of the next piece; return False at the end of the file."""
        self._rest = self._rest or self._raw.read(CHUNK)
        if self._pieces:
            while self._rest and not self._rest.strip(b"\0"):
                self._rest = self._raw.read(CHUNK)
            self._rest = self._rest.lstrip(b"\0")
        if not self._rest and self._pieces:
            return False
        self._decoder = self._make()
        self._pieces += 1
        return True


DECODERS = {
    ".gz": _Inflate,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}


def member(path: str, archive: zipfile.ZipFile) -> str:
    """Return the name of the only file in an archive.

    Raises DataError if there are several or if it is encrypted. `path` is for the message.
    """
    names = [
        name
        for name in archive.namelist()
        if not name.endswith("/") and not name.startswith("__MACOSX/")
    ]
    if len(names) != 1:
        raise DataError(f"{path}: holds {len(names)} files, expected one: unpack it and name them")
    if archive.getinfo(names[0]).flag_bits & 1:
        raise DataError(f"{path}: is protected by a password: unpack it and name the file in it")
    return names[0]


def unpacked_name(path: str) -> str:
    """Return a path without the ending of its compression."""
    suffix = next((suffix for suffix in PACKED if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(suffix)]
