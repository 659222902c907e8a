# SPDX-License-Identifier: BSD-3-Clause
"""Unpack the payload of a bzImage on the host, which is faster than letting the guest do it.

The libraries for it are written in C and may have memory bugs, so this runs in a process of its
own: see ``parse.py``.

The kernel build compresses ``vmlinux`` with one of seven tools and appends the unpacked size in
four bytes (``size_append`` in scripts/Makefile.lib; for gzip these are the tool's own ISIZE). We
unpack six of the seven formats; the guest unpacks a kernel of any other format itself.
"""

from __future__ import annotations

import os

from kernel_loader.image import MAX_UNPACKED_BYTES
from sys_util.errors import ConfigError, raise_host_error
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol, TypeAlias

    class _Decompressor(Protocol):
        """What ``lzma`` and ``bz2`` decompressors have in common."""

        @property
        def eof(self) -> bool: ...

        @property
        def needs_input(self) -> bool: ...

        def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...

    Unpacker: TypeAlias = "Callable[[memoryview], Iterator[bytes]]"

_CHUNK_BYTES: Final = 1 << 20
# Unpacking needs memory mainly for the dictionary, which has up to 128 MiB for a kernel.
_DICTIONARY_LIMIT_BYTES: Final = 256 << 20
_LZ4_LEGACY_BLOCK_BYTES: Final = 8 << 20
_LZ4_LEGACY_MAGIC: Final = 0x184C2102
SIZE_APPENDED_BYTES: Final = 4
FORMAT_BYTES: Final = 8  # enough to recognize every format


class _CorruptError(Exception):
    """The compressed data is damaged. The text of the error is the reason."""


def payload_format(payload: memoryview | bytes) -> str:
    """Return the name of the compression of ``payload``, or "" if it is unknown."""
    head = bytes(payload[:FORMAT_BYTES])
    return next((name for magic, name, _ in _FORMATS if head.startswith(magic)), "")


def import_format(head: bytes) -> None:
    """Import the module that unpacks a payload that begins with ``head``."""
    module = _MODULES.get(payload_format(head))
    if module is not None:
        __import__(module)


def unpack_payload(what: str, payload: memoryview, fd: int) -> int:
    """Unpack ``payload``, whose format must be known, into the file ``fd``; return the new size.

    Raises:
        ConfigError: the payload is damaged, or does not have the size that it claims.
        HostError: the file cannot be written.
    """
    name = payload_format(payload)
    unpacker = next(unpacker for _, known, unpacker in _FORMATS if known == name)
    if len(payload) < 2 * SIZE_APPENDED_BYTES:
        raise ConfigError(f"{what}: {name} payload of {len(payload):#x} bytes is truncated")
    expected = int.from_bytes(payload[-SIZE_APPENDED_BYTES:], "little")
    if not 0 < expected <= MAX_UNPACKED_BYTES:
        raise ConfigError(
            f"{what}: {name} payload claims {expected:#x} unpacked bytes, "
            f"at most {MAX_UNPACKED_BYTES:#x} are accepted"
        )
    try:
        done = 0
        for chunk in unpacker(payload):
            if done + len(chunk) > expected:
                raise _CorruptError(f"more than the {expected:#x} bytes it claims")
            _write(what, fd, chunk, done)
            done += len(chunk)
        if done != expected:
            raise _CorruptError(f"{done:#x} bytes where it claims {expected:#x}")
    except _CorruptError as error:
        raise ConfigError(f"{what}: corrupt {name} payload: {error}") from None
    return expected


def _write(what: str, fd: int, chunk: bytes, offset: int) -> None:
    data = memoryview(chunk)
    while data:
        try:
            count = os.pwrite(fd, data, offset)
        except OSError as error:
            raise_host_error("write", f"what is unpacked of {what}", error)
        data, offset = data[count:], offset + count


