"""Unpack what gzip, bzip2, xz or zstd packed, piece by piece and within bounds."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from adapterx.errors import DataError, speaker

LARGEST_UNPACKED = 2**30  # bytes that are kept in memory: a packed file does not say beforehand how much is to come
BOMB = (64 * 2**20, 100)  # above so many bytes, no text is packed to less than a hundredth
CHUNK = 2**20
ZSTD_CHUNK = 2**10  # packed bytes at a time, of which zstd makes up to 32 MiB


def suffix_of(start: bytes) -> str | None:
    """Return how a file is packed that begins with these bytes, as the suffix of its usual name; None if it is not."""
    return next((suffix for magic, suffix in MAGIC.items() if start.startswith(magic)), None)


def unpacked(raw: bytes, name: str) -> bytes:
    """Return what packed bytes hold, whatever their file is called; others as they are.

    Raises:
        DataError: they are damaged, or hold more than fits a table, or zstd packed them and no library unpacks it.
    """
    if suffix_of(raw) is None:
        return raw
    content = bytearray()
    for piece in pieces(io.BytesIO(raw), name, size=len(raw)):
        content += piece
        if len(content) > LARGEST_UNPACKED:
            raise DataError(f"{speaker()}: {name} unpacks to more than {LARGEST_UNPACKED} bytes; unpack it first")
    return bytes(content)


def pieces(file: BinaryIO, name: str, *, size: int | None = None) -> Iterator[bytes]:
    """Read a file to its end, unpacked where it is packed, in pieces of at most some MiB.

    Args:
        file: at its beginning; with `peek`, or seekable.
        name: of the file, for messages.
        size: bytes of the file; None where it does not say, such as a pipe.

    Raises:
        DataError: as `unpacked`, but for the size.
    """
    counted = _Counted(file)
    start = counted.peek()
    suffix = suffix_of(start)
    total = 0
    try:
        for piece in READERS[suffix](counted, name):
            total += len(piece)
            if suffix is not None and total > max(BOMB[0], BOMB[1] * (counted.count if size is None else size)):
                raise DataError(f"{speaker()}: {name} unpacks to more than {BOMB[1]} times its size; unpack it first")
            yield piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError, _Damaged) as error:
        if suffix is None:
            raise
        raise DataError(f"{speaker()}: {name} is packed ({suffix}) and damaged: {error}") from None


class _Damaged(Exception):
    """What zstd packed is no whole frame."""


class _Counted:
    """A file that counts what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._ahead, self.count = file, b"", 0

    def peek(self) -> bytes:
        self._ahead = self._file.read(8)
        return self._ahead

    def read(self, size: int = CHUNK) -> bytes:
        ahead, self._ahead = self._ahead[:size], self._ahead[size:]
        content = ahead + (self._file.read(size - len(ahead)) if size > len(ahead) else b"")
        self.count += len(content)
        return content


def _plain(file: Any, name: str) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _by(opened: Callable[[Any], BinaryIO]) -> Callable[[Any, str], Iterator[bytes]]:
    def unpack(file: Any, name: str) -> Iterator[bytes]:
        with opened(file) as content:
            yield from _plain(content, name)

    return unpack


def _zstd(file: Any, name: str) -> Iterator[bytes]:
    frame, error_of_library = _zstd_library(name)
    current = None
    chunk = file.read(ZSTD_CHUNK)
    try:
        while chunk:
            current = current or frame()
            yield current.decompress(chunk)
            ahead = b""
            if current.eof:  # several frames one after the other are one content
                ahead, current = current.unused_data, None
            chunk = ahead or file.read(ZSTD_CHUNK)
    except error_of_library as error:
        raise _Damaged(str(error)) from None
    if current is not None:
        raise _Damaged("it ends in the middle of a frame")


def _zstd_library(name: str) -> tuple[Callable[[], Any], type[Exception]]:
    """Return what makes a reader of one frame, and what it raises: Python's own from 3.14 on, or zstandard's."""
    try:
        from compression import zstd

        return zstd.ZstdDecompressor, zstd.ZstdError
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{speaker()}: {name} is packed by zstd, which needs zstandard: pip install 'adapterx[zstd]', or unpack it "
            "with `zstd -d`"
        ) from None
    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError


MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
MAGIC |= {bytes([0x50 + i, 0x2A, 0x4D, 0x18]): ".zst" for i in range(16)}  # a frame that is skipped comes first
READERS: dict[str | None, Callable[[Any, str], Iterator[bytes]]] = {
    None: _plain,
    ".gz": _by(lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    ".bz2": _by(bz2.BZ2File),
    ".xz": _by(lzma.LZMAFile),
    ".zst": _zstd,
}
PACKED = tuple(suffix for suffix in READERS if suffix)


class PieceReader(io.RawIOBase):
    """A file that can only be read on, out of pieces of bytes."""

    def __init__(self, content: Iterator[bytes]) -> None:
        self._content, self._ahead = content, memoryview(b"")

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the next piece goes; 0 at the end."""
        while not self._ahead:
            piece = next(self._content, None)
            if piece is None:
                return 0
            self._ahead = memoryview(piece)
        count = min(len(buffer), len(self._ahead))
        buffer[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count