def _unpack_gzip(payload: memoryview) -> Iterator[bytes]:
    import zlib

    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    at = 0
    try:
        while not decompressor.eof:
            # The pieces are small because zlib copies the part of a piece that it did not use.
            piece: memoryview | bytes = decompressor.unconsumed_tail
            if not piece:
                piece = payload[at : at + _CHUNK_BYTES // 4]
                at += len(piece)
            chunk = decompressor.decompress(piece, _CHUNK_BYTES)
            if not chunk and not piece:
                raise _CorruptError("the data ends too early")
            yield chunk
    except zlib.error as error:
        raise _CorruptError(str(error)) from error


def _unpack_stream(decompressor: _Decompressor, payload: memoryview) -> Iterator[bytes]:
    at = 0
    while not decompressor.eof:
        piece = b""
        if decompressor.needs_input:
            piece = bytes(payload[at : at + _CHUNK_BYTES])
            if not piece:
                raise _CorruptError("the data ends too early")
            at += len(piece)
        yield decompressor.decompress(piece, _CHUNK_BYTES)


def _unpack_lzma(payload: memoryview) -> Iterator[bytes]:
    # FORMAT_AUTO accepts .xz, with the x86 filter that the kernel uses, and .lzma, whose header
    # does not contain the size here.
    import lzma

    try:
        yield from _unpack_stream(
            lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_DICTIONARY_LIMIT_BYTES), payload
        )
    except lzma.LZMAError as error:
        raise _CorruptError(str(error)) from error


def _unpack_bzip2(payload: memoryview) -> Iterator[bytes]:
    import bz2

    try:
        yield from _unpack_stream(bz2.BZ2Decompressor(), payload)
    except OSError as error:
        raise _CorruptError(str(error)) from error


def _unpack_lz4(payload: memoryview) -> Iterator[bytes]:
    """Unpack the legacy frame format: a magic number, then blocks, each after its packed size.

    The unpacked size at the end would look like one more block size, so we stop before the last
    four bytes.
    """
    import lz4.block

    at, end = 4, len(payload) - SIZE_APPENDED_BYTES
    while at < end:
        packed_bytes = int.from_bytes(payload[at : at + 4], "little")
        at += 4
        if packed_bytes == _LZ4_LEGACY_MAGIC:  # another frame, as ``cat a.lz4 b.lz4`` makes
            continue
        if at + packed_bytes > end:
            raise _CorruptError(f"a block of {packed_bytes:#x} bytes runs over the end")
        try:
            yield lz4.block.decompress(
                payload[at : at + packed_bytes], uncompressed_size=_LZ4_LEGACY_BLOCK_BYTES
            )
        except lz4.block.LZ4BlockError as error:
            raise _CorruptError(str(error)) from error
        at += packed_bytes


def _unpack_zstd(payload: memoryview) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY_LIMIT_BYTES)
    try:
        # Without the unpacked size at the end, which zstd would take for the next frame.
        stream = payload[:-SIZE_APPENDED_BYTES]
        with decompressor.stream_reader(stream, read_size=_CHUNK_BYTES) as reader:
            while chunk := reader.read(_CHUNK_BYTES):
                yield chunk
    except zstandard.ZstdError as error:
        raise _CorruptError(str(error)) from error


# Not lzo: none of our dependencies unpacks it, and no distribution uses it.
_FORMATS: Final[tuple[tuple[bytes, str, Unpacker], ...]] = (
    (b"\x1f\x8b", "gzip", _unpack_gzip),
    (b"\xfd7zXZ\0", "xz", _unpack_lzma),
    (b"\x5d\0\0", "lzma", _unpack_lzma),
    (b"BZh", "bzip2", _unpack_bzip2),
    (b"\x02\x21\x4c\x18", "lz4", _unpack_lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _unpack_zstd),
)

_MODULES: Final = {
    "gzip": "zlib",
    "xz": "lzma",
    "lzma": "lzma",
    "bzip2": "bz2",
    "lz4": "lz4.block",
    "zstd": "zstandard",
}
